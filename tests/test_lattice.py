"""The triangular form and the searches on it."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from columns import KINDS, losses, make_column, optimum, random_codes, unpacked
from hypothesis import given
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve.bounds import dual_diagonals, start_diagonals
from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.lattice import Lattice, lattice_codes
from hashsolve.reference import brute_force, loss
from hashsolve.testing.strategies import make_case, problems

beam_method = importlib.import_module("hashsolve.methods.beam")  # not its function
SEEDS = st.integers(0, 2**32 - 1)


def triangles(column):
    """The column's forms, from the uniform diagonal and from the dual's."""
    instance = column.instance
    with Control() as control:
        diagonals = dual_diagonals(instance, control)
    return [Lattice(instance, d).triangle(0) for d in (start_diagonals(instance), diagonals)]


def unit(problem):
    """The energy, or the size of a quadratic's terms."""
    if problem.free_scale:
        return problem.energy
    scales = problem.fixed_scales
    size = scales * np.abs(problem.cross).sum(axis=0) + scales**2 * np.abs(problem.gram).sum()
    return problem.energy + size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", (1, 2, 9, 40))
def test_the_form_keeps_the_loss(kind, size):
    """‖target − α·Lᵀb‖² − α²·shift is the loss but for a constant, at every scale."""
    column = make_column(kind, size, size)
    for form in triangles(column):
        assert sorted(form.order) == list(range(size))
        lower = unpacked(form.lower)
        assert (np.diag(lower) > 0).all()
        values = []
        for codes in random_codes(1, 6, size).astype(float):
            for alpha in (0.1, 1.0, 2.0):
                p, q = column.cross @ codes, codes @ column.gram @ codes
                error = form.target - alpha * lower.T @ codes[form.order]
                wanted = column.energy - 2 * alpha * p + alpha**2 * q
                values.append(wanted - error @ error + alpha**2 * form.shift)
        size_of_terms = form.target @ form.target + abs(form.shift) + np.abs(column.gram).sum()
        np.testing.assert_allclose(values, values[0], rtol=0, atol=1e-9 * size_of_terms)


def check_full_width(kind, size, seed):
    """A beam that drops nothing finds the optimum, whatever range of scales it ranks by."""
    column = make_column(kind, size, seed)
    best, _ = optimum(column)
    for form in triangles(column):
        for low, high in [(0.5, 2.0), (0.0, 0.0)] if column.free else [(1.0, 1.0)]:
            codes, scales = lattice_codes(form, column.free, low, high, 2**size, 3)
            assert codes.dtype == np.int8 and len(codes) == min(3, 2**size) == len(scales)
            reached = np.atleast_1d(losses(column, codes))
            assert reached[0] == pytest.approx(float(best), abs=1e-7 * column.size)
            assert (np.diff(reached) >= -1e-7 * column.size).all()
            if column.free and reached[0] < 0.999 * column.energy:
                p, q = column.cross @ codes[0], codes[0] @ column.gram @ codes[0].astype(float)
                assert scales[0] == pytest.approx(p / q, rel=1e-4)
            if not column.free:
                assert (scales == 1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", (1, 2, 5, 9))
def test_full_width_is_exact(kind, size):
    check_full_width(kind, size, 100 + size)


@given(st.sampled_from(KINDS), st.integers(1, 8), SEEDS)
def test_full_width_is_exact_on_random_columns(kind, size, seed):
    check_full_width(kind, size, seed)


@pytest.mark.parametrize("method", ["beam", "babai"])
@given(problem=problems(sizes=(1, 9)))
def test_methods(method, problem):
    """beam is exact where its K spans all codes; neither is ever worse than its descended start."""
    s = hs.solve(problem, method)
    best, slack = brute_force(problem), 1e-9 * unit(problem)
    assert (s.loss >= best - slack).all() and (s.lower_bound <= best + slack).all()
    if method == "beam":
        near = best + 1e-7 * unit(problem)  # codes of vanishing norm apart
        assert (s.loss <= near).all()
    assert (s.loss <= hs.solve(problem, "one_flip").loss + slack).all()


@given(problem=problems(sizes=(1, 14)))
def test_babai_is_never_worse_than_sign(problem):
    sign, s = hs.solve(problem, "sign"), hs.solve(problem, "babai")
    anew = loss(problem, s.codes, s.scales)
    assert (s.loss <= sign.loss + 1e-9 * unit(problem)).all()
    np.testing.assert_allclose(anew, s.loss, rtol=1e-9, atol=1e-9 * unit(problem).max())


def test_wider_is_better_where_there_is_room():
    p = make_case("asymmetric", 5, size=80, columns=4, rows=160).problem
    descended, narrow, wide = (hs.solve(p, m).loss.sum() for m in ("one_flip", "babai", "beam"))
    assert wide < narrow < descended


@pytest.mark.parametrize("effort", ["fast", "default", "thorough"])
@pytest.mark.parametrize("method", ["babai", "beam"])
@pytest.mark.parametrize("kind", ["rank-deficient", "duplicated", "dead", "integer"])
def test_degenerate_inputs(kind, method, effort, monkeypatch):
    monkeypatch.setattr(beam_method, "WIDTHS", (500, 1_000, 2_000))
    case = make_case(kind, 3, size=40, columns=3, rows=60)
    s = hs.solve(case.problem, method, effort)
    assert hs.verify(case.problem, s.codes, s.scales, claimed_loss=s.loss).ok


@pytest.mark.parametrize("method", ["babai", "beam", "tabu", "auto"])
@pytest.mark.parametrize(
    "problem",
    [
        hs.Problem(np.ones((30, 30)), np.ones((30, 1)), [1.0]),  # all inputs the same
        hs.Problem(np.diag([1.0] + 29 * [0.0]), [[1.0]] + 29 * [[0.0]], [2.0]),  # one live input
        hs.Problem(np.eye(30), np.zeros((30, 2)), [1.0, 0.0]),  # nothing to fit
        hs.Problem(np.diag(np.logspace(0, -14, 30)), np.full((30, 1), 1e-8), [1.0]),
        hs.Problem.from_quadratic(-np.ones((30, 30))),
        hs.Problem.from_quadratic(1 - np.eye(30), np.zeros(30)),  # ties everywhere, trace zero
        hs.Problem.from_quadratic(np.zeros((30, 30)), np.ones(30)),
    ],
    ids=["equal", "one live", "zero cross", "graded", "negative", "trace zero", "linear"],
)
def test_corners(method, problem):
    s = hs.solve(problem, method, "fast")
    certificate = hs.verify(problem, s.codes, s.scales, claimed_loss=s.loss)
    assert certificate.ok, str(certificate)
    assert (s.lower_bound <= s.loss).all() and not np.isnan(s.lower_bound).any()


def test_memory_is_bounded_by_the_width(monkeypatch):
    """Beams narrow where S is large: K·S² stays below a limit."""
    seen = []

    def spy(form, free, low, high, width, leaves):
        seen.append(width)
        return lattice_codes(form, free, low, high, width, leaves)

    monkeypatch.setattr(beam_method, "lattice_codes", spy)
    monkeypatch.setattr(beam_method, "_LARGEST_WORK", 4e4)
    p = make_case("gaussian", 1, size=50, columns=1, rows=80).problem
    hs.solve(p, "beam", "thorough")
    assert seen and max(seen) == 16


def test_one_diagonal_for_all_columns(monkeypatch):
    """Above a size the columns share their diagonal, and the triangle with it."""
    p = make_case("relu", 4, size=30, columns=5, rows=90).problem
    own = hs.solve(p, "beam")
    monkeypatch.setattr("hashsolve.instance.LARGE", 10)
    s = hs.solve(p, "beam")
    assert (s.bound_name, own.bound_name) == ("dual, one diagonal", "dual")
    instance = Instance.of(p)
    with Control() as control:
        lattice = Lattice(instance, dual_diagonals(instance, control))
    assert lattice.triangle(0).lower is lattice.triangle(4).lower
    assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss).ok
    assert (s.lower_bound <= np.minimum(s.loss, own.loss) + 1e-9 * p.energy).all()
