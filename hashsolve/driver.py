"""binarize: the layer-by-layer driver, on cached activations, with a run folder to resume from."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.activations import (
    BINARIZED,
    DTYPES,
    FULL,
    group_weights,
    layer_streams,
    layer_sums,
    write_activations,
)
from hashsolve.control import EFFORTS
from hashsolve.files import digest, update
from hashsolve.instance import signs
from hashsolve.methods import METHODS
from hashsolve.network import Layer, Network, select
from hashsolve.problem import Problem
from hashsolve.report import Report
from hashsolve.runfolder import RunFolder
from hashsolve.solution import Solution
from hashsolve.solver import solve
from hashsolve.sums import Sums
from hashsolve.threads import product

PROPAGATIONS = ("asym", "symfp", "symqt")
logger = logging.getLogger("hashsolve")


@dataclass(frozen=True)
class LayerResult:
    """One binarised layer.

    Attributes
    ----------
    layer : Layer
    solution : Solution
        Codes (S, T), T counting the filters of all groups, one after the other.
    row : dict
        Its row of the report.
    """

    layer: Layer
    solution: Solution
    row: dict[str, Any]

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @property
    def relative_error(self) -> float:
        """Σloss / Σenergy over the layer's filters."""
        return self.solution.relative_error

    @property
    def weight(self) -> np.ndarray:
        """codes × scales in the shape of the layer's weight."""
        return (self.solution.codes * self.solution.scales).T.reshape(self.layer.shape)


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
        """Write every layer's codes × scales into a network."""
        for result in self.layers:
            network.write(result.name, result.weight)


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
        Storage of the cached activations. Sums are float64.
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
    }
    weights = {layer.name: digest(network.weight(layer.name)) for layer in layers}
    fingerprints = {
        "weights": digest(weights, network.state()),
        "calibration data": data,
        "geometry": digest(
            [[layer.name, str(layer.geometry), str(layer.shape)] for layer in layers]
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
                network.write(result.name, result.weight)
            seconds = time.perf_counter() - begun
            rows = [result.row for result in results]
            report = Report(rows, _summary(results, settings, fingerprints, seconds))
            report.save(folder.path)
        except BaseException:
            # whatever happened, a half-binarised network is of no use to anyone
            for result in results:
                network.write(result.name, network.weight(result.name))
            raise
    return Run(results, report, folder.path)


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
    for index, layer in enumerate(layers):
        say = _announcer(progress, layer.name, index, len(layers))
        found = folder.load_layer(layer.name, prefix)
        if isinstance(found, str):
            if found:
                logger.warning("%s; layer %s is done again", found, layer.name)
            maps = _batches(network, calibration, data, layer, settings["propagation"], index > 0)
            result = _do_layer(
                network, maps, layer, folder, settings, prefix, keep_activations, client, say
            )
        else:
            say("resumed")
            result = LayerResult(layer, found[0], found[1]["row"])
        yield result
        prefix = digest(prefix, result.solution.codes, result.solution.scales)


def _announcer(
    progress: Callable[[str, int, int, str], Any] | None, name: str, index: int, count: int
) -> Callable[[str], Any]:
    return (
        (lambda what: None)
        if progress is None
        else (lambda what: progress(name, index, count, what))
    )


def _batches(
    network: Network,
    calibration: Iterable[Any],
    fingerprint: str,
    layer: Layer,
    propagation: str,
    any_binarized: bool,
) -> Iterator[dict[str, np.ndarray]]:
    """The layer's inputs, batch by batch, from the networks that the propagation asks for.

    Both networks see the same batch, so that rows match; before anything is binarised the two
    are one.
    """
    state = hashlib.sha256()
    for batch in calibration:
        update(batch, state)
        maps = {}
        if propagation != "symqt" or not any_binarized:
            maps[FULL] = network.layer_input(layer.name, batch, binarized=False)
        if propagation != "symfp" and any_binarized:
            maps[BINARIZED] = network.layer_input(layer.name, batch, binarized=True)
        yield maps
    if state.hexdigest() != fingerprint:
        raise ValueError(
            "calibration: this pass gave other batches than the first (shuffling or random "
            "augmentation?); give a list of batches, or a loader that repeats itself"
        )


def _do_layer(
    network: Network,
    maps: Iterator[dict[str, np.ndarray]],
    layer: Layer,
    folder: RunFolder,
    settings: dict[str, Any],
    prefix: str,
    keep_activations: bool,
    client: Any,
    say: Callable[[str], Any],
) -> LayerResult:
    """Extract, sum, solve and save one layer."""
    begun = time.perf_counter()
    say("extracting activations")
    cache = folder.activations_path(layer.name)
    write_activations(cache, maps, layer.geometry, settings["dtype"], layer.name)
    say("summing")
    full_weight = network.weight(layer.name)
    if client is None:
        with layer_streams(cache) as (inputs, reference):
            sums = layer_sums(inputs, full_weight, layer.geometry, reference, layer.name)
    else:
        from hashsolve import cluster

        sums = cluster.layer_sums(client, cache, full_weight, layer.geometry, layer.name)
    if not keep_activations:
        cache.unlink()
    say("solving")
    weights = group_weights(full_weight, layer.geometry)
    problems = [_live_problem(total, w) for total, w in zip(sums, weights, strict=True)]
    if not any(problems):
        raise ValueError(
            f"{layer.name}: its inputs or its outputs are zero on all calibration data; calibrate "
            "with other data, or add it to skip"
        )
    method, effort, seed = (settings[key] for key in ("method", "effort", "seed"))
    places = folder.save_problems(layer.name, problems)
    live = [problem for problem in problems if problem is not None]
    if client is None:
        solved = iter([solve(problem, method, effort, seed) for problem in live])
    else:
        solved = iter(cluster.solve(client, places, method, effort, seed))
    parts = [
        _without_data(total, w) if problem is None else next(solved)
        for problem, total, w in zip(problems, sums, weights, strict=True)
    ]
    solution = Solution.join(parts)
    sign_loss = 0.0
    for problem, part, w in zip(problems, parts, weights, strict=True):
        if problem is not None:
            sign_loss += problem.loss(signs(w), np.abs(w).mean(axis=0)).sum()
            if method != "sign":
                _not_worse_than_sign(problem, part)
    row = _row(layer, sums[0].rows, solution, sign_loss, weights, time.perf_counter() - begun)
    folder.save_solution(layer.name, solution, {"prefix": prefix, "row": row})
    return LayerResult(layer, solution, row)


def _live_problem(sums: Sums, weights: np.ndarray) -> Problem | None:
    """The problem of one group; None where its inputs or its outputs are all zero."""
    gram = sums.finish().gram
    outputs = sums.energy if sums.energy.size else product(gram, weights)
    return Problem.from_sums(sums, weights) if gram.any() and outputs.any() else None


def _without_data(sums: Sums, weights: np.ndarray) -> Solution:
    """A group that the data say nothing of: sign(W) and mean |W|, or 0 where its target is 0."""
    energy = sums.energy if sums.energy.size else np.zeros(weights.shape[1])
    scales = np.zeros_like(energy) if sums.gram.any() else np.abs(weights).mean(axis=0)
    return Solution(
        signs(weights),
        scales,
        energy.copy(),
        energy,
        energy.copy(),
        method="sign",
        bound_name="no data",
    )


def _not_worse_than_sign(problem: Problem, solution: Solution) -> None:
    limit = problem.loss(signs(problem.weights))
    worse = solution.loss > limit + 1e-9 * problem.energy
    if worse.any():
        t = int(np.argmax(worse))
        raise RuntimeError(
            f"{problem.name}: method {solution.method!r} ended worse than sign(W) with its best "
            f"scale in column {t}: {solution.loss[t]:.6g} > {limit[t]:.6g}; this is a defect of "
            "the method"
        )


def _row(
    layer: Layer,
    rows: int,
    solution: Solution,
    sign_loss: float,
    weights: list[np.ndarray],
    seconds: float,
) -> dict[str, Any]:
    """The layer's row of the report."""
    energy = float(solution.energy.sum())
    return {
        "layer": layer.name,
        "shape": list(layer.shape),
        "groups": layer.geometry.groups,
        "rows": rows,
        "relative_error_sign": float(sign_loss) / energy,
        "relative_error": solution.relative_error,
        "lower_bound": float(solution.lower_bound.sum()) / energy,
        "flips": int((solution.codes != np.concatenate([signs(w) for w in weights], 1)).sum()),
        "sweeps": solution.sweeps,
        "status": solution.status.name,
        "seconds": round(seconds, 3),
        "bits_before": solution.codes.size * layer.bits,
        "bits_after": solution.codes.size + solution.scales.size * layer.bits,
        "codes_sha256": solution.codes_sha256,
    }


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
