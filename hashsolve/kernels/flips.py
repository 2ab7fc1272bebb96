"""One column under single flips: its state, its loss, and the O(S) update."""

from numba import njit


@njit(cache=True, nogil=True)
def column_state(gram, cross, codes, fall, rise):
    """Fill `fall[j]` = b_j c_j and `rise[j]` = H_jj − b_j (Hb)_j; return p, q and the least q.

    Flipping bit j turns p into p − 2 fall[j] and q into q + 4 rise[j]. A q below the third
    value is rounding noise around zero (singular gram), and means: no scale helps.
    """
    size = codes.shape[0]
    p = 0.0
    q = 0.0
    trace = 0.0
    rise[:] = 0.0
    for k in range(size):  # row by row: an axpy vectorises, a dot product does not
        for j in range(size):
            rise[j] += codes[k] * gram[k, j]
    for j in range(size):
        h = rise[j] * codes[j]
        fall[j] = codes[j] * cross[j]
        rise[j] = gram[j, j] - h
        p += fall[j]
        q += h
        trace += abs(gram[j, j])
    return p, q, 1e-12 * trace


@njit(cache=True, nogil=True)
def column_loss(p, q, floor, energy, free):
    """Loss of a column: energy − p²/q with the best scale, energy − 2p + q with scale one."""
    if not free:
        return energy - 2.0 * p + q
    if q <= floor:
        return energy
    return energy - p * p / q


@njit(cache=True, nogil=True)
def flip(gram, codes, fall, rise, i):
    """Flip bit i of `codes` and update `fall` and `rise` (see `column_state`) in O(S)."""
    step = 2.0 * codes[i]
    undone = -rise[i]
    for j in range(codes.shape[0]):
        rise[j] += step * codes[j] * gram[i, j]
    rise[i] = undone
    fall[i] = -fall[i]
    codes[i] = -codes[i]
