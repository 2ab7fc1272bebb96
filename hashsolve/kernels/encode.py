"""Codes of many columns that share one Gram matrix: greedy, one-flip descent, a short tabu walk."""

import numpy as np
from numba import njit

from hashsolve.kernels.one_flip import one_flip_sweep
from hashsolve.kernels.products import products
from hashsolve.kernels.tabu import canonical_sign, tabu_walk


@njit(cache=True, nogil=True)
def greedy(gram, cross, scale, codes, h):
    """Decide the bits one after the other, as if those to come were 0; fill codes and h = Hb."""
    size = gram.shape[0]
    h[:] = 0.0
    for j in range(size):
        bit = -1.0 if cross[j] < scale * h[j] else 1.0
        codes[j] = np.int8(bit)
        for k in range(size):
            h[k] += bit * gram[j, k]


@njit(cache=True, nogil=True)
def encode(gram, cross, scale, sweeps, moves, patience, tenure, seed, codes, p, q):
    """Fill the codes of each column, and their p = cᵀb ≥ 0 and q = bᵀHb; energies are 1.

    q is 0 where no scale helps. `scale` is the one that `greedy` takes; afterwards it is profiled
    out. At most `sweeps` sweeps of one-flip descent are followed by one tabu walk, whose draws are
    the same in every column.
    """
    columns, size = cross.shape
    h = np.empty((1, size))
    active = np.ones(1, np.bool_)
    flips = np.zeros(1, np.int64)
    random = np.empty(1, np.uint64)
    for t in range(columns):
        one = slice(t, t + 1)
        greedy(gram, cross[t], scale, codes[t], h[0])
        products(cross[one], codes[one], h, p[one], q[one])
        for _ in range(sweeps):
            one_flip_sweep(
                gram, True, 1e-12, cross[one], codes[one], h, p[one], q[one], active, flips
            )
            if flips[0] == 0:
                break
        if moves > 0:
            random[0] = seed
            loss, _ = tabu_walk(
                gram, cross[t], 1.0, codes[t], True, moves, patience, tenure, random
            )
            p[t] = 0.0
            for j in range(size):
                p[t] += codes[t, j] * cross[t, j]
            # from the loss 1 − p²/q, as a product with H would take as long as 60 moves
            q[t] = p[t] * p[t] / (1.0 - loss) if loss < 1.0 else 0.0
        if p[t] < 0.0:
            p[t] = -p[t]
            canonical_sign(cross[t], codes[t], True)
