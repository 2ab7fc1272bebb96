"""State: codes with the products that descent methods keep beside them."""

from __future__ import annotations

import numpy as np

from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.kernels.products import correlations, products
from hashsolve.kernels.twofold import fixed_loss, precise_products, weighted_losses
from hashsolve.problem import Problem, cancelling
from hashsolve.solution import OPTIMAL_TOLERANCE
from hashsolve.threads import strips


class State:
    """Codes (T, S) with h = Hb (T, S), p = cᵀb (T,) and q = bᵀHb (T,).

    With ``turn``, codes whose best scale would be negative are turned round.
    """

    def __init__(self, instance: Instance, codes: np.ndarray, control: Control, turn: bool = True):
        self.instance = instance
        self.control = control
        self.turn = turn and instance.free
        self.codes = codes.copy()
        self.h = np.empty(codes.shape)
        self.p = np.empty(len(codes))
        self.q = np.empty(len(codes))
        self.refresh()

    def refresh(self) -> None:
        """Compute h, p and q afresh from the codes: kernels update h by adding, which drifts."""
        self.control.columns(correlations, (self.instance.gram,), (self.codes, self.h))
        self.products()
        if self.turn:  # canonical sign: the best scale is >= 0
            negative = self.p < 0
            for values in (self.codes, self.h, self.p):
                values[negative] *= -1

    def products(self) -> None:
        """Compute p and q from the codes and h."""
        rows = (self.instance.cross, self.codes, self.h, self.p, self.q)
        self.control.columns(products, (), rows)

    def refine(self, columns: np.ndarray) -> None:
        """Compute p and q of some columns in twice the precision: their terms may be far larger."""
        if not len(columns):  # the kernel would be compiled for nothing
            return
        p, q = np.empty((2, len(columns)))
        rows = (self.instance.cross[columns], self.codes[columns], p, q)
        self.control.columns(precise_products, (self.instance.gram,), rows)
        self.p[columns], self.q[columns] = p, q

    @property
    def scales(self) -> np.ndarray:
        """The best scale of each column: α = cᵀb / bᵀHb, 0 where that cancels; or 1, if fixed."""
        if not self.instance.free:
            return np.ones_like(self.p)
        usable = self.q > cancelling(self.instance.gram)
        return np.divide(self.p, self.q, out=np.zeros_like(self.p), where=usable)

    def loss(self, scales: np.ndarray) -> np.ndarray:
        """e − 2α cᵀb + α² bᵀHb of each column."""
        return self.instance.energy - 2 * scales * self.p + scales**2 * self.q

    def noise(self, scales: np.ndarray) -> np.ndarray:
        """What the rounding of sums of terms of these sizes can do to the loss, (T,)."""
        gram = self.instance.gram
        size = scales**2 * sum(np.abs(gram[rows]).sum() for rows in strips(len(gram)))
        size += scales * np.abs(self.instance.cross).sum(axis=1)
        return 1e-11 * np.abs(self.instance.energy) + 1e-13 * size

    def fixed_loss(self, columns: np.ndarray) -> np.ndarray:
        """The loss of some columns at a fixed scale, rounded once: its terms may be far larger."""
        one = self.instance
        loss = [
            fixed_loss(one.gram, one.cross[t], one.energy[t], self.codes[t].astype(float))
            for t in columns
        ]
        if one.cross_rest is None or one.energy_rest is None:
            return np.array(loss)
        rest = np.einsum("ts,ts->t", one.cross_rest[columns], self.codes[columns])
        return loss + one.energy_rest[columns] - 2 * rest


def precise_where(
    rounding: np.ndarray, problem: Problem, weights: np.ndarray, loss: np.ndarray
) -> np.ndarray:
    """Losses (T,) of weights (S, T), in twice the precision where ``rounding`` (T,) shows."""
    doubtful = np.flatnonzero(rounding > OPTIMAL_TOLERANCE * problem.energy)
    if not len(doubtful):  # the kernel would be compiled for nothing
        return loss
    cross, rows = (np.ascontiguousarray(a.T[doubtful]) for a in (problem.cross, weights))
    found = np.empty(len(doubtful))
    weighted_losses(problem.gram, cross, problem.energy[doubtful], rows, found)
    loss = loss.copy()
    loss[doubtful] = np.where(np.isfinite(found), found, loss[doubtful])  # beyond the range
    return loss
