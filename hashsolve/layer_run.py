"""One layer of a run: extract its inputs, sum, solve, judge and save."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hashsolve.activations import (
    BINARIZED,
    FULL,
    group_weights,
    layer_streams,
    layer_sums,
    write_activations,
)
from hashsolve.files import update
from hashsolve.instance import signs
from hashsolve.network import Layer, Network
from hashsolve.problem import Problem
from hashsolve.runfolder import RunFolder
from hashsolve.solution import Solution
from hashsolve.solver import solve
from hashsolve.sums import Sums
from hashsolve.threads import product


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


def layer_batches(
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


def do_layer(
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
