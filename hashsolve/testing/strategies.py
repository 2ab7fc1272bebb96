"""Hypothesis strategies for hashing problems, from the well-behaved to what real layers hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from hashsolve.problem import Problem

KINDS = (
    "integer",
    "gaussian",
    "relu",
    "asymmetric",
    "duplicated",
    "rank-deficient",
    "ill-conditioned",
    "dead",
)
"""Kinds of problems, the simplest first, as counterexamples are shrunk towards it."""
GENERIC = ("gaussian", "relu", "asymmetric")
"""Kinds on which no two codes tie, so that a symmetric problem has the symmetric answer."""


@dataclass(frozen=True)
class Case:
    """The arrays of a problem.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    inputs : array (S, N)
        X̂.
    weights : array (S, T)
        The weights W.
    reference : array (S, N) or None
        X, where it differs.
    """

    kind: str
    inputs: np.ndarray
    weights: np.ndarray
    reference: np.ndarray | None = None

    @property
    def target(self) -> np.ndarray:
        """Y (N, T)."""
        return (self.inputs if self.reference is None else self.reference).T @ self.weights

    @property
    def problem(self) -> Problem:
        """The problem of these arrays."""
        return Problem.from_arrays(self.inputs, self.weights, reference=self.reference)


def make_case(kind: str, seed: int, size: int, columns: int, rows: int) -> Case:
    """A case of one of `KINDS`; small integers and repeats make ties and singular matrices."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, rows))
    w = rng.normal(size=(size, columns))
    seen = None
    if kind == "ill-conditioned":
        x = np.linalg.qr(rng.normal(size=(size, size)))[0] * np.logspace(0, -6, size) @ x
    elif kind == "rank-deficient":
        rank = max(1, size // 2)
        x = rng.normal(size=(size, rank)) @ x[:rank]
    elif kind == "duplicated":
        x = x[rng.integers(0, max(1, size // 2), size)]
        w = np.round(2 * w) / 2
    elif kind == "dead":
        x[rng.random(size) < 0.4] = 0
    elif kind == "integer":
        x = rng.integers(-2, 3, size=x.shape).astype(float)
        w = rng.integers(-2, 3, size=w.shape).astype(float)
    elif kind == "relu":
        x = np.maximum(x + rng.normal(size=(size, 1)), 0)
    elif kind == "asymmetric":
        seen, x = x, np.maximum(x, 0) + 0.3 * rng.normal(size=x.shape)
    # no kind may be empty of inputs or of outputs
    live = x if seen is None else seen
    x[0, 0] = x[0, 0] or 1.0
    live[0, 0] = live[0, 0] or 1.0
    w[0, 0] = w[0, 0] or 1.0
    if np.abs(live.T @ w).max() < 1e-6 * np.abs(live).max():
        w[:, 0] = 0
        w[0, 0] = 1.0
    return Case(kind, x, w, seen)


def cases(
    kinds: Iterable[str] = KINDS,
    sizes: tuple[int, int] = (1, 12),
    columns: tuple[int, int] = (1, 4),
    rows: tuple[int, int] = (1, 40),
) -> st.SearchStrategy[Case]:
    """Cases, fewer rows than inputs included.

    Parameters
    ----------
    kinds : iterable of str
        Of `KINDS`.
    sizes, columns, rows : (int, int)
        The least and the most fan-in S, columns T and rows N.

    Returns
    -------
    strategy of Case
    """
    return st.builds(
        make_case,
        st.sampled_from(list(kinds)),
        st.integers(0, 2**32 - 1),
        st.integers(*sizes),
        st.integers(*columns),
        st.integers(*rows),
    )


@st.composite
def quadratics(
    draw: Any, sizes: tuple[int, int] = (1, 10), columns: tuple[int, int] = (1, 3)
) -> Problem:
    """Quadratic programmes, mostly indefinite, of integers (hence with ties) or of reals."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, width = draw(st.integers(*sizes)), draw(st.integers(*columns))
    if draw(st.booleans()):
        return Problem.from_quadratic(rng.normal(size=(size, size)), rng.normal(size=(size, width)))
    q = rng.integers(-3, 4, size=(size, size)).astype(float)
    return Problem.from_quadratic(q, rng.integers(-3, 4, size=(size, width)).astype(float))


@st.composite
def fixed_scales(draw: Any, sizes: tuple[int, int] = (1, 10)) -> Problem:
    """Cases whose scales are given."""
    problem = draw(cases(sizes=sizes)).problem
    scale = st.floats(0.01, 10.0)
    scales = draw(st.lists(scale, min_size=problem.columns, max_size=problem.columns))
    return with_fields(problem, fixed_scales=scales)


def problems(**limits: Any) -> st.SearchStrategy[Problem]:
    """Problems of every sort.

    Parameters
    ----------
    **limits
        As in `cases`.

    Returns
    -------
    strategy of Problem
    """
    free = cases(**limits).map(lambda case: case.problem)
    sizes = limits.get("sizes", (1, 10))
    return st.one_of(free, free, quadratics(sizes), fixed_scales(sizes))


def with_fields(problem: Problem, **fields: Any) -> Problem:
    """The problem with some of its arrays replaced."""
    kept = ("gram", "cross", "energy", "rows", "weights", "fixed_scales")
    return Problem(**{**{k: getattr(problem, k) for k in kept}, **fields})
