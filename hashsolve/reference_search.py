"""NumPy twins of the kernels that search; see `hashsolve.reference`."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

# np.cumsum(x)[-1] is a plain sum from the left, the order in which kernels add
_MASK = 2**64 - 1


def random_below(state, n):
    """An integer of 0 … n − 1 by splitmix64; ``state`` is one uint64, advanced."""
    state[0] = np.uint64((int(state[0]) + 0x9E3779B97F4A7C15) & _MASK)
    z = int(state[0])
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    z ^= z >> 31
    return int(float(z >> 11) * 2.0**-53 * n)


def column_state(gram, cross, codes, fall, rise):
    """Fill fall = b∘c and rise = diag H − b∘(Hb); p = cᵀb, q = bᵀHb and the least usable q."""
    h = np.cumsum(codes[:, None] * gram, axis=0)[-1]
    fall[:] = codes * cross
    rise[:] = np.diag(gram) - h * codes
    p = np.cumsum(fall)[-1]
    q = np.cumsum(h * codes)[-1]
    return p, q, 1e-12 * np.cumsum(np.abs(np.diag(gram)))[-1]


def column_loss(p, q, floor, energy, free):
    """Loss of a column, or of many at once where p and q are arrays."""
    if not free:
        return energy - 2.0 * p + q
    p, q = np.broadcast_arrays(np.asarray(p, float), q)
    return energy - np.divide(p * p, q, out=np.zeros(p.shape), where=q > floor)


def flip(gram, codes, fall, rise, i):
    """Flip bit i and update fall and rise."""
    back = -rise[i]
    rise += 2.0 * codes[i] * codes * gram[i]
    rise[i] = back
    fall[i] = -fall[i]
    codes[i] = -codes[i]


def partial_loss(yy, yv, vv, low, high):
    """Least yy − 2α·yv + α²·vv over low <= α <= high, for arrays yv and vv."""
    inner = np.divide(yv, vv, out=np.full_like(yv, high), where=vv > 0.0)
    alpha = np.where(yv < high * vv, np.maximum(low, inner), high)
    return yy - 2.0 * alpha * yv + alpha * alpha * vv


def beam(lower, target, shift, low, high, width):
    """Keep the ``width`` best partial codes, bits decided from the last to the first."""
    size = len(target)
    codes = np.zeros((1, size), np.int8)
    rest = np.zeros((1, size))
    p, q = np.zeros(1), np.full(1, -shift)
    yy = 0.0
    for i in reversed(range(size)):
        yy += target[i] * target[i]
        parent = np.repeat(np.arange(len(codes)), 2)
        bit = np.tile([-1.0, 1.0], len(codes))
        v = rest[parent, i] + bit * lower[i, i]
        p, q = p[parent] + target[i] * v, q[parent] + v * v
        best = np.argsort(partial_loss(yy, p, q, low, high), kind="stable")[:width]
        best.sort()
        p, q, parent, bit = p[best], q[best], parent[best], bit[best]
        codes = codes[parent]
        codes[:, i] = bit
        rest = rest[parent] + bit[:, None] * lower[i]  # rows after i are not read any more
    return codes, p, q


def least_pivots(upper):
    """The order of a Cholesky factorisation that takes the least pivot first; of a whole matrix."""
    size = len(upper)
    order = np.arange(size)
    for k in range(size):
        i = k + np.argmin(np.diag(upper)[k:])
        swap = np.array([k, i]), np.array([i, k])
        order[swap[0]] = order[swap[1]]
        upper[swap[0]] = upper[swap[1]]
        upper[:, swap[0]] = upper[:, swap[1]]
        factor = upper[k, k + 1 :] / upper[k, k]
        upper[k + 1 :, k + 1 :] -= factor[:, None] * upper[k, k + 1 :]
        upper[:] = np.triu(upper) + np.triu(upper, 1).T  # rounded as the upper triangle is
    return order


def reorder(array, diagonal, order):
    """Set the upper triangle to that of a symmetric matrix, given by its lower one, in `order`."""
    matrix = np.tril(array, -1) + np.tril(array, -1).T + np.diag(diagonal)
    array[:] = np.tril(array, -1) + np.triu(matrix[np.ix_(order, order)])


def pack(upper):
    """The rows of Uᵀ one after the other, each to its diagonal."""
    return upper.T[np.tril_indices(len(upper))]


def tabu_walk(gram, cross, energy, codes, free, moves, patience, tenure, random):
    """Walk to the best neighbour that is not tabu; ``codes`` becomes the best seen."""
    size = len(codes)
    tenure = min(tenure, (size - 1) // 2)
    walker = codes.copy()
    fall, rise = np.empty((2, size))
    rest = np.zeros(size)
    p, q, floor = column_state(gram, cross, codes, fall, rise)
    best = float(column_loss(p, q, floor, energy, free))
    margin = 1e-12 * abs(energy)
    made = last = 0
    while made < moves and made - last < patience:
        p_new, q_new = p - 2.0 * fall, q + 4.0 * rise
        gain = p_new * p_new / np.where(q_new > floor, q_new, np.inf)
        if not free:
            gain = 2.0 * p_new - q_new
        gain[(rest > made) & (gain <= energy - best + margin)] = -np.inf
        choice = np.argmax(gain)
        loss = energy - gain[choice]
        p, q = p_new[choice], q_new[choice]
        flip(gram, walker, fall, rise, choice)
        made += 1
        rest[choice] = made + tenure + random_below(random, tenure + 1)
        if loss < best - margin:
            best, last = loss, made
            codes[:] = walker
    return best, made


def evolve(gram, cross, energy, pool, free, moves, patience, tenure, kick, stale, seed):
    """Tabu walks from a pool, then from children of random pairs of it."""
    members, size = pool.shape
    random = np.array([seed], np.uint64)
    loss = np.empty(members)
    spent = failures = 0
    for k in range(members):
        loss[k], made = tabu_walk(
            gram, cross, energy, pool[k], free, moves - spent, patience, tenure, random
        )
        canonical_sign(cross, pool[k], free)
        spent += made
    while spent < moves and failures < stale:
        mother = pool[random_below(random, members)]
        father = pool[random_below(random, members)]
        child = np.array(
            [m if random_below(random, 2) else f for m, f in zip(mother, father, strict=True)]
        )
        for _ in range(random_below(random, kick + 1)):
            child[random_below(random, size)] *= -1
        value, made = tabu_walk(
            gram, cross, energy, child, free, moves - spent, patience, tenure, random
        )
        canonical_sign(cross, child, free)
        spent += made
        worst = np.argmax(loss)
        failures += 1
        if value < loss[worst] and not contains(pool, child):
            pool[worst], loss[worst] = child, value
            failures = 0
    return loss


def canonical_sign(cross, codes, free):
    """Turn free codes whose scale would be negative."""
    if free and np.cumsum(codes * cross)[-1] < 0.0:
        codes *= -1


def contains(pool, codes):
    """Whether a row of ``pool`` equals ``codes``."""
    return bool((pool == codes).all(axis=1).any())


def select(values, count, k):
    """The k-th least (from 0) of the first ``count`` values."""
    return np.sort(values[:count])[k]


def precise(gram, cross, bits):
    """p = cross · bits and q = bits · gram · bits, rounded once."""
    return math.fsum(bits * cross), math.fsum((np.outer(bits, bits) * gram).ravel())


def precise_products(gram, cross, codes, p, q):
    """`precise`, row by row."""
    for t, bits in enumerate(codes.astype(float)):
        p[t], q[t] = precise(gram, cross[t], bits)


def fixed_loss(gram, cross, energy, bits):
    """The loss at scale 1, rounded once."""
    return math.fsum([energy, *(-2.0 * bits * cross), *(np.outer(bits, bits) * gram).ravel()])


def weighted_losses(gram, cross, energy, weights, loss):
    """Every loss in exact fractions, rounded once."""
    for t, row in enumerate(weights):
        u = [Fraction(value) for value in row]
        exact = Fraction(energy[t]) - 2 * sum(
            a * Fraction(c) for a, c in zip(u, cross[t], strict=True)
        )
        for a, line in zip(u, gram, strict=True):
            exact += a * sum(Fraction(h) * b for h, b in zip(line, u, strict=True))
        loss[t] = float(exact)


def divide(values, divisors, rest):
    """Every quotient and its rounding in exact fractions, rounded once."""
    for t, i in np.ndindex(values.shape):
        quotient = Fraction(values[t, i]) / Fraction(divisors[t])
        values[t, i] = float(quotient)
        rest[t, i] = float(quotient - Fraction(values[t, i]))


def about_means(total, first, second, weight):
    """Every entry in exact fractions, rounded once."""
    for i, j in np.ndindex(total.shape):
        mean = Fraction(first[i]) * Fraction(second[j]) / Fraction(weight)
        total[i, j] = float(Fraction(total[i, j]) - mean)


def about_own_mean(total, values, weight):
    """The diagonal of the above."""
    matrix = np.diag(total)
    about_means(matrix, values, values, weight)
    total[:] = np.diagonal(matrix)


def gray(gram, cross, energy, free, begin, end, best, lowest, codes):
    """Codes in Gray-code order, every sum rounded once. Those whose q is no more than 1e-12 trace H
    are passed over, and only count for the lowest loss; all are summed once."""
    inputs = len(cross)
    step = np.arange(begin, end)
    flipped = (step ^ (step >> 1))[:, None] >> np.arange(inputs) & 1
    for bits in 1 - 2 * flipped:
        p, q = precise(gram, cross, bits)
        if not free:
            loss = fixed_loss(gram, cross, energy, bits)
        elif q > 0.0:
            loss = energy - p * p / q
        else:
            loss = 0.0 if p or q else energy
        lowest = min(lowest, loss)
        if loss < best and not (free and q <= 1e-12 * np.trace(gram)):
            best = loss
            codes[:] = bits
    return best, lowest, 0


def decision_order(matrix, inverse, first, energy_share, order):
    """Greedy: decide, condition the inverse on what was decided, repeat."""
    pending = np.ones(len(order), dtype=bool)
    for k in range(len(order)):
        pivot = np.maximum(np.diag(inverse), 1e-300)
        worth = energy_share * np.log(np.diag(matrix)) - (1.0 - energy_share) * np.log(pivot)
        chosen = k if k < first else np.argmax(np.where(pending, worth, -np.inf))
        order[k] = chosen
        pending[chosen] = False
        column = inverse[:, chosen].copy()
        inverse[pending] -= np.outer(column[pending] / pivot[chosen], column)


def sphere(lower, target, offset, cutoff, slack, free, limit, still, moving, most, codes):
    """Recursive depth-first search, every row sum formed anew."""
    n = len(target)
    need = np.cumsum(np.concatenate([[offset], target * target]))[1:]
    bits = np.ones(n)
    nodes, best, lowest = 0, np.inf, np.inf

    class Spent(Exception):
        pass

    def gain(p, q):
        if not free:
            return 2.0 * p - q
        return p * p / q if q > 0.0 else 0.0

    def inside(k, p, q):
        above = need[k] - cutoff
        return above < 0.0 or p * p > above * q if free else 2.0 * p - q > above

    def visit(k, inner, square):
        nonlocal nodes, best, cutoff, lowest
        if nodes == limit:
            raise Spent
        nodes += 1
        partial = np.cumsum(np.concatenate([[0.0], lower[k, :k] * bits[:k]]))[-1]
        children = []
        for sign in (1.0, -1.0):
            row = partial + sign * lower[k, k]
            children.append((sign, inner + target[k] * row, square + row * row))
        (_, p, q), (_, p_other, q_other) = children
        if free and k == 0:
            children.pop()
        elif (p_other**2 * q > p**2 * q_other) if free else gain(p_other, q_other) > gain(p, q):
            children.reverse()
        for sign, p, q in children:
            if not inside(k, p, q):
                continue
            bits[k] = sign
            if k < n - 1:
                visit(k + 1, p, q)
                continue
            loss = need[k] - gain(p, q)
            if free:
                square = min(most, (p / (q - moving)) ** 2) if q > 2.0 * moving else most
                lowest = min(lowest, loss - still - moving * square)
            else:
                lowest = min(lowest, max(loss, best) - still)
            if loss < best:
                best = loss
                cutoff = min(cutoff, loss + slack)
                codes[:] = bits

    try:
        visit(0, 0.0, 0.0)
    except Spent:
        return nodes, best, False, lowest
    return nodes, best, True, lowest


def estimate(lower, target, offset, cutoff, free, width, seed):
    """The kernel's reservoir sampling, one level at a time."""
    state = seed

    def draw(below):  # splitmix64
        nonlocal state
        mask = (1 << 64) - 1
        state = (state + 0x9E3779B97F4A7C15) & mask
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        return (mixed ^ (mixed >> 31)) % below

    level = [(np.ones(0), 0.0, 0.0)]
    weight, total = 1.0, 0.0
    need = offset - cutoff
    for k in range(len(target)):
        total += weight * len(level)
        need += target[k] * target[k]
        survivors, inside = [], 0
        for bits, inner, square in level:
            partial = np.cumsum(np.concatenate([[0.0], lower[k, :k] * bits]))[-1]
            for sign in (1.0,) if free and k == 0 else (1.0, -1.0):
                row = partial + sign * lower[k, k]
                p, q = inner + target[k] * row, square + row * row
                if (free and need >= 0.0 and p * p <= need * q) or (
                    not free and 2.0 * p - q <= need
                ):
                    continue
                inside += 1
                child = (np.append(bits, sign), p, q)
                if inside <= width:
                    survivors.append(child)
                elif (place := draw(inside)) < width:
                    survivors[place] = child
        if inside == 0:
            break
        weight *= max(1.0, inside / width)
        level = survivors
    return total
