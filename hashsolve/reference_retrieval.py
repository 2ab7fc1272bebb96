"""NumPy twins of the kernels of vector search; see `hashsolve.reference`."""

from __future__ import annotations

import numpy as np

from hashsolve import reference, reference_search


def greedy(gram, cross, scale, codes, h) -> None:
    """Bit after bit, b_j = sgn(c_j − α Σ_{k<j} H_jk b_k), where a zero counts as +1."""
    h[:] = 0.0
    for j in range(len(gram)):
        codes[j] = -1 if cross[j] < scale * h[j] else 1
        h += codes[j] * gram[j]


def encode(gram, cross, scale, sweeps, moves, patience, tenure, seed, codes, p, q) -> None:
    """Column by column: greedy, one-flip sweeps until nothing changes, one tabu walk."""
    active, flips = np.ones(1, bool), np.zeros(1, np.int64)
    for t in range(len(cross)):
        one = slice(t, t + 1)
        h = np.empty((1, len(gram)))
        greedy(gram, cross[t], scale, codes[t], h[0])
        reference.products(cross[one], codes[one], h, p[one], q[one])
        for _ in range(sweeps):
            reference.one_flip_sweep(
                gram, True, 1e-12, cross[one], codes[one], h, p[one], q[one], active, flips
            )
            if not flips[0]:
                break
        if moves:
            random = np.array([seed], np.uint64)
            reference_search.tabu_walk(
                gram, cross[t], 1.0, codes[t], True, moves, patience, tenure, random
            )
        reference_search.canonical_sign(cross[t], codes[t], True)
        p[t] = cross[t] @ codes[t]
        q[t] = codes[t] @ gram @ codes[t]


def scan(words, scales, offsets, ids, planes, totals, units, block, best, best_ids) -> None:
    """The best k by (score, lowest id) of those in the heaps and all vectors; best first.

    The kernel leaves the same entries in the order of a heap.
    """
    bits = _bits(words)
    places = np.array([1, 2, 4, 8, 16, 32, 64, -128])
    for i, plane in enumerate(planes):
        whole = sum(places[m] * _bits(plane[None, :, m]).astype(np.int64) for m in range(8))[0]
        inner = 2 * (bits.astype(np.int64) @ whole) - totals[i]
        scores = inner.astype(np.float32) * scales * units[i] + offsets
        scores = np.concatenate([best[i], scores])
        numbers = np.concatenate([best_ids[i], ids])
        order = np.lexsort((numbers, -scores))[: len(best[i])]
        best[i], best_ids[i] = scores[order], numbers[order]


def _bits(words):
    """Words (n, W) as bits (n, 64 W), least significant first."""
    return np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, bitorder="little")
