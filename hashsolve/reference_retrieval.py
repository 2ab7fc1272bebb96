"""NumPy twins of the kernels of vector search; see `hashsolve.reference`."""

from __future__ import annotations

import numpy as np

from hashsolve import reference_search
from hashsolve.kernels.encode import AIM, FLOOR, LIMIT, TABU


def greedy(gram, cross, scale, codes, h) -> None:
    """Bit after bit, b_j = sgn(c_j − α Σ_{k<j} H_jk b_k), where a zero counts as +1."""
    h[:] = 0.0
    for j in range(len(gram)):
        codes[:, j] = np.where(cross[:, j] < scale * h[:, j], -1, 1)
        h += codes[:, j, None] * gram[j]


def walk(gram, whole, unit, cross, codes, h, p, q, moves, tenure) -> None:
    """Always the flip of the least gain of those that do not rest; then back to the best seen."""
    size = len(gram)
    tenure = min(tenure, (size - 1) // 2)
    b = codes.astype(int)
    rise = np.rint(unit * (np.diagonal(gram) - b * h)).astype(int)
    best: float = p * p / q
    path: list[int] = []
    for made in range(moves):
        if made % AIM == 0 and p > FLOOR and q > FLOOR:
            aim = (cross * (unit * q / p)).clip(-2 * LIMIT, 2 * LIMIT).astype(int)
        gain = b * aim + rise
        gain[path[max(0, made - tenure) :]] += TABU
        choice = gain.argmin()
        p -= 2 * b[choice] * cross[choice]
        q += 4.0 * rise[choice] / unit
        back = -rise[choice]
        rise += 2 * b[choice] * b * whole[choice]
        rise[choice] = back
        b[choice] *= -1
        path.append(choice)
        if q > FLOOR and p * p > best * q:
            best = p * p / q
            codes[:] = b


def descend(gram, cross, codes, h, p, q, flips) -> tuple[float, float]:
    """The flip that leaves the most of p²/q, as long as that is more by more than rounding."""

    def value(b):
        p, q = cross @ b, b @ gram @ b
        return (p * p / q, p * p / q / q) if q > 1e-12 else (0.0, 0.0)

    for _ in range(flips):
        every = codes * (1 - 2 * np.eye(len(gram), dtype=np.int8))
        found = [value(b) for b in every]
        choice = int(np.argmax([kept for kept, _ in found]))
        (old, old_size), (new, new_size) = value(codes), found[choice]
        if new - old <= 1e-12 * (1 + old_size + new_size):
            break
        codes[:] = every[choice]
    h[:] = gram @ codes
    return cross @ codes, codes @ h


def encode(gram, whole, unit, cross, scale, moves, tenure, codes, p, q) -> None:
    """Greedy; column by column a tabu walk, then descent; p of that sign that is positive."""
    h = np.empty(cross.shape)
    greedy(gram, cross, scale, codes, h)
    for c, b, sums, t in zip(cross, codes, h, range(len(cross)), strict=True):
        if moves > 0 and c @ b > FLOOR and b @ sums > FLOOR:
            walk(gram, whole, unit, c, b, sums, c @ b, b @ sums, moves, tenure)
        descend(gram, c, b, sums, c @ b, b @ gram @ b, 30 * len(gram))
        reference_search.canonical_sign(c, b, True)
        p[t], q[t] = c @ b, b @ gram @ b


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


def scan_lists(
    words, scales, offsets, ids, ends, ranked, probes, planes, totals, units, block, best, best_ids
) -> None:
    """`scan` of the vectors of all lists that a query probes, at once."""
    lists = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    for i in range(len(planes)):
        rows, one = np.isin(lists, ranked[i, : probes[i]]), slice(i, i + 1)
        scan(
            words[rows], scales[rows], offsets[rows], ids[rows], planes[one], totals[one],
            units[one], block, best[one], best_ids[one],
        )  # fmt: skip


def _bits(words):
    """Words (n, W) as bits (n, 64 W), least significant first."""
    return np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, bitorder="little")
