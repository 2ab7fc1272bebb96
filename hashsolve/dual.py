"""Free diagonals: for one column, diagonals that prove lower bounds, by the semidefinite dual.

Codes have b_j² = 1, so H + diag(d) costs every code the same as H up to a known constant: nothing
for Σd = 0 and a free scale, Σd for a scale fixed at 1. Every d that makes M = H + diag(d) positive
definite therefore proves

    loss >= e − cᵀM⁻¹c          (free scale, Σd = 0)
    loss >= e − cᵀM⁻¹c − Σd     (fixed scale)

d = 0 is the least-squares bound; the best d is the dual of the semidefinite relaxation. Arrays are
those of an `hashsolve.instance.Instance`: ``gram`` (S, S) and one column's ``cross`` (S,).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from hashsolve import lapack
from hashsolve.kernels.triangle import pack, reorder
from hashsolve.threads import mirror, strips

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53
_LITTLE = 0.01  # share of a matrix's trace
_COLUMNS = 64  # of a Hessian, computed at a time
_SHORTEST = 1e-4
"""Of a Newton step. Those that gain anything are a hundredth at least; where no diagonal of sum
zero makes a Gram matrix of too low a rank definite, none does, and each try is a factorisation."""


class Folded:
    """A symmetric matrix in the lower triangle of its array; the upper one is lent to LAPACK.

    So a factor takes no memory of its own. It quacks like the matrix where proofs are made.

    Parameters
    ----------
    array : array (S, S)
        In C's order. Its upper triangle is overwritten until `unfold`.

    Attributes
    ----------
    half : array (S, S)
        Its transpose, of which LAPACK works on the lower triangle, diagonal included.
    """

    __array_ufunc__ = None  # so that array @ folded is left to __rmatmul__

    def __init__(self, array: Array):
        self.array = array
        self.half = array.T
        self._diagonal = array.diagonal().copy()

    def __len__(self) -> int:
        return len(self.array)

    def diagonal(self) -> Array:
        """The matrix's own, whatever is in the array."""
        return self._diagonal

    def unfold(self) -> None:
        """Put the matrix back into all of its array."""
        mirror(self.half)
        self._set_diagonal(self._diagonal)

    def factorise(self, diagonal: Array) -> Array | None:
        """See `factorise`; the factor is gone with the next."""
        self.unfold()
        self._set_diagonal(self._diagonal + diagonal)
        return self.half if lapack.cholesky(self.half) else None

    def factorise_in(self, order: NDArray[np.intp], diagonal: Array) -> Array:
        """The lower factor of the matrix and this diagonal in another order, its rows packed."""
        reorder(self.array, self._diagonal + diagonal, order)
        if not lapack.cholesky(self.half):
            raise np.linalg.LinAlgError("positive definite in one order, but not in another")
        return pack(self.array)

    def __rmatmul__(self, left: Array) -> Array:
        lent = self.array.diagonal().copy()
        self._set_diagonal(self._diagonal)
        result = blas.dsymm(1.0, self.half, left.T, lower=0).T
        self._set_diagonal(lent)
        return result

    def __getitem__(self, rows: slice) -> Array:
        """Whole rows, copied."""
        result = np.empty((rows.stop - rows.start, len(self)))
        result[:, : rows.start] = self.array[rows, : rows.start]
        result[:, rows.start :] = self.array[rows.start :, rows].T
        tile = result[:, rows]  # the part of it on the diagonal
        tile[...] = np.triu(tile, 1) + np.triu(tile, 1).T
        np.fill_diagonal(tile, self._diagonal[rows])
        return result

    def _set_diagonal(self, values: Array) -> None:
        self.array.ravel()[:: len(self) + 1] = values


@contextmanager
def folded(gram: Array, fold: bool) -> Iterator[Any]:
    """The Gram matrix, `Folded` within this if asked to be: nothing else may look at it then."""
    if not fold:
        yield gram
        return
    matrix = Folded(gram)
    try:
        yield matrix
    finally:
        matrix.unfold()


def safety_margin(gram: Array) -> float:
    """A smallest eigenvalue above this makes the Gram matrix safely positive definite."""
    return _size(gram) * 1e-10 + 8 * cholesky_error(gram)


def _size(gram: Array) -> float:
    return float(np.abs(gram.diagonal()).mean() or np.abs(gram).max())


def starting_diagonal(gram: Array, smallest: float, cross: Array, free: bool) -> Array:
    """A uniform diagonal that makes the Gram matrix safely positive definite.

    Free scale: the smallest one, zero for a well-conditioned Gram matrix. Fixed scale: one that is
    well inside, as the barrier starts from here.

    Parameters
    ----------
    smallest : float
        The smallest eigenvalue of ``gram``.
    """
    size, margin = _size(gram), safety_margin(gram)
    if not free:
        return np.full(len(gram), max(margin, 0.1 * size, np.abs(cross).mean()) - smallest)
    return np.full(len(gram), 0.0 if smallest > margin else margin + max(0.0, -smallest))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def improve_diagonal(
    gram: Array,
    cross: Array,
    energy: float,
    start: Array,
    free: bool,
    tolerance: float = 1e-4,
    max_steps: int = 60,
    target: float = np.inf,
    barrier: float = 0.1,
    stop: Callable[[], Any] = lambda: None,
) -> tuple[Array, int]:
    """Raise a bound by Newton's method with a log-det barrier.

    The bound is ``energy - sum_t c_t' M^-1 c_t``, less ``sum(d)`` at a fixed scale.
    The barrier's weight falls with every step that was taken in full; on its path the distance to
    the optimum is ``S * weight``. Stops when that is below ``tolerance * energy``, when the bound
    has passed ``target``, or when the optimum is seen not to reach it. Where the energy says
    nothing of the size of the loss, as in a quadratic programme of small linear terms, the
    tolerance is a share of the bound.

    Returns the diagonal and the number of steps.
    """
    inputs = len(gram)
    diagonal = start.copy()
    factor = factorise(gram, diagonal)
    if factor is None or (free and not cross.any()):
        return diagonal, 0
    solution = lapack.solve(factor, cross)
    scale = max(abs(energy), (cross * solution).sum(), np.finfo(float).tiny)
    size = np.abs(gram.diagonal() + diagonal).sum()
    programme = not free and scale < _LITTLE * size
    weight = barrier * (size if programme else scale) / inputs
    smallest_weight = tolerance * (_LITTLE * size if programme else scale) / inputs
    value = _barrier_value(cross, solution, factor, diagonal, weight, free)
    steps = 0
    while steps < max_steps and not stop():
        steps += 1
        lapack.invert(factor)  # in its place; so is all that follows
        gradient = np.einsum("ts,ts->s", solution, solution) + weight * np.diag(factor)
        hessian = _hessian(factor, solution, weight)
        del factor
        if hessian is None:
            break
        if free:
            toward, uniform = lapack.solve(hessian, np.stack([gradient, np.ones(inputs)]))
            direction = toward - uniform * ((toward.sum() + diagonal.sum()) / uniform.sum())
            slope = direction @ (gradient - gradient.mean())
        else:
            gradient -= 1.0
            direction = lapack.solve(hessian, gradient[None])[0]
            slope = direction @ gradient
        del hessian  # before the next factor
        if not np.isfinite(slope):  # a Gram matrix of (nearly) nothing
            break
        length = 1.0
        while length > _SHORTEST:
            trial = diagonal + length * direction
            trial_factor = factorise(gram, trial)
            if trial_factor is not None:
                trial_solution = lapack.solve(trial_factor, cross)
                trial_value = _barrier_value(
                    cross, trial_solution, trial_factor, trial, weight, free
                )
                if trial_value >= value + 0.01 * length * slope - 1e-9 * abs(value):
                    break
            length *= 0.5
        else:
            break
        diagonal, factor, solution = trial, trial_factor, trial_solution
        reached = energy - (cross * solution).sum() - (0.0 if free else diagonal.sum())
        if reached > target:
            break
        if length == 1.0 and slope < 0.3 * weight * inputs:
            if programme:
                enough = 1.5 * tolerance * abs(reached) / inputs  # which moves with every step
                smallest_weight = max(smallest_weight, enough)
            if weight <= smallest_weight or reached + weight * inputs < target < np.inf:
                break
            weight = max(0.15 * weight, smallest_weight)
        value = _barrier_value(cross, solution, factor, diagonal, weight, free)
    return diagonal, steps


def _hessian(inverse: Array, solution: Array, weight: float) -> Array | None:
    """The lower Cholesky factor of minus the barrier's Hessian, or None; in place of ``inverse``,
    whose upper triangle is left alone."""
    for cut in strips(len(inverse), _COLUMNS):
        part = inverse[cut.start :, cut]
        found = (weight * part + 2.0 * (solution[:, cut.start :].T @ solution[:, cut])) * part
        size = found.shape[1]
        part[size:] = found[size:]
        lower = np.tril_indices(size)
        part[lower] = found[lower]
    return inverse if lapack.cholesky(inverse) else None


@dataclass(frozen=True, eq=False)
class Proof:
    """A diagonal that makes the Gram matrix positive definite, and what shows it.

    Attributes
    ----------
    diagonal : array (S,)
        d; M = H + diag(d) has no eigenvalue below ``error``.
    factor : array (S, S)
        The Cholesky factor of M − 2 ``error``.
    error : float
        See `cholesky_error`.
    """

    diagonal: Array
    factor: Array
    error: float


@np.errstate(over="ignore", invalid="ignore")
def proof_of(gram: Array, diagonal: Array, start: Array, free: bool) -> Proof | None:
    """The proof that a diagonal gives, which need not be exact in any sense.

    Moves it toward ``start``, of `starting_diagonal`, until a shifted Cholesky factorisation
    succeeds, whose backward error is known. None where no diagonal of sum zero makes the Gram
    matrix positive definite, as for inputs that are all duplicated: a free scale is unlimited then.
    """
    gamma = _gamma(gram)
    centre = start - start.mean() if free else start
    for blend in (0.0, 1e-6, 1e-4, 1e-2, 1.0):
        proven = (1.0 - blend) * diagonal + blend * centre
        if free:
            # a sum below zero costs nothing, one above zero as much as the scale is large: so the
            # sum that is zero but for rounding is put below it
            proven = proven - proven.mean()
            proven = proven - gamma * np.abs(proven).max()
        error = cholesky_error(gram, proven)
        factor = factorise(gram, proven - 2.0 * error)
        if factor is not None:
            return Proof(proven, factor, error)
    return None


@np.errstate(over="ignore", invalid="ignore")
def proven_bounds(gram: Array, cross: Array, energy: Array, proof: Proof, free: bool) -> Array:
    """Lower bounds (K,) of columns, by one proof: cᵀM⁻¹c is bounded by an approximate solution and
    its residual, and the rounding of all that is subtracted.

    Parameters
    ----------
    cross, energy : array (K, S), (K,)
    """
    gamma, proven = _gamma(gram), proof.diagonal
    # For any x, with r = c − Mx, cᵀM⁻¹c = xᵀ(c + r) + rᵀM⁻¹r <= xᵀ(c + r) + |r|² / error.
    solution = lapack.solve(proof.factor, cross)
    residual = cross - (solution @ gram + proven * solution)
    size = np.abs(solution)
    slack = sum(size[:, rows] @ np.abs(gram[rows]) for rows in strips(len(gram)))
    slack = gamma * (slack + np.abs(proven) * size + np.abs(cross))  # of the residual
    quadratic = (solution * (cross + residual)).sum(axis=1)
    distance = np.linalg.norm(residual, axis=1) + np.linalg.norm(slack, axis=1)
    quadratic += distance**2 / proof.error
    quadratic += (size * (slack + gamma * (np.abs(cross) + np.abs(residual)))).sum(axis=1)
    excess = 0.0 if free else proven.sum() + gamma * np.abs(proven).sum()
    bounds = energy - quadratic - excess
    rounding = 4 * UNIT_ROUNDOFF * (np.abs(energy) + np.abs(quadratic) + np.abs(excess))
    bounds = bounds - rounding
    return np.where(np.isfinite(bounds), bounds, -np.inf)


def certified_bounds(
    gram: Array, cross: Array, energy: Array, diagonal: Array, start: Array, free: bool
) -> tuple[Array, Array]:
    """The `proven_bounds` (K,) of a diagonal, and the diagonal that proves them: see `proof_of`.

    They are −inf where nothing is proven.
    """
    proof = proof_of(gram, diagonal, start, free)
    if proof is None:
        return np.full(len(cross), -np.inf), diagonal
    return proven_bounds(gram, cross, energy, proof, free), proof.diagonal


def _gamma(gram: Array) -> float:
    return 2.0 * (len(gram) + 4) * UNIT_ROUNDOFF


def cholesky_error(gram: Array, diagonal: Array | float = 0.0) -> float:
    """What rounding may do to the eigenvalues of a matrix whose Cholesky factorisation succeeds.

    If it runs to completion on A, then A + E is positive definite with
    ``|E| <= g / (1 - g) * trace(A)``, g = (S + 1) u (Rump 2006); twice that covers forming A.
    """
    trace = np.abs(gram.diagonal() + diagonal).sum()
    return float(2.0 * (len(gram) + 4) * UNIT_ROUNDOFF * trace) + np.finfo(float).tiny


def factorise(gram: Array, diagonal: Array | float) -> Array | None:
    """Lower Cholesky factor of ``gram + diag(diagonal)``, or None."""
    if isinstance(gram, Folded):
        return gram.factorise(diagonal)
    matrix = gram.copy()
    matrix.ravel()[:: len(gram) + 1] += diagonal
    return matrix.T if lapack.cholesky(matrix.T) else None


def _barrier_value(
    cross: Array, solution: Array, factor: Array, diagonal: Array, weight: float, free: bool
) -> float:
    value = 2.0 * weight * np.log(np.diag(factor)).sum() - (cross * solution).sum()
    return float(value if free else value - diagonal.sum())
