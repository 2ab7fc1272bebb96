"""Scores of packed codes against queries cut into bit planes, and the best k of them."""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic


@intrinsic
def ones(typingctx, word):
    """Count the bits of a 64-bit word that are 1."""

    def build(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), build


@njit(cache=True, nogil=True)
def _worse(score, number, other, other_number):
    """Whether the first comes after the second: a lower score, or an equal one of a higher id."""
    return score < other or (score == other and number > other_number)


@njit(cache=True, nogil=True)
def _replace_worst(scores, numbers, score, number):
    """Put an entry in the place of the worst, which is the first of a heap; keep it a heap."""
    size = scores.shape[0]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        right = child + 1
        if right < size and _worse(scores[right], numbers[right], scores[child], numbers[child]):
            child = right
        if not _worse(scores[child], numbers[child], score, number):
            break
        scores[at] = scores[child]
        numbers[at] = numbers[child]
        at = child
    scores[at] = score
    numbers[at] = number


@njit(cache=True, nogil=True)
def scan(words, scales, offsets, ids, planes, totals, units, block, best, best_ids):
    """Keep the best k database vectors of each query, in heaps whose first is the worst.

    Parameters
    ----------
    words : uint64 (n, W), codes, +1 as 1
    scales, offsets : float32 (n,)
    ids : int64 (n,)
    planes : uint64 (Q, W, 8), the two's complement of whole query coordinates v, bit by bit
    totals : int64 (Q,), Σ v
    units : float32 (Q,), what 1 in v stands for
    block : vectors that stay in the cache for all queries
    best : float32 (Q, k), best_ids : int64 (Q, k), -inf and the largest id where still empty

    The score of a pair is  float32(vᵀb) · scale · unit + offset.
    """
    count, width = words.shape
    for start in range(0, count, block):
        stop = min(start + block, count)
        for i in range(planes.shape[0]):
            plane = planes[i]
            total = totals[i]
            unit = units[i]
            scores, numbers = best[i], best_ids[i]
            floor = scores[0]
            for t in range(start, stop):
                c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = np.uint64(0)
                for w in range(width):
                    word = words[t, w]
                    c0 += ones(word & plane[w, 0])
                    c1 += ones(word & plane[w, 1])
                    c2 += ones(word & plane[w, 2])
                    c3 += ones(word & plane[w, 3])
                    c4 += ones(word & plane[w, 4])
                    c5 += ones(word & plane[w, 5])
                    c6 += ones(word & plane[w, 6])
                    c7 += ones(word & plane[w, 7])
                low = c0 + (c1 << 1) + (c2 << 2) + (c3 << 3) + (c4 << 4) + (c5 << 5) + (c6 << 6)
                inner = 2 * (np.int64(low) - (np.int64(c7) << 7)) - total
                score = np.float32(inner) * scales[t] * unit + offsets[t]
                if score >= floor and _worse(scores[0], numbers[0], score, ids[t]):
                    _replace_worst(scores, numbers, score, ids[t])
                    floor = scores[0]


@njit(cache=True, nogil=True)
def scan_lists(
    words, scales, offsets, ids, ends, ranked, probes, planes, totals, units, block, best, best_ids
):
    """`scan` of the lists that each query probes: the first `probes[i]` of `ranked[i]`.

    List l stands from ``ends[l]`` to ``ends[l + 1]``.
    """
    for i in range(planes.shape[0]):
        one = slice(i, i + 1)
        for place in range(probes[i]):
            number = ranked[i, place]
            rows = slice(ends[number], ends[number + 1])
            scan(
                words[rows], scales[rows], offsets[rows], ids[rows], planes[one], totals[one],
                units[one], block, best[one], best_ids[one],
            )  # fmt: skip
