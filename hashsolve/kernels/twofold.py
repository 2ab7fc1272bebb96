"""Sums and products in twice the precision: what rounding lost is kept beside them."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _add(high, low, term):
    """high + low + term, the rounding of the sum kept in low (Knuth's two-sum)."""
    total = high + term
    part = total - high
    return total, low + ((high - (total - part)) + (term - part))


@njit(cache=True, nogil=True)
def _halves(value):
    """Two numbers of 26 bits each, whose products are exact (Veltkamp)."""
    large = 134217729.0 * value
    high = large - (large - value)
    return high, value - high


@njit(cache=True, nogil=True)
def _multiply(a, b):
    """a · b and its rounding (Dekker)."""
    product = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    rest = ((a_high * b_high - product) + a_high * b_low) + a_low * b_high
    return product, rest + a_low * b_low


@njit(cache=True, nogil=True)
def precise(gram, cross, bits):
    """p = cross · bits and q = bits · gram · bits to some 30 digits of their terms, rounded."""
    p = 0.0
    p_low = 0.0
    q = 0.0
    q_low = 0.0
    for i in range(len(bits)):
        p, p_low = _add(p, p_low, bits[i] * cross[i])
        for j in range(len(bits)):
            q, q_low = _add(q, q_low, bits[i] * bits[j] * gram[i, j])
    return p + p_low, q + q_low


@njit(cache=True, nogil=True)
def precise_products(gram, cross, codes, p, q):
    """`precise` for each row of cross, codes (T, S), p and q (T,): all rows take each step at once,
    which the processor does several of at a time."""
    bits = np.ascontiguousarray(codes.T).astype(np.float64)
    cross = np.ascontiguousarray(cross.T)
    p_low = np.zeros_like(p)
    q_low = np.zeros_like(q)
    p[:] = 0.0
    q[:] = 0.0
    for i in range(len(bits)):
        for t in range(len(p)):
            p[t], p_low[t] = _add(p[t], p_low[t], bits[i, t] * cross[i, t])
        for j in range(len(bits)):
            for t in range(len(q)):
                q[t], q_low[t] = _add(q[t], q_low[t], bits[i, t] * bits[j, t] * gram[i, j])
    p += p_low
    q += q_low


@njit(cache=True, nogil=True)
def fixed_loss(gram, cross, energy, bits):
    """energy − 2 cross · bits + bits · gram · bits to some 30 digits of its terms, rounded."""
    loss = energy
    low = 0.0
    for i in range(len(bits)):
        loss, low = _add(loss, low, -2.0 * bits[i] * cross[i])
        for j in range(len(bits)):
            loss, low = _add(loss, low, bits[i] * bits[j] * gram[i, j])
    return loss + low


@njit(cache=True, nogil=True)
def weighted_losses(gram, cross, energy, weights, loss):
    """loss[t] = energy[t] − 2 cross[t] · u + u · gram · u, u = weights[t], to some 30 digits of its
    terms, rounded; not a number where these leave the range."""
    for t in range(weights.shape[0]):
        high = energy[t]
        low = 0.0
        for i in range(weights.shape[1]):
            pull = -2.0 * cross[t, i]
            pull_low = 0.0
            for j in range(weights.shape[1]):
                product, rest = _multiply(gram[i, j], weights[t, j])
                pull, pull_low = _add(pull, pull_low + rest, product)
            product, rest = _multiply(pull, weights[t, i])
            high, low = _add(high, low + (rest + pull_low * weights[t, i]), product)
        loss[t] = high + low


@njit(cache=True, nogil=True)
def divide(values, divisors, rest):
    """values[t] /= divisors[t]; rest[t] is what the rounding of those quotients lost."""
    for t in range(values.shape[0]):
        for i in range(values.shape[1]):
            quotient = values[t, i] / divisors[t]
            product, low = _multiply(quotient, divisors[t])
            rest[t, i] = ((values[t, i] - product) - low) / divisors[t]
            values[t, i] = quotient


@njit(cache=True, nogil=True)
def _less(total, first, second, weight):
    """total − first second / weight, rounded once."""
    product, product_low = _multiply(first, second)
    mean = product / weight
    back, back_low = _multiply(mean, weight)
    mean_low = ((product - back) - back_low + product_low) / weight
    high, low = _add(total, -mean_low, -mean)
    return high + low


@njit(cache=True, nogil=True)
def about_means(total, first, second, weight):
    """total[i, j] −= first[i] second[j] / weight, however little is left of it, rounded once."""
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] = _less(total[i, j], first[i], second[j], weight)


@njit(cache=True, nogil=True)
def about_own_mean(total, values, weight):
    """total[i] −= values[i]² / weight, rounded once."""
    for i in range(total.shape[0]):
        total[i] = _less(total[i], values[i], values[i], weight)
