"""The orders in which searches on the triangular form decide the bits."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def least_pivots(matrix):
    """Order of a Cholesky factorisation that takes the least pivot first; ties by index.

    Of an inverse Gram matrix, it is the V-BLAST order: each time, the bit that is best
    determined when all bits not yet taken are free. `matrix` (S, S), symmetric and positive
    definite, is overwritten.
    """
    size = matrix.shape[0]
    order = np.arange(size)
    for k in range(size):
        i = k
        for j in range(k + 1, size):
            if matrix[j, j] < matrix[i, i]:
                i = j
        order[k], order[i] = order[i], order[k]
        for j in range(size):  # swap rows, then columns k and i
            matrix[k, j], matrix[i, j] = matrix[i, j], matrix[k, j]
        for j in range(size):
            matrix[j, k], matrix[j, i] = matrix[j, i], matrix[j, k]
        for i in range(k + 1, size):
            factor = matrix[i, k] / matrix[k, k]
            for j in range(k + 1, size):
                matrix[i, j] -= factor * matrix[k, j]
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
