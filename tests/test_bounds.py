"""Lower bounds: below every loss in rational arithmetic, and never worse than least squares."""

from __future__ import annotations

from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from columns import FIXED, FREE, KINDS, make_column, optimum, unpacked
from hypothesis import example, given
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve import bounds
from hashsolve import instance as instances
from hashsolve.control import Control
from hashsolve.dual import (
    certified_bounds,
    factorise,
    folded,
    improve_diagonal,
    starting_diagonal,
)
from hashsolve.methods import METHODS
from hashsolve.reference import brute_force
from hashsolve.testing.strategies import KINDS as CASES
from hashsolve.testing.strategies import make_case, problems

SEEDS = st.integers(0, 2**32 - 1)


def proven(column, effort="default", tolerance=None):
    """The column's bounds by name, in its own units."""
    instance = column.instance
    with Control(effort) as control:
        diagonals = bounds.dual_diagonals(instance, control, tolerance)
        found = {
            "cheap": bounds.cheap_bounds(instance, control)[0][0],
            "dual": bounds.dual_bounds(instance, control, diagonals)[0],
            "start": bounds.certify(instance, control, bounds.start_diagonals(instance))[0],
        }
    return found, diagonals[0]


def check_below_the_optimum(kind, size, seed):
    column = make_column(kind, size, seed)
    best, _ = optimum(column)
    for effort in ("default", "thorough"):
        found, _ = proven(column, effort)
        for name, bound in found.items():
            assert not np.isnan(bound)
            assert (bound == 0 and column.free) or Fraction(bound) <= best, (
                name,
                bound,
                float(best),
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", (1, 2, 3, 6, 10))
def test_below_the_optimum(kind, size):
    check_below_the_optimum(kind, size, size)


@given(st.sampled_from(KINDS), st.integers(1, 8), SEEDS)
def test_below_the_optimum_of_random_columns(kind, size, seed):
    check_below_the_optimum(kind, size, seed)


@given(st.sampled_from(KINDS), st.integers(1, 7), SEEDS, st.floats(-3, 3))
def test_any_diagonal_proves_a_bound(kind, size, seed, spread):
    """Whatever the diagonal, the certificate is true; a wild one only proves little."""
    column = make_column(kind, size, seed)
    instance = column.instance
    wild = np.random.default_rng(seed).normal(size=(1, size)) * 10.0**spread
    with Control() as control:
        bound = bounds.certify(instance, control, wild)[0]
    best, _ = optimum(column)
    assert (bound == 0 and column.free) or bound == -np.inf or Fraction(bound) <= best


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("size", (2, 9, 25))
def test_dual_is_no_worse_than_least_squares(kind, size):
    column = make_column(kind, size, size + 7)
    found, diagonal = proven(column)
    tolerance = 1e-5 if kind in ("ill", "singular", "duplicated") else 1e-9
    assert found["dual"] >= found["cheap"] - (tolerance + bounds.TOLERANCE) * column.energy
    finer, _ = proven(column, tolerance=1e-6)
    assert finer["dual"] >= found["cheap"] - 2 * tolerance * column.energy
    assert abs(diagonal.sum()) <= 1e-9 * np.abs(diagonal).sum() or kind in (
        "ill",
        "singular",
        "duplicated",
        "integer",
    )


def test_dual_is_much_better_than_least_squares():
    """On inputs as real layers hold them, least squares says next to nothing."""
    p = make_case("relu", 5, size=30, columns=4, rows=120).problem
    least, dual = (hs.solve(p, m).lower_bound for m in ("one_flip", "babai"))
    loss = hs.solve(p, "exact").loss
    assert (least < 1e-9 * p.energy).all()  # symmetric: real weights fit
    assert (dual > 0.5 * loss).all() and (dual <= loss).all()


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("size", (2, 9))
def test_fixed_scale_duals_beat_the_uniform_diagonal(kind, size):
    column = make_column(kind, size, size)
    found, _ = proven(column)
    best, _ = optimum(column)
    assert found["dual"] >= found["start"] - 1e-9 * column.size
    assert found["dual"] > float(best) - 0.5 * max(abs(float(best)), 1.0) - column.size * 0.1
    assert found["cheap"] == found["dual"]


@given(st.sampled_from(CASES), st.integers(2, 9), SEEDS)
@example("rank-deficient", 2, 75)  # sums whose rounding gives a loss below zero
def test_shared_diagonal(kind, size, seed):
    """One diagonal for all columns proves less, and nothing false."""
    p = make_case(kind, seed, size, columns=3, rows=30).problem
    best = brute_force(p)
    with mock.patch.object(instances, "LARGE", 0):
        s = hs.solve(p, "beam")
    assert s.bound_name == "dual, one diagonal"
    assert (s.lower_bound <= best + 1e-9 * p.energy).all()
    assert (s.lower_bound >= 0).all()


def test_shared_diagonal_proves_more_than_least_squares(monkeypatch):
    p = make_case("relu", 2, size=40, columns=6, rows=150).problem
    own = hs.solve(p, "babai").lower_bound.sum()
    least = hs.solve(p, "one_flip").lower_bound.sum()
    monkeypatch.setattr(instances, "LARGE", 30)
    shared = hs.solve(p, "babai").lower_bound.sum()
    assert least < 0.01 * own < 0.2 * own < shared < own


@pytest.mark.parametrize("size", [1, 2, 31, 64, 65])
def test_a_folded_matrix_in_another_order(size, rng):
    """Its packed factor; afterwards it is itself again, even where there was none."""
    x = rng.normal(size=(size, 2 * size))
    gram, order = x @ x.T, rng.permutation(size)
    gram = np.tril(gram) + np.tril(gram, -1).T
    diagonal, before = rng.uniform(0.1, 1, size), gram.copy()
    with folded(gram, True) as matrix:
        lower = unpacked(matrix.factorise_in(order, diagonal))
    np.testing.assert_array_equal(gram, before)
    wanted = (gram + np.diag(diagonal))[np.ix_(order, order)]
    np.testing.assert_allclose(lower @ lower.T, wanted, atol=1e-11 * np.abs(wanted).max())
    with pytest.raises(np.linalg.LinAlgError), folded(gram, True) as matrix:
        matrix.factorise_in(order, -2 * before.diagonal())
    np.testing.assert_array_equal(gram, before)


@pytest.mark.parametrize("size", [1, 5, 513, 1100])
def test_a_folded_matrix_is_the_matrix(size, rng):
    """Its rows, products and factors, with a factor in its place; and itself again afterwards."""
    x = rng.normal(size=(size, size + 5))
    gram = x @ x.T
    gram = 0.5 * (gram + gram.T)
    kept, left = gram.copy(), rng.normal(size=(4, size))
    shift = rng.random(size)
    with folded(gram, True) as matrix:
        for diagonal in (shift, np.full(size, -1e9), 2 * shift):  # the second has no factor
            found, wanted = matrix.factorise(diagonal), factorise(kept, diagonal)
            assert (found is None) == (wanted is None)
            if found is not None:
                np.testing.assert_array_equal(np.tril(found), np.tril(wanted))
                assert np.shares_memory(found, gram)
            rows = slice(size // 3, min(size // 3 + 512, size))
            np.testing.assert_array_equal(matrix[rows], kept[rows])
            np.testing.assert_allclose(left @ matrix, left @ kept, rtol=1e-12, atol=1e-9 * size)
            np.testing.assert_array_equal(matrix.diagonal(), kept.diagonal())
            if found is not None:
                np.testing.assert_array_equal(np.tril(found), np.tril(wanted))
    np.testing.assert_array_equal(gram, kept)
    with pytest.raises(KeyboardInterrupt), folded(gram, True) as matrix:
        matrix.factorise(shift)
        raise KeyboardInterrupt
    np.testing.assert_array_equal(gram, kept)


@given(problems(sizes=(2, 9)), st.sampled_from(["sign", "dcc", "one_flip"]))
def test_large_instances_are_solved_alike(p, method):
    """Codes and losses to the last bit by methods that prove nothing; bounds but for rounding."""
    plain = hs.solve(p, method)
    with mock.patch.object(instances, "LARGE", 0):
        large = hs.solve(p, method)
    np.testing.assert_array_equal(large.codes, plain.codes)
    np.testing.assert_array_equal(large.loss, plain.loss)
    np.testing.assert_allclose(
        large.lower_bound, plain.lower_bound, rtol=1e-9, atol=1e-9 * np.abs(p.energy).max()
    )


def test_a_column_depends_on_nothing_but_itself():
    p = make_case("asymmetric", 3, size=12, columns=5, rows=60).problem
    whole = hs.solve(p, "tabu").lower_bound
    for t in range(5):
        assert hs.solve(p.select([t]), "tabu").lower_bound[0] == whole[t]
    assert (hs.solve(p, "tabu", threads=1).lower_bound == whole).all()


@given(problems(sizes=(1, 9)))
def test_no_bound_is_above_any_loss(p):
    """The best bound of any method and the smallest loss of any other."""
    found = [hs.solve(p, method) for method in METHODS]
    unit = np.maximum(p.energy, np.max([np.abs(s.loss) for s in found], axis=0))
    low, loss = (np.array([getattr(s, f) for s in found]) for f in ("lower_bound", "loss"))
    assert (low.max(axis=0) <= loss.min(axis=0) + 1e-9 * unit).all()
    assert all((s.lower_bound <= s.loss).all() for s in found)


@given(problems(sizes=(1, 10)), st.sampled_from(["babai", "tabu"]))
def test_thorough_is_not_below_default(p, method):
    default, thorough = (hs.solve(p, method, effort) for effort in ("default", "thorough"))
    unit = np.maximum(p.energy, np.abs(default.loss))
    assert (thorough.lower_bound >= default.lower_bound - 1e-12 * unit).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exponent", (-280, -100, 100, 280))
def test_extreme_magnitudes(kind, exponent):
    """Bounds follow a power of two on the problem's sums; nothing overflows."""
    column = make_column(kind, 7, 3)
    scale = {"fixed_scales": [1.0]} if not column.free else {}
    energy = np.array([column.energy])

    def problem(exponent):
        return hs.Problem(
            gram=np.ldexp(column.gram, exponent),
            cross=np.ldexp(column.cross[:, None], exponent),
            energy=np.ldexp(energy, exponent),
            **scale,
        )

    plain, moved = hs.solve(problem(0), "beam"), hs.solve(problem(exponent), "beam")
    np.testing.assert_array_equal(moved.loss, np.ldexp(plain.loss, exponent))
    np.testing.assert_array_equal(moved.lower_bound, np.ldexp(plain.lower_bound, exponent))


def test_magnitudes_far_apart():
    """Inputs of very different sizes: whatever can be proven is true."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 40)) * np.logspace(0, -120, 8)[:, None]
    p = hs.Problem.from_arrays(x, rng.normal(size=(8, 3)) * np.logspace(0, 80, 8)[:, None])
    best = brute_force(p)
    for method in METHODS:
        s = hs.solve(p, method)
        assert (s.lower_bound <= best + 1e-9 * p.energy).all()
        assert np.isfinite(s.loss).all() and not np.isnan(s.lower_bound).any()


def test_newton_stops_at_its_target():
    """A bound that has passed what it is wanted for is not raised any further."""
    column = make_column("asymmetric", 12, 4)
    start = np.zeros(12)
    arguments = (column.gram, column.cross[None], column.energy, start, True, 1e-6)
    far, steps = improve_diagonal(*arguments)
    near, fewer = improve_diagonal(*arguments, target=0.0)
    assert fewer < steps
    cross, energy = column.cross[None], np.array([column.energy])
    value = [
        certified_bounds(column.gram, cross, energy, d, start, True)[0][0] for d in (far, near)
    ]
    assert value[0] >= value[1] - 1e-9
    assert abs(far.sum()) < 1e-9 * np.abs(far).sum()


@pytest.mark.parametrize("linear", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("kind", ["dense", "sparse", "cut"])
def test_programmes_of_small_linear_terms_are_bounded_as_well(kind, linear, rng):
    """Their energy is zero: tolerances and the barrier are shares of something else."""
    q = rng.normal(size=(80, 80))
    if kind != "dense":
        q = np.triu(rng.random((80, 80)) < 0.1, 1) * (1.0 if kind == "cut" else np.sign(q))
    q = q + q.T
    p = hs.Problem.from_quadratic(q, linear * rng.normal(size=80))
    s = hs.solve(p, "one_flip")
    least = 80 * np.linalg.eigvalsh(q)[0]  # what one eigenvalue proves
    assert 0.92 * least < s.lower_bound[0] < s.loss[0]


def test_newton_gives_up_where_no_diagonal_can_prove_anything(rng, monkeypatch):
    """Half as many rows as inputs: sixty steps of 25 tries each gained nothing before."""
    x = np.maximum(rng.normal(size=(200, 100)), 0.0)
    instance = instances.Instance.of(hs.Problem.from_arrays(x, rng.normal(size=(200, 1))))
    tried = []

    def counted(gram, diagonal):
        tried.append(1)
        return factorise(gram, diagonal)

    monkeypatch.setattr("hashsolve.dual.factorise", counted)
    with Control() as control:
        diagonals = bounds.dual_diagonals(instance, control)
        assert len(tried) < 30
        assert bounds.dual_bounds(instance, control, diagonals)[0] == 0.0


@pytest.mark.parametrize("gram", [np.ones((4, 4)) - np.eye(4), np.zeros((4, 4)), -np.eye(4)])
def test_the_start_is_inside_the_cone(gram):
    """For programmes with a zero diagonal, too."""
    smallest = np.linalg.eigvalsh(gram)[0]
    start = starting_diagonal(gram, smallest, np.zeros(4), False)
    if gram.any():
        assert np.linalg.eigvalsh(gram + np.diag(start))[0] > 0
    assert np.isfinite(start).all()


def test_shares_of_the_gram_matrix_serve_its_programmes(rng):
    """Few steps from them prove of a programme with a scale a group what many steps do."""
    inputs, groups = 60, 6
    x = np.maximum(rng.normal(size=(inputs, 90)) + rng.normal(size=90), 0.0)
    dead = 7
    x[dead] = 0.0
    problem = hs.Problem.from_arrays(x, rng.normal(size=(inputs, 1)))
    with Control("fast") as control:
        instance = instances.Instance.of(problem)
        gram = instance.gram.copy()
        shares = bounds.common_shares(instance, control)
        np.testing.assert_array_equal(instance.gram, gram)
        assert shares.shape == (inputs,) and shares[dead] == 0.0
        live = instance.live
        moved = gram + np.diag(shares[live] * gram.diagonal())
        assert np.linalg.eigvalsh(moved)[0] > 0.0
        for _ in range(5):
            factor = np.repeat(rng.uniform(0.3, 3.0, groups), inputs // groups)
            pull = factor * (problem.gram @ (factor * rng.choice([-1.0, 1.0], inputs)))
            programme = hs.Problem.from_quadratic(problem.gram * factor * factor[:, None], pull)
            instance = instances.Instance.of(programme)
            found = []
            for begin, steps in ((None, 60), (None, 5), (shares, 5)):
                control.shares = begin
                with mock.patch.object(bounds, "MAX_STEPS", steps):
                    diagonals = bounds.dual_diagonals(instance, control)
                found.append(bounds.certify(instance, control, diagonals)[0])
            many, few, shared = found
            assert many - shared <= 0.25 * (many - few)
