"""A coarse partition: lists of vectors that are near one centroid, of which a search visits a few.

It decides where to look and nothing else: codes are those of an index without lists. (Codes of what
a vector's centroid leaves out would find more, but at a shift of its own for every list and query.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from threadpoolctl import threadpool_limits

from hashsolve.retrieval.codec import rows_times
from hashsolve.threads import spread

_PIECE = 512  # vectors that one thread assigns at a time
_BATCH = 4096  # vectors of one step of k-means


@dataclass(frozen=True, eq=False)
class Partition:
    """Centroids (lists, S), float64."""

    centroids: np.ndarray

    @classmethod
    def fit(cls, sample: np.ndarray, lists: int, seed: int) -> Partition:
        """k-means centroids of a sample (n, S), n >= lists, by scikit-learn."""
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ImportError as error:
            raise ImportError(
                "lists: k-means needs scikit-learn; pip install 'hashsolve[search]'"
            ) from error
        with threadpool_limits(1):  # or its sums would depend on the number of threads
            means = MiniBatchKMeans(lists, batch_size=_BATCH, n_init=1, random_state=seed % 2**32)
            means.fit(sample)
        return cls(np.ascontiguousarray(means.cluster_centers_, dtype=float))

    @cached_property
    def _columns(self) -> np.ndarray:
        return np.ascontiguousarray(self.centroids.T)

    @cached_property
    def _halves(self) -> np.ndarray:
        return (self.centroids**2).sum(axis=1) / 2

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """The list of the nearest centroid of each vector, int64 (n,); the first of equal ones."""
        _ = self._columns, self._halves  # before the threads, or each would compute them
        pieces = [vectors[i : i + _PIECE] for i in range(0, len(vectors), _PIECE)]
        return np.concatenate(spread(lambda part: self._affinity(part, True).argmax(1), pieces))

    def rank(self, queries: np.ndarray, distance: bool) -> np.ndarray:
        """All lists of each query, int64 (Q, lists): by distance, or by inner product."""
        return np.argsort(-self._affinity(queries, distance), axis=1, kind="stable")

    def _affinity(self, rows: np.ndarray, distance: bool) -> np.ndarray:
        return rows_times(rows, self._columns) - (self._halves if distance else 0.0)
