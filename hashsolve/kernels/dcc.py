"""Discrete cyclic coordinate descent (BWNH, section 3.2)."""

from numba import njit


@njit(cache=True, nogil=True)
def dcc_sweep(gram, cross, codes, h, scales, active, flips):
    """One cyclic sweep at fixed scales over the active columns; changes ``codes`` and ``h``.

    Bit j becomes sgn(c_j − α Σ_{k≠j} H_jk b_k); where that is zero the bit stays.
    """
    inputs = gram.shape[0]
    for t in range(codes.shape[0]):
        flips[t] = 0
        if not active[t]:
            continue
        for j in range(inputs):
            bit = codes[t, j]
            pull = cross[t, j] - scales[t] * (h[t, j] - gram[j, j] * bit)
            if pull * bit < 0.0:
                codes[t, j] = -bit
                flips[t] += 1
                step = -2.0 * bit
                for k in range(inputs):
                    h[t, k] += step * gram[j, k]
