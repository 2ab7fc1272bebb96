"""Depth-first sphere decoding of one column."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def sphere(lower, target, offset, cutoff, slack, free, limit, still, moving, most, codes):
    """Search all codes whose loss ``offset + |target - scale * lower @ b|^2`` is below ``cutoff``.

    Level k decides ``b[k]``; rows 0..k of ``lower`` are then known, and what they leave at the best
    scale (``free``; else at scale 1) bounds every completion from below:
    ``offset + |target[:k+1]|^2 - P^2 / Q``, with P and Q the products of the row sums with the
    target and with themselves. The first code is +1 where the scale is free (of either sign). The
    child with the lower bound goes first. Every loss reached lowers the cutoff to itself + slack.

    Row sums are kept for every prefix of the row, and only what has changed since a row was last
    visited is summed anew (Ghasemmehdi and Agrell, 2011).

    Parameters
    ----------
    lower : (n, n) lower triangle, positive diagonal; target : (n,)
    slack : may be negative (then codes that gain less are not looked for) or positive (rounding).
    limit : visit at most so many nodes.
    still, moving : what rounding can do to the loss at a free scale α is still + α² moving; at a
        fixed scale it is still.
    most : no α² of codes worth finding is larger.
    codes : (n,) int8, overwritten by the best codes found, if any.

    Returns
    -------
    (nodes visited, lowest loss reached or inf, whether the search is complete, what the loss of no
    codes reached is below whatever rounding did, or inf; at a fixed scale, of none but the best)
    """
    n = len(target)
    need = np.empty(n)  # what P^2 / Q must bring below the cutoff
    total = offset
    for k in range(n):
        total += target[k] * target[k]
        need[k] = total
    prefix = np.zeros((n, n + 1))
    stale = np.zeros(n + 1, dtype=np.int64)  # first entry of a row's prefix that is out of date
    bits = np.ones(n)
    inner = np.zeros(n + 1)  # P of the rows above, one entry a level; square: Q
    square = np.zeros(n + 1)
    other = np.zeros(n, dtype=np.bool_)  # whether the second child is still to be visited
    other_inner = np.zeros(n)
    other_square = np.zeros(n)
    best = np.inf
    lowest = np.inf
    nodes = 0
    k = 0
    while True:
        # A new node: decide b[k].
        if nodes == limit:
            return nodes, best, False, lowest
        nodes += 1
        row = prefix[k]
        for j in range(stale[k], k):
            row[j + 1] = row[j] + lower[k, j] * bits[j]
        stale[k + 1] = min(stale[k + 1], stale[k])
        stale[k] = k
        plus = row[k] + lower[k, k]
        minus = row[k] - lower[k, k]
        p = inner[k] + target[k] * plus
        q = square[k] + plus * plus
        p_other = inner[k] + target[k] * minus
        q_other = square[k] + minus * minus
        if free:
            swap = p_other * p_other * q > p * p * q_other
        else:
            swap = 2.0 * p_other - q_other > 2.0 * p - q
        bits[k] = 1.0
        if swap and not (free and k == 0):
            bits[k] = -1.0
            p, p_other = p_other, p
            q, q_other = q_other, q
        other[k] = not (free and k == 0)
        other_inner[k] = p_other
        other_square[k] = q_other
        while True:
            # The child (p, q) of level k: down to it, or back to the nearest second child.
            above = need[k] - cutoff
            if above < 0.0 and free:
                inside = True
            elif free:
                inside = p * p > above * q
            else:
                inside = 2.0 * p - q > above
            if inside and k < n - 1:
                break
            if inside:
                loss = need[k]
                if not free:
                    loss -= 2.0 * p - q
                    lowest = min(lowest, max(loss, best) - still)
                else:
                    if q > 0.0:
                        loss -= p * p / q
                    squared = most
                    if q > 2.0 * moving:  # by so much q may be smaller than it seems
                        squared = min(most, (p / (q - moving)) * (p / (q - moving)))
                    lowest = min(lowest, loss - still - moving * squared)
                if loss < best:
                    best = loss
                    cutoff = min(cutoff, loss + slack)
                    for j in range(n):
                        codes[j] = np.int8(bits[j])
            elif other[k]:
                other[k] = False  # the second child's bound is no lower
            while k >= 0 and not other[k]:
                k -= 1
            if k < 0:
                return nodes, best, True, lowest
            other[k] = False
            bits[k] = -bits[k]
            stale[k + 1] = min(stale[k + 1], k)
            p = other_inner[k]
            q = other_square[k]
        inner[k + 1] = p
        square[k + 1] = q
        k += 1
