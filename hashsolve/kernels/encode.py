"""Codes of many columns that share one Gram matrix: greedy, a tabu walk, one-flip descent.

The walk is at a fixed scale, where a flip changes the loss by a difference and not by a quotient,
and on whole numbers, eight at a time: it finds where to look; the descent after it has the word.
"""

import numpy as np
from numba import njit

ROWS = 8
LIMIT = 2.0**26
"""Of the magnitudes of a row of H in whole numbers, together."""
TABU = np.int32(2**30)
"""On top of the gain of a bit that rests; gains stay below 4 LIMIT, and all of it in 32 bits."""
AIM = 32
"""Flips after which a walk sets its scale anew."""
FLOOR = 1e-6
"""Of p and q: below, codes all but cancel, and their ratio is rounding noise."""


@njit(cache=True, nogil=True)
def greedy(gram, cross, scale, codes, h):
    """Decide the bits one after the other, as if those to come were 0; fill codes and h = Hb.

    `ROWS` rows of H serve every column before the next, so that they stay in the cache; every
    entry of h is rounded as if whole rows were added one at a time.
    """
    size = gram.shape[0]
    h[:, :] = 0.0
    for top in range(0, size, ROWS):
        end = min(top + ROWS, size)
        for t in range(codes.shape[0]):
            bits, sums = codes[t], h[t]
            for j in range(top, end):
                bits[j] = -1 if cross[t, j] < scale * sums[j] else 1
                _add(sums[top:end], gram[j][top:end], bits[j])
            _add_block(sums, gram, bits, top, end, slice(0, top))
            _add_block(sums, gram, bits, top, end, slice(end, size))


@njit(cache=True, nogil=True)
def _add(out, row, weight):
    """out += weight · row."""
    for k in range(out.shape[0]):
        out[k] += weight * row[k]


@njit(cache=True, nogil=True)
def _add_block(out, gram, bits, top, end, part):
    """out += Σ_j bits[j] gram[j] in a part of it, the rows from `top` to `end`, four at a time."""
    into = out[part]
    fours = top + (end - top) // 4 * 4
    for j in range(top, fours, 4):
        a, b, c, d = gram[j][part], gram[j + 1][part], gram[j + 2][part], gram[j + 3][part]
        wa, wb, wc, wd = bits[j], bits[j + 1], bits[j + 2], bits[j + 3]
        for k in range(into.shape[0]):
            into[k] = (((into[k] + wa * a[k]) + wb * b[k]) + wc * c[k]) + wd * d[k]
    for j in range(fours, end):
        _add(into, gram[j][part], bits[j])


@njit(cache=True, nogil=True)
def walk(gram, whole, unit, cross, codes, h, p, q, moves, tenure):
    """Flip the bit of the least gain that does not rest, `moves` times; codes become the best seen.

    Gains, a quarter of what a flip adds to the loss, are at a scale that is set every `AIM` flips;
    the best has the largest p²/q. A bit rests for `tenure` flips after its own.
    """
    size = codes.shape[0]
    tenure = min(tenure, (size - 1) // 2)
    far = 2.0 * LIMIT  # beyond this, the sign of a target decides its bit
    target = np.zeros(size, np.int32)
    gain = np.empty(size, np.int32)
    places = np.arange(size).astype(np.int32)
    bits = codes.astype(np.int32)
    for j in range(size):
        gain[j] = np.int32(np.rint(unit * (gram[j, j] - codes[j] * h[j])))
    path = np.empty(moves, np.int64)
    best = p * p / q
    kept = 0
    for made in range(moves):
        if made % AIM == 0 and p > FLOOR and q > FLOOR:
            inverse = unit * q / p
            for j in range(size):
                aim = np.int32(min(max(cross[j] * inverse, -far), far))
                gain[j] += bits[j] * (aim - target[j])
                target[j] = aim
        choice = _least(gain, places)
        bit = bits[choice]
        path[made] = choice
        p -= 2.0 * bit * cross[choice]
        q += 4.0 * (gain[choice] - bit * target[choice]) / unit
        if q > FLOOR and p * p > best * q:
            best = p * p / q
            kept = made + 1
        back = np.int32(-gain[choice])
        twice = np.int32(2) * bit
        row = whole[choice]
        for j in range(size):
            gain[j] += twice * bits[j] * row[j]
        gain[choice] = back
        bits[choice] = -bit
        if tenure > 0:
            gain[choice] += TABU
            if made >= tenure:
                gain[path[made - tenure]] -= TABU
    for k in range(kept):
        codes[path[k]] = -codes[path[k]]


@njit(cache=True, nogil=True)
def _least(gain, places):
    """The place of the smallest entry, the first of equal ones, in two passes that vectorise."""
    low = gain[0]
    for j in range(gain.shape[0]):
        value = gain[j]
        low = value if value < low else low
    at = places[-1]
    for j in range(gain.shape[0]):
        place = places[j] if gain[j] == low else at
        at = place if place < at else at
    return at


@njit(cache=True, nogil=True, error_model="numpy")
def descend(gram, cross, codes, h, p, q, flips):
    """Make the flip that leaves the most of p²/q, until none raises it or `flips` are made.

    That is descent with the scale profiled out. Changes codes and h; returns p and q. A flip must
    gain more than rounding can, so that it cannot cycle.
    """
    tolerance = 1e-12
    for _ in range(flips):
        most = -1.0
        choice = 0
        for j in range(codes.shape[0]):
            down = p - 2.0 * codes[j] * cross[j]
            left = q + 4.0 * (gram[j, j] - codes[j] * h[j])
            value = down * down / left if left > tolerance else 0.0
            if value > most:
                most = value
                choice = j
        bit = codes[choice]
        left = q + 4.0 * (gram[choice, choice] - bit * h[choice])
        now = p * p / q if q > tolerance else 0.0
        noise = 1.0 + most / left + (now / q if q > tolerance else 0.0)
        if left <= tolerance or most - now <= tolerance * noise:
            break
        p -= 2.0 * bit * cross[choice]
        q = left
        codes[choice] = -bit
        _add(h, gram[choice], -2.0 * bit)
    return p, q


@njit(cache=True, nogil=True)
def encode(gram, whole, unit, cross, scale, moves, tenure, codes, p, q):
    """Fill the codes of each column, and their p = cᵀb ≥ 0 and q = bᵀHb; energies are about 1.

    `scale` is the one that `greedy` takes. `whole` is `unit` H in whole numbers, the magnitudes of
    a row together below `LIMIT`.
    """
    columns, size = cross.shape
    h = np.empty((columns, size))
    start = np.empty(size, np.int8)
    greedy(gram, cross, scale, codes, h)
    for t in range(columns):
        c, b, sums = cross[t], codes[t], h[t]
        down, left = _weigh(c, b, sums)
        if moves > 0 and down > FLOOR and left > FLOOR:
            for j in range(size):
                start[j] = b[j]
            walk(gram, whole, unit, c, b, sums, down, left, moves, tenure)
            for j in range(size):
                if b[j] != start[j]:
                    _add(sums, gram[j], 2.0 * b[j])
            down, left = _weigh(c, b, sums)
        down, left = descend(gram, c, b, sums, down, left, 30 * size)
        if down < 0.0:
            down = -down
            for j in range(size):
                b[j] = -b[j]
        p[t] = down
        q[t] = left


@njit(cache=True, nogil=True)
def _weigh(cross, codes, h):
    """cᵀb and bᵀHb."""
    p = 0.0
    q = 0.0
    for j in range(codes.shape[0]):
        p += codes[j] * cross[j]
        q += codes[j] * h[j]
    return p, q
