"""Variants of the problem that alternate over plain ones: several bases, a scale a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import linalg

from hashsolve.control import Control
from hashsolve.kernels.group_dcc import group_dcc_sweep
from hashsolve.packing import combine
from hashsolve.problem import Problem
from hashsolve.solution import Solution, Status, Sweep

_ROUNDS = 50  # of an alternation that usually settles within ten


def solve_bases(
    problem: Problem,
    init: np.ndarray | None,
    solve: Callable[[Problem, np.ndarray | None], Solution],
) -> Solution:
    """M codes a column: each basis in turn against what the others leave, then all scales.

    The first round is greedy, each basis on the residual of those before. Neither a solve from
    the present codes nor the joint scale step (least squares, M×M) ever raises the loss.

    Parameters
    ----------
    problem : Problem
        With ``bases`` M > 1.
    init : array (M, S, T), optional
    solve : callable
        Solves a plain problem from start codes.
    """
    plain = replace(problem, bases=1)
    count, shape = problem.bases, (problem.inputs, problem.columns)
    codes = np.ones((count, *shape), dtype=np.int8) if init is None else init.astype(np.int8)
    scales = np.zeros((count, problem.columns))
    if init is not None:
        scales = _joint_scales(plain, codes)
    history = [Sweep(float(problem.energy.sum()), 0)]
    first = None
    for done in range(_ROUNDS):
        before = codes.copy()
        for m in range(count):
            rest = combine(codes, np.where(np.arange(count)[:, None] == m, 0.0, scales))
            left = _residual(plain, rest, codes[m] * scales[m])
            fresh = init is None and done == 0
            if left is None:
                continue
            part = solve(left, None if fresh else codes[m])
            first = first or part
            codes[m], scales[m] = part.codes, part.scales
        better = _joint_scales(plain, codes)
        turned = better < 0  # canonical sign: every scale is >= 0
        codes = np.where(turned[:, None, :], -codes, codes)
        scales = np.abs(better)
        loss = plain.loss(codes, scales)
        history.append(Sweep(float(loss.sum()), int((codes != before).sum())))
        if history[-1].loss >= history[-2].loss * (1 - 1e-9):
            break
    return _solution(problem, codes, scales, history, first, done < _ROUNDS - 1)


def _residual(plain: Problem, rest: np.ndarray, present: np.ndarray) -> Problem | None:
    """The problem of one basis, the others' weights being ``rest`` (S, T); None: none is left."""
    pull = plain.gram @ rest
    energy = plain.energy - 2 * (plain.cross * rest).sum(0) + (pull * rest).sum(0)
    if not (energy > 0).any():
        return None
    weights = present if plain.weights is None else plain.weights - rest
    return replace(
        plain,
        cross=plain.cross - pull,
        energy=np.maximum(energy, 0.0),
        weights=weights,
        input_sum=None,
        target_sum=None,
    )


def _joint_scales(plain: Problem, codes: np.ndarray) -> np.ndarray:
    """The best M scales of each column, (M, T); minimum norm where bases repeat."""
    b = codes.astype(float)
    pulls = np.einsum("ij,mjt->mit", plain.gram, b)
    scales = np.empty((len(b), plain.columns))
    for t in range(plain.columns):
        matrix = b[:, :, t] @ pulls[:, :, t].T
        scales[:, t] = linalg.lstsq(matrix, b[:, :, t] @ plain.cross[:, t])[0]
    return scales


def solve_groups(problem: Problem, start: np.ndarray, control: Control) -> Solution:
    """A scale per group of consecutive inputs: cyclic coordinate descent, then all G scales.

    Parameters
    ----------
    problem : Problem
        With ``scale_group`` g; G = S / g.
    start : int8 array (S, T)
    control : Control
    """
    gram, cross = problem.gram, np.ascontiguousarray(problem.cross.T)
    codes = start.T.copy()
    count = problem.inputs // problem.scale_group
    flips = np.zeros(len(codes), dtype=np.int64)
    active = np.ones(len(codes), dtype=np.bool_)
    scales = _group_scales(gram, cross, codes, count)
    history: list[Sweep] = []
    settled = False
    for _ in range(control.budget(100, 1_000, 10_000)):
        turn = np.where(scales < 0, -1, 1).astype(np.int8)
        codes *= np.repeat(turn, problem.scale_group, axis=1)
        scales = np.abs(scales)
        loss = problem.loss(codes.T, scales.T).sum()
        history.append(Sweep(float(loss), int(flips.sum())))
        if len(history) > 1 and not flips.any():
            settled = True
            break
        h = (np.repeat(scales, problem.scale_group, axis=1) * codes) @ gram
        control.columns(group_dcc_sweep, (gram,), (cross, codes, h, scales, active, flips))
        scales = _group_scales(gram, cross, codes, count)
    return _solution(problem, codes.T, scales.T, history, None, settled)


def _group_scales(gram: np.ndarray, cross: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """The best G scales of each column, (T, G): least squares on M_kl = b_kᵀ H_kl b_l."""
    scales = np.empty((len(codes), count))
    share = len(gram) // count
    for t, b in enumerate(codes.astype(float)):
        matrix = (gram * b[:, None] * b).reshape(count, share, count, share).sum(axis=(1, 3))
        scales[t] = linalg.lstsq(matrix, (cross[t] * b).reshape(count, share).sum(axis=1))[0]
    return scales


def _solution(
    problem: Problem,
    codes: np.ndarray,
    scales: np.ndarray,
    history: list[Sweep],
    part: Solution | None,
    settled: bool,
) -> Solution:
    """State the result; no bound but zero is known for a variant."""
    scales = np.abs(scales)
    loss = np.maximum(problem.loss(codes, scales), 0.0)
    return Solution(
        codes=np.ascontiguousarray(codes),
        scales=np.ascontiguousarray(scales),
        loss=loss,
        energy=problem.energy.copy(),
        lower_bound=np.zeros_like(loss),
        status=Status.FIXPOINT if settled else Status.SWEEP_LIMIT,
        method=part.method if part else "dcc",
        bound_name="zero",
        sweeps=len(history) - 1,
        history=tuple(history),
    )
