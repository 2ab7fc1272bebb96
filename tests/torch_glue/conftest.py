"""Torch and BLAS on one thread (more of them than idle cores only wait), and a fixed seed."""

import contextlib

import pytest

try:
    from threadpoolctl import threadpool_limits
except ImportError:
    threadpool_limits = contextlib.nullcontext


@pytest.fixture(autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with threadpool_limits(1):
        yield
