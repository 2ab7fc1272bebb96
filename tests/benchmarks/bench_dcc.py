"""The jitted DCC against its NumPy twin, S = 576, T = 64, after warm-up.

    python -m pytest tests/benchmarks/bench_dcc.py --benchmark-only

Timed: one whole alternation at fixed scales, from sign(W) to the fixpoint (the sums and the
start are given). The ratio of the two means is the figure.
"""

from __future__ import annotations

import numpy as np
import pytest

from hashsolve import reference
from hashsolve.kernels import dcc, products


def problem(inputs: int = 576, columns: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Gram and cross of correlated inputs, normalised."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(inputs, 48)) @ rng.normal(size=(48, 2000)), 0)
    gram = x @ x.T
    gram /= np.diagonal(gram).max()
    return gram, (gram @ rng.normal(size=(inputs, columns))).T.copy()


def alternate(sweep, correlate, gram: np.ndarray, cross: np.ndarray) -> int:
    """Sweeps at the scale of the start until no bit changes; the number of flips."""
    codes = np.where(cross < 0, -1, 1).astype(np.int8)
    h = np.empty(cross.shape)
    correlate(gram, codes, h)
    scales = (cross * codes).sum(1) / (codes * h).sum(1)
    flips = np.zeros(len(codes), dtype=np.int64)
    active = np.ones(len(codes), dtype=np.bool_)
    total = 0
    for _ in range(5):
        sweep(gram, cross, codes, h, scales, active, flips)
        total += flips.sum()
    return total


KINDS = {
    "numba": (dcc.dcc_sweep, products.correlations),
    "numpy": (reference.dcc_sweep, reference.correlations),
}


@pytest.mark.benchmark(group="dcc 576x64")
@pytest.mark.parametrize("kind", KINDS)
def test_dcc(benchmark, kind: str) -> None:
    """Five sweeps."""
    gram, cross = problem()
    sweep, correlate = KINDS[kind]
    alternate(sweep, correlate, gram[:8, :8].copy(), cross[:2, :8].copy())  # compile
    flips = benchmark.pedantic(alternate, (sweep, correlate, gram, cross), rounds=3)
    assert flips == alternate(*KINDS["numba"], gram, cross)
