"""Variants of the problem: intercept, row weights, no scale, a scale a group, several bases."""

from __future__ import annotations

import importlib
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve import variants
from hashsolve.control import Control
from hashsolve.methods import METHODS
from hashsolve.packing import combine
from hashsolve.reference import all_codes
from hashsolve.testing.strategies import cases, make_case

SEEDS = st.integers(0, 2**32 - 1)
SCALING = ["sign", "dcc", "one_flip", "exact", "auto"]
GROUPS = [1, 3, 12]


def explicit(case, s, row_weights=None):
    """‖Y − X̂ᵀ(Σ αb) − constant‖² of each column, from the arrays themselves."""
    error = case.target - case.inputs.T @ combine(s.codes, s.scales)
    if s.intercept is not None:
        error = error - s.intercept
    squares = error**2 if row_weights is None else error**2 * row_weights[:, None]
    return squares.sum(axis=0)


def check(case, p, s, row_weights=None, require="dcc"):
    """The reported loss is the explicit one, and the certificate agrees."""
    energy = np.maximum(p.energy, 1e-12 * p.energy.max())
    rounding = 1e-13 * np.abs(p.gram).sum() * np.square(s.scales).reshape(-1, p.columns).sum(axis=0)
    wanted = explicit(case, s, row_weights)
    assert (np.abs(s.loss - wanted) <= 1e-9 * energy + rounding).all()
    assert (s.scales >= 0).all() and (np.abs(s.codes) == 1).all()
    assert (s.lower_bound <= s.loss).all()
    certificate = hs.verify(p, s.codes, s.scales, require=require, claimed_loss=s.loss)
    assert certificate.ok, str(certificate)


def variant(case, **fields):
    return hs.Problem.from_arrays(case.inputs, case.weights, reference=case.reference, **fields)


# intercept


@pytest.mark.parametrize("method", ["dcc", "auto"])
@given(cases(rows=(3, 40), kinds=("gaussian", "relu", "asymmetric", "integer", "duplicated")))
def test_intercept(method, case):
    try:
        p = variant(case, intercept=True)
        p.centred()
    except ValueError as error:
        assert "all zero" in str(error) or "constant on all rows" in str(error)
        return
    s = hs.solve(p, method)
    assert s.intercept.shape == (p.columns,)
    check(case, p, s, require=METHODS[method].promise)
    # the constant is the best one: the errors that are left have mean zero
    error = case.target - case.inputs.T @ combine(s.codes, s.scales) - s.intercept
    assert (np.abs(error.mean(axis=0)) <= 1e-9 * (1 + np.abs(case.target).max())).all()


@given(cases(sizes=(1, 9), rows=(12, 40), kinds=("gaussian", "relu", "asymmetric")))
def test_intercept_is_never_worse(case):
    plain, p = variant(case), variant(case, intercept=True)
    s, without = hs.solve(p, "exact"), hs.solve(plain, "exact")
    slack = 1e-9 * plain.energy
    assert (s.loss <= without.loss + slack).all()
    assert (p.loss(without.codes) <= without.loss + slack).all()
    assert without.intercept is None


def test_intercept_takes_a_shift_away():
    """A constant on the targets costs nothing but its own constant."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(8, 60)), rng.normal(size=(8, 2))
    target, shift = x.T @ w, np.array([5.0, -3.0])
    plain = hs.solve(hs.Problem.from_arrays(x, target=target, intercept=True), "exact")
    shifted = hs.solve(hs.Problem.from_arrays(x, target=target + shift, intercept=True), "exact")
    np.testing.assert_array_equal(shifted.codes, plain.codes)
    np.testing.assert_allclose(shifted.loss, plain.loss, rtol=1e-9)
    np.testing.assert_allclose(shifted.intercept, plain.intercept + shift, rtol=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_sums_about_large_means(seed):
    """Whole numbers, so that the sums are exact; what is left about the means is a millionth of
    them, and of that codes that cancel leave a millionth again."""
    rng = np.random.default_rng(seed)
    rows = 7
    x = rng.integers(-(10**6), 10**6, rows) + 26 * 10**6
    inputs = np.stack([x, x - rng.integers(5, 10) * 10**5 + rng.integers(-3, 4, rows)])
    target = rng.integers(-(5 * 10**5), 5 * 10**5, rows)
    p = hs.Problem.from_arrays(inputs, target=target[:, None], intercept=True)
    least = {}
    for codes in ((1, 1), (1, -1)):
        u = [Fraction(int(v)) for v in np.array(codes) @ inputs]
        y = [Fraction(int(v)) for v in target]
        u, y = ([v - sum(values) / rows for v in values] for values in (u, y))
        q = sum(v * v for v in u)
        p_y = sum(v * w for v, w in zip(u, y, strict=True))
        least[codes] = float(sum(v * v for v in y) - (p_y**2 / q if q else 0))
    s = hs.solve(p, "exact")
    best = min(least.values())
    assert s.lower_bound[0] <= best * (1 + 1e-9)
    assert not s.optimal[0] or s.loss[0] <= best * (1 + 1e-6)
    assert least[tuple(s.codes[:, 0] * s.codes[0, 0])] == pytest.approx(s.loss[0], rel=1e-3)


def test_constant_inputs_and_targets_are_nothing_beside_an_intercept():
    """What is left of them is rounding, of either sign: neither may be refused or fitted."""
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(6, 37)), rng.normal(size=(6, 3))
    x[2], x[4] = 0.1, -1e5 / 3
    target = x.T @ w
    target[:, 1] = 0.7
    p = hs.Problem.from_arrays(x, w, target=target, intercept=True)
    s = hs.solve(p)
    assert s.loss[1] == s.scales[1] == 0 and s.intercept[1] == pytest.approx(0.7)
    assert (s.codes[[2, 4]] == np.where(w[[2, 4]] < 0, -1, 1)).all()
    live = hs.Problem.from_arrays(x[[0, 1, 3, 5]], target=target, intercept=True)
    np.testing.assert_allclose(s.loss, hs.solve(live).loss, rtol=1e-6, atol=1e-9)
    assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss).ok


# row weights


@given(cases(rows=(2, 20), kinds=("gaussian", "relu", "asymmetric", "integer")), SEEDS)
def test_row_weights_repeat_rows(case, seed):
    times = np.random.default_rng(seed).integers(0, 4, case.inputs.shape[1])
    times[0] = 1  # the row that is never zero
    seen = case.inputs if case.reference is None else case.reference
    assume((seen.T @ case.weights)[times > 0].any())  # nor are all targets
    p = variant(case, row_weights=times)
    seen = case.reference if case.reference is None else np.repeat(case.reference, times, axis=1)
    repeated = hs.Problem.from_arrays(
        np.repeat(case.inputs, times, axis=1), case.weights, reference=seen
    )
    for name in ("gram", "cross", "energy", "input_sum", "target_sum"):
        a, b = getattr(p, name), getattr(repeated, name)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    assert p.row_weight == pytest.approx(times.sum(), rel=1e-12)
    s = hs.solve(p)
    best = hs.solve(repeated).loss
    np.testing.assert_allclose(s.loss, best, rtol=1e-9, atol=1e-9 * p.energy.max())
    check(case, p, s, row_weights=times)


def test_row_weights_with_an_intercept():
    case = make_case("relu", 4, size=8, columns=3, rows=30)
    times = np.random.default_rng(2).integers(0, 4, 30)
    a = variant(case, row_weights=times, intercept=True)
    b = hs.Problem.from_arrays(np.repeat(case.inputs, times, axis=1), case.weights, intercept=True)
    s, repeated = hs.solve(a, "exact"), hs.solve(b, "exact")
    np.testing.assert_array_equal(s.codes, repeated.codes)
    np.testing.assert_allclose(s.intercept, repeated.intercept, rtol=1e-9)
    check(case, a, s, row_weights=times)


# no scale


@pytest.mark.parametrize("method", SCALING)
@given(cases(sizes=(1, 9)))
def test_no_scale(method, case):
    p = variant(case, fixed_scales=1)
    s = hs.solve(p, method)
    assert (s.scales == 1).all()
    check(case, p, s, require=METHODS[method].promise)
    if method == "exact":
        every = all_codes(p.inputs)
        for t in range(p.columns):
            errors = case.target[:, [t]] - case.inputs.T @ every
            best = (errors**2).sum(axis=0).min()
            size = p.energy[t] + np.abs(p.gram).sum()
            assert s.loss[t] == pytest.approx(best, abs=1e-9 * size)
        free = hs.solve(variant(case), "exact")
        assert (free.loss <= s.loss + 1e-9 * (p.energy + np.abs(p.gram).sum())).all()


# a scale a group


@pytest.mark.parametrize("method", ["sign", "dcc", "auto"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", ["gaussian", "relu", "asymmetric", "duplicated", "dead"])
def test_group_scales(kind, group, method):
    case = make_case(kind, 5, size=12, columns=4, rows=40)
    p = variant(case, scale_group=group)
    s = hs.solve(p, method)
    assert s.scales.shape == (12 // group, 4)
    check(case, p, s, require="valid" if method == "sign" else "dcc")
    plain = p.loss(np.where(case.weights < 0, -1, 1), mean_scales(case, group))
    if method == "sign":
        np.testing.assert_allclose(s.loss, plain, rtol=1e-12)
    assert s.loss.sum() <= plain.sum() + 1e-9 * p.energy.sum()


def mean_scales(case, group):
    """mean |W| of each group."""
    return np.abs(case.weights).reshape(-1, group, case.weights.shape[1]).mean(axis=1)


@given(cases(sizes=(2, 12), rows=(20, 40), kinds=("gaussian", "relu", "asymmetric")))
def test_one_group_of_all_is_one_scale(case):
    p = variant(case, scale_group=len(case.weights))
    s, plain = hs.solve(p), variant(case)
    np.testing.assert_allclose(s.scales[0], plain.best_scales(s.codes), rtol=1e-9)
    certificate = hs.verify(plain, s.codes, s.scales[0], require="dcc", claimed_loss=s.loss)
    assert certificate.ok, str(certificate)


@given(cases(kinds=("gaussian", "relu", "integer", "dead", "duplicated", "rank-deficient")))
@settings(max_examples=10)
def test_groups_of_one_fit_anything(case):
    """S scales are the weights themselves: nothing is left of a symmetric problem."""
    p = variant(case, scale_group=1)
    s = hs.solve(p)
    assert (s.loss <= 1e-9 * p.energy).all()
    if case.kind == "gaussian" and case.inputs.shape[1] > len(case.weights) + 5:
        np.testing.assert_allclose(combine(s.codes, s.scales), case.weights, rtol=1e-4, atol=1e-6)


def test_finer_groups_lose_less():
    case = make_case("relu", 8, size=24, columns=6, rows=100)
    loss = [hs.solve(variant(case, scale_group=g)).loss.sum() for g in (24, 12, 6, 3, 1)]
    assert (np.diff(loss) < 0).all()


@pytest.mark.parametrize("method", [*METHODS])
@pytest.mark.parametrize("fields", [{"scale_group": 4}, {"bases": 2}], ids=str)
def test_variants_take_every_method(method, fields):
    case = make_case("relu", 8, size=24, columns=5, rows=60)
    p, seen = variant(case, **fields), []
    s = hs.solve(p, method, callback=seen.append)
    assert s.method == method and len(seen) > 0
    check(case, p, s, require=METHODS[method].promise if method == "sign" else None)
    if method not in ("sign", "dcc", "one_flip"):  # at given scales the last two are the same
        assert s.loss.sum() <= hs.solve(p, "dcc").loss.sum() * (1 + 1e-9)
    if method in ("tabu", "auto") and "scale_group" in fields:
        assert s.loss.sum() < hs.solve(p, "dcc").loss.sum()
    stopped = hs.solve(p, method, callback=lambda _: True)
    assert stopped.status is hs.Status.STOPPED
    check(case, p, stopped, require="valid")
    late = hs.solve(p, method, time_limit=1e-9)
    assert late.status is hs.Status.TIME_LIMIT
    check(case, p, late, require="valid")
    threads = [hs.solve(p, method, threads=n) for n in (1, 3)]
    assert all(other.codes_sha256 == s.codes_sha256 for other in threads)


@given(
    cases(sizes=(4, 12), rows=(5, 40)),
    st.sampled_from([{"bases": 2}, {"bases": 3}, {"scale_group": 2}]),
)
@settings(max_examples=10)
def test_auto_is_never_worse_than_what_it_contains(case, fields):
    assume(len(case.weights) % fields.get("scale_group", 1) == 0)
    p = variant(case, **fields)
    best = hs.solve(p, "auto", "fast")
    # with groups the others alone may take another way, and end lower
    more = ("babai", "beam", "tabu") if "bases" in fields else ()
    for method in ("dcc", "one_flip", *more):
        other = hs.solve(p, method, "fast")
        assert (best.loss <= other.loss + 1e-9 * p.energy.max()).all(), method


@pytest.mark.parametrize("fields", [{"bases": 2}, {"scale_group": 4}], ids=str)
@pytest.mark.parametrize("method", ["dcc", "tabu", "auto"])
def test_no_method_ends_above_its_start_wherever_it_is_stopped(fields, method, rng):
    p = hs.Problem.from_arrays(
        np.maximum(rng.normal(size=(24, 24)) @ rng.normal(size=(24, 200)), 0),
        rng.normal(size=(24, 4)),
        **fields,
    )
    good = hs.solve(p, "auto", "fast")
    seen = []
    for stop in ({"time_limit": 1e-9}, {"callback": lambda _: True}, {"callback": seen.append}):
        s = hs.solve(p, method, "fast", init=good, **stop)
        assert (s.loss <= good.loss * (1 + 1e-9)).all()
        assert hs.verify(p, s.codes, s.scales, require="valid", claimed_loss=s.loss).ok
    for after in range(1, len(seen), 5):  # the callback says so at that step
        steps = iter(range(after))
        s = hs.solve(
            p, method, "fast", init=good, callback=lambda _, steps=steps: next(steps, None) is None
        )
        assert s.status is hs.Status.STOPPED and (s.loss <= good.loss * (1 + 1e-9)).all()


def test_restarts_find_what_alternation_from_the_signs_does_not():
    """Two bases on a problem of few inputs, where brute force over both finds the optimum."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(8, 100)), rng.normal(size=(8, 4))
    p = hs.Problem.from_arrays(x, w, bases=2)
    every = np.array(list(itertools.product([-1, 1], repeat=8)), dtype=float)
    one, other = (part.reshape(-1) for part in np.meshgrid(np.arange(256), np.arange(256)))
    q = every @ p.gram @ every.T
    a, b, c = q[one, one], q[one, other], q[other, other]
    apart = a * c - b * b > 1e-9 * a * c
    s = hs.solve(p, "auto")
    for t in range(4):
        u, v = (every @ p.cross[:, t])[one], (every @ p.cross[:, t])[other]
        gain = u * u / a
        np.divide(c * u * u - 2 * b * u * v + a * v * v, a * c - b * b, out=gain, where=apart)
        best = p.energy[t] - gain.max()
        assert best * (1 - 1e-9) <= s.loss[t] <= 1.05 * best
    assert hs.solve(p, "dcc").loss.sum() > 1.1 * s.loss.sum()


@pytest.mark.parametrize("fields", [{"scale_group": 4}, {"bases": 2}], ids=str)
def test_auto_goes_on_from_columns_that_others_lowered_alone(fields, monkeypatch):
    """A second run of it in all columns would find nothing in the rest."""
    module = importlib.import_module("hashsolve.variants")
    name = "solve_bases" if "bases" in fields else "solve_groups"
    alternate, count = getattr(module, name), []

    def counted(problem, method, *rest):
        if method == "auto":
            count.append(problem.columns)
        return alternate(problem, method, *rest)

    monkeypatch.setattr(module, name, counted)
    p = variant(make_case("relu", 8, size=12, columns=8, rows=60), **fields)
    s = hs.solve(p, "auto", "fast")
    assert count[0] == 8 and all(0 < columns < 8 for columns in count[1:])
    assert s.history[-1].loss == pytest.approx(s.loss.sum(), rel=1e-9)


def test_exact_codes_at_given_group_scales():
    """No codes do better at the scales that method "exact" ends with."""
    case = make_case("asymmetric", 2, size=10, columns=3, rows=30)
    p = variant(case, scale_group=5)
    s = hs.solve(p, "exact")
    every = np.array(list(itertools.product([-1, 1], repeat=10))).T
    for t in range(3):
        scales = np.repeat(s.scales[:, t : t + 1], 1024, axis=1)
        one = p.select([t] * 1024)
        assert s.loss[t] <= one.loss(every, scales).min() + 1e-9 * p.energy[t]


# several bases


@pytest.mark.parametrize("method", ["dcc", "auto"])
@pytest.mark.parametrize(
    "kind", ["gaussian", "relu", "asymmetric", "duplicated", "dead", "integer"]
)
def test_bases(kind, method):
    case = make_case(kind, 6, size=10, columns=3, rows=40)
    loss = []
    for count in (1, 2, 3, 4):
        p = variant(case, bases=count)
        s = hs.solve(p, method)
        if count > 1:
            assert s.codes.shape == (count, 10, 3) and s.scales.shape == (count, 3)
        check(case, p, s)
        loss.append(s.loss)
    assert (np.diff(loss, axis=0) <= 1e-9 * p.energy).all()
    fitted = loss[0] <= 1e-9 * p.energy
    assert ((loss[-1] < loss[0]) | fitted).all() and not fitted.all()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_one_basis_is_plain(method):
    case = make_case("relu", 6, size=10, columns=3, rows=40)
    s, plain = hs.solve(variant(case, bases=1), method), hs.solve(variant(case), method)
    np.testing.assert_array_equal(s.codes, plain.codes)
    np.testing.assert_array_equal(s.scales, plain.scales)


def test_bases_start_where_they_are_told():
    case = make_case("relu", 7, size=10, columns=3, rows=40)
    p = variant(case, bases=2)
    s = hs.solve(p)
    again = hs.solve(p, init=s)
    assert (again.loss <= s.loss * (1 + 1e-9)).all()
    with pytest.raises(ValueError, match=r"init: must be codes of shape .*\(2, 10, 3\)"):
        hs.solve(p, init=s.codes[0])


@given(cases(sizes=(1, 6), columns=(1, 2)), st.integers(2, 3))
@settings(max_examples=10)
def test_bases_on_random_problems(case, count):
    p = variant(case, bases=count)
    check(case, p, hs.solve(p, "one_flip"))


def test_bases_beyond_a_perfect_fit():
    """Nothing is left for the second basis: its scale is 0."""
    p = hs.Problem(np.eye(2), [[1.0], [1.0]], [2.0], bases=3)
    s = hs.solve(p)
    assert s.loss.tolist() == [0.0]
    np.testing.assert_allclose(combine(s.codes, s.scales), [[1.0], [1.0]])
    assert hs.verify(p, s.codes, s.scales, require="dcc", claimed_loss=s.loss).ok


# combinations and refusals


@pytest.mark.parametrize("fields", [{"bases": 2}, {"scale_group": 4}, {"fixed_scales": 0.5}])
def test_with_an_intercept_and_row_weights(fields):
    case = make_case("relu", 9, size=8, columns=3, rows=50)
    weights = np.linspace(0.5, 2, 50)
    p = variant(case, intercept=True, row_weights=weights, **fields)
    s = hs.solve(p)
    check(case, p, s, row_weights=weights)
    without = hs.solve(variant(case, row_weights=weights, **fields))
    assert s.loss.sum() <= without.loss.sum()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bases": 0}, "bases: must be a whole number >= 1, got 0"),
        ({"bases": 1.5}, "bases: must be a whole number >= 1, got 1.5"),
        ({"scale_group": 5}, "scale_group: must divide S = 12, got 5"),
        ({"scale_group": 0}, "scale_group: must be a whole number >= 1, got 0"),
        ({"scale_group": 24}, "scale_group: must divide S = 12, got 24"),
        ({"fixed_scales": 0}, "fixed_scales: every scale must be > 0"),
        ({"fixed_scales": [1.0, 2.0]}, r"fixed_scales: must have shape \(3,\), got \(2,\)"),
        ({"row_weights": -np.ones(40)}, "row_weights"),
        ({"row_weights": np.ones(39)}, "row_weights"),
        ({"row_weights": np.zeros(40)}, "row_weights|all zero"),
        ({"row_weights": np.full(40, np.nan)}, "row_weights"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        variant(make_case("gaussian", 1, size=12, columns=3, rows=40), **fields)


@pytest.mark.parametrize(
    "pair",
    list(itertools.combinations([("bases", 2), ("scale_group", 4), ("fixed_scales", 1)], 2)),
    ids=str,
)
def test_what_does_not_go_together(pair):
    with pytest.raises(ValueError, match=r"\w+ and \w+ do not go together") as refused:
        variant(make_case("gaussian", 1, size=12, columns=3, rows=40), **dict(pair))
    assert all(name in str(refused.value) for name, _ in pair)


def test_an_intercept_needs_sums():
    with pytest.raises(ValueError, match="intercept: needs input_sum and target_sum"):
        hs.Problem(np.eye(2), np.ones((2, 1)), [4.0], intercept=True)


# keeping

FIELDS = [
    {"intercept": True},
    {"bases": 3},
    {"scale_group": 3},
    {"fixed_scales": [0.5, 1.0, 2.0]},
    {"row_weights": np.linspace(0, 2, 40)},
    {"bases": 2, "intercept": True, "row_weights": np.linspace(0, 2, 40)},
]
each_variant = pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "+".join(fields))


@each_variant
def test_save_and_load(tmp_path, fields):
    p = variant(make_case("asymmetric", 2, size=12, columns=3, rows=40), **fields)
    p.save(tmp_path / "p.h5")
    loaded = hs.Problem.load(tmp_path / "p.h5")
    assert repr(loaded) == repr(p)
    for name in (*hs.Problem._ARRAYS, *hs.Problem._NUMBERS):
        a, b = getattr(p, name), getattr(loaded, name)
        assert (a is None) == (b is None)
        assert a is None or np.array_equal(a, b), name
    s, again = hs.solve(p), hs.solve(loaded)
    s.save(tmp_path / "s.h5")
    kept = hs.Solution.load(tmp_path / "s.h5")
    for other in (again, kept):
        for name in ("codes", "scales", "loss", "energy", "lower_bound", "intercept"):
            a, b = getattr(s, name), getattr(other, name)
            assert (a is None) == (b is None)
            assert a is None or np.array_equal(a, b), name
    assert kept.codes_sha256 == s.codes_sha256 and kept.codes.dtype == np.int8


@each_variant
def test_sums_of_parts_add_up(fields):
    case = make_case("asymmetric", 2, size=12, columns=3, rows=40)
    weights = fields.get("row_weights")
    rest = {name: value for name, value in fields.items() if name != "row_weights"}
    parts = [
        hs.Problem.from_arrays(
            case.inputs[:, rows],
            case.weights,
            reference=case.reference[:, rows],
            row_weights=None if weights is None else weights[rows],
            **rest,
        )
        for rows in (slice(0, 15), slice(15, 40))
    ]
    whole, total = variant(case, **fields), parts[0] + parts[1]
    assert repr(total) == repr(whole) and total.row_weight == pytest.approx(whole.row_weight)
    for name in ("gram", "cross", "energy", "input_sum", "target_sum"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(hs.solve(total).loss, hs.solve(whole).loss, rtol=1e-6)


@pytest.mark.parametrize("fields", [{"bases": 2}, {"scale_group": 3}, {"intercept": True}])
def test_different_variants_do_not_add_up(fields):
    case = make_case("gaussian", 2, size=12, columns=3, rows=40)
    with pytest.raises(ValueError, match=f"cannot add .*{next(iter(fields))} differ"):
        variant(case, **fields) + variant(case)


# certificates


@pytest.fixture(params=[{"bases": 2}, {"scale_group": 3}, {"intercept": True}], ids=str)
def solved(request):
    p = variant(make_case("asymmetric", 3, size=12, columns=3, rows=60), **request.param)
    s = hs.solve(p, "dcc")
    assert hs.verify(p, s.codes, s.scales, require="dcc", claimed_loss=s.loss).ok
    return p, s


def test_a_wrong_scale_is_found(solved):
    p, s = solved
    scales = s.scales.copy()
    scales[..., 1] *= 1.01
    (why,) = hs.verify(p, s.codes, scales, require="dcc").violations
    assert why.startswith("column 1: ") and "scale" in why
    assert hs.verify(p, s.codes, scales, require="valid").ok


@pytest.mark.parametrize("bit", [0, 5, 11])
def test_a_flipped_bit_is_found(solved, bit):
    p, s = solved
    codes = s.codes.copy()
    codes[..., bit, 2] *= -1
    (why,) = hs.verify(p, codes, s.scales, require="dcc").violations
    assert why.startswith("column 2: ")
    found = hs.verify(p, codes, s.scales, require="valid", claimed_loss=s.loss).violations
    assert len(found) == 1 and "claims loss" in found[0]


def test_a_bad_bit_at_the_best_scales_is_found():
    """Scales set anew for codes that are wrong: the flip itself has to be seen."""
    for fields in ({"bases": 2}, {"scale_group": 4}):
        case = make_case("relu", 3, size=12, columns=1, rows=60)
        p = variant(case, **fields)
        s = hs.solve(p)
        codes = s.codes.copy()
        j = int(np.argmax(np.abs(case.weights)))
        codes[..., j, 0] *= -1
        rows = codes[:, :, 0] if codes.ndim == 3 else np.diag(codes[:, 0]).reshape(3, 4, 12).sum(1)
        x = case.inputs.T @ rows.T
        scales = np.linalg.lstsq(x, case.target, rcond=None)[0]
        if (scales < 0).any():
            continue
        (why,) = hs.verify(p, codes, scales, require="dcc").violations
        assert why.startswith("column 0: flipping bit ")


def test_more_than_dcc_is_not_promised_for_several_scales(solved):
    p, s = solved
    for require in ("one_flip", "two_flip", "optimal"):
        certificate = hs.verify(p, s.codes, s.scales, require=require)
        if p.intercept:
            continue
        assert not certificate.ok and "no level above 'dcc' is checked" in str(certificate)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bases": 2}, r"codes: must have shape (M, S, T) = (2, 12, 3), got (12, 3)"),
        ({"scale_group": 3}, r"scales: must have shape (S / scale_group, T) = (4, 3), got (3,)"),
    ],
)
def test_shapes_of_variants(fields, message):
    case = make_case("gaussian", 3, size=12, columns=3, rows=60)
    plain = hs.solve(variant(case))
    certificate = hs.verify(variant(case, **fields), plain.codes, plain.scales)
    assert certificate.violations == [message]


def test_a_large_mean_proves_nothing(rng):
    """With an intercept, optimality is judged by the energy about the mean."""
    x, y = rng.normal(size=(30, 500)), rng.normal(size=(500, 3)) + 1e5
    p = hs.Problem.from_arrays(x, target=y, intercept=True)
    s = hs.solve(p, "sign")
    assert not s.optimal.any()
    np.testing.assert_allclose(s.energy, 500 * y.var(axis=0), rtol=1e-5)
    certificate = hs.verify(p, np.ones((30, 3)), np.zeros(3), require="optimal")
    assert not certificate.ok and not any(certificate.optimal)


# laws across methods and efforts; stopping; intercepts


@pytest.mark.parametrize("fields", [{"bases": 2}, {"bases": 3}, {"scale_group": 2}], ids=str)
@given(SEEDS)
@settings(max_examples=5)
def test_more_effort_and_better_methods_never_end_worse(fields, seed):
    case = make_case("gaussian", seed, size=4, columns=3, rows=40)
    p = variant(case, **fields)
    noise = 1e-9 * p.energy.max()
    for method in ("dcc", "one_flip", "auto"):
        fast, default = (hs.solve(p, method, effort).loss for effort in ("fast", "default"))
        assert (default <= fast + noise).all()
        assert (fast <= hs.solve(p, "sign").loss + noise).all()
    assert (hs.solve(p, "auto").loss <= hs.solve(p, "babai").loss + noise).all()


@pytest.mark.parametrize("fields", [{"bases": 3}, {"scale_group": 2}], ids=str)
def test_a_callback_that_stops_is_not_called_again(fields):
    p, calls = variant(make_case("relu", 1, size=8, columns=3, rows=40), **fields), []
    s = hs.solve(p, callback=lambda step: calls.append(step) or True)
    assert len(calls) == 1 and s.status is hs.Status.STOPPED


@pytest.mark.parametrize("seed", range(8))
def test_a_callback_is_told_the_loss_of_all_columns(seed):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(12, 30)), rng.normal(size=(12, 4))
    p, told = hs.Problem.from_arrays(x, w, scale_group=2), []
    s = hs.solve(p, "auto", "fast", callback=lambda sweep: told.append(sweep.loss))
    assert min(told) == pytest.approx(s.loss.sum(), rel=1e-9)


@pytest.mark.parametrize("mean", [1e2, 1e3, 1e5])
@pytest.mark.parametrize("method", ["dcc", "exact", "auto"])
def test_an_intercept_with_a_large_mean(mean, method, rng):
    x = mean + rng.normal(size=(12, 200))
    p = hs.Problem.from_arrays(x, rng.normal(size=(12, 3)), intercept=True)
    s = hs.solve(p, method)
    assert (s.lower_bound <= s.loss).all() and (s.loss >= 0).all()
    assert s.status is not hs.Status.OPTIMAL or s.optimal.all()
    assert hs.verify(p, s.codes, s.scales, require="valid", intercept=s.intercept).ok


def test_what_a_constant_accounts_for_is_refused(rng):
    x, w = rng.normal(size=(3, 50)), np.ones((3, 2))
    with pytest.raises(ValueError, match="intercept: the inputs are constant on all rows"):
        hs.Problem.from_arrays(np.full((3, 50), 2.0), w, intercept=True)
    with pytest.raises(ValueError, match="intercept: the targets are constant on all rows"):
        hs.Problem.from_arrays(x, target=np.full((50, 2), 3.0), intercept=True)
    with pytest.raises(ValueError, match="intercept: must be True or False, got 'no'"):
        hs.Problem.from_arrays(x, w, intercept="no")


@pytest.mark.parametrize("variant", [{"bases": 2}, {"scale_group": 4}])
@pytest.mark.parametrize("method", ["dcc", "one_flip"])
def test_targets_that_can_be_met_settle(variant, method, rng):
    """The loss is nothing but rounding then, and may be below zero."""
    for _ in range(10):
        x, codes = rng.normal(size=(8, 100)), np.sign(rng.normal(size=(8, 3)))
        scales = np.repeat(rng.uniform(0.5, 2, size=(2, 3)), 4, axis=0)
        p = hs.Problem.from_arrays(x, codes * scales, **variant)
        assert hs.solve(p, method, "fast").status is hs.Status.FIXPOINT


@pytest.mark.parametrize("variant", [{"bases": 2}, {"scale_group": 4}])
def test_no_bounds_are_computed_that_nobody_looks_at(variant, rng, monkeypatch):
    monkeypatch.setattr("hashsolve.bounds.certified_bounds", None)
    monkeypatch.setattr("hashsolve.bounds.proof_of", None)
    p = hs.Problem.from_arrays(rng.normal(size=(8, 100)), rng.normal(size=(8, 3)), **variant)
    assert hs.solve(p, "one_flip", "fast").status is hs.Status.FIXPOINT


def test_bounds_are_of_the_codes_that_are_kept(rng):
    """Energies a little short: what the better of two starts leaves below zero is not proven."""
    x = rng.normal(size=(8, 100))
    first, second = (np.sign(rng.normal(size=(8, 24))) for _ in range(2))
    y = x.T @ (2 * first + second * rng.uniform(0.3, 2, size=24))
    p = hs.Problem(x @ x.T, x @ y, (y * y).sum(axis=0) * (1 - 1e-6), bases=2)
    s = hs.solve(p, "one_flip", "fast")
    below = s.loss < 0
    assert below.any() and (s.lower_bound <= s.loss).all() and not s.optimal[below].any()
    claims = {"claimed_loss": s.loss, "claimed_bound": s.lower_bound}
    assert hs.verify(p, s.codes, s.scales, require="valid", **claims).ok


@pytest.mark.parametrize("fields", [{"scale_group": 2}, {"bases": 2}], ids=str)
def test_losses_are_precise_where_codes_nearly_cancel(fields):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x = np.abs(rng.normal(size=(6, 8))) + 1e6
        weights = rng.choice([-1.0, 1.0], size=(6, 2))
        p = hs.Problem.from_arrays(x, weights, target=rng.normal(size=(8, 2)), **fields)
        s = hs.solve(p, "auto", "fast")
        assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss).ok


def test_scales_of_many_groups_are_found_a_few_columns_at_a_time(monkeypatch, rng):
    x, weights = rng.normal(size=(12, 60)), rng.normal(size=(12, 9))
    p = hs.Problem.from_arrays(x, weights, scale_group=2)
    s, sizes, some = hs.solve(p, "dcc"), [], variants._some_scales
    monkeypatch.setattr(variants, "_SCALE_MATRICES", 4 * 36)
    monkeypatch.setattr(
        variants, "_some_scales", lambda *given: sizes.append(len(given[1])) or some(*given)
    )
    again = hs.solve(p, "dcc")
    assert max(sizes) == 4
    np.testing.assert_array_equal(again.codes, s.codes)
    np.testing.assert_allclose(again.scales, s.scales, rtol=1e-12)


@pytest.mark.parametrize("fields", [{"scale_group": 4}, {"bases": 2}], ids=str)
def test_a_callback_is_told_of_the_last_alternation(fields, monkeypatch):
    """Of the columns that perturbed codes have bettered."""
    rng = np.random.default_rng(3)
    p = hs.Problem.from_arrays(rng.normal(size=(16, 40)), rng.normal(size=(16, 6)), **fields)
    told, marks, beside, put = [], [], Control.beside, variants._put
    monkeypatch.setattr(Control, "beside", lambda *given: marks.append(len(told)) or beside(*given))
    monkeypatch.setattr(variants, "_put", lambda *given: marks.append(len(told)) or put(*given))
    s = hs.solve(p, "auto", "fast", callback=lambda step: told.append(step.loss))
    begin, end = marks
    total, noise = s.loss.sum(), 1e-9 * s.energy.sum()
    assert end > begin and told[-1] == pytest.approx(total)
    assert all(total - noise <= loss <= told[begin - 1] + noise for loss in told[begin:end])


@pytest.mark.parametrize("constant", [0.1, 1e3 / 3, -7e-5])
@pytest.mark.parametrize("rows", [100, 10_000])
def test_constant_inputs_of_many_rows_are_nothing_beside_an_intercept(constant, rows, rng):
    x, y = 3 + rng.normal(size=(5, rows)), rng.normal(size=(rows, 3))
    x[2] = constant
    s = hs.solve(hs.Problem.from_arrays(x, target=y, intercept=True), "exact")
    others = [0, 1, 3, 4]
    alone = hs.solve(hs.Problem.from_arrays(x[others], target=y, intercept=True), "exact")
    np.testing.assert_array_equal(s.codes[others], alone.codes)
    np.testing.assert_allclose(s.loss, alone.loss, rtol=1e-10)


@pytest.mark.parametrize("size", [1.0, 1e5, 3e5])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("scales", [None, np.array([0.3])])
def test_an_input_that_spreads_too_little_proves_nothing_wrong(size, spread, scales):
    """Left out, it made other codes than the best OPTIMAL."""
    rng = np.random.default_rng(0)
    small, large = spread * rng.normal(size=400), size * rng.normal(size=400)
    target = 0.3 * (large - size * small / 10)
    p = hs.Problem.from_arrays(
        np.stack([2e7 + small, large]), target=target[:, None], intercept=True, fixed_scales=scales
    )
    try:
        s = hs.solve(p, "exact")
    except ValueError as error:
        assert "input 0 has a mean of 2e+07 and spreads so little" in str(error)
        return
    losses = []
    for bits in itertools.product((-1, 1), repeat=2):
        out = bits @ (np.stack([small, large]) - [[small.mean()], [large.mean()]])
        scale = out @ target / (out @ out) if scales is None else scales[0]
        losses.append(np.square(target - target.mean() - scale * out).sum())
    assert s.lower_bound[0] <= min(losses) * (1 + 1e-12)
    if s.optimal[0]:
        assert s.loss[0] == pytest.approx(min(losses), rel=1e-8)


@pytest.mark.parametrize("constant", [1.0, 6.0, 1 / 3])
@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-8, 1e-7])
def test_nearly_constant_inputs_that_matter_little_are_left_out(constant, spread, rng):
    """Such as channels that saturate; of single precision, too, where they are constant."""
    x, w = rng.normal(size=(6, 5000)), rng.normal(size=(6, 3))
    w[2] *= 10 if spread else 1
    x[2] = constant + spread * rng.normal(size=5000)
    exact = x - x.mean(axis=1, keepdims=True)
    for precision in ("double",) if spread else ("double", "single"):
        p = hs.Problem.from_arrays(x, w, intercept=True, precision=precision)
        s = hs.solve(p, "exact")
        errors = exact.T @ (w - s.codes * s.scales)
        rtol = 1e-5 if precision == "single" else 1e-6
        np.testing.assert_allclose(s.loss, np.square(errors).sum(axis=0), rtol=rtol)
