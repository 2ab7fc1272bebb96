"""What a binarisation will need, told before it is begun: rows, disk and memory of each layer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from rich.filesize import decimal

from hashsolve.cluster import APART
from hashsolve.instance import LARGE as LARGE_GRAM
from hashsolve.lags import SPECTRA
from hashsolve.network import Layer, Network, calls_of, units
from hashsolve.plan import make_plan
from hashsolve.problem import Problem
from hashsolve.runfolder import RunFolder
from hashsolve.solver import solve

MEMORY = 384 * 2**20
"""Bytes that libraries and blocks of rows take, whatever the layer and the number of rows."""
SMALL_COPIES, LARGE_COPIES = (2, 7), (1, 1.5)
"""Matrices of the size of H that solving needs beside it, at most at one time: by methods that
prove nothing (`hashsolve.cluster.APART`), and by all others. The second pair is for more inputs
than `hashsolve.instance.LARGE` at scales that are found, where factors lie in one another's place,
or in that of H."""
SMALL, LARGE, COLUMNS = 48, 144, 8
"""Inputs and columns of the problems that `Speed` is measured on."""


@dataclass(frozen=True)
class Estimate:
    """What each layer and the whole run need.

    Attributes
    ----------
    rows : list of dict
        One a layer: ``layer``, ``shape``, ``groups``; ``inputs`` and ``columns`` of a group;
        ``rows`` summed; bytes of the ``activations`` file, of the ``sums`` file that stays, and
        of ``memory`` beside the network itself; ``seconds``, roughly.
    disk : int
        Bytes on disk at most at one time.
    memory : int
        Bytes of memory at most at one time.
    seconds : float or None
        Of the whole run, roughly; None where it was not asked for, and for "exact".
    """

    rows: list[dict[str, Any]]
    disk: int
    memory: int
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        totals = {"disk": self.disk, "memory": self.memory, "seconds": self.seconds}
        return {**totals, "layers": self.rows}

    def __str__(self) -> str:
        width = max(len(row["layer"]) for row in self.rows)
        lines = [f"{'layer':<{width}}  {'shape':>16}{'rows':>13}{'activations':>13}{'sums':>10}"]
        lines[0] += f"{'memory':>10}{'time':>9}"
        for row in self.rows:
            shape = "x".join(map(str, row["shape"]))
            sizes = [decimal(row[name]) for name in ("activations", "sums", "memory")]
            lines.append(
                f"{row['layer']:<{width}}  {shape:>16}{row['rows']:>13,}"
                f"{sizes[0]:>13}{sizes[1]:>10}{sizes[2]:>10}{_about(row['seconds']):>9}"
            )
        lines.append(
            f"at most {decimal(self.disk)} of disk and {decimal(self.memory)} of memory "
            f"beside the network; time: {_about(self.seconds)}; nothing was written"
        )
        return "\n".join(lines)


def estimate(
    network: Network,
    calibration: Iterable[Any],
    run_dir: str | PathLike | None = None,
    method: str = "auto",
    effort: str = "default",
    propagation: str = "asym",
    resume: bool = True,
    *,
    keep_activations: bool = False,
    timed: bool = False,
    **settings: Any,
) -> Estimate:
    """What `hashsolve.binarize` with these arguments needs; nothing is written.

    Each layer sees one batch of the full-precision network. All is refused that a run would refuse
    before its first layer.

    Parameters
    ----------
    network, calibration, method, effort, propagation, resume, keep_activations, **settings
        As in `hashsolve.binarize`.
    run_dir : path, optional
        Also refused where a run could not use it.
    timed : bool
        Also estimate seconds: by that one pass, by sums over random numbers and by solving two
        small random problems, here and now. They tell minutes from hours, not more.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        As `hashsolve.binarize`.
    """
    plan = make_plan(network, calibration, method, effort, propagation, **settings)
    if run_dir is not None:
        with RunFolder(run_dir) as folder:
            folder.check(plan.fingerprints, plan.settings, resume)
    batches = iter(calibration)
    first = next(batches)
    share = (_length(first) + sum(map(_length, batches))) / _length(first)
    speed = Speed.measured(method, effort) if timed else None
    rows = []
    proves = method not in APART
    free = plan.settings["fixed_scales"] is None
    for index, unit in enumerate(units(plan.layers)):
        asym = propagation == "asym" and index > 0
        calls: list[tuple[Layer, np.ndarray]] = []
        begun = time.perf_counter()
        for layer in unit:
            found = calls_of(network.layer_input(layer.name, first, binarized=False))
            calls += [(layer, layer.geometry.samples(maps)) for maps in found]
        passes = (time.perf_counter() - begun) * share * (2 if asym else 1)
        shift = asym and unit[0].name in plan.settings["residual"]
        row = _row(calls, share, asym, shift, plan.settings["dtype"], proves, free)
        row["seconds"] = None if speed is None else speed.seconds(row, passes, asym)
        rows.append(row)
    activations = [row["activations"] for row in rows]
    disk = sum(activations) if keep_activations else max(activations)
    disk += sum(row["sums"] for row in rows)
    known = [row["seconds"] for row in rows if row["seconds"] is not None]
    seconds = sum(known) if len(known) == len(rows) else None
    return Estimate(rows, disk, max(row["memory"] for row in rows), seconds)


@dataclass(frozen=True)
class Speed:
    """How fast this machine sums and solves.

    Attributes
    ----------
    product : float
        Seconds of one multiplication within the sums.
    column : float or None
        Seconds of a column of `LARGE` inputs, all cores being at it; None: cannot be told.
    exponent : float
        Of the number of inputs, from `SMALL` to `LARGE`; beyond, it is 1 at least.
    """

    product: float
    column: float | None
    exponent: float

    @classmethod
    def measured(cls, method: str, effort: str) -> Speed:
        """Sum random numbers, and solve two random problems."""
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(LARGE, 4_000)), rng.normal(size=(LARGE, COLUMNS))
        Problem.from_arrays(x[:, :9], w)  # compiles what it needs
        begun = time.perf_counter()
        Problem.from_arrays(x, w)
        product = (time.perf_counter() - begun) / (x.size * LARGE)
        if method == "exact":
            return cls(product, None, 0.0)
        times = []
        for inputs in (SMALL, SMALL, LARGE):  # the first time, it is compiled
            problem = Problem.from_arrays(np.maximum(x[:inputs], 0), w[:inputs])
            begun = time.perf_counter()
            solve(problem, method, effort)
            times.append((time.perf_counter() - begun) / COLUMNS)
        exponent = math.log(times[2] / times[1]) / math.log(LARGE / SMALL)
        return cls(product, times[2], min(max(exponent, 0.0), 3.0))

    def seconds(self, row: Mapping[str, Any], passes: float, asym: bool) -> float | None:
        """Of a layer: passes, sums, solving."""
        if self.column is None:
            return None
        inputs, columns, groups = row["inputs"], row["columns"], row["groups"]
        products = row["rows"] * groups * inputs * (inputs + 2 * columns * asym)
        exponent = max(self.exponent, 1.0) if inputs > LARGE else self.exponent
        solving = self.column * (inputs / LARGE) ** exponent * columns * groups
        return round(passes + self.product * products + solving, 3)


def _about(seconds: float | None) -> str:
    """A time to two figures: "~0.5 s", "~12 min", "~3.4 h"."""
    if seconds is None:
        return "unknown"
    size, unit = next((s, u) for s, u in ((3600, "h"), (60, "min"), (0, "s")) if seconds >= 2 * s)
    value = seconds / (size or 1)
    return f"~{value:.0f} {unit}" if value >= 9.5 else f"~{value:.1f} {unit}"


def _length(batch: Any) -> int:
    """Samples of a batch, however that holds its inputs."""
    if isinstance(batch, Mapping):
        batch = next(iter(batch.values()))
    elif isinstance(batch, (list, tuple)):
        batch = batch[0]
    return len(batch)


def _row(
    calls: list[tuple[Layer, np.ndarray]],
    share: float,
    asym: bool,
    shift: bool,
    dtype: str,
    proves: bool,
    free: bool,
) -> dict[str, Any]:
    layer = calls[0][0]
    groups, inputs, columns = layer.geometry.groups, layer.fan_in, layer.shape[0]
    columns //= groups
    counts = [call.geometry.rows(maps.shape) for call, maps in calls]
    numbers = sum(maps.size for _, maps in calls) * (2 if asym else 1)
    numbers += counts[0] * layer.shape[0] if shift else 0
    large = inputs > LARGE_GRAM
    copies = (LARGE_COPIES if large and free else SMALL_COPIES)[proves]
    solving = int(8 * (copies * inputs**2 + 7 * inputs * columns))
    spectra = 0 if layer.geometry.linear else 8 * SPECTRA  # dropped before large layers are solved
    sums = 8 * groups * (inputs**2 + 2 * inputs * columns)
    return {
        "layer": layer.name,
        "shape": list(layer.shape),
        "groups": groups,
        "inputs": inputs,
        "columns": columns,
        "rows": sum(
            round(len(maps) * share) * (count // len(maps))
            for (_, maps), count in zip(calls, counts, strict=True)
        ),
        "activations": round(numbers * share) * np.dtype(dtype).itemsize,
        "sums": sums,
        # of one group while it is solved, beside the sums and weights of all
        "memory": sums + (max(solving, spectra) if large else solving + spectra) + MEMORY,
    }
