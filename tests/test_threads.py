"""No bit depends on the number of threads, ours or those of BLAS."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from unittest import mock

import numpy as np
import pytest
import small_network
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

import hashsolve as hs
from hashsolve import threads
from hashsolve.activations import layer_sums
from hashsolve.sums import Sums
from hashsolve.testing.strategies import make_case
from hashsolve.threads import add_gram, one_blas_thread, product, spread

SIZE = st.integers(1, 300)


def on(count: int):
    """As if this process had so many cores."""
    return mock.patch.object(threads, "cores", lambda: count)


def everything() -> str:
    """A digest of sums, problems, solutions and a whole run, large enough for BLAS threads."""
    rng = np.random.default_rng(0)
    state = hashlib.sha256()
    x, w = rng.normal(size=(333, 2500)), rng.normal(size=(333, 37))
    shown = x + rng.normal(size=x.shape)
    y, v = rng.normal(size=(2500, 37)), rng.random(2500)
    problems = [
        hs.Problem.from_arrays(x, w, row_weights=v),
        hs.Problem.from_arrays(x, w, reference=shown),
        hs.Problem.from_arrays(x, target=y),
        hs.Problem.from_arrays(x.astype(np.float32), w, reference=shown, precision="single"),
    ]
    linear = x.T.astype(np.float16), w.T, hs.Geometry(), shown.T.astype(np.float16)
    (sums,) = layer_sums(*linear, precision="single")
    problems.append(hs.Problem.from_sums(sums, w))
    maps, kernels = rng.normal(size=(20, 32, 13, 13)), rng.normal(size=(24, 16, 3, 3))
    for stride in (1, 2):
        geometry = hs.Geometry.conv((3, 3), stride, padding=1, groups=2)
        for reference in (None, maps + 1):
            sums = layer_sums(maps, kernels, geometry, reference)
            problems += [
                hs.Problem.from_sums(total, kernels[i : i + 12].reshape(12, -1).T)
                for i, total in zip((0, 12), sums, strict=True)
            ]
    for problem in problems:
        for field in ("gram", "cross", "energy", "input_sum", "target_sum"):
            state.update(getattr(problem, field).tobytes())
    for problem, method in zip(problems[:3], ("dcc", "beam", "sign"), strict=True):
        solution = hs.solve(problem, method, "fast")
        for field in ("codes", "scales", "loss", "lower_bound"):
            state.update(getattr(solution, field).tobytes())
    with tempfile.TemporaryDirectory() as folder:
        run = hs.binarize(
            small_network.network(), small_network.calibration(), folder, effort="fast"
        )
    for layer in run.layers:
        state.update(layer.weight.tobytes())
        state.update(layer.solution.lower_bound.tobytes())
    return state.hexdigest()


def test_threads_of_any_kind_change_nothing():
    """Ours set here; those of BLAS here too, and before the process starts."""
    with on(1), threadpool_limits(1, user_api="blas"):
        wanted = everything()
    for count, limit in [(1, 2), (2, 2), (3, 1)]:
        with on(count), threadpool_limits(limit, user_api="blas"):
            assert everything() == wanted, (count, limit)
    for limit in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, __file__],
            env={**os.environ, "OPENBLAS_NUM_THREADS": limit},
            capture_output=True,
            text=True,
            check=True,
        )
        assert printed.stdout.strip() == wanted, limit


@given(SIZE, SIZE, SIZE, st.integers(0, 99))
def test_products(rows, inner, columns, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-9, 9, (rows, inner)) / 1, rng.integers(-9, 9, (inner, columns)) / 1
    np.testing.assert_array_equal(product(a, b), a @ b)
    np.testing.assert_array_equal(product(a.T.copy().T, b.T.copy().T), a @ b)
    total = np.ones((rows, rows))
    add_gram(total, a)
    np.testing.assert_array_equal(np.triu(total), np.triu(1 + a @ a.T))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_products_of_nothing(shape):
    m, k, n = shape
    np.testing.assert_array_equal(product(np.ones((m, k)), np.ones((k, n))), np.zeros((m, n)))


def test_overflow_is_left_to_the_caller():
    large = np.full((400, 400), 1e200)
    assert np.isinf(product(large, large)).all()
    with pytest.raises(ValueError, match="leaves the range of float64"):
        sums = Sums(400)
        sums.add_block(large)
        sums.finish()


def blas_threads() -> set[int]:
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


def test_the_last_one_out_restores_the_threads_of_blas():
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with one_blas_thread():
            entered.set()
            leave.wait()

    with threadpool_limits(2, user_api="blas"):
        other = threading.Thread(target=hold)
        with one_blas_thread(), one_blas_thread():
            other.start()
            entered.wait()
        assert blas_threads() == {1}
        leave.set()
        other.join()
        assert blas_threads() == {2}
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert blas_threads() == {2}


def test_spread_keeps_order_and_raises():
    assert spread(lambda i: i * i, range(50)) == [i * i for i in range(50)]
    with on(2), pytest.raises(ZeroDivisionError):
        spread(lambda i: 1 / (i - 3), range(9))


def test_spread_after_a_fork():
    with on(2):
        spread(str, range(4))
        child = os.fork()
        if child == 0:
            os._exit(len(spread(str, range(4))))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


def test_blas_stays_on_one_thread_while_ours_are_many():
    case = make_case("relu", 0, size=40, columns=9, rows=80)
    seen = []
    with threadpool_limits(2, user_api="blas"):
        for method in ("dcc", "auto"):
            hs.solve(
                case.problem, method, callback=lambda _: seen.append(blas_threads()), threads=3
            )
            assert blas_threads() == {2}
    assert len(seen) > 9 and all(counts == {1} for counts in seen)


CONCURRENT = """
import sys, threading
import numba, numpy as np
import hashsolve as hs
from hashsolve.testing.strategies import make_case

@numba.njit(parallel=True)
def theirs(x):
    for i in numba.prange(len(x)):
        x[i] = i

try:
    theirs(np.zeros(100))
except ValueError:  # this layer is not here
    sys.exit(77)
assert numba.threading_layer() == sys.argv[1]
problems = [make_case("relu", i, size=20, columns=9, rows=40).problem for i in range(6)]
alone = [hs.solve(p, "auto", "fast") for p in problems]
found = [None] * 6

def work(i):
    found[i] = hs.solve(problems[i], "auto", "fast", threads=2)

workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
for worker in workers:
    worker.start()
while any(worker.is_alive() for worker in workers):
    theirs(np.zeros(100))
for a, b in zip(alone, found, strict=True):
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.lower_bound, b.lower_bound)
"""


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_concurrent_solves(layer):
    """Under every threading layer of Numba, beside a parallel kernel of the caller's own."""
    done = subprocess.run(
        [sys.executable, "-c", CONCURRENT, layer],
        env={**os.environ, "NUMBA_THREADING_LAYER": layer},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode == 77:
        pytest.skip(f"Numba's threading layer {layer!r} is not installed")
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    print(everything())
