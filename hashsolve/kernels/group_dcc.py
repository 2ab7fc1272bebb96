"""DCC where each group of consecutive inputs has a scale of its own."""

from numba import njit


@njit(cache=True, nogil=True)
def group_dcc_sweep(gram, cross, codes, h, scales, active, flips):
    """One cyclic sweep at fixed scales (T, G) over the active columns; h[t] = gram @ (α∘b).

    Bit j becomes sgn(α_j (c_j − Σ_{k≠j} H_jk α_k b_k)); where that is zero the bit stays.
    """
    inputs = gram.shape[0]
    share = inputs // scales.shape[1]
    for t in range(codes.shape[0]):
        flips[t] = 0
        if not active[t]:
            continue
        for j in range(inputs):
            weight = scales[t, j // share] * codes[t, j]
            pull = cross[t, j] - (h[t, j] - gram[j, j] * weight)
            if pull * weight < 0.0:
                codes[t, j] = -codes[t, j]
                flips[t] += 1
                for k in range(inputs):
                    h[t, k] -= 2.0 * weight * gram[j, k]
