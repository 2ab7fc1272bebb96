"""The size of a sphere decoder's tree, estimated by sampling."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def estimate(lower, target, offset, cutoff, free, width, seed):
    """Estimate how many nodes ``sphere`` visits below ``cutoff``, without improvements.

    Level by level, at most ``width`` nodes are kept, drawn evenly from those inside the cutoff by
    reservoir sampling, and stand for all of them (stratified sampling: Chen, 1992).
    """
    n = len(target)
    columns = lower.T.copy()
    sums = np.zeros((width, n))  # of every row, over the codes decided; one line a sample
    inner = np.zeros(width)
    square = np.zeros(width)
    next_sums = np.empty((width, n))
    next_inner = np.empty(width)
    next_square = np.empty(width)
    state = np.uint64(seed)
    kept = 1
    weight = 1.0
    total = 0.0
    need = offset - cutoff
    for k in range(n):
        total += weight * kept
        need += target[k] * target[k]
        column = columns[k]
        inside = 0
        for i in range(kept):
            for child in range(1 if free and k == 0 else 2):
                sign = 1.0 - 2.0 * child
                row = sums[i, k] + sign * column[k]
                p = inner[i] + target[k] * row
                q = square[i] + row * row
                if free:
                    if need >= 0.0 and p * p <= need * q:
                        continue
                elif 2.0 * p - q <= need:
                    continue
                inside += 1
                place = inside - 1
                if inside > width:  # splitmix64
                    state += np.uint64(0x9E3779B97F4A7C15)
                    mixed = state
                    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                    mixed = mixed ^ (mixed >> np.uint64(31))
                    place = np.int64(mixed % np.uint64(inside))
                    if place >= width:
                        continue
                for j in range(k + 1, n):
                    next_sums[place, j] = sums[i, j] + sign * column[j]
                next_inner[place] = p
                next_square[place] = q
        if inside == 0:
            break
        weight *= max(1.0, inside / width)
        kept = min(inside, width)
        sums, next_sums = next_sums, sums
        inner, next_inner = next_inner, inner
        square, next_square = next_square, square
    return total
