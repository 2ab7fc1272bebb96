"""InnerProductIndex: vector search on one to four bits a dimension, in the codes of a codec."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.control import EFFORTS
from hashsolve.readers import open_array
from hashsolve.retrieval import rerank, storage
from hashsolve.retrieval.codec import Codec
from hashsolve.retrieval.search import NONE, best, cut, pack_codes, unpack_codes
from hashsolve.retrieval.training import Report, fit_codec

METRICS = ("ip", "cosine", "l2")
ROTATIONS = ("auto", "random", "learned")
MOVES = (0, 100, 1000)
"""Tabu moves a vector, by effort."""
_BLOCK = 4096  # vectors that are read at a time
_SAMPLE = 40_000  # vectors, and queries, that `fit` looks at
_QUERIES = 1024  # queries that are cut into planes at a time
_LARGEST = 1e15  # of a coordinate: squares of more leave the range of float32


class InnerProductIndex:
    """Vectors at one to four bits a dimension, a scale and an offset, searched exhaustively.

    A database vector is a column of W, the queries are the inputs X, and codes are to preserve
    inner products for the queries that will come: min ‖XᵀW − XᵀBA‖² (BWNH, AAAI 2018, section 3).
    Queries stay real but for a cut to 8 bits; only the database is packed.

    Parameters
    ----------
    metric : {"ip", "cosine", "l2"}
        Inner product; the same of vectors at unit length; Euclidean distance.
    bits : int
        1 to 4 bits a dimension: as many binary bases (``bases`` of `hashsolve.Problem`), whose
        common map is learned.
    rotation : {"auto", "random", "learned"}
        A random rotation, as RaBitQ takes; a linear map that is learned from the vectors; or
        whichever does better on held-out queries.
    shrinkage : float, optional
        Of the queries' covariance towards the identity, 0 < shrinkage <= 1; 1 leaves the
        queries out of account. By default chosen on held-out queries.
    effort : {"fast", "default", "thorough"}
        0, 100 or 1,000 tabu moves for each vector, after one-flip descent.
    seed : int
        One seed gives bit-identical codes, for any number of threads and however vectors are
        cut into calls of `add`.

    Attributes
    ----------
    report : Report
        What `fit` chose, and on which held-out figures; ``print(index.report)``.

    Raises
    ------
    ValueError
        For an option that is none of these.

    Examples
    --------
    >>> import numpy as np, hashsolve as hs
    >>> vectors = np.random.default_rng(0).normal(size=(500, 32))
    >>> index = hs.InnerProductIndex(metric="cosine", effort="fast")
    >>> ids = index.fit(vectors).add(vectors)
    >>> scores, ids = index.search(vectors[:3], k=1)
    >>> ids.ravel(), index.bytes_per_vector
    (array([0, 1, 2]), 16)
    """

    report: Report | None

    def __init__(
        self,
        metric: str = "ip",
        bits: int = 1,
        rotation: str = "auto",
        shrinkage: float | None = None,
        effort: str = "default",
        seed: int = 0,
    ):
        self.metric = checks.choice(metric, "metric", METRICS)
        self.bits = checks.whole(bits, "bits", 1, 4)
        self.rotation = checks.choice(rotation, "rotation", ROTATIONS)
        if shrinkage is not None and checks.positive(shrinkage, "shrinkage") > 1:
            raise ValueError(f"shrinkage: must be at most 1, got {shrinkage!r}")
        self.shrinkage = shrinkage
        self.effort = checks.choice(effort, "effort", EFFORTS)
        self.seed = checks.whole(seed, "seed", 0)
        self.report = None
        self._codec: Codec | None = None

    # -- fitting ----------------------------------------------------------------------------

    def fit(self, vectors: Any, queries: Any = None) -> InnerProductIndex:
        """Learn how to encode, and choose on held-out queries; empties the index.

        Parameters
        ----------
        vectors : array (n, S), HDF5 data set, or "FILE.h5:/name"
            A sample of the database; 10,000 are enough, of more than 40,000 every other, third, …
            is looked at.
        queries : the same, optional
            A sample of the queries to come, apart from those that you measure with. Without them
            some of the vectors stand for queries.

        Returns
        -------
        InnerProductIndex
            This one.

        Raises
        ------
        ValueError
            Values that are not finite, or shapes that do not agree.
        """
        sample = self._sample(vectors, "vectors")
        asked = None if queries is None else self._sample(queries, "queries")
        if asked is not None and asked.shape[1] != sample.shape[1]:
            raise ValueError(
                f"queries: {asked.shape[1]} dimensions, but vectors have {sample.shape[1]}"
            )
        centre = sample.mean(axis=0) if self.metric == "l2" else np.zeros(sample.shape[1])
        self._centre = centre
        moves = MOVES[EFFORTS.index(self.effort)]
        self._codec, self.report = fit_codec(
            sample - centre,
            None if asked is None else asked - centre,
            self.bits,
            self.rotation,
            self.shrinkage,
            moves,
            self.seed,
            self.metric == "l2",
        )
        self._clear()
        return self

    def _sample(self, source: Any, name: str) -> np.ndarray:
        with _opened(source, name) as data:
            step = -(-len(data) // _SAMPLE)
            return self._checked(data[::step], name)

    def _checked(self, values: Any, name: str) -> np.ndarray:
        """Finite float64 rows, of unit length for cosine."""
        rows = checks.matrix(values, name)
        if self._codec is not None and name != "sample" and rows.shape[1] != self.dimensions:
            raise ValueError(f"{name}: {rows.shape[1]} dimensions; expected {self.dimensions}")
        if np.abs(rows).max() > _LARGEST:
            raise ValueError(f"{name}: values above {_LARGEST:g}; divide all by their size")
        if self.metric == "cosine":
            length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
            rows = rows / np.where(length > 0, length, 1.0)
        return np.ascontiguousarray(rows)

    def _clear(self) -> None:
        words = -(-self.codec.length // 64)
        self._words = np.empty((0, words), np.uint64)
        self._scales, self._offsets = np.empty((2, 0), np.float32)
        self._ids = np.empty(0, np.int64)
        self._next = 0

    @property
    def codec(self) -> Codec:
        """What `fit` found.

        Raises
        ------
        ValueError
            Before `fit`.
        """
        if self._codec is None:
            raise ValueError("index: not fitted; call fit(vectors) first, with a sample of them")
        return self._codec

    @property
    def dimensions(self) -> int:
        """S."""
        return len(self.codec.mean)

    # -- contents ---------------------------------------------------------------------------

    def add(
        self,
        vectors: Any,
        ids: Any = None,
        progress: Callable[[int, int], Any] | None = None,
        client: Any = None,
    ) -> np.ndarray:
        """Encode vectors and keep their codes; all of them or, after an error, none.

        Parameters
        ----------
        vectors : array (n, S), HDF5 data set, or "FILE.h5:/name"
            Read 4,096 at a time; their codes do not depend on what else is added, or when.
        ids : int array (n,), optional
            Ids of your own, each once and >= 0; else they count on from the largest so far.
        progress : callable, optional
            Called as ``progress(done, n)`` after each block.
        client : distributed.Client, optional
            Encode on its workers, which open "FILE.h5:/name" themselves; not a bit differs.

        Returns
        -------
        int64 array (n,)
            The ids.

        Raises
        ------
        ValueError
            Not fitted, values that are not finite, another number of dimensions, an id that is
            taken; with a client, vectors that are no file.
        """
        _ = self.codec  # an error, where there is none
        if client is not None and not isinstance(vectors, (str, PathLike)):
            raise ValueError("client: give vectors as 'FILE.h5:/name', which its workers can open")
        with _opened(vectors, "vectors") as data:
            count = len(data)
            numbers = self._new_ids(ids, count)
            words = np.empty((count, self._words.shape[1]), np.uint64)
            scales, offsets = np.empty((2, count), np.float32)
            blocks = [slice(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK)]
            if client is None:
                encoded: Iterator[Any] = (self._encoded(data[rows]) for rows in blocks)
            else:
                encoded = self._encoded_by(client, str(vectors), blocks)
            for rows, (codes, scales[rows], offsets[rows]) in zip(blocks, encoded, strict=True):
                words[rows] = codes
                if progress is not None:
                    progress(rows.stop, count)
        self._words = np.concatenate([self._words, words])
        self._scales = np.concatenate([self._scales, scales])
        self._offsets = np.concatenate([self._offsets, offsets])
        self._ids = np.concatenate([self._ids, numbers])
        self._next = max(self._next, int(numbers.max()) + 1)
        return numbers

    def _encoded(self, vectors: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Packed codes, scales and offsets of a block."""
        block = self._checked(vectors, "vectors") - self._centre
        codes, scales, offsets = self.codec.encode(block)
        if self.metric == "l2":
            offsets = offsets - (block * block).sum(axis=1) / 2
        return pack_codes(codes), scales, offsets

    def _encoded_by(self, client: Any, source: str, blocks: list[slice]) -> Iterator[Any]:
        """The same of all blocks of a file, in their order, from workers."""
        from hashsolve.cluster import in_order

        empty = copy.copy(self)
        empty._clear()
        place = os.path.abspath(source)
        return in_order(client, _encode_part, [(empty, place, rows) for rows in blocks])

    def _new_ids(self, ids: Any, count: int) -> np.ndarray:
        if ids is None:
            return np.arange(self._next, self._next + count, dtype=np.int64)
        numbers = _id_array(ids)
        if len(numbers) != count:
            raise ValueError(f"ids: {len(numbers)} of them for {count} vectors")
        if numbers.min() < 0 or numbers.max() == NONE:
            raise ValueError(f"ids: must be from 0 to {NONE - 1}")
        every = np.concatenate([self._ids, numbers])
        values, times = np.unique(every, return_counts=True)
        if (times > 1).any():
            raise ValueError(f"ids: {values[times > 1][0]} is taken; each may occur once")
        return numbers

    def remove(self, ids: Any) -> None:
        """Remove vectors; their ids are not given again.

        Parameters
        ----------
        ids : int array (n,)

        Raises
        ------
        ValueError
            An id that is not in the index; nothing is removed then.
        """
        kept = np.ones(len(self), np.bool_)
        kept[self._places(ids)] = False
        for name in ("_words", "_scales", "_offsets", "_ids"):
            setattr(self, name, getattr(self, name)[kept])

    def _places(self, ids: Any) -> np.ndarray:
        wanted = _id_array(ids)
        order = np.argsort(self._ids, kind="stable")
        at = np.searchsorted(self._ids[order], wanted)
        known = at < len(order)
        known[known] = self._ids[order[at[known]]] == wanted[known]
        if not known.all():
            raise ValueError(f"ids: {wanted[~known][0]} is not in the index")
        return order[at]

    def reconstruct(self, ids: Any) -> np.ndarray:
        """The vectors that codes and scales stand for, float64 (n, S); unit vectors for cosine.

        Up to the rounding of queries, the score of a query q is q·w for such a vector w, and
        the vector's offset (see `offsets`) on top.

        Parameters
        ----------
        ids : int array (n,)

        Raises
        ------
        ValueError
            An id that is not in the index.
        """
        at = self._places(ids)
        codes = unpack_codes(self._words[at], self.codec.length)
        return self.codec.decode(codes, self._scales[at].astype(float)) + self._centre

    def offsets(self, ids: Any) -> np.ndarray:
        """What is added to the inner product of each vector with any query, float64 (n,).

        It makes up for what the codes leave out, as far as that is the same for all queries that
        are expected near the vector. For "l2" it holds −‖w‖² / 2 too, after the mean.

        Parameters
        ----------
        ids : int array (n,)
        """
        return self._offsets[self._places(ids)].astype(float)

    def __len__(self) -> int:
        return 0 if self._codec is None else len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """The ids, int64 (n,), in the order of adding."""
        return self._ids.copy()

    @property
    def bytes_per_vector(self) -> int:
        """Of codes, scale and offset; an id takes 8 more."""
        return 8 * (-(-self.codec.length // 64)) + 8

    def __repr__(self) -> str:
        state = "not fitted" if self._codec is None else f"{len(self)} vectors"
        return f"InnerProductIndex(metric={self.metric!r}, bits={self.bits}, {state})"

    # -- search -----------------------------------------------------------------------------

    def search(
        self, queries: Any, k: int = 10, vectors: Any = None, candidates: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of each query, best first, equal ones by id.

        Parameters
        ----------
        queries : array (Q, S), or (S,) for one
        k : int
            Of more than there are vectors, all are returned.
        vectors : array, HDF5 data set, or "FILE.h5:/name", optional
            Full vectors, the one of id i in row i, to rank anew by.
        candidates : int, optional
            How many are ranked anew; 10 k by default.

        Returns
        -------
        scores : float32 array (Q, k), or (k,)
            Inner products or cosines, as the codes estimate them; squared distances for "l2",
            the least first. Exact ones after ranking anew.
        ids : int64 array (Q, k), or (k,)

        Raises
        ------
        ValueError
            Not fitted, empty, queries that are not finite or of other dimensions.
        """
        codec = self.codec
        if not len(self):
            raise ValueError("index: empty; add(vectors) first")
        single = np.ndim(queries) == 1
        asked = self._checked(np.atleast_2d(queries), "queries") - self._centre
        k = min(checks.whole(k, "k", 1), len(self))
        if candidates is not None and vectors is None:
            raise ValueError("candidates: needs vectors to rank anew by")
        first = k
        if vectors is not None:
            first = min(len(self), checks.whole(candidates or 10 * k, "candidates", k))
        scores = np.empty((len(asked), first), np.float32)
        ids = np.empty((len(asked), first), np.int64)
        for start in range(0, len(asked), _QUERIES):
            rows = slice(start, start + _QUERIES)
            shadows, shift = codec.transform(asked[rows])
            planes = cut(shadows, self._words.shape[1])
            found, ids[rows] = best(
                self._words, self._scales, self._offsets, self._ids, planes, first
            )
            total = found + shift[:, None]
            if self.metric == "l2":
                total = (asked[rows] ** 2).sum(axis=1, keepdims=True) - 2 * total
            scores[rows] = total
        if vectors is not None:
            with _opened(vectors, "vectors") as data:
                scores, ids = rerank.rank(asked + self._centre, ids, data, k, self.metric)
        return (scores[0], ids[0]) if single else (scores, ids)

    # -- files ------------------------------------------------------------------------------

    def save(self, path: str | PathLike) -> None:
        """Write the index to an HDF5 file, which appears whole or not at all.

        Parameters
        ----------
        path : path
        """
        storage.save(self, path)

    @classmethod
    def load(cls, path: str | PathLike) -> InnerProductIndex:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path

        Raises
        ------
        ValueError
            Where the file is damaged, or is no index; it names the file.
        """
        return storage.load(cls, path)


def _encode_part(index: InnerProductIndex, source: str, rows: slice) -> Any:
    with _opened(source, "vectors") as data:
        return index._encoded(data[rows])


@contextmanager
def _opened(source: Any, name: str) -> Iterator[Any]:
    """A matrix that is read slice by slice."""
    if isinstance(source, (str, PathLike)):
        with open_array(str(source)) as data:
            yield checks.array(data, name, 2)
    else:
        yield checks.array(source, name, 2)


def _id_array(ids: Any) -> np.ndarray:
    numbers = checks.array(np.atleast_1d(ids), "ids", 1)
    if numbers.dtype.kind not in "iu" or (numbers.dtype.kind == "u" and numbers.max() > NONE):
        raise ValueError(f"ids: must be whole numbers (int64), got {numbers.dtype}")
    return np.asarray(numbers, dtype=np.int64)
