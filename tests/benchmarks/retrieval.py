"""Vector search at equal bytes: hashsolve against FAISS, on queries that no index was fitted on.

    python tests/benchmarks/retrieval.py minilm --cache FOLDER      (see sentences.py)
    python tests/benchmarks/retrieval.py fashion                    (Debian: dataset-fashion-mnist)
    python tests/benchmarks/retrieval.py synthetic                  (isotropic: nothing to learn)
    python tests/benchmarks/retrieval.py isotropic                  (the same, over several draws)
    python tests/benchmarks/retrieval.py lists --cache FOLDER       (a coarse partition)
    python tests/benchmarks/retrieval.py million --cache FOLDER     (generated around real ones)
    python tests/benchmarks/retrieval.py plot RESULTS.json ... --output docs/retrieval.svg

One JSON line a method. ``found_k`` is the share of the true nearest k among k found.
Rates are of processor time, on one core: pairs of query and vector a second, vectors encoded a
second; unlike the time on the clock they hardly depend on what else the machine does. Needs
faiss-cpu, and matplotlib for the plot.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import sentences

import hashsolve as hs
from hashsolve.files import write_h5

FASHION = Path("/usr/share/datasets/fashion-mnist")
WANTED = (1, 10, 100)
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def minilm(cache: str, count: int) -> tuple[np.ndarray, ...]:
    """Unit embeddings of sentences: database, queries to fit on, queries to measure with."""
    vectors = sentences.load(cache)
    held = (len(vectors) - count) // 3
    return vectors[:count], vectors[count + held :], vectors[count : count + held][:2000]


def fashion(_: str, count: int) -> tuple[np.ndarray, ...]:
    """Pixels: training images are the database, test images the queries."""

    def images(name: str) -> np.ndarray:
        raw = gzip.decompress((FASHION / f"{name}-images-idx3-ubyte.gz").read_bytes())
        return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784) / np.float32(255)

    queries = images("t10k")
    return images("train")[:count], queries[1000:5000], queries[:1000]


def synthetic(_: str, count: int) -> tuple[np.ndarray, ...]:
    """Isotropic Gaussians, the worst case: no direction, and no query, is more likely."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(n, 384)).astype(np.float32) for n in (count, 4000, 1000))


DATA = {"minilm": (minilm, "ip"), "fashion": (fashion, "l2"), "synthetic": (synthetic, "ip")}


def nearest(database: np.ndarray, queries: np.ndarray, metric: str, k: int = 100) -> np.ndarray:
    """The truly nearest, (Q, k)."""
    import faiss

    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    return faiss.knn(queries, database, k, metric=kind)[1]


def ours(database: np.ndarray, fit: np.ndarray, metric: str, **options: Any) -> dict[str, Any]:
    """hashsolve, fitted on a part of the database and other queries."""
    index = hs.InnerProductIndex(metric, **options)
    begun = time.process_time()
    index.fit(database, fit)
    fitted = time.process_time() - begun
    begun, clock = time.process_time(), time.perf_counter()
    index.add(database)
    spent, clock = time.process_time() - begun, time.perf_counter() - clock
    return {
        "search": index.search,
        "bytes": index.bytes_per_vector,
        "fit_seconds": round(fitted, 1),
        "encoded_per_core_second": round(len(database) / spent),
        "encoded_per_second_on_clock": round(len(database) / clock),
        "chosen": str(index.report.chosen),
    }


def theirs(database: np.ndarray, make: Callable[[], Any]) -> dict[str, Any]:
    """A FAISS index, trained on the whole database."""
    index = make()
    begun = time.process_time()
    index.train(database)
    fitted = time.process_time() - begun
    begun = time.process_time()
    index.add(database)
    spent = time.process_time() - begun
    return {
        "search": index.search,
        "bytes": index.sa_code_size() if hasattr(index, "sa_code_size") else 0,
        "fit_seconds": round(fitted, 1),
        "encoded_per_core_second": round(len(database) / spent),
    }


def sign(database: np.ndarray, metric: str) -> dict[str, Any]:
    """Signs of a random rotation, after the mean, at the mean magnitude."""
    size = database.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    mean = database.mean(axis=0)
    x = (database - mean) @ rotation
    u = np.sign(x) * np.abs(x).mean(axis=1, keepdims=True) + mean @ rotation
    offset = -(u * u).sum(axis=1) / 2 if metric == "l2" else 0.0

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ rotation @ u.T + offset
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, ids, 1), ids

    return {"search": search, "bytes": size // 8 + (8 if metric == "l2" else 4)}


def itq(database: np.ndarray) -> dict[str, Any]:
    """IndexBinaryFlat over ITQ's bits: Hamming distances."""
    import faiss

    size = database.shape[1]
    transform = faiss.ITQTransform(size, size, True)
    transform.train(database)

    def bits(values: np.ndarray) -> np.ndarray:
        return np.packbits(transform.apply(values) > 0, axis=1, bitorder="little")

    index = faiss.IndexBinaryFlat(size)
    index.add(bits(database))
    return {"search": lambda queries, k: index.search(bits(queries), k), "bytes": size // 8}


def rivals(size: int, metric: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """FAISS indexes of one to four bits a dimension."""
    import faiss

    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT

    def rabitq(bits: int) -> Any:
        index = faiss.IndexRaBitQ(size, kind, bits)
        index.qb = 8
        return faiss.IndexPreTransform(faiss.RandomRotationMatrix(size, size), index)

    for bits in (1, 2, 3, 4):
        yield f"FAISS RaBitQ, {bits} bits, 8-bit queries", lambda b=bits: rabitq(b)
    yield (
        "FAISS RaBitQFastScan, 1 bits",
        lambda: faiss.IndexPreTransform(
            faiss.RandomRotationMatrix(size, size), faiss.IndexRaBitQFastScan(size, kind)
        ),
    )
    for bits in (1, 2, 3, 4):
        yield f"FAISS LSH, {bits} bits", lambda b=bits: faiss.IndexLSH(size, b * size, True)
    for bits in (1, 2, 4):  # sub-vectors of 8, 4 and 2 dimensions
        parts = size * bits // 8
        yield f"FAISS PQ{parts}x8, {bits} bits", lambda m=parts: faiss.IndexPQ(size, m, 8, kind)
    yield (
        "FAISS ScalarQuantizer, 4 bits",
        lambda: faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_4bit, kind),
    )


def measure(
    name: str, built: dict[str, Any], queries: np.ndarray, truth: np.ndarray, count: int
) -> None:
    """Print a line: what is found, and how fast."""
    search: Search = built.pop("search")
    ids = search(queries, 100)[1]
    shares = {k: float(found(ids[:, :k], truth[:, :k]).mean()) for k in WANTED}
    some, spent, clock = queries[:200], [], []
    for _ in range(3):
        begun, tick = time.process_time(), time.perf_counter()
        search(some, 10)
        spent.append(time.process_time() - begun)
        clock.append(time.perf_counter() - tick)
    line = {
        "method": name,
        "bytes": built.pop("bytes"),
        **{f"found_{k}": round(value, 4) for k, value in shares.items()},
        "million_pairs_per_core_second": round(len(some) * count / min(spent) / 1e6, 1),
        "queries_per_second_on_clock": round(len(some) / min(clock), 1),
        **built,
    }
    print(json.dumps(line), flush=True)


@click.group()
def main() -> None:
    """Measure vector search."""


def _command(data: str) -> None:
    load, metric = DATA[data]

    @main.command(data, help=load.__doc__)
    @click.option("--cache", default="", help="The folder of sentences.py.")
    @click.option("--count", default=20_000, help="Vectors in the database.")
    @click.option("--quick", is_flag=True, help="One bit a dimension, and no slow rival.")
    @click.option("--effort", multiple=True, default=("fast", "default"))
    def run(cache: str, count: int, quick: bool, effort: tuple[str, ...]) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        database, fit, queries = load(cache, count)
        truth = nearest(database, queries, metric)
        about = {"data": data, "metric": metric, "database": len(database), "fit": len(fit)}
        print(json.dumps({**about, "queries": len(queries), "dimensions": database.shape[1]}))
        for bits in (1,) if quick else (1, 2, 3, 4):
            for level in effort if bits == 1 else ("fast",):
                built = ours(database, fit, metric, bits=bits, effort=level)
                measure(f"hashsolve, {bits} bits, {level}", built, queries, truth, count)
        if not quick:
            for kind in ("random", "itq"):
                plain = ours(database, fit, metric, rotation=kind, effort="fast")
                measure(f"hashsolve, 1 bits, {kind} rotation", plain, queries, truth, count)
        for name, make in rivals(database.shape[1], metric):
            if quick and any(word in name for word in ("2 bits", "3 bits", "4 bits")):
                continue
            measure(name, theirs(database, make), queries, truth, count)
        measure("sign of a random rotation", sign(database, metric), queries, truth, count)
        measure("FAISS BinaryFlat + ITQ", itq(database), queries, truth, count)


for _data in DATA:
    _command(_data)


def found(ids: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The share of the true nearest that is found, query by query."""
    return np.array([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ids, truth, strict=True)])


@main.command()
@click.option("--draws", default=5)
@click.option("--count", default=10_000)
def isotropic(draws: int, count: int) -> None:
    """Recall@10 less that of RaBitQ on isotropic Gaussians, its mean and standard error.

    Each draw has data, and rotations of both, of its own.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    differences, lines = [], []
    for seed in range(draws):
        rng = np.random.default_rng(100 + seed)
        database, fit, queries = (
            rng.normal(size=(n, 384)).astype(np.float32) for n in (count, 2000, 2000)
        )
        truth = nearest(database, queries, "ip", 10)
        index = hs.InnerProductIndex(effort="fast", seed=seed).fit(database, fit)
        index.add(database)
        rotation = faiss.RandomRotationMatrix(384, 384)
        rotation.init(seed)
        coarse = faiss.IndexRaBitQ(384, faiss.METRIC_INNER_PRODUCT, 1)
        coarse.qb = 8
        rival = faiss.IndexPreTransform(rotation, coarse)
        rival.train(database)
        rival.add(database)
        mine, other = (found(one.search(queries, 10)[1], truth).mean() for one in (index, rival))
        differences.append(mine - other)
        lines.append({"hashsolve": round(mine, 4), "rabitq": round(other, 4)})
        print(json.dumps({**lines[-1], "chosen": str(index.report.chosen)}), flush=True)
    error = np.std(differences, ddof=1) / np.sqrt(draws)
    about = {"draws": draws, "database": count, "queries": 2000, "dimensions": 384}
    mean = {"mean_difference": float(np.mean(differences)), "standard_error": float(error)}
    print(json.dumps({**about, **{name: round(value, 5) for name, value in mean.items()}}))


@main.command()
@click.option("--cache", required=True, help="The folder of sentences.py.")
@click.option("--count", default=20_000)
@click.option("--lists", "number", default=128)
def lists(cache: str, count: int, number: int) -> None:
    """Recall@10 and time by lists that are visited; what codes of residuals would find."""
    from hashsolve.retrieval.partition import Partition

    database, fit, queries = minilm(cache, count)
    truth = nearest(database, queries, "ip", 10)
    kind = {"effort": "fast", "rotation": "learned", "shrinkage": 0.5}
    index = hs.InnerProductIndex(**kind, lists=number).fit(database, fit)
    index.add(database)
    for probes in sorted({1, 2, 4, 8, 16, 32, 64, number}):
        spent = []
        for _ in range(3):
            begun = time.process_time()
            ids = index.search(queries, 10, probes=probes)[1]
            spent.append(time.process_time() - begun)
        line = {"lists": number, "probes": probes, "found_10": found(ids, truth).mean().round(4)}
        rate = round(len(queries) / min(spent))
        print(json.dumps({**line, "queries_per_core_second": rate}), flush=True)
    part = Partition.fit(database.astype(float), number, 0)
    near = part.centroids[part.assign(database.astype(float))]
    rest = hs.InnerProductIndex(**kind).fit(database - near, fit)
    rest.add(database - near)
    scores, ids = rest.search(queries, len(database))
    whole = np.empty_like(scores)
    np.put_along_axis(whole, ids, scores, 1)
    ids = np.argsort(-(whole + queries @ near.T), axis=1)[:, :10]
    print(json.dumps({"codes": "of residuals", "found_10": found(ids, truth).mean().round(4)}))


def peak() -> int:
    """Most memory this process has had, in MB, as the operating system counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@main.command()
@click.option("--cache", required=True, help="The folder of sentences.py; needs 1.6 GB there.")
@click.option("--count", default=1_000_000)
@click.option("--effort", default="default")
def million(cache: str, count: int, effort: str) -> None:
    """Index and search many vectors, w = unit(a + 0.3 (b − c)) of real a, b and c."""
    real = sentences.load(cache)
    real, queries = real[: len(real) - 500], real[len(real) - 500 :]
    path = Path(cache) / "million.h5"
    rng = np.random.default_rng(0)
    with write_h5(path) as file:
        data = file.create_dataset("vectors", (count, real.shape[1]), "f4", chunks=(1024, 384))
        for start in range(0, count, 20_000):
            a, b, c = real[rng.integers(0, len(real), (3, min(20_000, count - start)))]
            w = a + 0.3 * (b - c)
            data[start : start + len(w)] = w / np.linalg.norm(w, axis=1, keepdims=True)
    sample = len(real) // 2
    index = hs.InnerProductIndex(effort=effort).fit(real[:sample], real[sample:])
    before = peak()
    begun, spent = time.perf_counter(), time.process_time()
    index.add(f"{path}:/vectors", progress=lambda done, n: print(done, n, file=os.sys.stderr))
    added, spent = time.perf_counter() - begun, time.process_time() - spent
    after = peak()
    begun, used = time.perf_counter(), time.process_time()
    _, ids = index.search(queries, 10)
    searched, used = time.perf_counter() - begun, time.process_time() - used
    ending = peak()
    ranked = index.search(queries[:100], 10, vectors=f"{path}:/vectors", candidates=50)[1]
    import faiss

    with hs.files.open_h5(path) as file:
        truth = nearest(file["vectors"][:], queries, "ip", 10)
    first, again = (float(found(x, truth[: len(x)]).mean()) for x in (ids, ranked))
    line = {
        "vectors": count,
        "effort": effort,
        "bytes_per_vector": index.bytes_per_vector,
        "found_10": round(first, 4),
        "found_10_of_50_ranked_anew": round(again, 4),
        "encoded_per_second_on_clock": round(count / added),
        "encoded_per_core_second": round(count / spent),
        "queries_per_second_on_clock": round(len(queries) / searched, 1),
        "million_pairs_per_core_second": round(count * len(queries) / used / 1e6, 1),
        "peak_mb_before_adding": before,
        "peak_mb_after_adding": after,
        "peak_mb_after_searching": ending,
        "faiss": faiss.__version__,
    }
    print(json.dumps(line))
    path.unlink()


@main.command()
@click.argument("results", nargs=-1, type=click.Path(exists=True))
@click.option("--output", required=True)
def plot(results: tuple[str, ...], output: str) -> None:
    """Recall against bytes, and against the rate of searching, from result files."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(results), 2, figsize=(9, 3.2 * len(results)), layout="constrained", squeeze=False
    )
    colours: dict[str, str] = {}  # one a method, in all panels
    for (by_bytes, by_rate), path in zip(axes, results, strict=True):
        about, *lines = json.loads(Path(path).read_text())["results"]
        families: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            families.setdefault(_family(line["method"]), []).append(line)
        for family, found in families.items():
            found.sort(key=lambda line: line["bytes"])
            recall = [line["found_10"] for line in found]
            style = "o-" if family.startswith("hashsolve") else "s--"
            fresh = family not in colours
            look = {"color": colours.setdefault(family, f"C{len(colours)}"), "ms": 4}
            label = family if fresh else None
            by_bytes.plot([line["bytes"] for line in found], recall, style, label=label, **look)
            rates = [line["million_pairs_per_core_second"] for line in found]
            by_rate.plot(rates, recall, style[0], **look)
        by_bytes.set(xlabel="bytes a vector", ylabel="recall@10", title=about["data"])
        by_rate.set(xscale="log", xlabel="million pairs a second and core", title=about["data"])
        for one in (by_bytes, by_rate):
            one.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, fontsize=7)
    figure.savefig(output)


def _family(method: str) -> str:
    name, *rest = method.split(", ")
    if rest[-1:] in (["random rotation"], ["itq rotation"]):
        name += f", {rest[-1]}"
    return name.rstrip("0123456789x") if "PQ" in name else name


if __name__ == "__main__":
    main()
