"""Sweeps by blocks of inputs: the same to the last bit as the kernel on the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve import reference, sweeps
from hashsolve.instance import Instance
from hashsolve.kernels.dcc import dcc_sweep
from hashsolve.kernels.one_flip import one_flip_sweep
from hashsolve.kernels.rows import ROWS, add_rows
from hashsolve.problem import cancelling
from hashsolve.testing.strategies import KINDS, make_case, problems

KERNELS = ("dcc", "one_flip")


def sweep_twice(problem, kernel, seed, block):
    """Everything that a sweep on the whole and one by blocks leave behind, from random codes."""
    instance = Instance.of(problem)
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.array([-1, 1], dtype=np.int8), size=instance.cross.shape)
    h = codes @ instance.gram
    p, q = (instance.cross * codes).sum(axis=1), (codes * h).sum(axis=1)
    flips = np.full(len(codes), -1)
    active = rng.random(len(codes)) < 0.8
    if kernel == "dcc":
        scales = rng.integers(0, 9, len(codes)) / 4 if instance.free else np.ones(len(codes))
        run, shared = dcc_sweep, (instance.gram,)
        rows = (instance.cross, codes, h, scales, active, flips)
    else:
        floor = cancelling(instance.gram)
        run, shared = one_flip_sweep, (instance.gram, instance.free, 1e-12, floor)
        rows = (instance.cross, codes, h, p, q, active, flips)
    whole, blocked = ([row.copy() for row in rows] for _ in range(2))
    run(*shared, *whole)
    sweeps.in_blocks(run, block, len(shared), *shared, *blocked)
    return whole, blocked


def check(problem, kernel, seed, block):
    whole, blocked = sweep_twice(problem, kernel, seed, block)
    for one, other in zip(whole, blocked, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 5, 32, 33])
def test_grid(kernel, kind, block):
    check(make_case(kind, seed=block, size=33, columns=5, rows=50).problem, kernel, block, block)


@given(problems(), st.sampled_from(KERNELS), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_blocks_change_nothing(problem, kernel, seed, block):
    check(problem, kernel, seed, block)


@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks_of_the_size_in_use(kernel):
    size = 2 * ROWS + 3
    check(make_case("gaussian", 0, size, columns=6, rows=300).problem, kernel, 0, ROWS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_thread_count_solves_the_same(kernel, monkeypatch):
    problem = make_case("gaussian", 0, 2 * ROWS + 3, columns=90, rows=400).problem
    plain = hs.solve(problem, kernel, threads=1)
    monkeypatch.setattr(sweeps, "BLOCKED_ABOVE", ROWS)
    for threads in (1, 2, 3):
        blocked = hs.solve(problem, kernel, threads=threads)
        assert blocked.codes_sha256 == plain.codes_sha256
        assert blocked.history == plain.history


def test_large_problems_go_by_blocks(monkeypatch):
    """And small ones do not: there is nothing to gain."""
    seen = []
    monkeypatch.setattr(sweeps, "in_blocks", lambda *_: seen.append(True))

    class Control:
        def columns(self, kernel, shared, rows):
            kernel(*shared, *rows)

    for size, blocked in ((sweeps.BLOCKED_ABOVE, False), (sweeps.BLOCKED_ABOVE + 1, True)):
        seen.clear()
        sweeps.sweep(Control(), lambda *_: None, (np.empty((size, 0)),), ())
        assert bool(seen) == blocked


@given(st.integers(0, 2 * ROWS), st.integers(0, 9), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_rows_are_added_one_by_one(count, size, columns, seed):
    """Reals, so that any other order would round differently."""
    rng = np.random.default_rng(seed)
    rows, h = rng.normal(size=(count, size)), rng.normal(size=(columns, size))
    weights = rng.integers(-2, 3, size=(columns, count)).astype(np.int8)
    found = h.copy()
    add_rows(rows, weights, found)
    reference.add_rows(rows, weights, h)
    np.testing.assert_array_equal(found, h)
