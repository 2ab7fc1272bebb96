"""The orders in which searches on the triangular form decide the bits."""

import numpy as np
from numba import njit

PANEL = 16
"""Pivots after which the rows to come catch up with them, four at a time."""


@njit(cache=True, nogil=True)
def least_pivots(upper):
    """Order of a Cholesky factorisation that takes the least pivot first; ties by index.

    Of an inverse Gram matrix, it is the V-BLAST order: each time, the bit that is best
    determined when all bits not yet taken are free. The upper triangle of `upper` (S, S), of a
    matrix that is symmetric and positive definite, is overwritten; the lower one is left alone.
    """
    size = upper.shape[0]
    order = np.arange(size)
    factors = np.empty((PANEL, size))
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        for k in range(start, stop):  # the diagonal is up to date, of the rest what is before start
            i = k
            for j in range(k + 1, size):
                if upper[j, j] < upper[i, i]:
                    i = j
            if i > k:
                order[k], order[i] = order[i], order[k]
                upper[k, k], upper[i, i] = upper[i, i], upper[k, k]
                for j in range(start, k):
                    upper[j, k], upper[j, i] = upper[j, i], upper[j, k]
                    factor = factors[j - start, k]
                    factors[j - start, k] = factors[j - start, i]
                    factors[j - start, i] = factor
                for j in range(k + 1, i):
                    upper[k, j], upper[j, i] = upper[j, i], upper[k, j]
                for j in range(i + 1, size):
                    upper[k, j], upper[i, j] = upper[i, j], upper[k, j]
            for p in range(start, k):
                factor = factors[p - start, k]
                for j in range(k + 1, size):
                    upper[k, j] -= factor * upper[p, j]
            pivot = upper[k, k]
            for j in range(k + 1, size):
                factors[k - start, j] = upper[k, j] / pivot
                upper[j, j] -= factors[k - start, j] * upper[k, j]
        for i in range(stop, size):  # the panel is whole, or no rows are left
            for p in range(start, stop, 4):
                a, b, c, d = factors[p - start : p - start + 4, i]
                for j in range(i + 1, size):
                    row = upper[i, j] - a * upper[p, j] - b * upper[p + 1, j]
                    upper[i, j] = row - c * upper[p + 2, j] - d * upper[p + 3, j]
    return order


@njit(cache=True, nogil=True)
def decision_order(matrix, inverse, first, energy_share, order):
    """Fill ``order`` with the codes to decide, most telling first.

    A code is worth deciding early where its own row bounds much (a large pivot, 1 / inverse[j, j]
    given those decided: sorted QR, V-BLAST) and where it carries much energy (matrix[j, j]). The
    pivots alone (``energy_share`` 0) leave a long tail, the energies alone (1) a full binary tree
    of the first 25 levels. The first ``first`` codes stay where they are. ``inverse`` is
    overwritten.
    """
    n = len(order)
    pending = np.ones(n, dtype=np.bool_)
    column = np.empty(n)
    for k in range(n):
        chosen = k
        if k >= first:
            best = -np.inf
            for j in range(n):
                if pending[j]:
                    worth = energy_share * np.log(matrix[j, j])
                    worth -= (1.0 - energy_share) * np.log(max(inverse[j, j], 1e-300))
                    if worth > best:
                        best = worth
                        chosen = j
        order[k] = chosen
        pending[chosen] = False
        pivot = max(inverse[chosen, chosen], 1e-300)
        for i in range(n):
            column[i] = inverse[i, chosen]
        for i in range(n):
            if pending[i]:
                share = column[i] / pivot
                for j in range(n):
                    inverse[i, j] -= share * column[j]
