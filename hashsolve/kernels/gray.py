"""Enumeration of all codes of one column in Gray-code order."""

import numpy as np
from numba import njit

from hashsolve.kernels.twofold import fixed_loss, precise


@njit(cache=True, nogil=True)
def gray(gram, cross, energy, free, begin, end, best, lowest, codes):
    """Find the best codes of all 2^S (2^(S-1) for a free scale, where ``codes[-1]`` stays +1).

    One call takes steps ``begin`` (a multiple of 64) up to ``end``; the first starts from ``best``
    and ``lowest`` inf, the others from what the one before returned. One flip a step, O(S). Running
    sums are formed anew every 64 steps, so that rounding does not add up; where it could still hide
    a better loss, as where q all but cancels, p and q are summed again in twice the precision. The
    first codes in Gray-code order, from all +1, win a tie.
    Codes whose q is no more than 1e-12 trace H are passed over, as by all methods: rounding of the
    gram itself may give such any loss.

    Returns the lowest loss, whose codes overwrite ``codes`` (S,) int8; a value that no loss is
    below whatever rounding did, of codes passed over too: the lowest of loss − 2|α| δp − α² δq;
    and how many codes were summed again, O(S²) each. Where even twice the precision leaves q
    undecided, the value is 0: with a free scale no loss is negative.
    """
    inputs = len(cross)
    bits = np.empty(inputs)
    for i in range(inputs):
        bits[i] = 1.0 - 2.0 * (((begin ^ (begin >> 1)) >> i) & 1)
    products = np.empty(inputs)
    p = 0.0
    q = 0.0
    p_size = 0.0
    q_size = 0.0
    floor = 0.0
    for i in range(inputs):
        p_size += abs(cross[i])
        floor += 1e-12 * gram[i, i]
        for j in range(inputs):
            q_size += abs(gram[i, j])
    again = 0
    for step in range(begin, end):
        if step > begin:
            j = 0
            while (step >> j) & 1 == 0:
                j += 1
            p -= 2.0 * bits[j] * cross[j]
            q += 4.0 * (gram[j, j] - bits[j] * products[j])
            twice = 2.0 * bits[j]
            row = gram[j]
            for i in range(inputs):
                products[i] -= twice * row[i]
            bits[j] = -bits[j]
        if step & 63 == 0:
            p = 0.0
            q = 0.0
            for i in range(inputs):
                total = 0.0
                for j in range(inputs):
                    total += gram[i, j] * bits[j]
                products[i] = total
                p += cross[i] * bits[i]
                q += bits[i] * total
        # what 64 steps can do to p and q at worst
        p_error = 1e-13 * p_size
        q_error = 4e-12 * q_size
        if free:
            if q > 2.0 * q_error:
                # q may be smaller and |p| larger than they seem
                most = (abs(p) + p_error) * (abs(p) + p_error) / (q - q_error)
                if energy - most >= best:
                    continue
            again += 1
            p_now, q_now = precise(gram, cross, bits)
            p_error = 1e-28 * p_size
            q_error = 1e-26 * q_size
            alpha = 0.0
            if q_now > 2.0 * q_error:
                alpha = p_now / q_now
                rounding = 1e-15 * (energy + p_now * alpha)
                rounding += 2.0 * abs(alpha) * p_error + alpha * alpha * q_error
                lowest = min(lowest, energy - p_now * alpha - 2.0 * rounding)
            elif q_now == 0.0 and p_now == 0.0:
                lowest = min(lowest, energy)
            else:
                lowest = min(lowest, 0.0)
            if q_now <= floor:
                continue
            loss = energy - p_now * alpha
        else:
            loss = energy - 2.0 * p + q
            if loss - 2.0 * p_error - q_error >= lowest:
                continue
            again += 1
            loss = fixed_loss(gram, cross, energy, bits)
            rounding = 1e-15 * abs(loss) + 1e-26 * (abs(energy) + 2.0 * p_size + q_size)
            lowest = min(lowest, loss - rounding)
        if loss < best:
            best = loss
            for i in range(inputs):
                codes[i] = np.int8(bits[i])
    return best, lowest, again
