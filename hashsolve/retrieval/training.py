"""Fitting a codec: a map learned from vectors, the queries' covariance, a choice on held-out data.

Learned maps alternate between codes for the map and the map that is best for the codes,
min ‖X − D B A‖². That of ITQ (Gong & Lazebnik, CVPR 2011) is a rotation, by Procrustes. The other
is any linear map, by least squares: as codes come from the solver, it need not be orthogonal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import linalg

from hashsolve.retrieval.codec import Codec, lengths
from hashsolve.retrieval.search import cut
from hashsolve.threads import one_blas_thread, product

K = 10
"""Recall@K is what the choice goes by."""
LEARN = 8192
"""Vectors that the map is learned from, at most."""
DATABASE = 8192
"""Held-out vectors that are searched in, at most."""
QUERIES = 1000
"""Held-out queries, at most."""
ROUNDS = (12, 6)
"""Alternations with at most `FEW` flips a vector, and then with all."""
FEW = 50
RIDGE = 1e-3
"""Of the least-squares map, relative to the mean square of a bit times its scale."""
SHRINKAGES = (1.0, 0.5)
PULLS = (0.0, 0.25, 0.5)
LEAST = 50
"""Held-out queries and vectors below which there is no choosing."""


@dataclass(frozen=True)
class Candidate:
    """One way of encoding, and how well it did: what a line of the fit report says.

    Attributes
    ----------
    rotation : {"random", "learned"}
    shrinkage : float
        Of the queries' covariance towards the identity.
    scale : {"least-squares", "unbiased"}
    pull : float
        How much of the vector is expected of a query near it.
    recall : float
        Of the 10 truly nearest, on held-out queries.
    """

    rotation: str
    shrinkage: float
    scale: str
    pull: float
    recall: float

    def __str__(self) -> str:
        weight = "" if self.shrinkage == 1 else f", query covariance shrunk by {self.shrinkage:g}"
        return f"{self.rotation} map{weight}, {self.scale} scale, pull {self.pull:g}" + (
            "" if np.isnan(self.recall) else f": recall@{K} {self.recall:.4f}"
        )


@dataclass(frozen=True)
class Report:
    """What `fit` chose, out of what, and on which held-out figures.

    Attributes
    ----------
    chosen : Candidate
        ``recall`` is nan where there were too few data to hold any out.
    candidates : tuple of Candidate
        All that were tried, best first.
    vectors, queries, held_out_vectors, held_out_queries : int
        How many served for fitting and for choosing.
    note : str
        Why, in words.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...] = field(repr=False)
    vectors: int
    queries: int
    held_out_vectors: int
    held_out_queries: int
    note: str

    def __str__(self) -> str:
        fitted = f"fitted on {self.vectors} vectors and {self.queries} queries"
        chosen = (
            f"; chosen on {self.held_out_queries} queries over {self.held_out_vectors} vectors, "
            "none of them fitted on"
        )
        return f"{self.note}\n{self.chosen}\n{fitted}{chosen if self.held_out_queries else ''}"


def fit_codec(
    vectors: np.ndarray,
    queries: np.ndarray | None,
    bits: int,
    rotation: str,
    shrinkage: float | None,
    moves: int,
    seed: int,
    distance: bool,
) -> tuple[Codec, Report]:
    """The codec that finds most of the true nearest of held-out queries.

    Parameters
    ----------
    vectors : array (n, S)
        A sample of the database.
    queries : array (m, S), optional
        A sample of the queries; without them, some of the vectors stand for queries.
    rotation : {"auto", "random", "itq", "learned"}
    shrinkage : float, optional
        Of the queries' covariance towards the identity; None tries several.
    distance : bool
        Whether the nearest are those of the least Euclidean distance.
    """
    rng = np.random.default_rng(seed)
    vectors = vectors[rng.permutation(len(vectors))]
    if queries is None:
        share = min(len(vectors) // 5, 4 * QUERIES)
        queries, rest = vectors[:share], vectors[share:]
    else:
        queries, rest = queries[rng.permutation(len(queries))], vectors
    alike, length = vectors, 1.0
    if not distance:
        length = float(np.sqrt((vectors * vectors).sum(axis=1).mean())) or 1.0
        queries, alike = (_of_length(rows, length) for rows in (queries, vectors))
    asked = min(QUERIES, len(queries) // 3)
    kept = min(DATABASE, len(rest) // 2)
    held, known = queries[:asked], queries[asked:]
    database, sample = rest[:kept], rest[kept : kept + LEARN]
    choosing = asked >= LEAST and kept >= LEAST
    if not choosing:
        sample, known = vectors, (queries if len(queries) else alike)
    base = Codec(
        mean=sample.mean(axis=0),
        query_mean=known.mean(axis=0),
        decoder=_bases(sample.shape[1], bits, rng),
        moves=moves,
        query_length=length,
    )
    base = replace(base, start_scale=_start_scale(base, sample[:500]))
    # for one basis that is a rotation the signs are optimal: there is nothing to search
    plain = replace(base, moves=0) if bits == 1 else base
    candidates: list[tuple[Candidate, Codec]] = []
    kinds = ("random", "itq", "learned") if rotation == "auto" else (rotation,)
    if not choosing:
        kind = "random" if rotation == "auto" else rotation
        codec = _learn(base, sample) if kind == "learned" else replace(plain, unbiased=True)
        if kind == "itq":
            codec = _rotate(codec, sample)
        rule = "unbiased" if codec.unbiased else "least-squares"
        only = Candidate(kind, 1.0, rule, 0.0, float("nan"))
        note = (
            f"too few to hold out ({asked} queries, {kept} vectors): nothing was compared; give "
            f"{3 * LEAST} queries and {2 * LEAST} vectors, or no queries and {15 * LEAST} vectors"
        )
        return codec, Report(only, (only,), len(sample), len(known), 0, 0, note)
    truth = _truth(database, held, distance)
    for kind in kinds:
        if kind != "learned":
            tried: list[tuple[float, Codec]] = [
                (1.0, plain if kind == "random" else _rotate(plain, sample))
            ]
        else:
            wanted = SHRINKAGES if shrinkage is None else (shrinkage,)
            tried = [(s, _learn(replace(base, weight=_weight(known, s)), sample)) for s in wanted]
        for mixed, codec in tried:
            candidates += _judge(codec, kind, mixed, database, held, truth, distance)
    candidates.sort(key=lambda pair: -pair[0].recall)  # stable: of equals, the simplest
    best, codec = candidates[0]
    note = f"a {best.rotation} map"
    if rotation == "auto":
        rabitq = next(p for p in candidates if p[0].rotation == "random" and p[1].unbiased)
        # two standard errors, for the best of many owes some of it to chance
        margin = 2 * np.sqrt(best.recall * (1 - best.recall) / truth.size)
        if best.recall <= rabitq[0].recall + margin:
            best, codec = rabitq
            note = (
                "fell back to RaBitQ's rule: nothing did better, by a margin, on held-out queries"
            )
        elif best.rotation == "random":
            note = "fell back to a random rotation: no learned map was better on held-out queries"
        elif best.rotation == "itq":
            note = "ITQ's rotation: no other map was better on held-out queries"
        elif best.shrinkage == 1 and shrinkage is None:
            note = "a learned map; the queries' covariance was no help on held-out queries"
    every = tuple(candidate for candidate, _ in candidates)
    return codec, Report(best, every, len(sample), len(known), kept, asked, note)


def _of_length(rows: np.ndarray, length: float) -> np.ndarray:
    """Queries, all of one length: their own changes no order of inner products."""
    own = lengths(rows)
    return rows * (length / np.where(own > 0, own, 1.0))[:, None]


def _bases(size: int, bits: int, rng: np.random.Generator) -> np.ndarray:
    """A random rotation, at half the scale for each further bit: a uniform quantiser's levels."""
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    return _levels(q * np.sign(np.diagonal(r)), bits)


def _levels(rotation: np.ndarray, bits: int) -> np.ndarray:
    return np.concatenate([rotation / 2**m for m in range(bits)], axis=1)


def _start_scale(codec: Codec, sample: np.ndarray) -> float:
    """The mean best scale of unit vectors, found in a few steps from a guess."""
    size = len(codec.mean)
    length = np.linalg.norm(sample - codec.mean, axis=1)
    if not length.any():
        return 1.0
    codec = replace(codec, start_scale=0.8 / np.sqrt(size), moves=0, unbiased=False)
    for _ in range(3):
        scales = codec.encode(sample)[1]
        codec = replace(codec, start_scale=float(scales.sum() / length.sum()) or 1.0)
    return codec.start_scale


def _weight(queries: np.ndarray, shrinkage: float) -> np.ndarray | None:
    """(1 − s) cov(q) + s I, with cov(q) at trace S; None for the identity."""
    size = queries.shape[1]
    centred = queries - queries.mean(axis=0)
    covariance = product(np.ascontiguousarray(centred.T), centred)
    trace = np.trace(covariance)
    if shrinkage == 1 or not trace > 0:
        return None
    return (1 - shrinkage) * size / trace * covariance + shrinkage * np.eye(size)


def _learn(codec: Codec, sample: np.ndarray) -> Codec:
    """Alternate codes and the linear map that is best for them."""
    x = sample - codec.mean
    length = np.linalg.norm(x, axis=1)
    if not length.any():
        return codec
    moves = codec.moves
    for turn in range(sum(ROUNDS) if moves > FEW else ROUNDS[0]):
        trial = replace(codec, moves=moves if turn >= ROUNDS[0] else min(moves, FEW))
        codes, scales, _ = trial.encode(sample)
        u = codes * scales[:, None]
        gram = product(np.ascontiguousarray(u.T), u)
        # bits that are constant or redundant leave it singular
        gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram)
        cross = product(np.ascontiguousarray(u.T), x)
        with one_blas_thread():
            decoder = linalg.solve(gram, cross, assume_a="pos").T
        start = float(scales.sum() / length.sum())
        codec = replace(codec, decoder=np.ascontiguousarray(decoder), start_scale=start)
    return codec


def _rotate(codec: Codec, sample: np.ndarray) -> Codec:
    """Alternate codes and the rotation that is best for them, as ITQ does."""
    x = sample - codec.mean
    size = x.shape[1]
    bits = codec.length // size
    for _ in range(sum(ROUNDS)):
        codes, scales, _ = replace(codec, unbiased=False).encode(sample)
        u = sum(codes[:, m * size : (m + 1) * size] / 2**m for m in range(bits)) * scales[:, None]
        with one_blas_thread():
            left, _, right = linalg.svd(product(np.ascontiguousarray(x.T), u))
        codec = replace(codec, decoder=_levels(left @ right, bits))
    return codec


def _truth(database: np.ndarray, queries: np.ndarray, distance: bool) -> np.ndarray:
    """The K truly nearest of each query."""
    scores = product(queries, np.ascontiguousarray(database.T))
    if distance:
        scores -= (database**2).sum(axis=1) / 2
    return np.argsort(-scores, axis=1, kind="stable")[:, :K]


def _judge(
    codec: Codec,
    kind: str,
    shrinkage: float,
    database: np.ndarray,
    queries: np.ndarray,
    truth: np.ndarray,
    distance: bool,
) -> list[tuple[Candidate, Codec]]:
    """Every rule of scale and offset with one map."""
    codes, measures = codec.measure(database)
    planes = cut(product(queries, codec.decoder), -(-codec.length // 64))
    asked = planes.whole * planes.units[:, None].astype(float)  # as the search will see them
    shadows = product(asked, np.ascontiguousarray(codes.T, float))
    half = (database**2).sum(axis=1) / 2 if distance else 0.0
    found = []
    for unbiased, pull in [(False, pull) for pull in PULLS] + [(True, 0.0)]:
        trial = replace(codec, unbiased=unbiased, pull=pull)
        scales, offsets = trial.rate(measures)
        scores = shadows * scales + (offsets - half)
        top = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        hits = sum(len(np.intersect1d(a, b)) for a, b in zip(top, truth, strict=True))
        rule = "unbiased" if unbiased else "least-squares"
        found.append((Candidate(kind, shrinkage, rule, pull, hits / truth.size), trial))
    return found
