"""Scanning packed codes on all cores, and putting the best of each part together."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hashsolve.kernels.scan import scan, scan_lists
from hashsolve.threads import cores, spread

if TYPE_CHECKING:
    from hashsolve.retrieval.contents import Contents

LEVELS = 127
"""A query's coordinates are whole multiples of its largest / LEVELS."""
_BLOCK = 512  # vectors that stay in the cache while all queries are scored
_WORK = 2**18  # pairs below which a thread costs more than it saves
NONE = 2**63 - 1


class Planes(NamedTuple):
    """Queries cut to whole numbers v in −127 … 127, their bits plane by plane."""

    planes: np.ndarray
    totals: np.ndarray
    units: np.ndarray
    whole: np.ndarray


def cut(queries: np.ndarray, words: int) -> Planes:
    """Transformed queries (Q, L) as `scan` takes them; those of one query are its own affair."""
    peak = np.abs(queries).max(axis=1)
    units = (peak / LEVELS).astype(np.float32)
    units[units == 0] = 1.0  # too small for float32 as well
    whole = np.rint(queries / units[:, None]).clip(-LEVELS, LEVELS).astype(np.int8)
    padded = np.zeros((len(queries), 64 * words), np.int8)
    padded[:, : whole.shape[1]] = whole
    bits = (padded.view(np.uint8)[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    planes = pack_words(bits.reshape(-1, 64 * words)).reshape(len(queries), 8, words)
    planes = np.ascontiguousarray(planes.transpose(0, 2, 1))
    return Planes(planes, whole.sum(axis=1, dtype=np.int64), units, whole)


def pack_words(bits: np.ndarray) -> np.ndarray:
    """Bits (n, 64 W) as uint64 (n, W), least significant first."""
    return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """Codes int8 (n, L) as words (n, ceil(L / 64)), +1 as 1, padded with 0."""
    length = codes.shape[1]
    bits = np.zeros((len(codes), -(-length // 64) * 64), np.bool_)
    bits[:, :length] = codes > 0
    return pack_words(bits)


def unpack_codes(words: np.ndarray, length: int) -> np.ndarray:
    """What `pack_codes` packed."""
    raw = np.ascontiguousarray(words.astype("<u8", copy=False)).view(np.uint8)
    bits = np.unpackbits(raw, axis=1, count=length, bitorder="little").astype(np.int8)
    return 2 * bits - 1


class Probes(NamedTuple):
    """Lists in the order in which queries visit them (Q, lists), and how many each visits (Q,)."""

    ranked: np.ndarray
    number: np.ndarray


def probing(ranked: np.ndarray, counts: np.ndarray, probes: int, k: int) -> Probes:
    """The first `probes` lists of each query, and more where these hold fewer than k vectors."""
    seen = np.cumsum(counts[ranked], axis=1)
    return Probes(ranked, np.maximum(probes, (seen < k).sum(axis=1) + 1))


def best(
    contents: Contents, queries: Planes, k: int, probes: Probes | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 (Q, k) and ids (Q, k) of the best, equal scores by id.

    Queries are cut over the cores or, where they are few and all vectors are scanned, the vectors
    are: as no two entries are equal in score and id, the best k do not depend on it.
    """
    count, asked = len(contents), len(queries.planes)
    parts = 1 if count * asked < _WORK else cores()
    by_query = asked >= 4 * parts or probes is not None
    slices = (_slices(asked, 1 if not by_query else 4 * parts), _slices(count, parts))
    jobs = list(itertools.product(slices[0], slices[1] if not by_query else [slice(None)]))
    rows = contents.words, contents.scales, contents.offsets, contents.ids
    ends = np.concatenate([[0], np.cumsum(contents.counts)])

    def job(part: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        which, among = part
        planes, totals, units, _ = (field[which] for field in queries)
        found = np.full((len(planes), k), -np.inf, np.float32)
        numbers = np.full((len(planes), k), NONE, np.int64)
        ask = planes, totals, units, _BLOCK, found, numbers
        kernel: Any = scan if probes is None else scan_lists
        if probes is None:
            kernel(*(values[among] for values in rows), *ask)
        else:
            kernel(*rows, ends, *(field[which] for field in probes), *ask)
        return found, numbers

    done = spread(job, jobs)
    if by_query:
        scores, numbers = (np.concatenate(part) for part in zip(*done, strict=True))
    else:
        scores, numbers = (np.concatenate(part, axis=1) for part in zip(*done, strict=True))
    order = np.lexsort((numbers, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)


def _slices(count: int, parts: int) -> list[slice]:
    parts = max(1, min(parts, count))
    return [slice(count * i // parts, count * (i + 1) // parts) for i in range(parts)]
