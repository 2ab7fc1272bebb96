"""Sums of layers: rates against dgemm's, by lags against by patches, over HDF5 against memory.

    python -m pytest tests/benchmarks/bench_sums.py --benchmark-only

Compare the minima within a group: the ratio of two is the figure. ``flops`` in the extra
information are those that were counted, so flops / minimum is a rate.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

import hashsolve as hs
from hashsolve import activations
from hashsolve.activations import FULL, layer_sums, open_activations, write_activations
from hashsolve.lags import Plan
from hashsolve.sums import Sums, block_rows
from hashsolve.threads import add_gram, product

CONV = hs.Geometry.conv((3, 3), padding=1)
POSITIONS = 2**15


def measure(benchmark, job, *args, flops: float = 0.0):
    """The minimum of a few rounds, after one to warm up."""
    benchmark.extra_info["flops"] = flops
    return benchmark.pedantic(job, args, rounds=7, warmup_rounds=1)


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
@pytest.mark.parametrize("way", ["patches", "lags"])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("channels", [16, 64, 128])
def test_convolution(benchmark, channels: int, side: int, kind: str, way: str) -> None:
    """All sums of one layer, as many filters as channels."""
    benchmark.group += f" {channels} channels, {side}x{side}, {kind}"
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(POSITIONS // side**2, channels, side, side)).astype(np.float32)
    weights = rng.normal(size=(channels, channels, 3, 3))
    reference = None if kind == "symmetric" else maps + 1
    made = (lambda geometry, spatial, *_: Plan(geometry, spatial)) if way == "lags" else None
    with mock.patch.object(activations, "plan_of", made or (lambda *_: None)):
        measure(benchmark, layer_sums, maps, weights, CONV, reference)


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
