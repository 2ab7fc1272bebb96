"""Codec: what turns database vectors into codes, scales and offsets, and queries into theirs.

A vector w, less the mean μ, is to be x = w − μ ≈ α D b with b ∈ {−1, +1}^L and the map D (S, L)
shared by all vectors. For queries of covariance Σ that is hashing (design: eq. 2) with the inputs
X̂ = DᵀX: H = DᵀΣD, and C = DᵀΣx. The score of a query q is

    q·w ≈ q·μ + α (Dᵀq)·b + β,        β = r·m(w),  r = x − α D b,

where m(w) = q̄ + a x is the query that is expected near w: of it, the score is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hashsolve.kernels.encode import LIMIT, encode
from hashsolve.kernels.rows import add_rows
from hashsolve.threads import product, spread

_PIECE = 64  # vectors that one thread encodes at a time
TENURE = 7


@dataclass(frozen=True, eq=False)
class Codec:
    """What `fit` found; a vector's codes depend on this and on that vector alone.

    Attributes
    ----------
    mean : (S,)
        μ, of the database.
    query_mean : (S,)
        q̄.
    decoder : (S, L)
        D.
    weight : (S, S) or None
        Σ, of trace S; None is the identity.
    start_scale : float
        α of a vector of unit length, for the first, greedy, pass.
    pull : float
        a.
    unbiased : bool
        α = ‖x‖² / x·Db, as in RaBitQ, instead of the least-squares scale.
    moves : int
        Flips of the walk of a vector.
    query_length : float
        ‖q‖ of the queries that q̄ and a are for, where the score is an inner product.
    """

    mean: np.ndarray
    query_mean: np.ndarray
    decoder: np.ndarray
    weight: np.ndarray | None = None
    start_scale: float = 1.0
    pull: float = 0.0
    unbiased: bool = False
    moves: int = 0
    query_length: float = 1.0

    @property
    def length(self) -> int:
        """Bits of a vector, L."""
        return self.decoder.shape[1]

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, float]:
        """H and ΣD in units where the largest diagonal entry of H is 1, and that unit; H in whole
        numbers, and what 1 in H is there."""
        target = self.decoder if self.weight is None else product(self.weight, self.decoder)
        gram = product(np.ascontiguousarray(self.decoder.T), target)
        unit = np.sqrt(np.diagonal(gram).max())
        gram = np.ascontiguousarray((gram + gram.T) / 2 / unit**2)
        whole, one = whole_numbers(gram)
        return gram, np.ascontiguousarray(target / unit), float(unit), whole, one

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes int8 (n, L), scales (n,) and offsets (n,) of vectors (n, S)."""
        codes, measures = self.measure(vectors)
        return codes, *self.rate(measures)

    def measure(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of vectors (n, S), and the five products (n, 5) that `rate` goes by."""
        _ = self._sums, self._near  # before the threads, or each would compute them
        pieces = [vectors[i : i + _PIECE] for i in range(0, len(vectors), _PIECE)]
        codes, measures = zip(*spread(self._measure, pieces), strict=True)
        return np.concatenate(codes), np.concatenate(measures)

    def _measure(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gram, target, unit, whole, one = self._sums
        x = vectors - self.mean
        squares = (x * x).sum(axis=1)
        length = np.sqrt(squares)
        cross = rows_times(x / np.where(length > 0, length, 1.0)[:, None], target)
        codes = np.empty(cross.shape, np.int8)
        p, q = np.empty((2, len(x)))
        start = self.start_scale * unit
        encode(gram, whole, one, cross, start, self.moves, TENURE, codes, p, q)
        scales = np.divide(p, q, out=np.zeros_like(p), where=q > 0) * length / unit
        if self.weight is None:
            along = p * length * unit
        else:
            along = (codes * rows_times(x, self.decoder)).sum(axis=1)
        expected = (x * self.query_mean).sum(axis=1)
        near = (codes * self._near).sum(axis=1)
        return codes, np.stack([scales, squares, along, expected, near], axis=1)

    def rate(self, measures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scales and offsets from α (least squares), x·x, x·Db, q̄·x and q̄·Db."""
        scales, squares, along, expected, near = measures.T
        if self.unbiased:
            scales = np.divide(squares, along, out=scales.copy(), where=along > 0)
        return scales, expected - scales * near + self.pull * (squares - scales * along)

    @cached_property
    def _near(self) -> np.ndarray:
        """Dᵀq̄ (L,)."""
        return rows_times(self.query_mean[None], self.decoder)[0]

    def decode(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """The vectors (n, S) that codes (n, L) and scales stand for."""
        u = scales[:, None] * codes
        return self.mean + rows_times(u, np.ascontiguousarray(self.decoder.T))

    def transform(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dᵀq (Q, L), and q·μ (Q,): of each query by itself, however many there are."""
        return rows_times(queries, self.decoder), (queries * self.mean).sum(axis=1)


def whole_numbers(gram: np.ndarray) -> tuple[np.ndarray, float]:
    """H as `encode` walks on it, and what 1 in it is there."""
    unit = LIMIT / np.abs(gram).sum(axis=1).max()
    return np.rint(gram * unit).astype(np.int32), float(unit)


def rows_times(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """rows @ matrix, where no bit of a row's result depends on the other rows (BLAS's may)."""
    out = np.zeros((len(rows), matrix.shape[1]))
    add_rows(matrix, np.ascontiguousarray(rows), out)
    return out


def lengths(rows: np.ndarray) -> np.ndarray:
    """Euclidean ones (n,), also where squares of the values leave the range of float64."""
    peak = np.abs(rows).max(axis=1)
    unit = np.where(peak > 0, peak, 1.0)[:, None]
    return peak * np.sqrt(((rows / unit) ** 2).sum(axis=1))
