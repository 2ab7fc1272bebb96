"""Triangles of symmetric matrices: taken in another order, and packed."""

import numpy as np
from numba import njit

TILE = 32


@njit(cache=True, nogil=True)
def reorder(array, diagonal, order):
    """Set the upper triangle of `array` (S, S), diagonal included, to that of the symmetric matrix
    whose lower triangle and `diagonal` are given, its rows and columns taken in `order`."""
    size = len(order)
    for i in range(size):
        a = order[i]
        array[i, i] = diagonal[a]
        for j in range(i + 1, size):
            b = order[j]
            array[i, j] = array[a, b] if a > b else array[b, a]


@njit(cache=True, nogil=True)
def pack(upper):
    """The rows of Uᵀ one after the other, each to its diagonal, of an upper triangle U (S, S)."""
    size = upper.shape[0]
    packed = np.empty(size * (size + 1) // 2)
    for i in range(0, size, TILE):  # by tiles, as one of the two is read against the grain
        for j in range(i, size, TILE):
            for b in range(j, min(j + TILE, size)):
                row = b * (b + 1) // 2
                for a in range(i, min(i + TILE, b + 1)):
                    packed[row + a] = upper[a, b]
    return packed
