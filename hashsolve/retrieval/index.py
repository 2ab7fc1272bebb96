"""InnerProductIndex: vector search on one to four bits a dimension, in the codes of a codec."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.control import EFFORTS
from hashsolve.retrieval import rerank, storage
from hashsolve.retrieval.codec import Codec
from hashsolve.retrieval.contents import Contents
from hashsolve.retrieval.encoder import Encoder, checked, opened
from hashsolve.retrieval.partition import Partition
from hashsolve.retrieval.search import best, cut, probing, unpack_codes
from hashsolve.retrieval.training import FEW, Report, fit_codec

METRICS = ("ip", "cosine", "l2")
ROTATIONS = ("auto", "random", "itq", "learned")
MOVES = (FEW, 200, 1000)
"""Flips of the walk of a vector, by effort."""
_LEAST = 1e-15  # of the largest coordinate: scales are float32
_SAMPLE = 40_000  # vectors, and queries, that `fit` looks at
_QUERIES = 1024  # queries that are cut into planes at a time
_PROBES = 8  # a search visits every eighth list, unless told


class InnerProductIndex:
    """Vectors at one to four bits a dimension, a scale and an offset, to be searched.

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
    rotation : {"auto", "random", "itq", "learned"}
        A random rotation, as RaBitQ takes; one that is learned from the vectors, as by ITQ; any
        linear map, learned from them; or whichever does best on held-out queries.
    shrinkage : float, optional
        Of the queries' covariance towards the identity, 0 < shrinkage <= 1; 1 leaves the
        queries out of account. By default chosen on held-out queries.
    effort : {"fast", "default", "thorough"}
        50, 200 or 1,000 flips of a tabu walk for each vector, before one-flip descent.
    lists : int, optional
        Vectors are kept in as many lists, each about a centroid that k-means finds, and a search
        visits a few of them. By default it visits every vector. Needs scikit-learn.
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
        lists: int | None = None,
    ):
        self.metric = checks.choice(metric, "metric", METRICS)
        self.bits = checks.whole(bits, "bits", 1, 4)
        self.rotation = checks.choice(rotation, "rotation", ROTATIONS)
        if shrinkage is not None and checks.positive(shrinkage, "shrinkage") > 1:
            raise ValueError(f"shrinkage: must be at most 1, got {shrinkage!r}")
        self.shrinkage = shrinkage
        self.effort = checks.choice(effort, "effort", EFFORTS)
        self.seed = checks.whole(seed, "seed", 0)
        self.lists = None if lists is None else checks.whole(lists, "lists", 1, 2**31)
        self.report = None
        self._fitted: Encoder | None = None
        self._contents = Contents.empty(0, 1)

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
            Values that are not finite, shapes that do not agree, fewer vectors than lists.
        ImportError
            With ``lists``, where scikit-learn is not installed.
        """
        sample = self._sample(vectors, "vectors")
        if self.metric != "cosine" and 0 < np.abs(sample).max() < _LEAST:
            raise ValueError(f"vectors: none above {_LEAST:g}; multiply all by one number")
        asked = None if queries is None else self._sample(queries, "queries")
        if asked is not None and asked.shape[1] != sample.shape[1]:
            raise ValueError(
                f"queries: {asked.shape[1]} dimensions, but vectors have {sample.shape[1]}"
            )
        if self.lists is not None and len(sample) < self.lists:
            raise ValueError(f"lists: {self.lists} of them for a sample of {len(sample)} vectors")
        centre = sample.mean(axis=0) if self.metric == "l2" else np.zeros(sample.shape[1])
        moves = MOVES[EFFORTS.index(self.effort)]
        codec, self.report = fit_codec(
            sample - centre,
            None if asked is None else asked - centre,
            self.bits,
            self.rotation,
            self.shrinkage,
            moves,
            self.seed,
            self.metric == "l2",
        )
        partition = None
        if self.lists is not None:
            partition = Partition.fit(sample - centre, self.lists, self.seed)
        self._fitted = Encoder(self.metric, centre, codec, partition)
        self._contents = Contents.empty(-(-codec.length // 64), self.lists or 1)
        return self

    def _sample(self, source: Any, name: str) -> np.ndarray:
        with opened(source, name) as data:
            step = -(-len(data) // _SAMPLE)
            return checked(data[::step], name, self.metric)

    @property
    def _encoder(self) -> Encoder:
        if self._fitted is None:
            raise ValueError("index: not fitted; call fit(vectors) first, with a sample of them")
        return self._fitted

    @property
    def codec(self) -> Codec:
        """What `fit` found.

        Raises
        ------
        ValueError
            Before `fit`.
        """
        return self._encoder.codec

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
        encoder = self._encoder
        if client is not None and not isinstance(vectors, (str, PathLike)):
            raise ValueError("client: give vectors as 'FILE.h5:/name', which its workers can open")
        with opened(vectors, "vectors") as data:
            numbers = self._contents.new_ids(ids, len(data))
        rows = encoder.every_row(vectors, progress, client)
        self._contents = self._contents.with_rows(ids=numbers, **rows)
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
        self._contents = self._contents.without(ids)

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
        held = self._contents
        at = held.places(ids)
        codes = unpack_codes(held.words[at], self.codec.length)
        return self.codec.decode(codes, held.scales[at].astype(float)) + self._encoder.centre

    def offsets(self, ids: Any) -> np.ndarray:
        """What is added to the inner product of each vector with any query, float64 (n,).

        It makes up for what the codes leave out, as far as that is the same for all queries that
        are expected near the vector. For "l2" it holds −‖w‖² / 2 too, after the mean; else it is
        for a query of length ``codec.query_length``, and in proportion for others.

        Parameters
        ----------
        ids : int array (n,)
        """
        return self._contents.offsets[self._contents.places(ids)].astype(float)

    def __len__(self) -> int:
        return len(self._contents)

    @property
    def ids(self) -> np.ndarray:
        """The ids, int64 (n,), in the order of adding, list by list."""
        return self._contents.ids.copy()

    @property
    def bytes_per_vector(self) -> int:
        """Of codes, scale and offset; an id takes 8 more."""
        return 8 * (-(-self.codec.length // 64)) + 8

    def __repr__(self) -> str:
        state = "not fitted" if self._fitted is None else f"{len(self)} vectors"
        return f"InnerProductIndex(metric={self.metric!r}, bits={self.bits}, {state})"

    # -- search -----------------------------------------------------------------------------

    def search(
        self,
        queries: Any,
        k: int = 10,
        vectors: Any = None,
        candidates: int | None = None,
        probes: int | None = None,
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
        probes : int, optional
            Of an index with lists, how many a query visits; an eighth of them by default. More
            are visited until they hold as many vectors as are wanted. All of them find what a
            search without lists finds.

        Returns
        -------
        scores : float32 array (Q, k), or (k,)
            Inner products or cosines, as the codes estimate them; squared distances for "l2",
            the least first. Exact ones after ranking anew.
        ids : int64 array (Q, k), or (k,)

        Raises
        ------
        ValueError
            Not fitted, empty, queries that are not finite or of other dimensions, probes of an
            index without lists.
        """
        encoder, held = self._encoder, self._contents
        if not len(self):
            raise ValueError("index: empty; add(vectors) first")
        single = np.ndim(queries) == 1
        asked = encoder.centred(np.atleast_2d(queries), "queries")
        k = min(checks.whole(k, "k", 1), len(self))
        probes = self._probes(probes)
        if candidates is not None and vectors is None:
            raise ValueError("candidates: needs vectors to rank anew by")
        first = k
        if vectors is not None:
            first = min(len(self), checks.whole(candidates or 10 * k, "candidates", k))
        scores = np.empty((len(asked), first), np.float32)
        ids = np.empty((len(asked), first), np.int64)
        for start in range(0, len(asked), _QUERIES):
            rows = slice(start, start + _QUERIES)
            scaled, size = encoder.asked(asked[rows])
            shadows, shift = encoder.codec.transform(scaled)
            visits = None
            if encoder.partition is not None and self.lists and probes < self.lists:
                ranked = encoder.partition.rank(asked[rows], self.metric == "l2")
                visits = probing(ranked, held.counts, probes, first)
            planes = cut(shadows, held.words.shape[1])
            found, ids[rows] = best(held, planes, first, visits)
            total = (found + shift[:, None]) * size[:, None]
            if self.metric == "l2":
                total = (asked[rows] ** 2).sum(axis=1, keepdims=True) - 2 * total
            scores[rows] = total
        if vectors is not None:
            with opened(vectors, "vectors") as data:
                scores, ids = rerank.rank(asked + encoder.centre, ids, data, k, self.metric)
        return (scores[0], ids[0]) if single else (scores, ids)

    def _probes(self, probes: int | None) -> int:
        if self.lists is None:
            if probes is not None:
                raise ValueError("probes: an index without lists; give lists when it is made")
            return 1
        if probes is None:
            return -(-self.lists // _PROBES)
        return checks.whole(probes, "probes", 1, self.lists)

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
