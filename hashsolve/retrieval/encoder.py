"""From what users give to what an index holds: vectors checked, centred and encoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.readers import open_array
from hashsolve.retrieval.codec import Codec, lengths
from hashsolve.retrieval.contents import ROWS
from hashsolve.retrieval.partition import Partition
from hashsolve.retrieval.search import pack_codes

BLOCK = 4096
"""Vectors that are read at a time."""
_LARGEST = 1e15  # of a coordinate: squares of more leave the range of float32


@dataclass(frozen=True, eq=False)
class Encoder:
    """What `fit` found: the centre (S,) of "l2" (else zeros), the codec, and the lists, if any."""

    metric: str
    centre: np.ndarray
    codec: Codec
    partition: Partition | None

    def centred(self, values: Any, name: str) -> np.ndarray:
        """Vectors or queries (n, S), finite, of unit length for "cosine", less the centre."""
        rows = checked(values, name, self.metric)
        if rows.shape[1] != len(self.centre):
            raise ValueError(f"{name}: {rows.shape[1]} dimensions; expected {len(self.centre)}")
        return rows - self.centre

    def asked(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centred queries (Q, S) as codes are for them, and what their scores are to be times (Q,).

        How long a query is changes no order of inner products: all are brought to one length.
        """
        if self.metric == "l2":
            return queries, np.ones(len(queries))
        size = lengths(queries) / self.codec.query_length
        return queries / np.where(size > 0, size, 1.0)[:, None], size

    def rows(self, vectors: Any) -> dict[str, np.ndarray]:
        """Packed codes, scales, offsets and lists of a block."""
        block = self.centred(vectors, "vectors")
        codes, scales, offsets = self.codec.encode(block)
        if self.metric == "l2":
            offsets = offsets - (block * block).sum(axis=1) / 2
        lists = np.zeros(len(block), np.int64)
        if self.partition is not None:
            lists = self.partition.assign(block)
        return {"words": pack_codes(codes), "scales": scales, "offsets": offsets, "lists": lists}

    def every_row(
        self, source: Any, progress: Callable[[int, int], Any] | None, client: Any
    ) -> dict[str, np.ndarray]:
        """The same of all vectors, block by block, by the workers of a client if there is one."""
        with opened(source, "vectors") as data:
            count = len(data)
            blocks = [slice(i, min(i + BLOCK, count)) for i in range(0, count, BLOCK)]
            every: dict[str, np.ndarray] = {}
            if client is None:
                parts: Iterator[dict[str, np.ndarray]] = (self.rows(data[rows]) for rows in blocks)
            else:
                from hashsolve.cluster import in_order

                place = os.path.abspath(source)
                # sent once, without what it has cached, and made anew where a worker is lost
                bare = replace(self, codec=replace(self.codec))
                encoder = client.submit(_itself, bare, pure=False)
                parts = in_order(client, _rows_of, [(encoder, place, rows) for rows in blocks])
            for rows, part in zip(blocks, parts, strict=True):
                for name, values in part.items():
                    if name not in every:
                        kind = ROWS.get(name, np.int64)
                        every[name] = np.empty((count, *values.shape[1:]), kind)
                    every[name][rows] = values
                if progress is not None:
                    progress(rows.stop, count)
        return every


def _itself(encoder: Encoder) -> Encoder:
    return encoder


def _rows_of(encoder: Encoder, source: str, rows: slice) -> dict[str, np.ndarray]:
    with opened(source, "vectors") as data:
        return encoder.rows(data[rows])


def checked(values: Any, name: str, metric: str) -> np.ndarray:
    """Finite float64 rows, of unit length for cosine."""
    rows = checks.matrix(values, name)
    if np.abs(rows).max() > _LARGEST:
        raise ValueError(f"{name}: values above {_LARGEST:g}; divide all by their size")
    if metric == "cosine":
        length = lengths(rows)[:, None]
        rows = rows / np.where(length > 0, length, 1.0)
    return np.ascontiguousarray(rows)


@contextmanager
def opened(source: Any, name: str) -> Iterator[Any]:
    """A matrix that is read slice by slice."""
    if isinstance(source, (str, PathLike)):
        with open_array(str(source)) as data:
            yield checks.array(data, name, 2)
    else:
        yield checks.array(source, name, 2)
