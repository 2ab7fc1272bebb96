"""One layer of a run: extract its inputs, sum, solve, judge and save."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hashsolve.activations import (
    BINARIZED,
    FULL,
    SHIFT,
    calls_sums,
    group_weights,
    layer_streams,
    stream,
    write_activations,
)
from hashsolve.files import update
from hashsolve.instance import LARGE, signs
from hashsolve.network import Layer, Network, ResidualNetwork, calls_of
from hashsolve.problem import Problem
from hashsolve.runfolder import RunFolder
from hashsolve.solution import Solution
from hashsolve.solver import solve
from hashsolve.spectra import forget
from hashsolve.sums import Sums
from hashsolve.threads import product


@dataclass(frozen=True, repr=False)
class LayerResult:
    """One binarised layer.

    Attributes
    ----------
    layer : Layer
    solution : Solution
        Codes (S, T), T counting the filters of all groups, one after the other.
    row : dict
        Its row of the report.
    sharers : tuple of str
        The names of later layers that hold the same weight.
    """

    layer: Layer
    solution: Solution
    row: dict[str, Any]
    sharers: tuple[str, ...] = ()

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
        """Codes × scales in the shape of the layer's weight."""
        return self.solution.weight.T.reshape(self.layer.shape)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.layer.shape))
        return f"LayerResult({self.name}, {shape}, relative error {self.relative_error:.4f})"

    def write(self, network: Network) -> None:
        """Put codes × scales, and the constants where there are any, into a network.

        Parameters
        ----------
        network : Network
        """
        constant = self.solution.intercept
        more = {} if constant is None else {"constant": constant}
        for name in (self.name, *self.sharers):
            network.write(name, self.weight, **more)

    def restore(self, network: Network) -> None:
        """Put the full-precision weight back into the network that `write` was given.

        Parameters
        ----------
        network : Network
        """
        for name in (self.name, *self.sharers):
            network.write(name, network.weight(name))


def layer_batches(
    network: Network | ResidualNetwork,
    calibration: Iterable[Any],
    fingerprint: str,
    unit: Sequence[Layer],
    settings: dict[str, Any],
    any_binarized: bool,
) -> Iterator[dict[str, np.ndarray]]:
    """What is cached of the layers that share a weight, batch by batch: their inputs from the
    networks that the propagation asks for, and what their targets are to make up for.

    Both networks see the same batch, so that rows match; before anything is binarised the two
    are one.
    """
    state = hashlib.sha256()
    propagation = settings["propagation"]
    kinds = {
        FULL: propagation != "symqt" or not any_binarized,
        BINARIZED: propagation != "symfp" and any_binarized,
    }
    for batch in calibration:
        update(batch, state)
        maps: dict[str, np.ndarray] = {}
        first = 0
        for layer in unit:
            shift: Any = 0.0
            aware = any_binarized and layer.name in settings["residual"]
            for kind in (kind for kind, wanted in kinds.items() if wanted):
                binarized = kind == BINARIZED
                for call, found in enumerate(layer_calls(network, layer, batch, binarized)):
                    maps[stream(kind, first + call)] = found
                if aware and isinstance(network, ResidualNetwork):
                    added = network.shortcut(layer.name, batch, binarized=binarized)
                    added = np.asarray(added, dtype=np.float64)
                    shift = shift - added if binarized else added  # full precision comes first
            if aware:
                maps[stream(SHIFT, first)] = shift
            first += layer.calls
        yield maps
    if state.hexdigest() != fingerprint:
        raise ValueError(
            "calibration: this pass gave other batches than the first (shuffling or random "
            "augmentation?); give a list of batches, or a loader that repeats itself"
        )


def layer_calls(network: Network, layer: Layer, batch: Any, binarized: bool) -> list[np.ndarray]:
    """The inputs of each call of a layer, for one batch."""
    calls = calls_of(network.layer_input(layer.name, batch, binarized=binarized))
    if len(calls) != layer.calls:
        raise ValueError(
            f"layer {layer.name} is reached {len(calls)} times by one batch and {layer.calls} "
            "times by the first: add it to skip"
        )
    for call in calls:
        if not hasattr(call, "shape") or np.asarray(call).dtype.hasobject:
            raise ValueError(f"layer {layer.name}: layer_input() gave no array of numbers")
    return calls


def same_inputs(network: Network, reference: Network, layer: Layer, batch: Any) -> bool:
    """Whether one batch reaches a layer of a binarised network as in the full-precision one."""
    own = layer_calls(network, layer, batch, True)
    return all(map(np.array_equal, own, layer_calls(reference, layer, batch, False)))


def do_layer(
    network: Network,
    maps: Iterator[dict[str, np.ndarray]],
    unit: Sequence[Layer],
    folder: RunFolder,
    settings: dict[str, Any],
    prefix: str,
    keep_activations: bool,
    client: Any,
    say: Callable[[str], Any],
) -> LayerResult:
    """Extract, sum, solve and save one layer, with those that share its weight."""
    begun = time.perf_counter()
    layer = unit[0]
    say("extracting activations")
    cache = folder.activations_path(layer.name)
    geometries = [member.geometry for member in unit for _ in range(member.calls)]
    write_activations(cache, maps, geometries, settings["dtype"], layer.name)
    say("summing")
    full_weight = network.weight(layer.name)
    if client is None:
        with layer_streams(cache) as calls:
            sums = calls_sums(calls, full_weight, geometries, layer.name, settings["precision"])
    else:
        from hashsolve import cluster

        sums = cluster.layer_sums(
            client, cache, full_weight, geometries, layer.name, settings["precision"]
        )
    if not keep_activations:
        cache.unlink()
    if layer.fan_in > LARGE:
        forget()
    say("solving")
    weights = group_weights(full_weight, layer.geometry)
    variant = {name: settings[name] for name in ("scale_group", "fixed_scales")}
    variant["intercept"] = layer.name in settings["intercept"]
    problems = [_live_problem(total, w, variant) for total, w in zip(sums, weights, strict=True)]
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
        _without_data(total, w, variant) if problem is None else next(solved)
        for problem, total, w in zip(problems, sums, weights, strict=True)
    ]
    solution = Solution.join(parts)
    sign_loss = 0.0
    for problem, part, w in zip(problems, parts, weights, strict=True):
        if problem is not None:
            sign_loss += problem.loss(signs(w), _mean_magnitudes(w, variant)).sum()
            if method != "sign":
                _not_worse_than_sign(problem, w, part)
    row = _row(layer, sums[0].rows, solution, sign_loss, weights, time.perf_counter() - begun)
    row["calls"] = len(geometries)
    row["shortcut"] = layer.shortcut if layer.name in settings["residual"] else None
    row["constant"] = layer.constant if variant["intercept"] else None
    folder.save_solution(layer.name, solution, {"prefix": prefix, "row": row})
    return LayerResult(layer, solution, row, tuple(member.name for member in unit[1:]))


def _live_problem(sums: Sums, weights: np.ndarray, variant: dict[str, Any]) -> Problem | None:
    """The problem of one group; None where its inputs or its outputs are all zero."""
    gram = sums.finish().gram
    if not gram.any():
        return None
    live = (sums.energy if sums.energy.size else product(gram, weights)).any()
    return Problem.from_sums(sums, weights, **variant) if live else None


def _mean_magnitudes(weights: np.ndarray, variant: dict[str, Any]) -> np.ndarray:
    """The scales of BWN: mean |W| of a column, or of each of its scale groups; or the given."""
    if variant["fixed_scales"] is not None:
        return np.full(weights.shape[1], float(variant["fixed_scales"]))
    group = variant["scale_group"]
    if group is None:
        return np.abs(weights).mean(axis=0)
    return np.abs(weights).reshape(-1, group, weights.shape[1]).mean(axis=1)


def _without_data(sums: Sums, weights: np.ndarray, variant: dict[str, Any]) -> Solution:
    """A group that the data say nothing of: sign(W) and mean |W|, or 0 where its target is 0."""
    energy = sums.energy if sums.energy.size else np.zeros(weights.shape[1])
    scales = _mean_magnitudes(weights, variant)
    if sums.gram.any() and variant["fixed_scales"] is None:
        scales = np.zeros_like(scales)
    return Solution(
        signs(weights),
        scales,
        energy.copy(),
        energy,
        energy.copy(),
        method="sign",
        bound_name="no data",
        intercept=np.zeros_like(energy) if variant["intercept"] else None,
    )


def _not_worse_than_sign(problem: Problem, weights: np.ndarray, solution: Solution) -> None:
    scales = None
    if problem.scale_group is not None:  # its best scales are no closed form of each alone
        scales = _mean_magnitudes(
            weights, {"scale_group": problem.scale_group, "fixed_scales": None}
        )
    limit = problem.loss(signs(weights), scales)
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
