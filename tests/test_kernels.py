"""Every kernel against its NumPy twin in `hashsolve.reference`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hashsolve.kernels
from hashsolve import reference, reference_retrieval, reference_search
from hashsolve.instance import Instance
from hashsolve.kernels.dcc import dcc_sweep
from hashsolve.kernels.one_flip import one_flip_sweep
from hashsolve.kernels.products import correlations, products
from hashsolve.problem import cancelling
from hashsolve.testing.strategies import KINDS, make_case, problems

SIZES = (1, 2, 3, 7, 8, 16, 33)


def kernels() -> dict:
    """Every jitted function of `hashsolve.kernels`, by name."""
    modules = (
        importlib.import_module(f"hashsolve.kernels.{found.name}")
        for found in pkgutil.iter_modules(hashsolve.kernels.__path__)
    )
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if hasattr(value, "py_func") and not name.startswith("_")
    }


@pytest.mark.parametrize("name", sorted(kernels()))
def test_every_kernel_has_a_twin_of_the_same_signature(name):
    places = (reference, reference_search, reference_retrieval)
    (twin,) = (vars(twins)[name] for twins in places if name in vars(twins))
    assert list(inspect.signature(twin).parameters) == list(
        inspect.signature(kernels()[name].py_func).parameters
    )


def state(problem, seed):
    """An instance, random codes and their products."""
    instance = Instance.of(problem)
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.array([-1, 1], dtype=np.int8), size=instance.cross.shape)
    h = codes @ instance.gram
    p, q = (instance.cross * codes).sum(axis=1), (codes * h).sum(axis=1)
    return instance, rng, codes, h, p, q


def close(actual, wanted, instance):
    """Equal but for the rounding of sums of this size."""
    size = max(np.abs(instance.gram).sum(), np.abs(instance.cross).sum(), 1.0)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-12 * size)


def check_products(problem, seed):
    instance, _, codes, h, p, q = state(problem, seed)
    found_h, found_p, found_q = np.empty_like(h), np.empty_like(p), np.empty_like(q)
    correlations(instance.gram, codes, found_h)
    products(instance.cross, codes, found_h, found_p, found_q)
    twin_h, twin_p, twin_q = np.empty_like(h), np.empty_like(p), np.empty_like(q)
    reference.correlations(instance.gram, codes, twin_h)
    reference.products(instance.cross, codes, twin_h, twin_p, twin_q)
    for found, twin, wanted in ((found_h, twin_h, h), (found_p, twin_p, p), (found_q, twin_q, q)):
        close(found, wanted, instance)
        close(twin, wanted, instance)


def loss(instance, codes, scales):
    p, q = (instance.cross * codes).sum(axis=1), (codes * (codes @ instance.gram)).sum(axis=1)
    return instance.energy - 2 * scales * p + scales**2 * q


def profiled(instance, codes):
    p, q = (instance.cross * codes).sum(axis=1), (codes * (codes @ instance.gram)).sum(axis=1)
    if not instance.free:
        return q - 2 * p
    return -np.divide(p * p, q, out=np.zeros_like(p), where=q > 1e-12)


def exact(problem) -> bool:
    """Whether sums of the problem's entries are free of rounding: then ties are exact too."""
    return all(np.array_equal(a, np.round(a)) for a in (problem.gram, problem.cross))


def check_dcc(problem, seed):
    instance, rng, codes, h, _, _ = state(problem, seed)
    scales = rng.integers(0, 9, len(codes)) / 4 if instance.free else np.ones(len(codes))
    active = rng.random(len(codes)) < 0.8
    before = codes.copy()
    twin, twin_h, flips, twin_flips = codes.copy(), h.copy(), *np.zeros((2, len(codes)), dtype=int)
    dcc_sweep(instance.gram, instance.cross, codes, h, scales, active, flips)
    reference.dcc_sweep(instance.gram, instance.cross, twin, twin_h, scales, active, twin_flips)
    check_swept(instance, before, codes, h, active, flips)
    check_swept(instance, before, twin, twin_h, active, twin_flips)
    rise = loss(instance, codes, scales) - loss(instance, before, scales)
    close(np.maximum(rise, 0), 0, instance)
    if exact(problem):
        np.testing.assert_array_equal(codes, twin)
    return codes, twin


def check_one_flip(problem, seed):
    instance, rng, codes, h, p, q = state(problem, seed)
    active = rng.random(len(codes)) < 0.8
    before = codes.copy()
    twin, twin_h, twin_p, twin_q = codes.copy(), h.copy(), p.copy(), q.copy()
    flips, twin_flips = np.zeros((2, len(codes)), dtype=int)
    shared = instance.gram, instance.free, 1e-12, cancelling(instance.gram), instance.cross
    one_flip_sweep(*shared, codes, h, p, q, active, flips)
    reference.one_flip_sweep(*shared, twin, twin_h, twin_p, twin_q, active, twin_flips)
    check_swept(instance, before, codes, h, active, flips)
    check_swept(instance, before, twin, twin_h, active, twin_flips)
    close(p, (instance.cross * codes).sum(axis=1), instance)
    close(q, (codes * h).sum(axis=1), instance)
    rise = profiled(instance, codes) - profiled(instance, before)
    assert (rise <= 1e-9 * max(1.0, np.abs(instance.gram).sum())).all()
    if exact(problem):
        np.testing.assert_array_equal(codes, twin)
    return codes, twin


def check_swept(instance, before, codes, h, active, flips):
    """What every sweep keeps: h is fresh, flips are counted, inactive columns are left alone."""
    close(h, codes @ instance.gram, instance)
    assert set(np.unique(codes)) <= {-1, 1}
    np.testing.assert_array_equal(codes[~active], before[~active])
    np.testing.assert_array_equal(flips, (codes != before).sum(axis=1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", [check_products, check_dcc, check_one_flip])
def test_grid(check, kind, size):
    check(make_case(kind, seed=size, size=size, columns=3, rows=50).problem, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("check", [check_dcc, check_one_flip])
def test_bit_for_bit_away_from_ties(check, size):
    """On well-conditioned reals no decision is a tie: kernel and twin choose the same bits."""
    for seed in range(5):
        case = make_case("gaussian", seed, size, columns=4, rows=4 * size)
        np.testing.assert_array_equal(*check(case.problem, seed))


@given(problems(), st.integers(0, 2**32 - 1))
def test_products_on_random_problems(problem, seed):
    check_products(problem, seed)


@given(problems(), st.integers(0, 2**32 - 1))
def test_dcc_on_random_problems(problem, seed):
    check_dcc(problem, seed)


@given(problems(), st.integers(0, 2**32 - 1))
def test_one_flip_on_random_problems(problem, seed):
    check_one_flip(problem, seed)


@pytest.mark.parametrize("bit", [-1, 1])
def test_dcc_keeps_the_bit_at_zero(bit):
    codes = np.array([[1, bit]], dtype=np.int8)
    h, flips = codes.astype(float), np.zeros(1, dtype=int)
    dcc_sweep(np.eye(2), np.array([[1.0, 0.0]]), codes, h, np.ones(1), np.ones(1, bool), flips)
    assert codes.tolist() == [[1, bit]]
    assert flips.tolist() == [0]
