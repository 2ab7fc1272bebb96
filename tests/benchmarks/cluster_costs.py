"""What a cluster moves, computes and holds: a model, checked on small runs, and two large jobs.

    python tests/benchmarks/cluster_costs.py

The model is that of docs/cluster.md. It is checked on a LocalCluster of two worker processes:
bytes of the tasks and of their results as they are pickled, the largest resident set of a worker,
and flops a second of one worker's thread. Then it says what a transformer of 7 billion parameters
and a billion vectors would take, at those rates. Prints one line of JSON.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import distributed
import numpy as np
from distributed.protocol.pickle import dumps

import hashsolve as hs
from hashsolve import activations, cluster
from hashsolve.activations import BINARIZED, FULL, shards, write_activations

CODE, NUMBER = 1 / 8, 8  # bytes of a packed code, and of a float64
WORKER = 260e6  # bytes of a worker that has done nothing but import
BLOCKS = 6 * 64 * 2**20  # of the rows that are summed at a time
DCC_SWEEPS, FLIPPED = 8, 0.05
"""Sweeps until DCC's fixpoint on real layers, and the share of bits that one flips on average."""


@dataclass(frozen=True)
class Layer:
    """S inputs, T columns, N rows of activations, of so many bytes a number; count of its kind."""

    inputs: int
    columns: int
    rows: int
    itemsize: int = 2
    asymmetric: bool = True
    count: int = 1


def sums_cost(layer: Layer) -> dict[str, float]:
    """Bytes read by workers, sent to and from them, held by one; flops. Of one layer."""
    size, columns = layer.inputs, layer.columns
    streams = 2 if layer.asymmetric else 1
    pieces = len(shards((layer.rows, size)))
    totals = size**2 + (size * columns if layer.asymmetric else 0)
    return {
        "read": layer.rows * size * layer.itemsize * streams,
        "sent": pieces * NUMBER * size * columns,  # the weights
        "returned": pieces * NUMBER * totals,
        "flops": layer.rows * (size**2 + (4 * size * columns if layer.asymmetric else 0)),
        "held": WORKER + NUMBER * (totals + size * columns) + BLOCKS,
    }


def solve_cost(layer: Layer, threads: int, method: str = "dcc") -> dict[str, float]:
    """The same of solving one layer from its saved problem, on so many threads of workers."""
    size, columns = layer.inputs, layer.columns
    pieces = len(cluster.cuts(size, columns, method, threads))
    readers = min(pieces, threads)
    flipped = DCC_SWEEPS * FLIPPED * size * columns
    return {
        "read": readers * NUMBER * (size**2 + 2 * size * columns),
        "sent": 0.0,
        "returned": size * columns + 3 * NUMBER * columns,  # codes come as int8
        "flops": pieces * size**3 * 2 / 3 + 12 * size**2 * columns + 2 * size * flipped,
        "held": WORKER + NUMBER * (3 * size**2 + 3 * size * columns),
    }


SMALL = Layer(1024, 1024, 2**17 + 1000, itemsize=4)


def measured(folder: Path) -> dict[str, Any]:
    """The model against small runs, on two workers."""
    rng = np.random.default_rng(0)
    path = folder / "a.h5"

    def batches():
        for start in range(0, SMALL.rows, 2**13):
            maps = rng.normal(size=(min(2**13, SMALL.rows - start), SMALL.inputs)).astype("f4")
            yield {BINARIZED: maps, FULL: maps + 1}

    write_activations(path, batches(), hs.Geometry())
    weights = rng.normal(size=(SMALL.columns, SMALL.inputs))
    sums = layer_sums(path, weights)
    hs.Problem.from_sums(sums, weights.T).save(folder / "p.h5")
    return {
        "sums": run(sums_cost(SMALL), lambda c: layer_sums(path, weights, c)),
        "solve": run(solve_cost(SMALL, 2), lambda c: cluster.solve(c, [folder / "p.h5"], "dcc")),
    }


def layer_sums(path: Path, weights: np.ndarray, client: Any = None) -> Any:
    """Here, or on workers."""
    if client is not None:
        return cluster.layer_sums(client, path, weights, hs.Geometry())[0]
    with activations.layer_streams(path) as (inputs, reference):
        return activations.layer_sums(inputs, weights, hs.Geometry(), reference)[0]


def run(model: dict[str, float], job: Any) -> dict[str, Any]:
    """A job once, its tasks counted, and once more, timed; beside what was modelled."""
    moved = {"sent": 0, "returned": 0}
    submit = distributed.Client.submit

    def counting(client, task, *arguments, **options):
        moved["sent"] += len(dumps(arguments))
        future = submit(client, task, *arguments, **options)
        moved["returned"] += len(dumps(future.result()))
        return future

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as workers, distributed.Client(workers) as client:
        distributed.Client.submit = counting
        try:
            job(client)
        finally:
            distributed.Client.submit = submit
        begun = time.perf_counter()
        job(client)
        seconds = time.perf_counter() - begun
        held = max(client.run(resident).values())
    return {
        "sent": [moved["sent"], model["sent"]],
        "returned": [moved["returned"], model["returned"]],
        "held": [held, model["held"]],
        "flops a second of a thread": model["flops"] / seconds / 2,
    }


def resident() -> int:
    """The largest resident set of this process, in bytes (getrusage would count its parent's)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


TOKENS = 128 * 2048
TRANSFORMER = [  # 32 blocks of 4096 features, 11,008 in between: 6.5 billion weights
    Layer(4096, 4096, TOKENS, count=4 * 32),
    Layer(4096, 11008, TOKENS, count=2 * 32),
    Layer(11008, 4096, TOKENS, count=32),
]
VECTORS = Layer(384, 10**9, 10**5, itemsize=4, asymmetric=False)
VECTOR_BLOCK = 2**16


def transformer(threads: int) -> dict[str, float]:
    """All layers of a transformer of 7 billion parameters; the network's own passes apart."""
    parts = {
        "sums": [sums_cost(layer) for layer in TRANSFORMER],
        "solving": [solve_cost(layer, threads) for layer in TRANSFORMER],
    }

    def total(part: str, name: str) -> float:
        return sum(a.count * cost[name] for a, cost in zip(TRANSFORMER, parts[part], strict=True))

    costs = {
        f"{name} {'of' if name == 'flops' else 'for'} {part}": total(part, name)
        for part in parts
        for name in ("read", "sent", "returned", "flops")
    }
    weights = sum(a.count * a.inputs * a.columns for a in TRANSFORMER)
    return {
        **costs,
        "held": max(cost["held"] for part in parts.values() for cost in part),
        "activations": max(2 * a.rows * a.inputs * a.itemsize for a in TRANSFORMER),
        "codes": weights * CODE,
    }


def vectors(threads: int) -> dict[str, float]:
    """A billion vectors against one Gram matrix of queries, in blocks that workers read."""
    size, count = VECTORS.inputs, VECTORS.columns
    blocks = -(-count // VECTOR_BLOCK)
    flips = DCC_SWEEPS * FLIPPED * size
    codes = count * (size * CODE + NUMBER)
    return {
        "read for solving": count * size * VECTORS.itemsize + blocks * NUMBER * size**2,
        "returned for solving": codes,
        "flops of sums": VECTORS.rows * size**2,
        "flops of solving": count * (12 * size**2 + 2 * size * flips),
        "held": WORKER + VECTOR_BLOCK * size * (4 * NUMBER + 2),
        "codes": codes,
    }


@click.command()
@click.option("--threads", default=64, help="Of all workers, for the two large jobs.")
def main(threads: int) -> None:
    """Check the model, then use it."""
    with tempfile.TemporaryDirectory() as folder:
        small = measured(Path(folder))
    rates = {name: found["flops a second of a thread"] for name, found in small.items()}
    large = {"transformer 7B": transformer(threads), "a billion vectors": vectors(threads)}
    for cost in large.values():
        seconds = cost["flops of sums"] / rates["sums"] + cost["flops of solving"] / rates["solve"]
        cost["hours"] = seconds / threads / 3600
    print(json.dumps({"measured, modelled": small, f"{threads} threads": large}))


if __name__ == "__main__":
    main()
