"""Peak memory of a whole run over an activation cache of many gigabytes, beside what was said.

    python tests/benchmarks/memory.py --gigabytes 8 --folder DIR

Each layer is binarised by `hashsolve.binarize` in a process of its own, from an adapter that makes
its input maps up, batch by batch, and keeps none. ``peak`` is that process's largest resident set
(getrusage, interpreter and libraries included); ``said`` is what ``--dry-run`` had said, whatever
the number of rows. Prints one line of JSON a layer; exits with 1 where a peak is above that.

    python tests/benchmarks/memory.py --layer conv512 --method auto --effort fast --limit 600

sums one layer's batches and solves the problem, for so many seconds at most: the peak of a method
that would take hours. ``steps`` are its
sweeps over all columns, and columns searched.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

import hashsolve as hs
from hashsolve.activations import (
    FULL,
    group_weights,
    layer_sums,
    open_activations,
    write_activations,
)
from hashsolve.estimate import estimate

CONV = hs.Geometry.conv((3, 3), padding=1)
LAYERS = {  # weight, geometry, one sample, samples a batch, share of the gigabytes, method
    "conv64": ((64, 64, 3, 3), CONV, (64, 32, 32), 128, 1.0, "auto"),
    "linear1024": ((1024, 1024), hs.Geometry(), (1024,), 8192, 1.0, "dcc"),
    "conv512": ((512, 512, 3, 3), CONV, (512, 7, 7), 128, 0.0625, "dcc"),
}


class Batches:
    """Numbers that stand for batches; may be gone through again."""

    def __init__(self, count: int):
        self.count = count

    def __iter__(self) -> Iterator[np.ndarray]:
        return (np.full((1, 1), i) for i in range(self.count))


class Endless:
    """A network of one layer whose input is made up: rectified features, other in each batch."""

    def __init__(self, name: str):
        shape, self.geometry, sample, batch, *_ = LAYERS[name]
        rng = np.random.default_rng(0)
        self.name, self.original = name, rng.normal(size=shape)
        self.maps = np.maximum(rng.normal(size=(batch, *sample)), 0).astype(np.float32)
        self.maps[1:] += 0.5 * self.maps[:-1]

    def layers(self, batch: np.ndarray) -> list[hs.Layer]:
        return [hs.Layer(self.name, self.geometry, self.original.shape)]

    def weight(self, name: str) -> np.ndarray:
        return self.original

    def layer_input(self, name: str, batch: np.ndarray, *, binarized: bool) -> np.ndarray:
        number = int(batch[0, 0])
        turned = np.roll(self.maps, 7 * number, axis=-1)
        return turned * np.float32(1 + number % 13 / 13)

    def write(self, name: str, weight: np.ndarray) -> None:
        pass

    def state(self) -> dict[str, np.ndarray]:
        return {}


def one(name: str, gigabytes: float, folder: str) -> None:
    """Binarise one layer here, and print what it took."""
    _, _, sample, batch, share, method = LAYERS[name]
    each = batch * int(np.prod(sample)) * np.dtype("float16").itemsize
    batches = Batches(-(-int(gigabytes * share * 1e9) // each))
    network = Endless(name)
    said = estimate(network, Batches(1), method=method, dtype="float16")
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as run_dir:
        options = {"dtype": "float16", "keep_activations": True}
        run = hs.binarize(network, batches, run_dir, method, **options)
        cache = (Path(run_dir) / "activations" / f"{name}.h5").stat().st_size
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {
        "layer": name,
        "method": method,
        "inputs": run.layers[0].layer.fan_in,
        "columns": run.layers[0].solution.scales.size,
        "rows": run.report.rows[0]["rows"],
        "cache": cache,
        "peak": peak,
        "said": said.memory,
        "seconds": round(time.perf_counter() - begun),
        "relative_error": run.layers[0].relative_error,
    }
    print(json.dumps(row), flush=True)


def within(
    name: str, gigabytes: float, folder: str, method: str, effort: str, limit: float
) -> None:
    """Sum one layer and solve it for so many seconds at most, here, and print what it took."""
    _, geometry, sample, batch, share, _ = LAYERS[name]
    network = Endless(name)
    said = estimate(network, Batches(1), method=method)
    each = batch * int(np.prod(sample)) * np.dtype("float16").itemsize
    batches = range(-(-int(gigabytes * share * 1e9) // each))
    maps = (network.layer_input(name, np.full((1, 1), n), binarized=False) for n in batches)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        path = Path(inside) / "maps.h5"
        write_activations(path, ({FULL: batch} for batch in maps), geometry, "float16")
        with open_activations(path) as streams:
            (sums,) = layer_sums(streams[FULL], network.original, geometry)
    problem = hs.Problem.from_sums(sums, group_weights(network.original, geometry)[0])
    del sums
    solution = hs.solve(problem, method, effort, time_limit=limit)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {
        "layer": name,
        "method": method,
        "effort": effort,
        "inputs": problem.inputs,
        "columns": problem.columns,
        "rows": problem.rows,
        "peak": peak,
        "said": said.memory,
        "seconds": round(time.perf_counter() - begun),
        "steps": solution.sweeps,
        "status": solution.status.name,
        "relative_error": solution.relative_error,
    }
    print(json.dumps(row), flush=True)


@click.command()
@click.option("--gigabytes", default=8.0)
@click.option("--folder", default=None, help="Where the caches lie; they are deleted.")
@click.option("--layer", type=click.Choice(list(LAYERS)), help="Only this one.")
@click.option("--method", default="auto", show_default=True, help="With --limit.")
@click.option("--effort", default="default", show_default=True, help="With --limit.")
@click.option("--limit", type=float, help="Solve the layer, for so many seconds at most.")
@click.option("--here", is_flag=True, hidden=True)
def main(
    gigabytes: float,
    folder: str | None,
    layer: str | None,
    method: str,
    effort: str,
    limit: float | None,
    here: bool,
) -> None:
    """Measure each layer in a process of its own."""
    if here and limit:
        within(layer, gigabytes, folder, method, effort, limit)
        return
    if here:
        one(layer, gigabytes, folder)
        return
    above = False
    for name in [layer] if layer else LAYERS:
        command = [sys.executable, __file__, "--here", "--layer", name]
        command += ["--gigabytes", str(gigabytes)]
        command += ["--folder", folder or tempfile.gettempdir()]
        if limit:
            command += ["--method", method, "--effort", effort, "--limit", str(limit)]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(text, end="", flush=True)
        row = json.loads(text)
        above = above or row["peak"] > row["said"]
    sys.exit(int(above))


if __name__ == "__main__":
    main()
