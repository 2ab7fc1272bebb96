"""Hypothesis profiles, and every kernel compiled before a test is timed or counted."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import hashsolve as hs

settings.register_profile(
    "local", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels():
    """Compile each kernel once, outside any test."""
    free = hs.Problem(gram=np.eye(2), cross=np.ones((2, 1)), energy=[4.0])
    fixed = hs.Problem.from_quadratic(np.eye(2))
    for problem in (free, fixed):
        hs.solve(problem, "auto", "fast")


@pytest.fixture
def rng():
    """A generator of its own for each test, always the same."""
    return np.random.default_rng(20180202)
