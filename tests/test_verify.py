"""verify: passes what is right, and finds and names each planted defect."""

from __future__ import annotations

import json

import numpy as np
import pytest
from columns import Column, rational_loss
from hypothesis import assume, given
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve.certificate import LEVELS
from hashsolve.instance import signs
from hashsolve.methods import METHODS
from hashsolve.reference import best_scales, brute_force, loss
from hashsolve.testing.strategies import cases, problems


@pytest.fixture
def solved(rng):
    """A problem with nothing special about it, and its solution."""
    p = hs.Problem.from_arrays(rng.normal(size=(12, 60)), rng.normal(size=(12, 4)))
    return p, hs.solve(p)


@pytest.mark.parametrize("method", sorted(METHODS))
@given(problems())
def test_what_methods_promise_is_certified(method, p):
    s = hs.solve(p, method)
    promise = METHODS[method].promise
    c = hs.verify(p, s.codes, s.scales, require=promise, claimed_loss=s.loss)
    assert c.ok, str(c)
    assert all(LEVELS.index(level) >= LEVELS.index(promise) for level in c.level)


@given(cases(sizes=(1, 8)))
def test_the_bound_holds_and_brute_force_passes_every_level(case):
    p = case.problem
    best = brute_force(p)
    s = hs.solve(p)
    c = hs.verify(p, s.codes, s.scales)
    assert (np.array(c.lower_bound) <= best + 1e-9 * p.energy).all()
    for t in np.flatnonzero(c.optimal):
        assert c.loss[t] <= best[t] + 2e-9 * p.energy[t]


# planted defects


def test_wrong_scale(solved):
    p, s = solved
    scales = s.scales.copy()
    scales[2] *= 1.01
    for require in ("dcc", "one_flip"):
        (why,) = hs.verify(p, s.codes, scales, require=require).violations
        assert f"column 2: scale {scales[2]:.6g} is not the best, which is {s.scales[2]:.6g}" in why
    assert hs.verify(p, s.codes, scales, require="valid").ok


@pytest.mark.parametrize("column", [0, 3])
@pytest.mark.parametrize("bit", [0, 5, 11])
def test_flipped_bit(solved, bit, column):
    p, s = solved
    codes = s.codes.copy()
    codes[bit, column] *= -1
    (why,) = hs.verify(p, codes, s.scales).violations
    assert why.startswith(f"column {column}: ")
    (why,) = hs.verify(p, codes, best_scales(p, codes)).violations
    assert why.startswith(f"column {column}: flipping bit ")
    (why,) = hs.verify(p, codes, s.scales, require="valid", claimed_loss=s.loss).violations
    assert why.startswith(f"column {column}: ") and "claims loss" in why


@given(cases(sizes=(2, 10), kinds=("gaussian", "relu", "asymmetric")), st.data())
def test_any_flip_that_helps_is_found(case, data):
    """From codes of anyone: a violation if, and only if, some flip lowers the loss."""
    p = case.problem
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    codes = rng.choice(np.array([-1, 1], np.int8), size=(p.inputs, p.columns))
    codes *= np.where((p.cross * codes).sum(axis=0) < 0, -1, 1).astype(np.int8)
    scales = best_scales(p, codes)
    now = loss(p, codes, scales)
    gains = []
    for j in range(p.inputs):
        flipped = codes.copy()
        flipped[j] *= -1
        gains.append(now - loss(p, flipped, best_scales(p, flipped)))
    best = np.max(gains, axis=0) / np.maximum(p.energy, 1e-300)
    assume((np.abs(best - 1e-9) > 1e-10).all())  # neither side of the tolerance by a hair
    c = hs.verify(p, codes, scales)
    assert [level in ("one_flip", "optimal") for level in c.level] == (best < 1e-9).tolist()
    assert c.ok == (best < 1e-9).all()


def test_dcc_fixpoint_that_a_joint_change_improves():
    """The levels differ: such fixpoints pass "dcc" and fail "one_flip"."""
    seen = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        p = hs.Problem.from_arrays(rng.normal(size=(20, 30)), rng.normal(size=(20, 8)))
        s = hs.solve(p, "dcc")
        assert hs.verify(p, s.codes, s.scales, require="dcc").ok
        c = hs.verify(p, s.codes, s.scales)
        assert c.ok == (c.level.count("dcc") == 0)
        for why in c.violations:
            assert "and setting the scale anew lowers the loss" in why
        seen += len(c.violations)
    assert seen > 0


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda b, a: (np.where(b == b[3, 1], b, 0), a), "are not -1 or +1"),
        (lambda b, a: (b * 2, a), "column 0: code 0 is"),
        (lambda b, a: (np.where(np.arange(12)[:, None] == 3, np.nan, b), a), "code 3 is nan"),
        (lambda b, a: (b, a * np.nan), "column 0: scale nan is not a finite number >= 0"),
        (lambda b, a: (b, np.where(np.arange(4) == 2, np.inf, a)), "column 2: scale inf"),
        (lambda b, a: (-b, -a), "column 0: scale -"),
        (lambda b, a: (b.T, a), "codes: must have shape (S, T) = (12, 4), got (4, 12)"),
        (lambda b, a: (b, a[:3]), "scales: must have shape (T,) = (4,), got (3,)"),
        (lambda b, a: (b.astype(object), a), "codes: dtype object"),
        (lambda b, a: (b, a + 0j), "scales: dtype complex128"),
        (lambda b, a: (b[:0], a), "codes: empty"),
    ],
)
def test_unusable_solutions_are_violations(solved, plant, message):
    p, s = solved
    for require in LEVELS:
        c = hs.verify(p, *plant(s.codes, s.scales), require=require)
        assert not c.ok
        assert message in c.violations[0]
        assert "FAILED" in str(c)
        json.dumps(c.to_dict(), allow_nan=False)


def test_the_first_zero_is_counted(solved):
    p, s = solved
    codes = s.codes.copy()
    codes[3, 1] = codes[7, 2] = 0
    assert hs.verify(p, codes, s.scales).violations == [
        "column 1: code 3 is 0; 2 entries are not -1 or +1"
    ]


@pytest.mark.parametrize("factor", [0.999, 1.001, -1, np.nan])
def test_wrong_claimed_loss(solved, factor):
    p, s = solved
    claimed = s.loss.copy()
    claimed[1] *= factor
    c = hs.verify(p, s.codes, s.scales, claimed_loss=claimed)
    assert not c.ok
    assert all(why.startswith("column 1: ") for why in c.violations)
    assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss * (1 + 1e-12)).ok


@pytest.mark.parametrize("seed", [6, 8, 25, 27])
def test_the_loss_that_solve_reports_is_right_where_means_are_large(seed):
    """The energy is what is left of terms that are 10¹² times as large."""
    rng = np.random.default_rng(seed)
    x = 1000 + rng.normal(size=(28, 2000)) * 10.0 ** -rng.integers(0, 4)
    w = rng.normal(size=(28, 3))
    p = hs.Problem.from_arrays(x.astype(np.float32), w - w.mean(axis=0))
    s = hs.solve(p, "one_flip")
    for t in range(3):
        column = Column(p.gram, p.cross[:, t], p.energy[t], True)
        own = rational_loss(column, s.codes[:, t], s.scales[t])
        assert abs(s.loss[t] - float(own)) <= 1e-11 * p.energy[t]
    assert hs.verify(p, s.codes, s.scales, require="valid", claimed_loss=s.loss).ok


def test_claimed_loss_of_another_shape(solved):
    p, s = solved
    c = hs.verify(p, s.codes, s.scales, claimed_loss=s.loss[:2])
    assert not c.ok and "claimed" in c.violations[0]


def test_fixed_scales_may_not_be_changed():
    p = hs.Problem.from_quadratic([[1, 2], [2, 1]], [1, 0])
    s = hs.solve(p)
    assert hs.verify(p, s.codes, s.scales).ok
    assert "column 0: scale 0.5 differs from the fixed 1" in str(hs.verify(p, s.codes, [0.5]))


def test_inconsistent_sums_are_found():
    """Energies too small for the cross sums: a loss below zero, which no arrays can have."""
    p = hs.Problem(np.eye(2), [[2.0], [2.0]], [1.0])
    for require in ("one_flip", "optimal"):
        c = hs.verify(p, [[1], [1]], [2.0], require=require, claimed_bound=[0.5])
        assert not c.ok and "energies are too small" in str(c)
        assert c.optimal == [False] and "0 of 1 columns proven" in str(c)


def test_codes_below_zero_that_verify_itself_finds_are_a_violation():
    p = hs.Problem(np.eye(4), np.ones((4, 1)), [3.0])
    codes = [[1], [1], [1], [-1]]
    assert hs.verify(p, codes, [0.5], require="valid").ok
    c = hs.verify(p, codes, [0.5], require="valid", claimed_bound=[1.5])
    assert not c.ok and "codes that lose -1 exist" in str(c)


def test_rounding_of_the_sums_is_no_violation_and_no_proof(rng):
    x = rng.normal(size=(10, 200))
    y = x.T @ np.sign(rng.normal(size=(10, 2)))
    p = hs.Problem(x @ x.T, x @ y, (y * y).sum(axis=0) * (1 - 1e-6))
    s = hs.solve(p)
    claims = {"claimed_loss": s.loss, "claimed_bound": s.lower_bound}
    assert (s.loss < 0).all()
    c = hs.verify(p, s.codes, s.scales, **claims)
    assert c.ok and c.optimal == [False, False]
    assert not hs.verify(p, s.codes, s.scales, require="optimal").ok


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e7])
def test_codes_that_cancel_at_a_large_scale_are_no_solution(rng, scale):
    inputs = np.repeat(rng.standard_normal((1, 50)), 2, axis=0)
    p = hs.Problem.from_arrays(inputs, np.ones((2, 1)))
    found = hs.verify(p, [[1], [-1]], [scale], require="two_flip")
    assert not found.ok and found.level in (["valid"], ["dcc"])
    claims = {"claimed_loss": p.energy - 1.0, "claimed_bound": 0.9 * p.energy}
    found = hs.verify(p, [[1], [-1]], [scale], require="valid", **claims)
    loss, bound = found.violations
    assert "claims loss" in loss and "claims that nothing loses less" in bound


def test_energies_that_are_nearly_all_mean_are_no_violation():
    failed = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        inputs = rng.standard_normal((6, 40)) + 1e6
        inputs[1], inputs[3] = inputs[0] * (1 + 3e-9), inputs[2]
        target = (inputs[0] - inputs[1])[:, None]
        p = hs.Problem.from_arrays(inputs, target=target, intercept=True, bases=2)
        s = hs.solve(p, "dcc")
        claims = {"claimed_loss": s.loss, "claimed_bound": s.lower_bound}
        failed += hs.verify(p, s.codes, s.scales, require="valid", **claims).violations
    assert not failed


def test_a_column_without_energy_is_no_error():
    p = hs.Problem(gram=[[1, 1], [1, 1 + 2e-14]], cross=[[1, 0], [1, 0]], energy=[1, 0])
    found = hs.verify(p, [[1, 1], [1, -1]], [0.5, 1.0], require="optimal")
    assert len(found.violations) == 1 and found.violations[0].startswith("column 1: ")
    found = hs.verify(p, [[1, 1], [1, 1]], [0.5, 0.0], claimed_bound=[0.0, 1.0])
    assert found.violations == [
        "column 1: claims that nothing loses less than 1, but codes that lose 0 exist"
    ]


def test_unknown_level(solved):
    p, s = solved
    with pytest.raises(ValueError, match=r"require: 'oneflip' is not one of .*'one_flip'"):
        hs.verify(p, s.codes, s.scales, require="oneflip")


def test_certificate_reads_well(solved):
    p, s = solved
    text = str(hs.verify(p, s.codes, s.scales))
    assert text.startswith("Certificate: PASSED at level 'one_flip'\n  4 columns of 12 codes")
    assert "columns by level: 0 valid, 0 dcc, 4 one_flip" in text
    many = hs.verify(
        hs.Problem.from_arrays(np.eye(12), np.ones((12, 30))), np.ones((12, 30)), 30 * [2]
    )
    assert str(many).endswith("… and 20 more")
    assert json.loads(json.dumps(many.to_dict()))["ok"] is False


@given(cases())
def test_sign_is_valid_and_no_more_is_claimed(case):
    p = case.problem
    c = hs.verify(p, signs(case.weights), np.abs(case.weights).mean(axis=0), require="valid")
    assert c.ok and len(c.level) == p.columns


def test_bounds_that_are_not_true_are_refuted(rng):
    p = hs.Problem.from_arrays(rng.normal(size=(20, 60)), rng.normal(size=(20, 4)))
    d, best = hs.solve(p, "dcc"), hs.solve(p, "exact")
    assert (best.loss < d.loss * (1 - 1e-6)).any()
    lie = hs.verify(p, d.codes, d.scales, require="dcc", claimed_bound=d.loss)
    assert any("claims that nothing loses less than" in why for why in lie.violations)
    true = hs.verify(p, best.codes, best.scales, claimed_bound=best.lower_bound)
    assert true.ok and len(true.unconfirmed) <= 4
    assert true.unconfirmed and "claim higher bounds than are proven here" in str(true)
    proven = hs.verify(
        p, best.codes, best.scales, require="optimal", claimed_bound=best.lower_bound
    )
    assert proven.ok and not proven.unconfirmed
    above = hs.verify(p, best.codes, best.scales, claimed_bound=1.1 * best.loss)
    assert len(above.violations) == 4
    (why,) = hs.verify(p, best.codes, best.scales, claimed_bound=[1.0]).violations
    assert why == "claimed bound: must have shape (4,), got (1,)"


def test_intercepts_are_checked(rng):
    x, w = rng.normal(size=(6, 80)) + 1, rng.normal(size=(6, 3))
    p = hs.Problem.from_arrays(x, w, intercept=True)
    s = hs.solve(p)
    assert hs.verify(p, s.codes, s.scales, intercept=s.intercept).ok
    found = hs.verify(p, s.codes, s.scales, intercept=s.intercept + np.eye(3)[1] * 5).violations
    assert len(found) == 1 and "column 1: intercept" in found[0]
    plain = hs.Problem.from_arrays(x, w)
    s = hs.solve(plain)
    (why,) = hs.verify(plain, s.codes, s.scales, intercept=np.zeros(3)).violations
    assert why == "intercept: the problem asks for none"


@pytest.mark.parametrize("mean", [0.0, 1e4, 1e5])
def test_intercepts_are_judged_by_the_spread_of_targets(rng, mean):
    x = rng.normal(size=(10, 200))
    p = hs.Problem.from_arrays(x, target=x.T @ rng.normal(size=(10, 1)) + mean, intercept=True)
    s = hs.solve(p)
    assert hs.verify(p, s.codes, s.scales, intercept=s.intercept).ok
    (why,) = hs.verify(p, s.codes, s.scales, intercept=s.intercept + 0.3).violations
    assert why.startswith("column 0: intercept")


@pytest.mark.parametrize("require", LEVELS)
@pytest.mark.parametrize("size", [1e154, 1e200, 1e300])
def test_a_loss_out_of_range_is_a_violation(rng, require, size):
    x, w = rng.normal(size=(8, 50)), rng.normal(size=(8, 3))
    for variant in ({}, {"intercept": True}, {"scale_group": 4}):
        p = hs.Problem.from_arrays(x, w, **variant)
        scales = np.full((2, 3) if "scale_group" in variant else 3, 0.1)
        scales[..., 1] = size
        found = hs.verify(p, np.ones((8, 3)), scales, require=require, claimed_loss=[0.0] * 3)
        assert not found.ok and not any(found.optimal)
        assert found.violations == ["column 1: its scales give a loss beyond the range of float64"]


def test_solutions_near_the_end_of_the_range_pass():
    """Their rounding, of the sums without signs, was beyond it."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x, w = rng.normal(size=(8, 50)) + 100, 1e150 * rng.normal(size=(8, 2))
        p = hs.Problem.from_arrays(x, w, bases=2)
        s = hs.solve(p)
        assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss).ok


@pytest.mark.parametrize("claim", ["claimed_loss", "claimed_bound", "intercept"])
@pytest.mark.parametrize("value", [["a", "b", "c"], [1j, 0, 0]])
def test_claims_that_are_no_numbers(rng, claim, value):
    p = hs.Problem.from_arrays(rng.normal(size=(6, 40)), rng.normal(size=(6, 3)), intercept=True)
    s = hs.solve(p)
    (why,) = hs.verify(p, s.codes, s.scales, **{claim: value}).violations
    assert why.startswith(claim.replace("_", " ") + ": dtype")


@pytest.mark.parametrize("mean", [1e5, 1e6])
def test_what_rounding_excuses_is_about_what_it_does(rng, mean):
    """Beside energies that are nearly all mean; 100 times less than it excused once."""
    x = rng.normal(size=(8, 400))
    p = hs.Problem.from_arrays(x, target=x.T @ rng.normal(size=(8, 1)) + mean, intercept=True)
    s = hs.solve(p)
    assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss).ok
    assert not hs.verify(p, s.codes, s.scales, claimed_loss=s.loss - 0.005 * s.energy).ok
    assert not hs.verify(p, s.codes, s.scales * 1.05).ok


def test_rounding_at_a_fixed_scale_is_no_violation():
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=(10, 1))
        p = hs.Problem.from_arrays(x, target=np.zeros((1, 1)), fixed_scales=1.0)
        s = hs.solve(p)
        assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss).ok


def test_what_is_no_problem_is_told():
    with pytest.raises(ValueError, match=r"problem: expected a hashsolve\.Problem, got a NoneType"):
        hs.verify(None, np.ones((2, 1)), [1.0])
    with pytest.raises(ValueError, match=r"method: \['dcc'\] is not one of"):
        hs.solve(hs.Problem(np.eye(2), np.ones((2, 1)), [2.0]), ["dcc"])


@pytest.mark.parametrize("seed", [0, 13])
def test_optimal_where_terms_are_far_larger_than_the_loss(seed):
    rng = np.random.default_rng(seed)
    p = hs.Problem.from_arrays(rng.normal(size=(6, 20)) + 1e6, target=rng.normal(size=(20, 2)))
    s = hs.solve(p, "exact")
    assert s.status is hs.Status.OPTIMAL
    assert hs.verify(p, s.codes, s.scales, require="optimal", claimed_loss=s.loss).ok


def test_a_solution_stands_for_its_codes_scales_and_intercept(rng):
    x, w = rng.normal(size=(6, 40)) + 1, rng.normal(size=(6, 3))
    for fields in ({}, {"intercept": True}, {"bases": 2}, {"scale_group": 2}):
        p = hs.Problem.from_arrays(x, w, **fields)
        s = hs.solve(p)
        assert hs.verify(p, s) == hs.verify(p, s.codes, s.scales, intercept=s.intercept)
        assert hs.verify(p, s).ok and hs.verify(p, s, s.scales).ok
        if s.intercept is not None:
            assert not hs.verify(p, s, intercept=s.intercept + 1).ok
    with pytest.raises(ValueError, match="scales: give them beside the codes, or a Solution"):
        hs.verify(p, s.codes)
