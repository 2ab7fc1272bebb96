"""Sums of layers: rates against dgemm's, convolutions in three ways, over HDF5 against memory.

    python -m pytest tests/benchmarks/bench_sums.py --benchmark-only

Compare the minima within a group: the ratio of two is the figure. ``flops`` in the extra
information are those that were counted, so flops / minimum is a rate.

    python tests/benchmarks/bench_sums.py

prints the ratios of the three ways for 3×3 convolutions, all in one process, taken in turn: minima
of processor time (of all threads, which other work on the machine disturbs little), and of time.
The maps are those of a calibration, 2¹⁷ positions (128 images of 32×32 pixels, 2,048 of 8×8).
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

import hashsolve as hs
from hashsolve.activations import FULL, layer_sums, open_activations, write_activations
from hashsolve.lags import plan_of
from hashsolve.spectra import kept_memory
from hashsolve.sums import Sums, block_rows
from hashsolve.threads import add_gram, product

sys.path.insert(0, str(Path(__file__).parents[1]))
from ways import WAYS, by

CONV = hs.Geometry.conv((3, 3), padding=1)
POSITIONS = 2**15


def measure(benchmark, job, *args, flops: float = 0.0):
    """The minimum of a few rounds, after one to warm up."""
    benchmark.extra_info["flops"] = flops
    return benchmark.pedantic(job, args, rounds=7, warmup_rounds=1)


def layer(channels: int, side: int, kind: str, positions: int) -> tuple:
    """Maps, as many filters as channels, the convolution and perhaps reference maps."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(positions // side**2, channels, side, side)).astype(np.float32)
    weights = rng.normal(size=(channels, channels, 3, 3))
    return maps, weights, CONV, None if kind == "symmetric" else maps + 1


@pytest.mark.benchmark(group="rate of dgemm")
def test_dgemm(benchmark) -> None:
    """What the machine gives, on all its cores."""
    a, b = np.random.default_rng(0).normal(size=(2, 2048, 2048))
    measure(benchmark, np.matmul, a, b, flops=2 * 2048**3)


@pytest.mark.benchmark(group="rate of dgemm")
@pytest.mark.parametrize("inputs", [144, 576, 1152, 2304, 4608])
def test_gram(benchmark, inputs: int) -> None:
    """H of one block."""
    x = np.random.default_rng(0).normal(size=(inputs, min(8192, 2**23 // inputs)))
    total = np.zeros((inputs, inputs))
    measure(benchmark, add_gram, total, x, flops=inputs * inputs * x.shape[1])


@pytest.mark.benchmark(group="rate of dgemm")
@pytest.mark.parametrize("inputs", [576, 2304])
def test_product(benchmark, inputs: int) -> None:
    """C of one block, 64 targets."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(inputs, 3640)), rng.normal(size=(3640, 64))
    measure(benchmark, product, x, y, flops=2 * x.size * 64)


@pytest.mark.benchmark(group="rate of sgemm")
@pytest.mark.parametrize("way", ["sgemm", "ssyrk", "single"])
@pytest.mark.parametrize("inputs", [576, 1152, 2304, 4608])
def test_single(benchmark, inputs: int, way: str) -> None:
    """All sums of one block in single precision, and what the machine gives on all its cores;
    `single_sums.py` measures the same and whole layers, all in turn."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(inputs, block_rows(inputs, "single"))).astype(np.float32)
    a = rng.normal(size=(2048, 2048)).astype(np.float32)
    total = Sums(inputs, precision="single")
    job, flops = {
        "sgemm": (lambda: a @ a, 2 * 2048**3),
        "ssyrk": (lambda: x @ x.T, inputs * x.size),
        "single": (lambda: total.add_block(x), inputs * x.size),
    }[way]
    measure(benchmark, job, flops=flops)


@pytest.mark.benchmark(group="convolution 3x3")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("channels", [16, 64, 128, 256])
def test_convolution(benchmark, channels: int, side: int, kind: str, way: str) -> None:
    """All sums of one layer."""
    benchmark.group += f" {channels} channels, {side}x{side}, {kind}"
    with by(way):
        measure(benchmark, layer_sums, *layer(channels, side, kind, POSITIONS))


@pytest.mark.benchmark(group="storage")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("source", ["memory", "file"])
@pytest.mark.parametrize("shape", [(1024, 64, 16, 16), (20_000, 1152)])
def test_storage(benchmark, tmp_path, shape: tuple[int, ...], source: str, dtype: str) -> None:
    """Sums over a cached layer, and over the same arrays in memory."""
    benchmark.group += f" {shape} {dtype}"
    rng = np.random.default_rng(0)
    maps = rng.normal(size=shape).astype(dtype)
    geometry = CONV if len(shape) == 4 else hs.Geometry()
    weights = rng.normal(size=(64, 64, 3, 3) if len(shape) == 4 else (64, shape[1]))
    write_activations(tmp_path / "a.h5", [{FULL: maps}], geometry, dtype)
    with open_activations(tmp_path / "a.h5") as streams:
        inputs = maps if source == "memory" else streams[FULL]
        measure(benchmark, layer_sums, inputs, weights, geometry)


def ratios(channels: int, side: int, kind: str, positions: int, repeats: int) -> dict:
    """How many times longer patches take than lags and spectra, and what is chosen."""
    arguments = layer(channels, side, kind, positions)
    found: dict = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            with by(way):
                begun = time.process_time(), time.perf_counter()
                layer_sums(*arguments)
                found[way].append((time.process_time() - begun[0], time.perf_counter() - begun[1]))
    least = {way: [min(each) for each in zip(*times, strict=True)] for way, times in found.items()}
    samples, targets = len(arguments[0]), channels if kind == "asymmetric" else 0
    plan = plan_of(CONV, (side, side), channels, targets, samples, False)
    return {
        "channels": channels,
        "side": side,
        "kind": kind,
        "samples": samples,
        "patches_to_lags": round(least["patches"][0] / least["lags"][0], 2),
        "patches_to_spectra": round(least["patches"][0] / least["spectra"][0], 2),
        "patches_to_spectra_by_the_clock": round(least["patches"][1] / least["spectra"][1], 2),
        "chosen": "patches" if plan is None else "spectra" if plan.spectral else "lags",
    }


@click.command()
@click.option("--channels", multiple=True, default=(16, 64, 128, 256))
@click.option("--side", "sides", multiple=True, default=(8, 16, 32))
@click.option("--positions", multiple=True, default=(2**17,))
@click.option("--repeats", default=3)
def main(channels, sides, positions, repeats: int) -> None:
    """Print the ratios, a line each."""
    with kept_memory():  # as in a run
        for each in itertools.product(channels, sides, ("symmetric", "asymmetric"), positions):
            print(json.dumps(ratios(*each, repeats)), flush=True)


if __name__ == "__main__":
    main()
