"""What an index holds: packed codes, scales, offsets and ids, list by list."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.retrieval.search import NONE

ROWS = {"words": np.uint64, "scales": np.float32, "offsets": np.float32, "ids": np.int64}
"""What there is of every vector."""


@dataclass(frozen=True, eq=False)
class Contents:
    """Vectors in the order of adding, but those of a list together.

    Attributes
    ----------
    words : uint64 (n, W)
        Packed codes.
    scales, offsets : float32 (n,)
    ids : int64 (n,)
    counts : int64 (lists,)
        Vectors of each list; one list holds all where there is no partition.
    next : int
        The next id.
    """

    words: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    next: int = 0

    @classmethod
    def empty(cls, words: int, lists: int) -> Contents:
        return cls(
            np.empty((0, words), np.uint64),
            np.empty(0, np.float32),
            np.empty(0, np.float32),
            np.empty(0, np.int64),
            np.zeros(lists, np.int64),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lists(self) -> np.ndarray:
        """The list of each vector, int64 (n,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def with_rows(self, lists: np.ndarray, **rows: np.ndarray) -> Contents:
        """With more vectors, each at the end of its list."""
        every = np.concatenate([self.lists, lists])
        joined = {name: np.concatenate([getattr(self, name), rows[name]]) for name in ROWS}
        if len(self.counts) > 1:
            order = np.argsort(every, kind="stable")
            joined = {name: values[order] for name, values in joined.items()}
        counts = np.bincount(every, minlength=len(self.counts))
        after = max(self.next, int(rows["ids"].max()) + 1)
        return Contents(**joined, counts=counts, next=after)

    def without(self, ids: Any) -> Contents:
        """Without some vectors; their ids are not given again."""
        kept = np.ones(len(self), np.bool_)
        kept[self.places(ids)] = False
        rows = {name: getattr(self, name)[kept] for name in ROWS}
        counts = np.bincount(self.lists[kept], minlength=len(self.counts))
        return replace(self, **rows, counts=counts)

    def places(self, ids: Any) -> np.ndarray:
        """Where vectors stand; a ValueError for an id that is not there."""
        wanted = whole_numbers(ids)
        order = np.argsort(self.ids, kind="stable")
        at = np.searchsorted(self.ids[order], wanted)
        known = at < len(order)
        known[known] = self.ids[order[at[known]]] == wanted[known]
        if not known.all():
            raise ValueError(f"ids: {wanted[~known][0]} is not in the index")
        return order[at]

    def new_ids(self, ids: Any, count: int) -> np.ndarray:
        """Ids of vectors to add, the user's own or the next ones; a ValueError for one taken."""
        if ids is None:
            if self.next + count > NONE:
                raise ValueError(
                    f"ids: only {NONE - self.next} are left above {self.next - 1}, for {count} "
                    "vectors; give ids of your own"
                )
            return np.arange(self.next, self.next + count, dtype=np.int64)
        numbers = whole_numbers(ids)
        if len(numbers) != count:
            raise ValueError(f"ids: {len(numbers)} of them for {count} vectors")
        if numbers.min() < 0 or numbers.max() == NONE:
            raise ValueError(f"ids: must be from 0 to {NONE - 1}")
        every = np.concatenate([self.ids, numbers])
        values, times = np.unique(every, return_counts=True)
        if (times > 1).any():
            raise ValueError(f"ids: {values[times > 1][0]} is taken; each may occur once")
        return numbers


def whole_numbers(ids: Any) -> np.ndarray:
    """Ids as int64 (n,)."""
    numbers = checks.array(np.atleast_1d(ids), "ids", 1)
    if numbers.dtype.kind not in "iu" or (numbers.dtype.kind == "u" and numbers.max() > NONE):
        raise ValueError(f"ids: must be whole numbers (int64), got {numbers.dtype}")
    return np.asarray(numbers, dtype=np.int64)
