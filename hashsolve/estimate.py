"""What a binarisation will need, told before it is begun: rows, disk and memory of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.filesize import decimal

from hashsolve import checks
from hashsolve.activations import DTYPES
from hashsolve.cluster import APART
from hashsolve.instance import LARGE
from hashsolve.network import Layer, Network, select, units

MEMORY = 384 * 2**20
"""Bytes that libraries and blocks of rows take, whatever the layer and the number of rows."""
SMALL_COPIES, LARGE_COPIES = (2, 7), (1, 3)
"""Matrices of the size of H that solving needs beside it, at most at one time: by methods that
prove nothing (`hashsolve.cluster.APART`), and by all others. The second pair is for more inputs
than `hashsolve.instance.LARGE`, where factors lie in one another's place, or in that of H."""


@dataclass(frozen=True)
class Estimate:
    """What each layer and the whole run need.

    Attributes
    ----------
    rows : list of dict
        One a layer: ``layer``, ``shape``, ``groups``; ``inputs`` and ``columns`` of a group;
        ``rows`` summed; bytes of the ``activations`` file, of the ``sums`` file that stays, and
        of ``memory`` beside the network itself.
    disk : int
        Bytes on disk at most at one time.
    memory : int
        Bytes of memory at most at one time.
    """

    rows: list[dict[str, Any]]
    disk: int
    memory: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"disk": self.disk, "memory": self.memory, "layers": self.rows}

    def __str__(self) -> str:
        width = max(len(row["layer"]) for row in self.rows)
        lines = [f"{'layer':<{width}}  {'shape':>16}{'rows':>13}{'activations':>13}{'sums':>10}"]
        lines[0] += f"{'memory':>10}"
        for row in self.rows:
            shape = "x".join(map(str, row["shape"]))
            sizes = [decimal(row[name]) for name in ("activations", "sums", "memory")]
            lines.append(
                f"{row['layer']:<{width}}  {shape:>16}{row['rows']:>13,}"
                f"{sizes[0]:>13}{sizes[1]:>10}{sizes[2]:>10}"
            )
        lines.append(
            f"at most {decimal(self.disk)} of disk and {decimal(self.memory)} of memory "
            "beside the network; nothing was written"
        )
        return "\n".join(lines)


def estimate(
    network: Network,
    calibration: Iterable[Any],
    propagation: str = "asym",
    method: str = "auto",
    *,
    skip: Iterable[str] = (),
    dtype: str = "float32",
    residual: str | bool = False,
    keep_activations: bool = False,
) -> Estimate:
    """What `hashsolve.binarize` with these arguments needs, from the shapes of one batch.

    Each layer sees one batch of the full-precision network; nothing is written.

    Parameters
    ----------
    network, calibration, propagation, method, skip, dtype, residual, keep_activations
        As in `hashsolve.binarize`.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        As `hashsolve.binarize`, for layers that cannot be used and calibration without batches.
    """
    checks.choice(dtype, "dtype", DTYPES)
    batches = iter(calibration)
    first = next(batches, None)
    if first is None:
        raise ValueError("calibration: it holds no batches")
    layers = select(network.layers(first), skip)
    share = (_length(first) + sum(map(_length, batches))) / _length(first)
    rows = []
    proves = method not in APART
    for index, unit in enumerate(units(layers)):
        asym = propagation == "asym" and index > 0
        shift = asym and bool(residual) and bool(unit[0].shortcut)
        calls = []
        for layer in unit:
            found = network.layer_input(layer.name, first, binarized=False)
            found = found if isinstance(found, (list, tuple)) else [found]
            calls += [(layer, layer.geometry.samples(np.asarray(maps))) for maps in found]
        rows.append(_row(calls, share, asym, shift, dtype, proves))
    activations = [row["activations"] for row in rows]
    disk = sum(activations) if keep_activations else max(activations)
    disk += sum(row["sums"] for row in rows)
    return Estimate(rows, disk, max(row["memory"] for row in rows))


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
) -> dict[str, Any]:
    layer = calls[0][0]
    groups, inputs, columns = layer.geometry.groups, layer.fan_in, layer.shape[0]
    columns //= groups
    counts = [call.geometry.rows(maps.shape) for call, maps in calls]
    numbers = sum(maps.size for _, maps in calls) * (2 if asym else 1)
    numbers += counts[0] * layer.shape[0] if shift else 0
    copies = (LARGE_COPIES if inputs > LARGE else SMALL_COPIES)[proves]
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
        "memory": sums + 8 * (copies * inputs**2 + 7 * inputs * columns) + MEMORY,
    }
