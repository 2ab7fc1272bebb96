"""Exact search: equal to enumeration, the same for any threads, and taken up where it stopped."""

from __future__ import annotations

import importlib
import json
from fractions import Fraction

import h5py
import numpy as np
import pytest
from columns import KINDS, losses, make_column
from data import shared_data
from hypothesis import given
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve import branch
from hashsolve.bounds import start_diagonals
from hashsolve.checkpoint import Checkpoint
from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.kernels.gray import gray
from hashsolve.methods import METHODS
from hashsolve.methods.improve import improve
from hashsolve.reference import all_codes, brute_force
from hashsolve.testing.strategies import make_case, problems, quadratics

exact_method = importlib.import_module("hashsolve.methods.exact")  # not its function
SEEDS = st.integers(0, 2**32 - 1)


def unit(problem, loss):
    """What a proof is relative to."""
    return np.maximum(problem.energy, np.abs(loss))


def rounding(problem):
    """What sums of this size may be off by."""
    scales = 0 if problem.free_scale else problem.fixed_scales
    size = scales * np.abs(problem.cross).sum(axis=0) + scales**2 * np.abs(problem.gram).sum()
    return 1e-9 * problem.energy + 1e-13 * size


@pytest.fixture
def branching(monkeypatch):
    """No enumeration, no heuristics' help, and trees split early."""
    monkeypatch.setattr(exact_method, "ENUMERATED", 0)
    monkeypatch.setattr(branch, "PROBE_NODES", 3)
    monkeypatch.setattr(branch, "SPLIT_NODES", 8)
    monkeypatch.setattr(branch, "WIDTH", 20)
    monkeypatch.setattr(branch, "SUBPROBLEM_NODES", 0)


def search(column, threads=1, budget=10**9, callback=None, state=None):
    """Search a column from all ones."""
    gram, cross, energy, free = column
    if state is None:
        ones = np.ones(len(cross), dtype=np.int8)
        start = start_diagonals(column.instance)[0]
        state = branch.start_search(gram, cross, energy, ones, start, free)
    return branch.search_column(gram, cross, energy, state, free, budget, threads, callback)


# the optimum


@given(problems(sizes=(1, 12)))
def test_equals_brute_force(p):
    s = hs.solve(p, "exact")
    best = brute_force(p)
    assert (np.abs(s.loss - best) <= 1e-7 * unit(p, best) + rounding(p)).all()
    assert (s.lower_bound <= best + rounding(p)).all()
    assert s.bound_name in ("enumeration", "separable")


@given(st.sampled_from(KINDS), st.integers(1, 10), SEEDS)
def test_branch_and_bound_equals_brute_force(kind, size, seed):
    """The search itself, without enumeration or heuristics."""
    column = make_column(kind, size, seed)
    found = search(column)
    best = losses(column, all_codes(size).T).min()
    if not np.isfinite(found.squared_scale):  # no diagonal of sum zero: nothing is claimed
        assert kind not in ("full", "asymmetric") and found.lower_bound() == -np.inf
        return
    assert not len(found.open_bound)
    assert abs(found.loss - best) <= 1e-8 * column.size
    assert found.lower_bound() <= best + 1e-12 * column.size
    reached = branch.column_loss(*column[:3], found.codes, column.free)
    assert found.loss == reached


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "zero cross"])
@pytest.mark.parametrize("size", (10, 14))
def test_branch_and_bound_equals_enumeration(kind, size, branching):
    column = make_column(kind, size, size)
    codes = np.ones(size, dtype=np.int8)
    steps = 2 ** (size - 1 if column.free else size)
    best, _, _ = gray(*column, 0, steps, np.inf, np.inf, codes)
    found = search(column, threads=2)
    assert not len(found.open_bound)
    assert abs(found.loss - best) <= 1e-8 * column.size
    if kind in ("full", "asymmetric", "indefinite"):
        same = found.codes == codes
        assert same.all() or (column.free and not same.any())


@pytest.mark.parametrize("kind", ["full", "asymmetric", "singular", "duplicated", "scale one"])
@pytest.mark.parametrize("method", ["exact", "auto"])
def test_solve_beyond_enumeration(kind, method):
    column = make_column(kind, 20, 5)
    scale = {} if column.free else {"fixed_scales": [1.0]}
    p = hs.Problem(column.gram, column.cross[:, None], [column.energy], **scale)
    s = hs.solve(p, method)
    assert s.status is hs.Status.OPTIMAL and s.optimal.all()
    assert s.loss == pytest.approx(float(brute_force(p)[0]), abs=1e-9 * column.size)
    assert hs.verify(p, s.codes, s.scales, require="one_flip", claimed_loss=s.loss).ok


@given(quadratics(sizes=(1, 10)))
def test_indefinite(p):
    s = hs.solve(p, "exact")
    np.testing.assert_allclose(s.loss, brute_force(p), rtol=1e-9, atol=1e-9)
    assert s.optimal.all()


def test_nothing_to_decide():
    """Programmes on which a branch and bound has everything tied, and never ends by itself."""
    p = hs.Problem.from_quadratic(1 - np.eye(30))
    s = hs.solve(p, "exact", "fast")
    assert s.loss.tolist() == [-30.0] and s.lower_bound[0] <= -30
    assert s.status in (hs.Status.OPTIMAL, hs.Status.NODE_LIMIT)


# codes that all but cancel


def cancelling():
    """Two inputs that differ by little, and a target that is their difference: exact integers."""
    rng = np.random.default_rng(0)
    x = rng.integers(-(5 * 10**6), 5 * 10**6, size=50)
    inputs = np.stack([x, x + rng.integers(-2, 3, size=50)]).astype(float)
    return hs.Problem.from_arrays(inputs, target=(inputs.T @ [-1.0, 1.0])[:, None])


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("init", [None, [[1], [1]], [[-1], [1]]])
def test_no_bound_is_above_codes_that_cancel(method, init):
    """(−1, +1) has loss 0 although bᵀHb is 1e-13 of the trace."""
    p = cancelling()
    s = hs.solve(p, method, init=init)
    assert s.lower_bound[0] <= 1e-9 * p.energy[0]
    assert not s.optimal[0] or s.loss[0] <= 1e-9 * p.energy[0]


@pytest.mark.parametrize("copies", [1, 12])
def test_no_bound_is_above_codes_that_cancel_to_the_last_digit(copies):
    small = 2.0**-51
    gram = np.kron(np.eye(copies), [[1, 1 - small], [1 - small, 1]])
    b = np.tile([[-1.0], [1.0]], (copies, 1))
    energy = (b.T @ gram @ b).ravel() * 2.0**50
    p = hs.Problem(gram, gram @ b * 2.0**25, energy)
    for method in METHODS:
        s = hs.solve(p, method, init=b)
        assert s.lower_bound[0] <= 1e-9 * energy[0], method


@pytest.mark.parametrize("seed", [3, 461, 784, 1009])
def test_all_methods_pass_over_the_same_codes(seed):
    """Where bᵀHb is about 1e-12 of the trace: none may take what the others pass over."""
    rng = np.random.default_rng(seed)
    size, rows, noise = rng.integers(2, 13), rng.integers(3, 20), 10.0 ** rng.uniform(-7, -5)
    x = np.repeat(rng.normal(size=(1, rows)), size, 0) * rng.choice([-1, 1], size=(size, 1))
    x = x + noise * rng.normal(size=(size, rows))
    if rng.random() < 0.5:
        x = rng.normal(size=(size, rows))
        x -= x.mean(0) * (1 - noise)
    p = hs.Problem.from_arrays(x, target=rng.normal(size=(rows, 1)))
    loss = {method: hs.solve(p, method).loss[0] for method in METHODS if method != "sign"}
    for best in ("exact", "auto"):
        assert loss[best] <= min(loss.values()) + 1e-9 * p.energy[0], loss
    for t in range(20):
        b = rng.choice([-1, 1], size=(size, 1))
        shared = p.best_scales(b), hs.reference.best_scales(p, b)
        assert (b[:, 0] @ p.gram @ b[:, 0] > 1e-12 * np.trace(p.gram)) or not any(shared), t


@pytest.mark.parametrize("size", [16, 20])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_count_codes_that_are_passed_over(size, seed):
    """One code has bᵀHb of 6e-13 of the trace and the least loss: none takes it, none is proven."""
    rng = np.random.default_rng(seed)
    one = rng.choice([-1.0, 1.0], size)
    aside = np.eye(size) - np.outer(one, one) / size
    mix = rng.normal(size=(size, 3 * size)) / np.sqrt(3 * size)
    gram = aside @ (mix @ mix.T) @ aside
    gram = (gram + gram.T) / 2 + 3e-14 * size / 20 * np.outer(one, one)
    w = aside @ (rng.choice([-1, 1], size) * rng.uniform(0.5, 1.5, size)) * 0.2
    q, cross, energy = one @ gram @ one, gram @ w, 2.2 * float(w @ gram @ w)
    cross = cross - one * (cross @ one) / size + one * np.sqrt(0.98 * energy / 2.2 * q) / size
    assert q <= 1e-12 * np.trace(gram)
    p = hs.Problem(gram, cross[:, None], [energy])
    least = energy - (cross @ one) ** 2 / q
    s = hs.solve(p, "exact", "fast")
    assert s.lower_bound[0] <= least * (1 + 1e-3) < s.loss[0]
    assert s.status is not hs.Status.OPTIMAL and not s.optimal[0]
    assert s.loss <= hs.solve(p, "auto", "fast").loss + 1e-9 * energy


def alike():
    """24 equal inputs: nothing limits the scale, and almost all codes are to be summed again."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(1, 30)), 24, axis=0)
    return hs.Problem.from_arrays(x, target=rng.normal(size=(30, 2)))


def test_enumeration_stops_where_time_is_up():
    p = alike()
    s = hs.solve(p, "exact", "fast", time_limit=1, threads=1)
    assert s.status is hs.Status.TIME_LIMIT and (s.lower_bound == 0).all()
    assert (s.loss <= hs.solve(p, "dcc").loss + 1e-9 * p.energy).all()


def test_an_attempt_gives_up_what_is_to_be_summed_again():
    instance = Instance.of(alike())
    codes = np.ones(24, dtype=np.int8)
    with Control() as control:
        loss, bound = exact_method.enumerated(instance, 0, codes, control, work=1e6)
    assert bound == -np.inf and np.isfinite(loss)
    assert hs.solve(alike(), "auto", "fast").status is hs.Status.FIXPOINT


@pytest.mark.parametrize("noise", [1e-3, 1e-4, 1e-5, 1e-6])
def test_optimal_is_never_said_of_less(noise):
    """Status and proof agree, and the bound is below the loss, however ill-conditioned H is."""
    rng = np.random.default_rng(1)
    x = np.repeat(rng.normal(size=(10, 60)), 2, axis=0) + noise * rng.normal(size=(20, 60))
    b = np.tile([1.0, -1.0], 10)[:, None] / noise
    s = hs.solve(hs.Problem.from_arrays(x, target=x.T @ b + 0.001 * rng.normal(size=(60, 1))))
    assert (s.lower_bound <= s.loss).all()
    assert s.status is not hs.Status.OPTIMAL or s.optimal.all()


@pytest.mark.parametrize("method", ["exact", "auto", "dcc"])
@pytest.mark.parametrize("size, unit, large, seed", [(20, 2**15, 10**11, 5), (12, 2**8, 10**13, 7)])
def test_terms_far_larger_than_the_loss(size, unit, large, seed, method):
    """A fixed scale, all entries exact: losses are right to the last digit, bounds below them."""
    rng = np.random.default_rng(seed)
    half = np.rint(rng.normal(size=(size, size)) * unit).astype(np.int64)
    quadratic = half + half.T + large * unit
    linear = np.rint(rng.normal(size=size) * unit).astype(np.int64)
    p = hs.Problem.from_quadratic(quadratic / unit, linear / unit)
    assert (p.gram * unit == quadratic).all()
    codes = all_codes(size).T.astype(np.int64)
    least = min(
        int((((part @ quadratic) * part).sum(1) - 2 * (part @ linear)).min())
        for part in np.array_split(codes, max(1, len(codes) // 2**14))
    )
    s = hs.solve(p, method, "fast")
    b = s.codes[:, 0].astype(np.int64)
    own = int(b @ quadratic @ b - 2 * (b @ linear))
    assert s.lower_bound[0] <= least / unit
    assert method == "dcc" or s.loss[0] == own / unit == least / unit
    assert not s.optimal[0] or own == least


def fixed_losses(p):
    """The loss of every code at the fixed scale of column 0, in fractions; codes and losses."""
    whole = np.vectorize(Fraction, otypes=[object])
    codes = all_codes(p.inputs)
    b, scale = codes.astype(object), Fraction(float(p.fixed_scales[0]))
    pull = whole(p.cross[:, 0]) @ b
    square = (b * (whole(p.gram) @ b)).sum(axis=0)
    return codes, Fraction(float(p.energy[0])) - 2 * scale * pull + scale**2 * square


def check_fixed(p, s):
    """Bound, loss and proof, against fractions."""
    codes, loss = fixed_losses(p)
    least = loss.min()
    own = loss[(codes == s.codes).all(axis=0)][0]
    scale, gram = p.fixed_scales[0], np.abs(p.gram).sum()
    size = p.energy[0] + scale**2 * gram + 2 * scale * np.abs(p.cross).sum()
    rounding = 1e-15 * abs(own) + 1e-30 * size
    assert s.lower_bound[0] <= least + rounding
    assert not s.optimal[0] or own - least <= 1e-9 * max(p.energy[0], abs(own)) + rounding
    assert s.status is (hs.Status.OPTIMAL if s.optimal[0] else hs.Status.DONE)
    assert abs(s.loss[0] - own) <= rounding
    claims = {"claimed_loss": s.loss, "claimed_bound": s.lower_bound}
    why = hs.verify(p, s.codes, s.scales, require="optimal", **claims).violations
    assert s.optimal[0] or not why or "not proven optimal" in why[0]


@pytest.mark.parametrize("method", ["exact", "auto"])
@pytest.mark.parametrize(
    ("large", "seed"),
    [(1e6, 0), (1e10, 0), (1e13, 0), (3e16, 35), (3e16, 44), (1e17, 0), (1e17, 39)],
)
def test_scales_that_are_no_power_of_two_round(seed, large, method):
    """Terms cancel, so that what dividing by the scale loses is as large as the loss."""
    rng = np.random.default_rng(seed)
    v = rng.integers(1, 4, 6).astype(float)
    scale = float(rng.uniform(0.1, 0.9))
    a = rng.normal(size=(6, 6))
    cross = large * scale * v + rng.normal(size=6)
    p = hs.Problem(large * np.outer(v, v) + a @ a.T, cross, [0.0], fixed_scales=scale)
    s = hs.solve(p, method)
    check_fixed(p, s)
    assert large > 1e6 or s.optimal[0]


@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("live", [0, 4])
@pytest.mark.parametrize("seed", range(5))
def test_what_inputs_that_have_left_pull_rounds(seed, live, scale):
    rng = np.random.default_rng(seed)
    gram = np.zeros((9, 9))
    a = rng.normal(size=(live, live))
    gram[:live, :live] = a @ a.T
    cross = rng.normal(size=9)
    cross[live:] += 1e15 * rng.uniform(1, 2, 9 - live)
    energy = 2 * scale * cross[live:].sum()
    p = hs.Problem(gram, cross, [energy], fixed_scales=scale)
    check_fixed(p, hs.solve(p, "exact"))


@pytest.mark.parametrize("seed", [26, 31, 37])
def test_rounding_counts_where_nothing_is_left_to_search(seed, branching, monkeypatch):
    """Every code fixed in turn, as where no diagonal can be proven, of inputs that all but
    cancel."""
    monkeypatch.setattr(branch, "_plant", lambda *_: None)
    rng = np.random.default_rng(seed)
    size = int(rng.choice([3, 4, 5]))
    x = rng.normal(size=(size, size + 2))
    x -= x.mean(0)
    x += 10.0 ** rng.uniform(-6, -4.5) * rng.normal(size=x.shape)
    total = x.sum(0)
    target = total / np.linalg.norm(total) + 0.5 * rng.normal(size=size + 2)
    p = hs.Problem.from_arrays(x, target=target[:, None])
    gram = [[Fraction(v) for v in row] for row in p.gram.tolist()]
    least = np.inf
    for b in all_codes(size).T.tolist():
        q = sum(b[i] * b[j] * gram[i][j] for i in range(size) for j in range(size))
        pull = sum(b[i] * Fraction(float(p.cross[i, 0])) for i in range(size))
        least = min(least, float(Fraction(float(p.energy[0])) - pull**2 / q))
    s = hs.solve(p, "exact", "fast")
    assert s.bound_name == "branch and bound"
    assert s.lower_bound[0] <= least + 1e-9 * p.energy[0]


# threads, budgets


@pytest.mark.parametrize("kind", ["full", "asymmetric", "indefinite", "scale one"])
def test_threads_change_nothing(kind, branching):
    column = make_column(kind, 15, 3)
    one = search(column)
    assert one.subproblems > branch.ROUND
    for threads in (2, 3):
        other = search(column, threads)
        np.testing.assert_array_equal(other.codes, one.codes)
        assert (other.loss, other.nodes, other.subproblems) == (
            one.loss,
            one.nodes,
            one.subproblems,
        )


def test_threads_change_no_solution(branching):
    p = make_case("asymmetric", 3, size=24, columns=3, rows=72).problem
    found = [hs.solve(p, "exact", "fast", threads=threads) for threads in (1, 2, 3)]
    for s in found:
        np.testing.assert_array_equal(s.codes, found[0].codes)
        np.testing.assert_array_equal(s.lower_bound, found[0].lower_bound)
        assert s.status is hs.Status.OPTIMAL


@pytest.mark.parametrize("kind", ["full", "asymmetric", "indefinite", "scale one"])
def test_stopping_after_every_round(kind, branching):
    """The bound holds at every stop, the incumbent only falls, and the answer is the same."""
    column = make_column(kind, 14, 4)
    whole, state, rounds = search(column), None, 0
    best = losses(column, all_codes(14).T).min()
    while state is None or len(state.open_bound):
        previous = np.inf if state is None else state.loss
        state = search(column, callback=lambda _: True, state=state)
        rounds += 1
        assert state.lower_bound() <= best + 1e-10 * column.size
        assert best - 1e-9 * column.size <= state.loss <= previous
    assert rounds > 2
    np.testing.assert_array_equal(state.codes, whole.codes)
    assert (state.loss, state.nodes) == (whole.loss, whole.nodes)


def test_node_limit(branching, monkeypatch):
    p = make_case("asymmetric", 3, size=24, columns=3, rows=72).problem
    proven = hs.solve(p, "exact")
    assert proven.bound_name == "branch and bound"
    monkeypatch.setattr(exact_method, "NODES", (20, 20, 20))
    s = hs.solve(p, "exact")
    assert s.status is hs.Status.NODE_LIMIT and "node budget" in s.message
    assert (s.lower_bound <= proven.loss + 1e-9 * p.energy).all()
    assert (s.loss >= proven.loss - 1e-9 * p.energy).all()
    assert (s.lower_bound > 0.5 * s.loss).all() and not s.optimal.all()
    assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss).ok


def test_subproblems_count_against_the_budget(branching, monkeypatch):
    """A search that only splits ends too."""
    monkeypatch.setattr(branch, "SUBPROBLEM_NODES", 100)
    monkeypatch.setattr(branch, "_plant", lambda *_: None)
    found = search(make_column("asymmetric", 20, 1), budget=10_000)
    assert found.nodes == 0 and 100 <= found.subproblems < 200
    assert len(found.open_bound)


@pytest.mark.parametrize("budget", [60, 10**6])
def test_an_attempt_is_given_up_once_it_is_out_of_reach(branching, budget, monkeypatch):
    """With less work, and bounds as true; what is within reach is proven all the same."""
    problem = make_case("asymmetric", 3, size=24, columns=3, rows=72).problem
    instance, control = Instance.of(problem), Control()
    with control:
        found = improve(instance, instance.start, control)
        found = found._replace(bound=np.zeros_like(found.bound))
        count, outcomes, split = [], [], branch._subproblem
        monkeypatch.setattr(branch, "_subproblem", lambda *a: count.append(1) or split(*a))
        for attempt in (False, True):
            count.clear()
            outcome = exact_method.prove(instance, found, control, budget, attempt)
            outcomes.append((len(count), outcome))
    (whole, proven), (less, tried) = outcomes
    if budget == 60:
        assert less < whole and tried.status is hs.Status.NODE_LIMIT
    else:
        assert less == whole and tried.status is hs.Status.OPTIMAL
        np.testing.assert_array_equal(tried.codes, proven.codes)
    optimum = instance.energy * hs.solve(problem, "exact").loss / problem.energy
    assert (tried.bound <= optimum + 1e-9 * instance.energy).all()


# checkpoints


@pytest.fixture
def long(branching):
    """A problem whose columns take many rounds."""
    return make_case("asymmetric", 3, size=24, columns=3, rows=72).problem


def test_going_on_after_a_node_limit(long, monkeypatch, tmp_path):
    path, whole = tmp_path / "c.h5", hs.solve(long, "exact")
    with monkeypatch.context() as patched:
        patched.setattr(exact_method, "NODES", (20, 20, 20))
        first = hs.solve(long, "exact", checkpoint=path)
    assert first.status is hs.Status.NODE_LIMIT and path.exists()
    second = hs.solve(long, "exact", checkpoint=path)
    assert second.status is hs.Status.OPTIMAL
    np.testing.assert_array_equal(second.codes, whole.codes)
    np.testing.assert_array_equal(second.lower_bound, whole.lower_bound)
    again = hs.solve(long, "exact", checkpoint=path)  # nothing is left to do
    np.testing.assert_array_equal(again.codes, whole.codes)
    np.testing.assert_array_equal(again.lower_bound, whole.lower_bound)


def test_going_on_after_a_time_limit(long, monkeypatch, tmp_path):
    path, whole = tmp_path / "c.h5", hs.solve(long, "exact")
    saved = []

    class Stopwatch(Checkpoint):
        def save(self, column, state, now=False):
            saved.append(column)
            super().save(column, state, now=True)

    with monkeypatch.context() as patched:
        patched.setattr(exact_method, "Checkpoint", Stopwatch)
        stop = property(lambda _: hs.Status.TIME_LIMIT if len(saved) >= 2 else None)
        patched.setattr(Control, "stop", stop)
        first = hs.solve(long, "exact", checkpoint=path, threads=1)
    assert first.status is hs.Status.TIME_LIMIT
    assert (first.lower_bound <= whole.loss + 1e-9 * long.energy).all()
    second = hs.solve(long, "exact", checkpoint=path)
    assert second.status is hs.Status.OPTIMAL
    np.testing.assert_array_equal(second.codes, whole.codes)
    np.testing.assert_array_equal(second.lower_bound, whole.lower_bound)


def test_a_kept_search_is_the_same_search(tmp_path, branching):
    column = make_column("asymmetric", 15, 2)
    state = search(column, callback=lambda _: True)
    path = tmp_path / "c.h5"
    Checkpoint.of(path, column.instance).save(4, state, now=True)
    kept = Checkpoint.of(path, column.instance)
    assert kept.load(0) is None
    for field, value in state._asdict().items():
        found = getattr(kept.load(4), field)
        np.testing.assert_array_equal(found, value)
        assert np.asarray(found).dtype == np.asarray(value).dtype
    np.testing.assert_array_equal(search(column, state=kept.load(4)).codes, search(column).codes)


def test_going_on_from_better_codes(long, monkeypatch, tmp_path):
    """What this run's heuristics found is kept, where it is better than what the file holds."""
    path, whole = tmp_path / "c.h5", hs.solve(long, "exact")
    monkeypatch.setattr(exact_method, "NODES", (0, 0, 0))
    instance = hs.instance.Instance.of(long)
    poor = np.ones(long.inputs, dtype=np.int8)
    kept = Checkpoint.of(path, instance)
    for t, start in enumerate(start_diagonals(instance)):
        column = (instance.gram, instance.cross[t], instance.energy[t])
        kept.save(t, branch.start_search(*column, poor, start, True), now=True)
    s = hs.solve(long, "exact", checkpoint=path)
    assert (s.loss <= hs.solve(long, "exact").loss).all()
    assert (s.loss <= whole.loss * (1 + 1e-9)).all()
    assert (s.lower_bound <= whole.loss).all()


def test_a_checkpoint_of_another_problem(long, tmp_path):
    path = tmp_path / "c.h5"
    hs.solve(long, "exact", checkpoint=path)
    other = make_case("asymmetric", 4, size=24, columns=3, rows=72).problem
    for p in (other, long.select([0, 1])):
        with pytest.raises(ValueError, match=r"c\.h5: a checkpoint of another problem"):
            hs.solve(p, "exact", checkpoint=path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"not HDF5 at all" * 50,
        lambda data: data[:8] + bytes(len(data) - 8),
    ],
    ids=["cut", "empty", "text", "zeros"],
)
def test_a_damaged_checkpoint(long, tmp_path, damage):
    path = tmp_path / "c.h5"
    hs.solve(long, "exact", checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"c\.h5: damaged"):
        hs.solve(long, "exact", checkpoint=path)


def spoil_loss(group):
    group["loss"][()] *= 0.5


def spoil_codes(group):
    group["codes"][0] *= -1


def spoil_bound(group):
    group["open_bound"][...] = 1e9


def drop_subproblem(group):
    for name in ("open_codes", "open_diagonal", "open_bound"):
        value = group[name][()]
        del group[name]
        group[name] = value[1:]


def drop_field(group):
    del group["nodes"]


@pytest.mark.parametrize(
    "spoil", [spoil_loss, spoil_codes, spoil_bound, drop_subproblem, drop_field]
)
def test_a_checkpoint_with_changed_contents(long, monkeypatch, tmp_path, spoil):
    """A proof would rest on them."""
    path = tmp_path / "c.h5"
    monkeypatch.setattr(exact_method, "NODES", (20, 20, 20))
    hs.solve(long, "exact", checkpoint=path)
    with h5py.File(path, "r+") as file:
        spoil(file[next(iter(file))])
    with pytest.raises(ValueError, match=r"c\.h5: damaged"):
        hs.solve(long, "exact", checkpoint=path)


def test_no_checkpoint_for_variants_that_alternate(tmp_path):
    """Their searches are of ever other problems."""
    case = make_case("gaussian", 1, size=20, columns=2, rows=60)
    for variant in ({"bases": 2}, {"scale_group": 5}):
        p = hs.Problem.from_arrays(case.inputs, case.weights, **variant)
        with pytest.raises(ValueError, match=f"checkpoint: .*{next(iter(variant))}"):
            hs.solve(p, "exact", "fast", checkpoint=tmp_path / "c.h5")


# certificates


def test_optimal_is_required(rng):
    p = hs.Problem.from_arrays(rng.normal(size=(22, 66)), rng.normal(size=(22, 3)))
    s = hs.solve(p, "exact")
    certificate = hs.verify(p, s.codes, s.scales, require="optimal", claimed_loss=s.loss)
    assert certificate.ok and certificate.optimal == [True] * 3
    assert certificate.level == ["optimal"] * 3


def pair_fixpoints(require, size=16):
    """Problems with codes that the level below ``require`` lets pass, and their best loss."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = hs.Problem.from_arrays(rng.normal(size=(size, 24)), rng.normal(size=(size, 6)))
        s = hs.solve(p, "one_flip", init=rng.choice([-1, 1], size=(size, 6)))
        certificate = hs.verify(p, s.codes, s.scales, require="two_flip")
        wanted = "one_flip" if require == "two_flip" else "two_flip"
        for t in range(6):
            if certificate.level[t] == wanted:
                yield p.select([t]), s.codes[:, [t]], s.scales[[t]]


def test_two_flip_finds_a_pair():
    for seen, (p, codes, scales) in enumerate(pair_fixpoints("two_flip"), 1):
        assert hs.verify(p, codes, scales, require="one_flip").ok
        (why,) = hs.verify(p, codes, scales, require="two_flip").violations
        assert why.startswith("column 0: flipping bits ") and "lowers the loss by" in why
        i, j = (int(word) for word in why.split() if word.isdigit())
        better = codes.copy()
        better[[i, j]] *= -1
        gain = (p.loss(codes) - p.loss(better))[0]
        assert gain > 0 and gain == pytest.approx(float(why.split()[-1]), rel=1e-4)
        if seen == 10:
            return
    raise AssertionError("no such codes met")


def test_optimal_names_a_better_loss():
    seen = 0
    for p, codes, scales in pair_fixpoints("optimal"):
        best = brute_force(p)[0]
        if p.loss(codes)[0] < best * (1 + 1e-6):
            continue
        certificate = hs.verify(p, codes, scales, require="optimal")
        (why,) = certificate.violations
        assert why.startswith("column 0: not optimal: codes with loss ")
        assert float(why.split("loss ")[1].split()[0]) == pytest.approx(best, rel=1e-6)
        assert certificate.optimal == [False] and certificate.level == ["two_flip"]
        assert "FAILED" in str(certificate)
        seen += 1
        if seen == 5:
            return
    raise AssertionError("no such codes met")


@given(problems(sizes=(1, 8)))
def test_exact_codes_are_certified_optimal(p):
    s = hs.solve(p, "exact")
    best = brute_force(p)
    certificate = hs.verify(p, s.codes, s.scales, require="optimal")
    if s.optimal.all():
        assert certificate.ok, str(certificate)
    assert (np.array(certificate.lower_bound) <= best + rounding(p)).all()


@pytest.mark.parametrize("seed", range(20))
def test_codes_that_all_but_cancel(seed):
    """One row is always fitted, by a scale of 10⁴: the sums' rounding is no violation."""
    x = np.array([[1.0], [1.0 + 1e-4 * np.random.default_rng(seed).random()]])
    p = hs.Problem.from_arrays(x, target=np.array([[0.7]]))
    codes = np.array([[-1], [1]], dtype=np.int8)
    scales = np.abs(p.best_scales(codes))
    codes *= np.where(p.best_scales(codes) < 0, -1, 1).astype(np.int8)
    certificate = hs.verify(p, codes, scales, require="valid", claimed_loss=[0.0])
    assert certificate.ok, str(certificate)


# public instances


def biqmac():
    """The instances with at most 100 unknowns, and why there are none where there are none."""
    try:
        optima = json.loads((shared_data("biqmac") / "optima.json").read_text())
    except FileNotFoundError:
        return {}
    return {name: known for name, known in optima.items() if programme(name)[0].inputs <= 100}


def programme(name):
    """xᵀQx over x in {0, 1}ⁿ by x = (1 + b) / 2: the programme in b, and its constant."""
    first, *entries = (shared_data("biqmac") / f"{name}.sparse").read_text().split("\n")
    q = np.zeros(2 * [int(first.split()[0])])
    for i, j, weight in (entry.split() for entry in entries if entry.strip()):
        q[int(i) - 1, int(j) - 1] = q[int(j) - 1, int(i) - 1] = float(weight)
    return hs.Problem.from_quadratic(q / 4, -q.sum(axis=1) / 4), float(q.sum() / 4)


INSTANCES = biqmac()


@pytest.mark.skipif(not INSTANCES, reason="biqmac is not here (HASHSOLVE_DATA)")
@pytest.mark.parametrize("name", sorted(INSTANCES) or [None])
def test_quadratic_programmes_reach_their_known_optima(name):
    p, constant = programme(name)
    s = hs.solve(p, "auto", "fast")
    assert s.loss[0] + constant == pytest.approx(INSTANCES[name], abs=1e-6)
    assert s.lower_bound[0] + constant <= INSTANCES[name] + 1e-6


@pytest.mark.skipif(not INSTANCES, reason="biqmac is not here (HASHSOLVE_DATA)")
@pytest.mark.parametrize("name", ["gka1b", "bqp50-2", "bqp50-3"])
def test_quadratic_programmes_are_proven(name):
    p, constant = programme(name)
    s = hs.solve(p, "exact")
    assert s.status is hs.Status.OPTIMAL
    assert s.loss[0] + constant == pytest.approx(INSTANCES[name], abs=1e-6)


def test_first_convolution_is_proven():
    try:
        p = hs.Problem.load(shared_data("layer_problems.h5"), "conv1/symmetric")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert (p.inputs, p.columns) == (27, 16)
    s = hs.solve(p, "exact")
    assert s.optimal.all() and s.status is hs.Status.OPTIMAL
    assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss).ok
