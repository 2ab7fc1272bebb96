"""Weighted sums of rows, in an order that never depends on how they are blocked."""

import numpy as np
from numba import njit

ROWS = 128


@njit(cache=True, nogil=True)
def add_rows(rows, weights, h):
    """h[t] += Σ_k weights[t, k] rows[k], one row after the other; those of weight 0 cost nothing.

    Weights are small integers, so that each product is exact: every entry of h is rounded as if
    whole rows were added one at a time. Four are, so that h is loaded and stored once for them,
    and `ROWS` serve every column before the next, so that they stay in the processor's cache.
    """
    count, size = rows.shape
    chosen = np.empty(ROWS, np.int64)
    for top in range(0, count, ROWS):
        for t in range(h.shape[0]):
            out = h[t]
            number = 0
            for k in range(top, min(top + ROWS, count)):
                if weights[t, k] != 0:
                    chosen[number] = k
                    number += 1
            fours = number // 4 * 4
            for i in range(0, fours, 4):
                a, b, c, d = chosen[i], chosen[i + 1], chosen[i + 2], chosen[i + 3]
                wa, wb = float(weights[t, a]), float(weights[t, b])
                wc, wd = float(weights[t, c]), float(weights[t, d])
                ra, rb, rc, rd = rows[a], rows[b], rows[c], rows[d]
                for j in range(size):
                    out[j] = (((out[j] + wa * ra[j]) + wb * rb[j]) + wc * rc[j]) + wd * rd[j]
            for i in range(fours, number):
                a = chosen[i]
                wa, ra = float(weights[t, a]), rows[a]
                for j in range(size):
                    out[j] += wa * ra[j]
