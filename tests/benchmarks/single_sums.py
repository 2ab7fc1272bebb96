"""Sums of linear layers in single precision: their rate against this machine's sgemm and ssyrk.

    python tests/benchmarks/single_sums.py --folder DIR

All are measured in turn, several rounds, in one process; the figure is the ratio of the best of
each, ``ssyrk`` being of all blocks of a layer, as long as its sums. ``cpu`` compares processor
time, which other processes disturb less; ``wall`` compares seconds on all cores. Of a layer,
``memory`` sums float32 rows (N, S) as `layer_sums` is given them, ``arrays`` the same as X (S, N)
for `Problem.from_arrays`, ``float32`` and ``float16`` those of a cache file (beside it, the share
of the rate of ``memory``). Prints one JSON object.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

import hashsolve as hs
from hashsolve.activations import FULL, layer_sums, open_activations, write_activations
from hashsolve.sums import block_rows, sum_arrays
from hashsolve.threads import one_blas_thread

LINEAR = hs.Geometry()
SIZES = (576, 1152, 2304, 4608)
SIDE = 2048


class Best:
    """The least processor time and wall time of each job, per multiplication and addition."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    def run(self, name: str, flops: float, job: Callable[[], object]) -> None:
        """Measure a job once more."""
        cpu, wall = time.process_time(), time.perf_counter()
        job()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        self.cpu[name] = min(self.cpu.get(name, np.inf), cpu / flops)
        self.wall[name] = min(self.wall.get(name, np.inf), wall / flops)

    def ratio(self, of: str, to: str) -> dict[str, float]:
        """The rate of one against that of another."""
        return {
            "cpu": round(self.cpu[to] / self.cpu[of], 3),
            "wall": round(self.wall[to] / self.wall[of], 3),
        }


def one(inputs: int, rounds: int, folder: Path) -> dict:
    """Measure one fan-in."""
    rng = np.random.default_rng(0)
    block = block_rows(inputs, "single")
    rows = block * max(2, 2**27 // inputs // block)
    maps = np.maximum(rng.normal(size=(rows, inputs)), 0).astype(np.float32)
    columns, weights = np.ascontiguousarray(maps.T), rng.normal(size=(64, inputs))
    a, b = rng.normal(size=(2, SIDE, SIDE)).astype(np.float32)
    paths = {dtype: folder / f"{dtype}.h5" for dtype in ("float32", "float16")}
    for dtype, path in paths.items():
        write_activations(path, [{FULL: maps}], LINEAR, dtype)

    def from_file(dtype: str) -> None:
        with open_activations(paths[dtype]) as streams:
            layer_sums(streams[FULL], weights, LINEAR, precision="single")

    def multiply() -> None:
        for start in range(0, rows, block):
            part = columns[:, start : start + block]
            part @ part.T

    flops = rows * inputs**2
    best = Best()
    for _ in range(rounds):
        # OpenBLAS's waiting threads count as processor time: so on one thread for that
        with one_blas_thread():
            best.run("sgemm 1", 2 * SIDE**3, lambda: a @ b)
            best.run("ssyrk 1", flops, multiply)
        best.run("sgemm", 2 * SIDE**3, lambda: a @ b)
        best.run("ssyrk", flops, multiply)
        best.run("memory", flops, lambda: layer_sums(maps, weights, LINEAR, precision="single"))
        best.run("double", flops, lambda: layer_sums(maps, weights, LINEAR))
        best.run(
            "arrays",
            flops,
            lambda: sum_arrays(columns, weights.T, None, None, None, "x", "single"),
        )
        for dtype in paths:
            best.run(dtype, flops, lambda dtype=dtype: from_file(dtype))
    for name in ("sgemm", "ssyrk"):
        best.cpu[name] = best.cpu[f"{name} 1"]
    found: dict = {"inputs": inputs, "rows": rows}
    for way in ("memory", "arrays", *paths):
        found[way] = {f"of {name}": best.ratio(way, name) for name in ("sgemm", "ssyrk")}
        found[way]["of double"] = best.ratio(way, "double")
        if way in paths:
            found[way]["of memory"] = best.ratio(way, "memory")
    found["gigaflops a core"] = round(1e-9 / best.cpu["sgemm"], 1)
    return found


@click.command()
@click.option("--rounds", default=7)
@click.option("--folder", default=None, help="Where the caches lie; they are deleted.")
def main(rounds: int, folder: str | None) -> None:
    """Measure each fan-in."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        found = [one(inputs, rounds, Path(inside)) for inputs in SIZES]
    print(json.dumps({"results": found}, indent=1))


if __name__ == "__main__":
    main()
