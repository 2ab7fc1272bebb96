"""Ranking candidates anew by their full vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.retrieval.codec import lengths


def rank(
    queries: np.ndarray, ids: np.ndarray, vectors: Any, k: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """The best k of each query's candidates.

    Parameters
    ----------
    queries : array (Q, S)
    ids : int64 array (Q, candidates)
    vectors : array or HDF5 data set (n, S)
        Row i is the vector of id i.

    Returns
    -------
    scores : float32 array (Q, k), ids : int64 array (Q, k)

    Raises
    ------
    ValueError
        No row for an id, other dimensions, values that are not finite.
    """
    if vectors.shape[1] != queries.shape[1]:
        raise ValueError(f"vectors: {vectors.shape[1]} dimensions; expected {queries.shape[1]}")
    if ids.max() >= len(vectors):
        raise ValueError(f"vectors: no row for id {ids.max()}; row i is to be the vector of id i")
    scores = np.empty(ids.shape, np.float32)
    for i, (query, numbers) in enumerate(zip(queries, ids, strict=True)):
        order = np.argsort(numbers)  # HDF5 reads rows in their order only
        full = np.asarray(vectors[numbers[order]], dtype=float)
        full = checks.finite(full, "vectors")
        if metric == "l2":
            value = -((full - query) ** 2).sum(axis=1)
        else:
            if metric == "cosine":
                length = lengths(full)
                full = full / np.where(length > 0, length, 1.0)[:, None]
            value = (full * query).sum(axis=1)
        scores[i, order] = value
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    return (-scores if metric == "l2" else scores), ids
