"""The triangular form of each column, and the searches on it: Babai's rounding, K-best.

With an order of the bits and H + diag(λ) = LLᵀ, y = L⁻¹c:  loss = const + ‖y − αLᵀb‖² − α²Σλ. That
is detection of BPSK symbols, and its machinery applies. λ is near the optimum of the semidefinite
dual (`hashsolve.bounds`), so that the partial losses of a beam, which relax the bits that are still
undecided to real numbers, are as telling as they can be: 64 states with it do better than 4,096
without. The order is V-BLAST's: of the bits left, the one best determined is decided first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hashsolve import lapack
from hashsolve.bounds import shared
from hashsolve.dual import factorise, folded
from hashsolve.instance import Instance
from hashsolve.kernels.beam import beam
from hashsolve.kernels.order import least_pivots

RIDGE = 1e-2
"""Of the mean diagonal, on top of λ: a ranking less greedy, and never a singular factor."""


class Triangle(NamedTuple):
    """One column's form: loss + constant = ‖target − α·Lᵀb‖² − α²·shift for b in ``order``; in
    ``lower`` the rows of L one after the other, each to its diagonal."""

    order: np.ndarray
    lower: np.ndarray
    target: np.ndarray
    shift: float


class Lattice:
    """The triangles of an instance's columns, made when asked for.

    Parameters
    ----------
    instance : Instance
    diagonals : array (T, S)
        λ of each column, from `hashsolve.bounds.dual_diagonals`.
    """

    def __init__(self, instance: Instance, diagonals: np.ndarray):
        self.instance = instance
        self.diagonals = diagonals
        mean = np.abs(np.diagonal(instance.gram)).mean() or np.abs(instance.gram).max()
        self.ridge = RIDGE * mean
        self._common = self._factor(0) if shared(instance) else None

    def triangle(self, t: int) -> Triangle:
        """The form of column t."""
        order, lower, shift = self._common or self._factor(t)
        cross = self.instance.cross[t][order]
        target = lapack.solve_packed(lower, cross)
        return Triangle(order, lower, target, shift)

    def _factor(self, t: int) -> tuple[np.ndarray, np.ndarray, float]:
        gram, load = self.instance.gram, self.ridge
        # where one serves all columns, H itself lends the room, else a copy
        with folded(gram if shared(self.instance) else gram.copy(), True) as matrix:
            while True:
                diagonal = self.diagonals[t] + load
                factor = factorise(matrix, diagonal)
                if factor is not None:
                    break
                load *= 4
            lapack.invert(factor)
            order = least_pivots(matrix.array)[::-1].copy()
            return order, matrix.factorise_in(order, diagonal), float(diagonal.sum())


def lattice_codes(
    form: Triangle, free: bool, low: float, high: float, width: int, leaves: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best codes that a beam finds for scales in [low, high], and their own best scales.

    With ``width`` >= 2^S the first is an optimum: every leaf is judged at its own best scale.
    Width 1 is successive cancellation.

    Returns
    -------
    codes : int8 array (<= leaves, S)
    scales : array (<= leaves,)
    """
    width = min(width, 2 ** min(len(form.order), 30))
    found, p, q = beam(form.lower, form.target, form.shift, low, high, width)
    if free:
        scales = np.divide(p, q, out=np.zeros_like(p), where=q > 0.0)
        gain = p * scales
    else:
        scales = np.ones_like(p)
        gain = 2.0 * p - q
    best = np.argsort(-gain, kind="stable")[:leaves]
    codes = np.empty((len(best), len(form.order)), np.int8)
    codes[:, form.order] = found[best]
    return codes, scales[best]
