"""LAPACK in place, against NumPy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashsolve import lapack
from hashsolve.threads import one_blas_thread


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_each_routine(size, columns, seed):
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(size, size + 3))
    matrix, right = half @ half.T + np.eye(size), rng.normal(size=(columns, size))
    above = np.triu_indices(size, 1)
    factor = np.array(matrix, order="F")
    factor[above] = np.nan  # never looked at
    assert lapack.cholesky(factor)
    assert np.isnan(factor[above]).all()
    lower = np.tril(factor)
    close = {"rtol": 1e-9, "atol": 1e-12 * np.abs(matrix).max()}
    np.testing.assert_allclose(lower @ lower.T, matrix, **close)
    before = right.copy()
    np.testing.assert_allclose(lapack.solve(factor, right) @ matrix, right, rtol=1e-7, atol=1e-9)
    packed = lower[np.tril_indices(size)]
    found = lapack.solve_packed(packed, right[0])
    np.testing.assert_allclose(lower @ found, right[0], rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(right, before)
    lapack.invert(factor)
    assert np.isnan(factor[above]).all()
    inverse = np.tril(factor) + np.tril(factor, -1).T
    np.testing.assert_allclose(inverse @ matrix, np.eye(size), atol=1e-8)


def test_what_has_no_factor():
    for values in ([1.0, -1.0], [1.0, np.nan], [1.0, np.inf]):
        assert not lapack.cholesky(np.asfortranarray(np.diag(values)))


@pytest.mark.parametrize(
    "matrix",
    [np.ones((2, 3), order="F"), np.arange(4.0).reshape(2, 2), np.eye(2, dtype=np.float32)],
)
def test_other_arrays_are_refused(matrix):
    for job in (lapack.cholesky, lapack.invert, lambda m: lapack.solve(m, np.ones((1, 2)))):
        with pytest.raises(TypeError, match="Fortran"):
            job(matrix)
    with pytest.raises(ValueError, match="another order"):
        lapack.solve_packed(np.ones(4), np.ones(2))
    for right in (np.ones(2), np.ones((1, 1)), np.ones((1, 3))):
        with pytest.raises(ValueError, match="right sides of 2"):
            lapack.solve(np.asfortranarray(np.eye(2)), right)
    fixed = np.eye(2, order="F")
    fixed.flags.writeable = False
    with pytest.raises(TypeError, match="Fortran"):
        lapack.cholesky(fixed)


def test_packed_triangles_of_any_layout():
    wide = np.array([2.0, 9.0, 1.0, 9.0, 4.0, 9.0])[::2]
    for lower in (wide, wide.astype(np.float32)):
        np.testing.assert_allclose(lapack.solve_packed(lower, [2.0, 9.0]), [1.0, 2.0])


def test_threads_make_the_same_bits():
    rng = np.random.default_rng(0)
    halves = rng.normal(size=(24, 90, 120))
    matrices = [np.asfortranarray(h @ h.T) for h in halves]

    def job(matrix):
        factor = matrix.copy(order="F")
        assert lapack.cholesky(factor)
        found = lapack.solve(factor, matrix[:3])
        lapack.invert(factor)
        return factor, found

    with one_blas_thread(), ThreadPoolExecutor(4) as pool:
        for one, other in zip(map(job, matrices), pool.map(job, matrices), strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
