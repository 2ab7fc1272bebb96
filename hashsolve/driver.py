"""binarize: the layer-by-layer driver, on cached activations, with a run folder to resume from."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.activations import DTYPES
from hashsolve.control import EFFORTS
from hashsolve.files import digest, update
from hashsolve.layer_run import LayerResult, do_layer, layer_batches
from hashsolve.methods import METHODS
from hashsolve.network import Layer, Network, ResidualNetwork, select, units
from hashsolve.report import Report
from hashsolve.runfolder import RunFolder
from hashsolve.sums import PRECISIONS

PROPAGATIONS = ("asym", "symfp", "symqt")
logger = logging.getLogger("hashsolve")


@dataclass(frozen=True)
class Run:
    """A finished run: its layers, in order of execution, its report and its folder."""

    layers: list[LayerResult]
    report: Report
    run_dir: Path

    @property
    def relative_errors(self) -> dict[str, float]:
        """Σloss / Σenergy of each layer, by name."""
        return {result.name: result.relative_error for result in self.layers}

    @property
    def codes_sha256(self) -> str:
        """The SHA-256 of all codes."""
        return self.report.summary["codes_sha256"]

    def apply(self, network: Network) -> None:
        """Write every layer's codes × scales (and constants) into a network, or none of them."""
        written = []
        try:
            for result in self.layers:
                written.append(result)
                result.write(network)
        except BaseException:
            for result in written:
                for name in (result.name, *result.sharers):
                    network.write(name, network.weight(name))
            raise


def binarize(
    network: Network,
    calibration: Iterable[Any],
    run_dir: str | PathLike,
    method: str = "auto",
    effort: str = "default",
    propagation: str = "asym",
    resume: bool = True,
    *,
    skip: Iterable[str] = (),
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "double",
    residual: str | bool = False,
    intercept: str | bool = False,
    scale_group: int | None = None,
    fixed_scales: float | None = None,
    keep_activations: bool = False,
    client: Any = None,
    progress: Callable[[str, int, int, str], Any] | None = None,
) -> Run:
    """Binarise a network layer by layer: extract activations, sum, solve, write back.

    Parameters
    ----------
    network : Network
        An adapter; the network is rewritten in place. After an error its weights are restored.
    calibration : iterable of batches
        Gone through once a layer, so it must give the same batches each time.
    run_dir : path
        The run folder; an interrupted run in it is taken up where it was.
    method, effort, seed
        As in `solve`.
    propagation : {"asym", "symfp", "symqt"}
        "asym": targets from the full-precision network, inputs from the binarised prefix (BWNH,
        section 3.3); "symfp": full-precision inputs on both sides; "symqt": inputs from the
        binarised prefix on both sides.
    resume : bool
        Keep the layers that the folder holds; else start over.
    skip : iterable of str
        Layers to leave in full precision: whole dotted names or globs.
    dtype : {"float32", "float16", "float64"}
        Storage of the cached activations.
    precision : {"double", "single"}
        Of the products of which sums are made, which are float64: "single" takes about half the
        time for linear layers and convolutions that are summed by patches (`hashsolve.sums`).
    residual : {"auto", True, False}
        Whether a layer whose output is added to a shortcut also makes up for what the binarised
        shortcut lacks: its target is Y + (shortcut − binarised shortcut), in units of Y. "auto":
        with asym, wherever the network shows a shortcut (`ResidualNetwork`); True: an error where
        there is none. The report says which layers do.
    intercept : {False, "auto", True}
        Whether each filter also gets the best constant, in closed form, which the layer's bias or
        the normalisation behind it takes up. "auto": wherever something does; True: an error where
        nothing does.
    scale_group : int, optional
        One scale per so many consecutive inputs of a filter, instead of one a filter.
    fixed_scales : float, optional
        A scale that all filters are given instead (1: none at all, the paper's ablation).
    keep_activations : bool
        Keep each layer's cache file in ``run_dir/activations``.
    client : distributed.Client, optional
        Sum and solve on its workers (`hashsolve.cluster`), which must see ``run_dir``; not a bit
        differs.
    progress : callable, optional
        Called with (layer, index, count, what is being done).

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        For settings, calibration or layers that cannot be used, or a run folder of another run.
    RuntimeError
        Where a method ends worse than sign(W) with its best scale.
    """
    checks.choice(method, "method", METHODS)
    checks.choice(effort, "effort", EFFORTS)
    checks.choice(propagation, "propagation", PROPAGATIONS)
    checks.choice(dtype, "dtype", DTYPES)
    checks.choice(precision, "precision", PRECISIONS)
    seed = checks.whole(seed, "seed", 0)
    try:
        once = iter(calibration) is calibration
    except TypeError:
        raise ValueError(
            f"calibration: expected batches to go through, got {type(calibration).__name__}"
        ) from None
    if once:
        raise ValueError(
            "calibration: this iterator can be gone through only once, but each layer needs a "
            "pass; give a list, an array of batches or a loader"
        )
    first = next(iter(calibration), None)
    if first is None:
        raise ValueError("calibration: it holds no batches")
    layers = select(network.layers(first), skip)
    state = hashlib.sha256()
    for batch in calibration:  # one at a time: they need not fit in memory
        update(batch, state)
    data = state.hexdigest()
    settings = {
        "method": method,
        "effort": effort,
        "propagation": propagation,
        "seed": seed,
        "dtype": dtype,
        "precision": precision,
        "residual": _residual(network, layers, residual, propagation),
        "intercept": _intercept(layers, intercept),
        "scale_group": _scale_group(layers, scale_group),
        "fixed_scales": None
        if fixed_scales is None
        else checks.positive(fixed_scales, "fixed_scales"),
    }
    if scale_group is not None and fixed_scales is not None:
        raise ValueError("scale_group and fixed_scales: give one of them")
    weights = {layer.name: digest(network.weight(layer.name)) for layer in layers}
    fingerprints = {
        "weights": digest(weights, network.state()),
        "calibration data": data,
        "geometry": digest(
            [[layer.name, *map(str, _shape_of(layer))] for layer in layers],
        ),
        "settings": digest(settings),
    }
    begun = time.perf_counter()
    results: list[LayerResult] = []
    with RunFolder(run_dir) as folder:
        folder.begin(fingerprints, settings, resume)
        try:
            for result in _layer_results(
                network,
                calibration,
                layers,
                folder,
                data,
                settings,
                keep_activations,
                client,
                progress,
            ):
                results.append(result)  # before the write: what it may leave half done is restored
                result.write(network)
            seconds = time.perf_counter() - begun
            rows = [result.row for result in results]
            summary = _summary(results, settings, fingerprints, seconds)
            summary["remarks"] = list(getattr(network, "remarks", ()))
            report = Report(rows, summary)
            report.save(folder.path)
        except BaseException:
            # whatever happened, a half-binarised network is of no use to anyone
            for result in results:
                result.restore(network)
            raise
    return Run(results, report, folder.path)


def _shape_of(layer: Layer) -> tuple[Any, ...]:
    return layer.geometry, layer.shape, layer.calls, layer.shares, layer.shortcut, layer.constant


def _auto_or_bool(value: str | bool, name: str) -> None:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"{name}: {value!r} is not one of 'auto', True, False")


def _residual(
    network: Network, layers: list[Layer], residual: str | bool, propagation: str
) -> list[str]:
    """The layers whose targets make up for a shortcut."""
    _auto_or_bool(residual, "residual")
    if residual is True and propagation != "asym":
        raise ValueError(
            f"residual: with propagation {propagation!r} a target knows nothing of the binarised "
            "network; use 'asym'"
        )
    found = []
    if residual and propagation == "asym" and isinstance(network, ResidualNetwork):
        found = [layer.name for layer in layers if layer.shortcut and layer.calls == 1]
    if residual is True and not found:
        raise ValueError(
            "residual: the network shows no layer whose output is added to a shortcut; use 'auto', "
            "or name the shortcuts to the adapter"
        )
    return found


def _intercept(layers: list[Layer], intercept: str | bool) -> list[str]:
    """The layers whose filters get a constant."""
    _auto_or_bool(intercept, "intercept")
    if not intercept:
        return []
    found, without = [], []
    for unit in units(layers):
        takes = len(unit) == 1 and unit[0].constant is not None
        (found if takes else without).append(unit[0].name)
    if intercept is True and without:
        raise ValueError(
            f"intercept: layer {without[0]} has no bias of its own and no normalisation behind it "
            "that could take it up: add it to skip, give it a bias, or use intercept='auto'"
        )
    return found


def _scale_group(layers: list[Layer], group: int | None) -> int | None:
    """Inputs a scale, checked against every layer."""
    if group is None:
        return None
    group = checks.whole(group, "scale_group", 1)
    for layer in layers:
        if layer.fan_in % group:
            raise ValueError(
                f"scale_group: {group} does not divide the {layer.fan_in} inputs of layer "
                f"{layer.name}: choose a divisor, or add it to skip"
            )
    return group


def _layer_results(
    network: Network,
    calibration: Iterable[Any],
    layers: list[Layer],
    folder: RunFolder,
    data: str,
    settings: dict[str, Any],
    keep_activations: bool,
    client: Any,
    progress: Callable[[str, int, int, str], Any] | None,
) -> Iterator[LayerResult]:
    """Each layer, done or taken up; it must be written into the network before the next."""
    prefix = ""
    together = units(layers)
    for index, unit in enumerate(together):
        layer = unit[0]
        say = partial(progress or (lambda *_: None), layer.name, index, len(together))
        found = folder.load_layer(layer.name, prefix)
        if isinstance(found, str):
            if found:
                logger.warning("%s; layer %s is done again", found, layer.name)
            maps = layer_batches(network, calibration, data, unit, settings, index > 0)
            result = do_layer(
                network, maps, unit, folder, settings, prefix, keep_activations, client, say
            )
        else:
            say("resumed")
            sharers = tuple(member.name for member in unit[1:])
            result = LayerResult(layer, found[0], found[1]["row"], sharers)
        yield result
        solution = result.solution
        written = (solution.codes, solution.scales)
        if solution.intercept is not None:
            written += (solution.intercept,)
        prefix = digest(prefix, *written)


def _summary(
    results: list[LayerResult],
    settings: dict[str, Any],
    fingerprints: dict[str, str],
    seconds: float,
) -> dict[str, Any]:
    return {
        **settings,
        "layers": len(results),
        "mean_relative_error": float(np.mean([result.relative_error for result in results])),
        "bits_before": sum(result.row["bits_before"] for result in results),
        "bits_after": sum(result.row["bits_after"] for result in results),
        "seconds": round(seconds, 3),
        "codes_sha256": digest([result.row["codes_sha256"] for result in results]),
        "fingerprints": fingerprints,
        "versions": {
            package: version(package) for package in ("hashsolve", "numpy", "scipy", "numba")
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
