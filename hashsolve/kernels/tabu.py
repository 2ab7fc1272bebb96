"""Tabu search over one-flip moves, and the evolution of a pool of its results."""

import numpy as np
from numba import njit

from hashsolve.kernels.flips import column_loss, column_state
from hashsolve.kernels.random import random_below


@njit(cache=True, nogil=True, error_model="numpy")
def tabu_walk(gram, cross, energy, codes, free, moves, patience, tenure, random):
    """Walk from `codes`, always to the best neighbour that is not tabu; keep the best seen.

    A flipped bit rests for `tenure` to 2·tenure moves, unless flipping it back beats everything
    seen (aspiration). The walk ends after `moves`, or `patience` moves without a new best.
    `codes` becomes the best seen. Returns its loss and the moves made.
    """
    size = codes.shape[0]
    tenure = min(tenure, (size - 1) // 2)  # or every bit might rest at once
    bits = codes.astype(np.float64)
    fall = np.empty(size)
    rise = np.empty(size)
    gain = np.empty(size)
    rest = np.zeros(size)  # the move from which a bit is free again
    p, q, floor = column_state(gram, cross, codes, fall, rise)
    best = column_loss(p, q, floor, energy, free)
    margin = 1e-12 * abs(energy)  # a smaller gain may be rounding
    kept = True  # whether `codes` is the best seen
    last = 0
    lanes = size // 4 * 4
    made = 0
    while made < moves and made - last < patience:
        # gain: what the flip leaves explained, energy − loss; −inf where it is not allowed.
        # Selects instead of branches, and four running maxima instead of one, let the compiler
        # use vector instructions: twice the moves a second.
        aspire = energy - best + margin
        for j in range(size):
            p_new = p - 2.0 * fall[j]
            q_new = q + 4.0 * rise[j]
            if free:
                explained = p_new * p_new / (q_new if q_new > floor else np.inf)
            else:
                explained = 2.0 * p_new - q_new
            gain[j] = explained if (rest[j] <= made) | (explained > aspire) else -np.inf
        top0 = top1 = top2 = top3 = -np.inf
        for j in range(0, lanes, 4):
            top0 = gain[j] if gain[j] > top0 else top0
            top1 = gain[j + 1] if gain[j + 1] > top1 else top1
            top2 = gain[j + 2] if gain[j + 2] > top2 else top2
            top3 = gain[j + 3] if gain[j + 3] > top3 else top3
        top = max(max(top0, top1), max(top2, top3))
        for j in range(lanes, size):
            top = max(top, gain[j])
        choice = 0
        while gain[choice] != top and choice < size - 1:
            choice += 1

        loss = energy - top
        if not kept and loss >= best:  # about to leave the best seen
            for j in range(size):
                codes[j] = np.int8(bits[j])
            kept = True
        p -= 2.0 * fall[choice]
        q += 4.0 * rise[choice]
        back = -rise[choice]
        step = 2.0 * bits[choice]
        for j in range(size):
            rise[j] += step * bits[j] * gram[choice, j]
        rise[choice] = back
        fall[choice] = -fall[choice]
        bits[choice] = -bits[choice]
        made += 1
        rest[choice] = made + tenure + random_below(random, tenure + 1)
        if loss < best - margin:
            best = loss
            kept = False
            last = made
    if not kept:
        for j in range(size):
            codes[j] = np.int8(bits[j])
    return best, made


@njit(cache=True, nogil=True)
def evolve(gram, cross, energy, pool, free, moves, patience, tenure, kick, stale, seed):
    """Improve a pool of codes (E, S), in place, by tabu walks; return their losses (E,).

    Every member takes a walk. Then, until `moves` are spent, two random members breed a child:
    a bit they differ in comes from either, and up to `kick` random bits are flipped. It takes
    a walk, and replaces the worst member where it is better than that and new to the pool.
    After `stale` children in a row that did not, the search is over.
    """
    members, size = pool.shape
    random = np.array([seed], np.uint64)
    loss = np.empty(members)
    spent = 0
    for k in range(members):
        loss[k], made = tabu_walk(
            gram, cross, energy, pool[k], free, moves - spent, patience, tenure, random
        )
        canonical_sign(cross, pool[k], free)
        spent += made
    child = np.empty(size, np.int8)
    failures = 0
    while spent < moves and failures < stale:
        mother = pool[random_below(random, members)]
        father = pool[random_below(random, members)]
        for j in range(size):
            child[j] = mother[j] if random_below(random, 2) else father[j]
        for _ in range(random_below(random, kick + 1)):
            j = random_below(random, size)
            child[j] = -child[j]
        value, made = tabu_walk(
            gram, cross, energy, child, free, moves - spent, patience, tenure, random
        )
        canonical_sign(cross, child, free)
        spent += made
        worst = np.argmax(loss)
        failures += 1
        if value < loss[worst] and not contains(pool, child):
            for j in range(size):  # a slice assignment takes 2 s to compile
                pool[worst, j] = child[j]
            loss[worst] = value
            failures = 0
    return loss


@njit(cache=True, nogil=True)
def canonical_sign(cross, codes, free):
    """Give free codes the sign that makes their scale positive, in place."""
    p = 0.0
    for j in range(codes.shape[0]):
        p += codes[j] * cross[j]
    if free and p < 0.0:
        for j in range(codes.shape[0]):
            codes[j] = -codes[j]


@njit(cache=True, nogil=True)
def contains(pool, codes):
    """Tell whether a row of `pool` equals `codes`."""
    for k in range(pool.shape[0]):
        same = True
        for j in range(codes.shape[0]):
            if pool[k, j] != codes[j]:
                same = False
                break
        if same:
            return True
    return False
