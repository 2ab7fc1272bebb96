"""Enumeration of all codes of one column in Gray-code order."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def gray(gram, cross, energy, free, codes):
    """Find the best codes of all 2^S (2^(S-1) for a free scale, where ``codes[-1]`` stays +1).

    One flip a step, O(S). Running sums are formed anew every 64 steps, so that rounding does not
    add up. The first codes in Gray-code order, from all +1, win a tie.

    Returns the lowest loss, whose codes overwrite ``codes`` (S,) int8, and a value that no loss is
    below whatever rounding did: the lowest of loss − 2|α| δp − α² δq, with the worst that 64 steps
    can do to p and q.
    """
    inputs = len(cross)
    bits = np.ones(inputs)
    products = np.empty(inputs)
    p = 0.0
    q = 0.0
    floor = 0.0  # a smaller q is rounding noise around zero
    p_error = 0.0
    q_error = 0.0
    for i in range(inputs):
        floor += 1e-12 * abs(gram[i, i])
        p_error += 1e-13 * abs(cross[i])
        for j in range(inputs):
            q_error += 4e-12 * abs(gram[i, j])
    best = np.inf
    lowest = np.inf
    for step in range(1 << (inputs - 1 if free else inputs)):
        if step > 0:
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
        alpha = 1.0
        loss = energy
        if not free:
            loss += q - 2.0 * p
        elif q > floor:
            alpha = p / q
            loss -= p * alpha
        else:
            alpha = 0.0
        lowest = min(lowest, loss - 2.0 * abs(alpha) * p_error - alpha * alpha * q_error)
        if loss < best:
            best = loss
            for i in range(inputs):
                codes[i] = np.int8(bits[i])
    return best, lowest
