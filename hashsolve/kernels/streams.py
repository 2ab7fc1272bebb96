"""What is computed of data as it is read, in one pass: checksums, sums and sums of squares."""

import numpy as np
from numba import njit

_PART = 4096  # words whose weighted sum fits 64 bits with room to spare


@njit(cache=True, nogil=True)
def word_sums(words, found):
    """found = Σ w_i and Σ (n − i) w_i over n 16-bit words, both modulo 65,535: Fletcher's sums."""
    count = words.shape[0]
    modulus = np.uint64(65535)
    first, second = np.uint64(0), np.uint64(0)
    for top in range(0, count, _PART):
        plain, weighted = np.uint64(0), np.uint64(0)
        for i in range(top, min(top + _PART, count)):
            plain += np.uint64(words[i])
            weighted += np.uint64(words[i]) * np.uint64(i - top)
        plain %= modulus
        # minus the weighted sum, as a number that is not negative
        second += np.uint64(count - top) % modulus * plain + modulus - weighted % modulus
        second %= modulus
        first = (first + plain) % modulus
    found[0], found[1] = first, second


@njit(cache=True, nogil=True)
def add_moments(values, total, squares):
    """Add Σ v and Σ v² of each column of values (n, R), in float64, to total and squares (R,)."""
    count, size = values.shape
    fours = count // 4 * 4
    for i in range(0, fours, 4):
        first, second, third, fourth = values[i], values[i + 1], values[i + 2], values[i + 3]
        for j in range(size):
            a, b = np.float64(first[j]), np.float64(second[j])
            c, d = np.float64(third[j]), np.float64(fourth[j])
            total[j] += (a + b) + (c + d)
            squares[j] += (a * a + b * b) + (c * c + d * d)
    for i in range(fours, count):
        for j in range(size):
            v = np.float64(values[i, j])
            total[j] += v
            squares[j] += v * v
