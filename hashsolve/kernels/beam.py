"""K-best search on the triangular form ‖y − αRb‖²; one state wide it is Babai's rounding."""

import numpy as np
from numba import njit

BLOCK = 32  # digits of a number; a multiple of four


@njit(cache=True, nogil=True)
def partial_loss(yy, yv, vv, low, high):
    """Least yy − 2α·yv + α²·vv over low <= α <= high: the bound over the rows already fixed."""
    alpha = high
    if yv < high * vv:
        alpha = max(low, yv / vv) if vv > 0.0 else high
    return yy - 2.0 * alpha * yv + alpha * alpha * vv


@njit(cache=True, nogil=True)
def select(values, count, k):
    """The k-th least (from 0) of the first `count` values, which are reordered.

    Hoare's algorithm; np.partition does the same, but takes 4 s to compile.
    """
    left = 0
    right = count - 1
    while left < right:
        pivot = values[(left + right) // 2]
        i = left
        j = right
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            right = j
        elif k >= i:
            left = i
        else:
            break
    return values[k]


@njit(cache=True, nogil=True)
def beam(lower, target, shift, low, high, width):
    """Keep the `width` best partial codes while deciding bits from the last to the first.

    Parameters
    ----------
    lower : (S (S + 1) / 2,) the Cholesky factor L of gram + diag(λ), its rows one after the other;
        R = Lᵀ
    target : (S,) y = L⁻¹c
    shift : Σλ, which the loss does not see: bᵀ(gram)b = ‖Rb‖² − shift
    low, high : the finite range of scales; equal for a fixed scale
    width : K

    Returns
    -------
    codes (K', S) int8 with K' = min(K, 2^S), p (K',), q (K',), in no particular order
    """
    size = target.shape[0]
    rest = np.zeros((width, size))  # rest[k, :top] = (Rb)[:top] from the bits decided so far
    rest_new = np.empty((width, size))
    codes = np.zeros((width, size), np.int8)
    codes_new = np.empty((width, size), np.int8)
    near = np.empty((width, BLOCK))  # rest within the block of bits being decided
    near_new = np.empty((width, BLOCK))
    bits = np.empty(width, np.int64)  # those decided in the block, a binary digit each
    bits_new = np.empty(width, np.int64)
    signs = np.empty(BLOCK)
    root = np.empty(width, np.int64)  # the state at the block's start that a state grew from
    root_new = np.empty(width, np.int64)
    p = np.zeros(width)
    q = np.zeros(width)
    q[0] = -shift
    p_new = np.empty(width)
    q_new = np.empty(width)
    cost = np.empty(2 * width)
    shuffled = np.empty(2 * width)
    count = 1
    yy = 0.0
    top = size
    while top > 0:
        # Only the block's own part of `rest` follows the states at every bit; all before it
        # catches up once a block, which keeps most of the work in the processor's cache.
        start = max(0, top - BLOCK)
        for k in range(count):
            root[k] = k
            bits[k] = 0
            for j in range(top - start):  # a slice assignment takes 2 s to compile
                near[k, j] = rest[k, start + j]
        for i in range(top - start - 1, -1, -1):
            y = target[start + i]
            row = (start + i) * (start + i + 1) // 2 + start
            pivot = lower[row + i]
            yy += y * y
            for child in range(2 * count):
                k = child >> 1
                v = near[k, i] + (pivot if child & 1 else -pivot)
                cost[child] = partial_loss(yy, p[k] + y * v, q[k] + v * v, low, high)
            keep = min(width, 2 * count)
            for child in range(2 * count):
                shuffled[child] = cost[child]
            bar = select(shuffled, 2 * count, keep - 1)
            ties = keep  # how many children exactly at the bar may stay, the first ones
            for child in range(2 * count):
                ties -= cost[child] < bar
            n = 0
            for child in range(2 * count):
                if cost[child] > bar or (cost[child] == bar and ties == 0):
                    continue
                ties -= cost[child] == bar
                k = child >> 1
                bit = 1.0 if child & 1 else -1.0
                v = near[k, i] + bit * pivot
                p_new[n] = p[k] + y * v
                q_new[n] = q[k] + v * v
                root_new[n] = root[k]
                for j in range(i):
                    near_new[n, j] = near[k, j] + bit * lower[row + j]
                bits_new[n] = bits[k] | (child & 1) << i
                n += 1
            count = n
            near, near_new = near_new, near
            bits, bits_new = bits_new, bits
            root, root_new = root_new, root
            p, p_new = p_new, p
            q, q_new = q_new, q
        for k in range(count):
            for j in range(top, size):
                codes_new[k, j] = codes[root[k], j]
            for i in range(top - start):
                signs[i] = 1.0 if bits[k] >> i & 1 else -1.0
                codes_new[k, start + i] = np.int8(signs[i])
            for j in range(start):
                rest_new[k, j] = rest[root[k], j]
            if start == 0:
                continue
            for i in range(BLOCK - 1, -1, -4):  # four at a time, one after the other
                row = start + i
                one = row * (row + 1) // 2
                two = one - row
                three = two - row + 1
                four = three - row + 2
                for j in range(start):
                    value = rest_new[k, j] + signs[i] * lower[one + j]
                    value += signs[i - 1] * lower[two + j]
                    value += signs[i - 2] * lower[three + j]
                    rest_new[k, j] = value + signs[i - 3] * lower[four + j]
        rest, rest_new = rest_new, rest
        codes, codes_new = codes_new, codes
        top = start
    return codes[:count], p[:count], q[:count]
