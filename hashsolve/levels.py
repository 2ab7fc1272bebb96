"""Levels of optimality that a certificate can state of a column, checked with plain NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hashsolve import reference
from hashsolve.packing import combine
from hashsolve.problem import Problem, cancelling

LEVELS = ("valid", "dcc", "one_flip", "two_flip", "optimal")
"""What can be required of a solution; each level includes those before it.

valid: entries ±1, scales finite and >= 0, loss as claimed. dcc: the scales are the best for the
codes, and no bit changes at those scales (a fixpoint of BWNH's alternation). one_flip, two_flip:
no flip of one bit, or of two at once, lowers the loss, the scale being set anew. optimal: proven by
a lower bound or by enumeration.
"""


def highest_local(problem: Problem) -> str:
    """The level that a good solution reaches whatever its size, as far as it is checked."""
    return "dcc" if problem.bases > 1 or problem.scale_group is not None else "one_flip"


def local_levels(
    problem: Problem,
    codes: np.ndarray,
    scales: np.ndarray,
    loss: np.ndarray,
    tolerance: np.ndarray,
    require: str,
) -> Iterator[tuple[int, str]]:
    """For each column the rank of the level it reaches (up to two_flip), and what stops it.

    The check of pairs takes O(S²) memory, and is made only where ``require`` asks for it. With
    several bases or group scales, flips are judged at the given scales: such a column reaches
    "dcc" at most.
    """
    if problem.bases > 1 or problem.scale_group is not None:
        yield from _variant_levels(problem, codes, scales, tolerance)
        return
    pairs = LEVELS.index(require) >= LEVELS.index("two_flip")
    best = reference.best_scales(problem, codes)
    best_loss = reference.loss(problem, codes, best)
    for t in range(problem.columns):
        if loss[t] - best_loss[t] > tolerance[t]:
            yield 0, f"scale {scales[t]:.6g} is not the best, which is {best[t]:.6g}"
            continue
        column = _Column(problem, codes[:, t], t)
        bit, gain = _largest(-column.change_at(scales[t]))
        if gain > tolerance[t]:
            yield 0, f"flipping bit {bit[0]} at its scale lowers the loss by {gain:.6g}"
            continue
        anew = " and setting the scale anew" if problem.free_scale else ""
        bit, gain = _largest(column.gain_anew(loss[t]))
        if gain > tolerance[t]:
            yield 1, f"flipping bit {bit[0]}{anew} lowers the loss by {gain:.6g}"
            continue
        if not pairs:
            yield 2, ""
            continue
        bit, gain = _largest(column.pair_gain(loss[t]))
        if gain > tolerance[t]:
            yield 2, f"flipping bits {bit[0]} and {bit[1]}{anew} lowers the loss by {gain:.6g}"
            continue
        yield 3, ""


class _Column:
    """One column's products, for the changes that flips make."""

    def __init__(self, problem: Problem, codes: np.ndarray, t: int):
        self.b = codes.astype(float)
        self.c = problem.cross[:, t]
        self.energy = problem.energy[t]
        self.gram = problem.gram
        self.scale = None if problem.fixed_scales is None else problem.fixed_scales[t]
        self.h = problem.gram @ self.b
        self.p = self.c @ self.b
        self.q = self.b @ self.h
        self.p_step = -2 * self.b * self.c
        self.q_step = 4 * (np.diagonal(problem.gram) - self.b * self.h)

    def change_at(self, scale: float) -> np.ndarray:
        """How much each flip changes the loss at this scale, (S,)."""
        return scale * (scale * self.q_step - 2 * self.p_step)

    def gain_anew(self, loss: float) -> np.ndarray:
        """How much each flip lowers the loss, the scale being set anew, (S,)."""
        return loss - self._loss(self.p + self.p_step, self.q + self.q_step)

    def pair_gain(self, loss: float) -> np.ndarray:
        """How much each flip of two bits lowers the loss, (S, S)."""
        p = self.p + self.p_step[:, None] + self.p_step
        q = self.q + self.q_step[:, None] + self.q_step
        q += 8 * np.outer(self.b, self.b) * self.gram
        gain = loss - self._loss(p, q)
        np.fill_diagonal(gain, 0.0)
        return gain

    def _loss(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        if self.scale is not None:
            return self.energy - 2 * self.scale * p + self.scale**2 * q
        size = np.diagonal(self.gram).max()
        usable = q > cancelling(self.gram)
        # p² alone could overflow; the last term is what an error of 1e-12 in q would change
        ratio = np.divide(p, q, out=np.zeros_like(p), where=usable)
        return self.energy - p * ratio + 1e-12 * size * ratio * ratio


def _variant_levels(
    problem: Problem, codes: np.ndarray, scales: np.ndarray, tolerance: np.ndarray
) -> Iterator[tuple[int, str]]:
    """Scales by their normal equations, flips at those scales; for bases and group scales."""
    u = combine(codes, scales)
    pull = problem.cross - problem.gram @ u
    diagonal = np.diagonal(problem.gram)
    bases = codes if codes.ndim == 3 else codes[None]
    for t in range(problem.columns):
        rows = _scale_rows(problem, codes, t)  # one a scale: what it multiplies
        matrix = rows @ problem.gram @ rows.T
        slope = rows @ pull[:, t]
        gain = slope @ np.linalg.lstsq(matrix, slope, rcond=1e-12)[0]
        if gain > tolerance[t]:
            yield 0, f"other scales lower the loss by {gain:.6g}"
            continue
        for m, basis in enumerate(bases):
            scale = scales[m, t] if codes.ndim == 3 else u[:, t] * basis[:, t]
            step = -2 * scale * basis[:, t]
            bit, gain = _largest(2 * step * pull[:, t] - step * step * diagonal)
            if gain > tolerance[t]:
                where = f" of basis {m}" if codes.ndim == 3 else ""
                yield 0, f"flipping bit {bit[0]}{where} lowers the loss by {gain:.6g}"
                break
        else:
            yield 1, "with several scales, no level above 'dcc' is checked"


def _scale_rows(problem: Problem, codes: np.ndarray, t: int) -> np.ndarray:
    """The vector that each scale of a column multiplies, (scales, S)."""
    if codes.ndim == 3:
        return codes[:, :, t].astype(float)
    group = np.arange(problem.inputs) // (problem.scale_group or problem.inputs)
    return (group == np.arange(group[-1] + 1)[:, None]) * codes[:, t].astype(float)


def _largest(values: np.ndarray) -> tuple[tuple[int, ...], float]:
    place = np.unravel_index(int(values.argmax()), values.shape)
    return tuple(int(i) for i in place), float(values[place])
