"""Variants of the problem that alternate over plain ones: several bases, a scale a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import linalg

from hashsolve.bounds import common_shares
from hashsolve.control import EFFORTS, Control
from hashsolve.instance import Instance, signs
from hashsolve.kernels.group_dcc import group_dcc_sweep
from hashsolve.packing import combine
from hashsolve.problem import Problem
from hashsolve.solution import Solution, Status, Sweep, sound_bound
from hashsolve.state import precise_where

_ROUNDS = 50  # of an alternation that usually settles within ten
_LARGEST = 1e290  # sums with which codes are perturbed
_COLUMNS = ("codes", "scales", "loss", "lower_bound")
_SCALE_MATRICES = 2**21  # numbers in the matrices of scales that are made at once: 16 MB
_SETTLED = 1e-9  # share of the loss by which a round must lower it

PlainSolve = Callable[[str, Problem, np.ndarray | None, Control], Solution]
"""Solves a plain problem by a method, from start codes (S, T)."""

CONTAINED = ("dcc", "one_flip", "babai", "beam", "tabu")
"""What alternates before "auto" does; with bases it ends no worse than any of them."""
LEADING = ("dcc", "tabu")
"""What does with groups, where each goes on from the one before: there the others take their time
and gain next to nothing, of all columns together."""
ON_DIAGONALS = ("babai", "beam", "auto")
"""What searches by duals' diagonals: programmes of one Gram matrix begin theirs in common."""
RESTARTS = (30, 100, 300)
"""Descents of "auto" from perturbed codes, by effort, after those of the lesser ones: alternations
end in many places."""
PERTURBED = (0.5, 0.1)
"""Shares of the bits that these flip, in turn; half of them is a random start."""


def solve_variant(
    problem: Problem, method: str, start: np.ndarray | None, solve: PlainSolve, control: Control
) -> Solution:
    """Solve a problem with bases or group scales; of each column, the best that was found.

    The start itself, contained methods and lesser efforts come first, after a descent from `sign`.
    With group scales each goes on from the one before; the greedy first round of bases may end
    worse for a better method, or more effort, so there each is a candidate. "auto" descends from
    perturbed codes, too.

    Parameters
    ----------
    problem : Problem
    method : str
        What solves the plain problems between the steps of the scales.
    start : array (S, T), or (M, S, T) for bases, optional
    solve : callable
    control : Control
    """
    alternate, before = (solve_bases, CONTAINED) if problem.bases > 1 else (solve_groups, LEADING)
    names = dict.fromkeys((*(before if method == "auto" else ("dcc",)), method))
    control = control.again()
    control.bounded = False  # what bounds a step bounds no whole
    if method == "sign":
        return alternate(problem, method, start, solve, control)
    signs_alone = alternate(problem, "sign", start, solve, control.again())
    best = signs_alone if start is None else _better(_at(problem, start), signs_alone)
    if control.stop:
        return replace(best, status=control.stop)
    best = _better(best, alternate(problem, "dcc", signs_alone.codes, solve, control.again()))
    if problem.bases == 1 and method in ON_DIAGONALS and not control.stop:
        control.shares = common_shares(Instance.of(replace(problem, scale_group=None)), control)
    random = np.random.default_rng(control.seed)
    for effort in EFFORTS[: EFFORTS.index(control.effort) + 1]:
        for name in names:
            if control.stop:
                return replace(best, status=control.stop)
            begin = start if problem.bases > 1 else best.codes
            found = alternate(problem, name, begin, solve, control.again(effort=effort))
            best = _better(best, found)
        # far from the best codes, sums are larger than the energies
        if method == "auto" and max(problem.energy.max(), problem.gram.max()) < _LARGEST:
            for i in range(RESTARTS[EFFORTS.index(effort)]):
                if control.stop:
                    break
                # one mask for all columns: the answer does not depend on their order
                flip = random.random((*best.codes.shape[:-1], 1)) < PERTURBED[i % len(PERTURBED)]
                codes = np.where(flip, -best.codes, best.codes)
                apart = control.again(effort="fast")
                apart.callback = None  # it is told of the best alone
                best = _better(alternate(problem, "dcc", codes, solve, apart), best)
                control.note(float(best.loss.sum()), 0)
            # the method has gone on from the others already
            left = _lower(best.loss, found.loss, problem.energy) & (problem.energy > 0)
            if left.any() and not control.stop:
                part, codes = problem.select(left), best.codes[..., left]
                apart = control.again(effort=effort)
                apart.beside(float(best.loss[~left].sum()))
                best = _better(best, _put(alternate(part, method, codes, solve, apart), best, left))
                control.note(float(best.loss.sum()), 0)
    return replace(best, status=control.stop or best.status)


def _at(problem: Problem, codes: np.ndarray) -> Solution:
    """Given codes at their best scales."""
    codes = codes.astype(np.int8)
    if problem.bases > 1:
        scales = _joint_scales(replace(problem, bases=1), codes)
        turn = np.where(scales < 0, -1, 1).astype(np.int8)
        return _solution(problem, codes * turn[:, None], np.abs(scales), [], Status.DONE)
    group = _share(problem)
    scales = _group_scales(problem.gram, problem.cross.T, codes.T, problem.inputs // group)
    codes, scales = _canonical(codes.T, scales, group)
    return _solution(problem, codes.T, scales.T, [], Status.DONE)


def _better(a: Solution, b: Solution) -> Solution:
    """Column by column the one with the smaller loss; ``b``, with its history, elsewhere."""
    keep = a.loss < b.loss
    columns = {name: np.where(keep, getattr(a, name), getattr(b, name)) for name in _COLUMNS}
    history = b.history
    if keep.any():
        history = (*history, Sweep(float(columns["loss"].sum()), 0))
    return replace(b, **columns, history=history)


def _put(part: Solution, whole: Solution, columns: np.ndarray) -> Solution:
    """The whole with these columns from ``part``."""
    arrays = {name: getattr(whole, name).copy() for name in _COLUMNS}
    for name, array in arrays.items():
        array[..., columns] = getattr(part, name)
    history = (*whole.history, Sweep(float(arrays["loss"].sum()), 0))
    return replace(whole, **arrays, status=part.status, history=history)


def solve_bases(
    problem: Problem, method: str, start: np.ndarray | None, solve: PlainSolve, control: Control
) -> Solution:
    """M codes a column: each basis in turn against what the others leave, then all scales.

    The first round is greedy, each basis on the residual of those before. Neither a solve from
    the present codes nor the joint scale step (least squares, M×M) ever raises the loss.
    """
    plain = replace(problem, bases=1)
    count, shape = problem.bases, (problem.inputs, problem.columns)
    codes = np.ones((count, *shape), dtype=np.int8) if start is None else start.astype(np.int8)
    scales = np.zeros((count, problem.columns))
    if start is not None:
        scales = _joint_scales(plain, codes)
    last = problem.energy
    history = [] if method == "sign" else [Sweep(float(last.sum()), 0)]
    status = Status.SWEEP_LIMIT
    for done in range(_ROUNDS):
        before = codes.copy()
        for m in range(count):
            rest = combine(codes, np.where(np.arange(count)[:, None] == m, 0.0, scales))
            left = _residual(plain, rest, codes[m] * scales[m])
            fresh = start is None and done == 0
            if left is None or control.stop:
                continue
            part = solve(method, left, None if fresh else codes[m], control.again())
            codes[m], scales[m] = part.codes, part.scales
        if method != "sign":
            scales = _joint_scales(plain, codes)
        turned = scales < 0  # canonical sign: every scale is >= 0
        codes = np.where(turned[:, None, :], -codes, codes)
        scales = np.abs(scales)
        loss = plain.loss(codes, scales)
        history.append(Sweep(float(loss.sum()), int((codes != before).sum())))
        if control.stop or method == "sign":
            status = control.stop or Status.DONE
            break
        if not _lower(loss, last, problem.energy).any():
            status = Status.FIXPOINT
            break
        last = loss
    return _solution(problem, codes, scales, history, status)


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


def solve_groups(
    problem: Problem, method: str, start: np.ndarray | None, solve: PlainSolve, control: Control
) -> Solution:
    """A scale per g consecutive inputs: codes at the present scales, then all G = S / g scales.

    Cyclic coordinate descent first. Where another method is asked for, it goes on from there: at
    fixed scales D = diag(α) each column is the quadratic programme  min bᵀ(DHD)b − 2(Dc)ᵀb.
    """
    codes = signs(_weights(problem)) if start is None else start
    control = control.again()
    if method == "sign":
        groups = np.abs(_weights(problem)).reshape(-1, _share(problem), problem.columns)
        scales = groups.mean(axis=1)
        control.note(float(problem.loss(codes, scales).sum()), 0)
        return _solution(problem, codes, scales, control.history, control.stop or Status.DONE)
    codes, scales, status = _group_dcc(problem, codes.T.copy(), control)
    if method == "dcc" or control.stop:
        return _solution(problem, codes.T, scales.T, control.history, control.stop or status)
    status = Status.SWEEP_LIMIT
    order = np.arange(problem.columns)
    for _ in range(_ROUNDS):
        order, flips = _group_round(problem, method, codes, scales, order, solve, control)
        stop = control.note(float(problem.loss(codes.T, scales.T).sum()), flips)
        if stop or not len(order):
            status = stop or Status.FIXPOINT
            break
    return _solution(problem, codes.T, scales.T, control.history, control.stop or status)


def _group_round(
    problem: Problem,
    method: str,
    codes: np.ndarray,
    scales: np.ndarray,
    order: np.ndarray,
    solve: PlainSolve,
    control: Control,
) -> tuple[np.ndarray, int]:
    """Codes (T, S) of these columns at their scales (T, G), by a method, then the scales; in place.

    Returns the columns that it improved, and how many bits that took.
    """
    gram, cross = problem.gram, problem.cross.T
    improved = []
    flips = 0

    def loss(t: int, codes: np.ndarray, scales: np.ndarray) -> float:
        u = codes * np.repeat(scales, _share(problem))
        return problem.energy[t] - 2 * (cross[t] @ u) + u @ (gram @ u)

    def improve(i: int) -> np.ndarray:
        t = order[i]
        factor = np.repeat(scales[t], _share(problem))
        programme = Problem.from_quadratic(gram * factor * factor[:, None], cross[t] * factor)
        inner = control.again(threads=1)
        inner.callback = None  # it is told of whole rounds
        return solve(method, programme, codes[t][:, None], inner).codes.T

    def finish(i: int, found: np.ndarray) -> None:
        nonlocal flips
        t = order[i]
        best = _group_scales(gram, cross[t : t + 1], found, scales.shape[1])
        found, best = _canonical(found, best, _share(problem))
        before = loss(t, codes[t], scales[t])
        if _lower(loss(t, found[0], best[0]), before, problem.energy[t]):
            flips += int((found[0] != codes[t]).sum())
            codes[t], scales[t] = found[0], best[0]
            improved.append(t)

    control.each(improve, len(order), finish)
    return np.array(improved, dtype=int), flips


def _lower(loss: Any, before: Any, energy: Any) -> Any:
    """Whether a round has lowered a loss, which may be nothing but rounding, and below zero."""
    return before - loss > _SETTLED * abs(before) + 1e-12 * energy


def _weights(problem: Problem) -> np.ndarray:
    """W, or the least-squares solution, (S, T)."""
    if problem.weights is not None:
        return problem.weights
    whole = Instance.of(replace(problem, scale_group=None))
    weights = np.zeros((problem.inputs, problem.columns))
    weights[whole.live] = (whole.weights * whole.scale_unit[:, None]).T
    return weights


def _group_dcc(
    problem: Problem, codes: np.ndarray, control: Control
) -> tuple[np.ndarray, np.ndarray, Status]:
    """Codes (T, S), scales (T, G) at a fixpoint of cyclic coordinate descent and the scale step."""
    gram, cross = problem.gram, problem.cross.T.copy()
    flips = np.zeros(len(codes), dtype=np.int64)
    active = np.ones(len(codes), dtype=np.bool_)
    for _ in range(control.budget(100, 1_000, 10_000)):
        scales = _group_scales(gram, cross, codes, problem.inputs // _share(problem))
        codes, scales = _canonical(codes, scales, _share(problem))
        settled = len(control.history) > 0 and not flips.any()
        stop = control.note(float(problem.loss(codes.T, scales.T).sum()), int(flips.sum()))
        if settled or stop:
            return codes, scales, stop or Status.FIXPOINT
        h = (np.repeat(scales, _share(problem), axis=1) * codes) @ gram
        control.columns(group_dcc_sweep, (gram,), (cross, codes, h, scales, active, flips))
    scales = _group_scales(gram, cross, codes, scales.shape[1])
    return *_canonical(codes, scales, _share(problem)), Status.SWEEP_LIMIT


def _share(problem: Problem) -> int:
    """How many inputs share a scale."""
    return problem.scale_group or problem.inputs


def _canonical(codes: np.ndarray, scales: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """The same weights with every scale >= 0."""
    turn = np.where(scales < 0, -1, 1).astype(np.int8)
    return codes * np.repeat(turn, group, axis=1), np.abs(scales)


def _group_scales(gram: np.ndarray, cross: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """The best G scales of each column, (T, G): least squares on M_kl = b_kᵀ H_kl b_l."""
    scales = np.empty((len(codes), count))
    most = max(1, _SCALE_MATRICES // count**2)
    for first in range(0, len(codes), most):
        part = slice(first, first + most)
        scales[part] = _some_scales(gram, cross[part], codes[part], count)
    return scales


def _some_scales(gram: np.ndarray, cross: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """The above, of columns whose matrices fit into memory at once."""
    if len(codes) == 1:  # BLAS has another routine for one, of other last bits
        return _some_scales(gram, np.repeat(cross, 2, 0), np.repeat(codes, 2, 0), count)[:1]
    columns, share = len(codes), len(gram) // count
    b = codes.astype(float)
    pull = (cross * b).reshape(columns, count, share).sum(axis=2)
    matrix = np.empty((columns, count, count))
    for k in range(count):
        rows = slice(k * share, (k + 1) * share)
        matrix[:, k] = ((b[:, rows] @ gram[rows]) * b).reshape(columns, count, share).sum(axis=2)
    return np.stack([linalg.lstsq(matrix[t], pull[t])[0] for t in range(columns)])


def _solution(
    problem: Problem, codes: np.ndarray, scales: np.ndarray, history: list[Sweep], status: Status
) -> Solution:
    """State the result; no bound but zero is known for a variant."""
    weights = combine(codes, scales)
    rounding = problem.rounding(weights)
    loss = precise_where(rounding, problem, weights, problem.loss(codes, scales))
    bound = sound_bound(np.zeros_like(loss), loss, problem.energy)
    noise = 1e-11 * problem.energy + rounding
    loss[(loss < 0) & (loss > -noise)] = 0.0
    return Solution(
        codes=np.ascontiguousarray(codes),
        scales=np.ascontiguousarray(scales),
        loss=loss,
        energy=problem.energy.copy(),
        lower_bound=np.minimum(bound, loss),
        status=status,
        bound_name="zero",
        sweeps=len(history) - 1,
        history=tuple(history),
    )
