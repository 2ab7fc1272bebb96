"""Hypothesis strategies for hashing problems, from the well-behaved to what real layers hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

import hashsolve as hs

KINDS = (
    "gaussian",
    "ill-conditioned",
    "rank-deficient",
    "duplicated",
    "dead",
    "integer",
    "relu",
    "asymmetric",
)


@dataclass(frozen=True)
class Case:
    """The arrays of a problem: inputs X̂ (S, N), weights W (S, T), and X where it differs."""

    kind: str
    inputs: np.ndarray
    weights: np.ndarray
    reference: np.ndarray | None = None

    @property
    def target(self) -> np.ndarray:
        """Y (N, T)."""
        return (self.inputs if self.reference is None else self.reference).T @ self.weights

    @property
    def problem(self) -> hs.Problem:
        """The problem of these arrays."""
        return hs.Problem.from_arrays(self.inputs, self.weights, reference=self.reference)


def make_case(kind: str, seed: int, size: int, columns: int, rows: int) -> Case:
    """A case of one of `KINDS`; small integers and repeats make ties and singular matrices."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, rows))
    w = rng.normal(size=(size, columns))
    reference = None
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
        reference, x = x, np.maximum(x, 0) + 0.3 * rng.normal(size=x.shape)
    # no kind may be empty of inputs or of outputs
    live = x if reference is None else reference
    x[0, 0] = x[0, 0] or 1.0
    live[0, 0] = live[0, 0] or 1.0
    w[0, 0] = w[0, 0] or 1.0
    if np.abs(live.T @ w).max() < 1e-6 * np.abs(live).max():
        w[:, 0] = 0
        w[0, 0] = 1.0
    return Case(kind, x, w, reference)


def cases(kinds=KINDS, sizes=(1, 12), columns=(1, 4), rows=(1, 40)) -> st.SearchStrategy[Case]:
    """Cases of the given kinds, fan-ins, columns and rows (fewer rows than inputs included)."""
    return st.builds(
        make_case,
        st.sampled_from(kinds),
        st.integers(0, 2**32 - 1),
        st.integers(*sizes),
        st.integers(*columns),
        st.integers(*rows),
    )


@st.composite
def quadratics(draw, sizes=(1, 10), columns=(1, 3)) -> hs.Problem:
    """Quadratic programmes, mostly indefinite, of integers (hence with ties) or of reals."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, width = draw(st.integers(*sizes)), draw(st.integers(*columns))
    if draw(st.booleans()):
        q = rng.integers(-3, 4, size=(size, size)).astype(float)
        c = rng.integers(-3, 4, size=(size, width)).astype(float)
    else:
        q, c = rng.normal(size=(size, size)), rng.normal(size=(size, width))
    return hs.Problem.from_quadratic(q, c)


@st.composite
def fixed_scales(draw, sizes=(1, 10)) -> hs.Problem:
    """Cases whose scales are given."""
    problem = draw(cases(sizes=sizes)).problem
    scales = draw(
        st.lists(st.floats(0.01, 10.0), min_size=problem.columns, max_size=problem.columns)
    )
    return hs.Problem(
        gram=problem.gram,
        cross=problem.cross,
        energy=problem.energy,
        rows=problem.rows,
        weights=problem.weights,
        fixed_scales=scales,
    )


def problems(**limits) -> st.SearchStrategy[hs.Problem]:
    """Problems of every sort."""
    free = cases(**limits).map(lambda case: case.problem)
    sizes = limits.get("sizes", (1, 10))
    return st.one_of(free, free, quadratics(sizes), fixed_scales(sizes))
