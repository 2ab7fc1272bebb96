"""The kernels of the searches against their NumPy twins, and against what they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from columns import FREE, KINDS, losses, make_column, random_codes, unpacked
from hypothesis import given
from hypothesis import strategies as st

from hashsolve import branch, reference, reference_search
from hashsolve.bounds import start_diagonals
from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.kernels import (
    beam,
    estimate,
    flips,
    gray,
    group_dcc,
    order,
    sphere,
    tabu,
    triangle,
    twofold,
)
from hashsolve.kernels.random import random_below
from hashsolve.lattice import Lattice

SIZES = (1, 2, 3, 9, 40)
REAL = ("full", "asymmetric", "indefinite", "scale one")
"""Kinds on which no decision is a tie, so that kernel and twin never part by rounding."""
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(
    params=[(kind, size) for kind in KINDS for size in SIZES], ids="{0[0]} {0[1]}".format
)
def column(request):
    kind, size = request.param
    return make_column(kind, size, size)


def triangle_of(column):
    """The column's triangular form, from its starting diagonal."""
    instance = column.instance
    return Lattice(instance, start_diagonals(instance)).triangle(0)


# random numbers, selection, small helpers


@given(st.integers(0, 2**64 - 1))
def test_random_below(seed):
    one, two = np.array([seed], np.uint64), np.array([seed], np.uint64)
    bounds = [1, 2, 3, 10, 1_000, 2**31, *range(1, 60)]
    draws = [random_below(one, n) for n in bounds]
    assert draws == [reference_search.random_below(two, n) for n in bounds]
    assert one == two
    assert all(0 <= draw < n for draw, n in zip(draws, bounds, strict=True))


def test_random_below_is_splitmix64():
    """The first outputs of the published generator from seed 1234567, its top 53 bits."""
    state = np.array([1234567], np.uint64)
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [random_below(state, 2**53) for _ in wanted] == [value >> 11 for value in wanted]


def test_random_below_is_even():
    state = np.array([5], np.uint64)
    counts = np.bincount([random_below(state, 7) for _ in range(14_000)], minlength=7)
    assert len(counts) == 7 and (np.abs(counts - 2_000) < 250).all()


@given(st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 7.0]) | st.floats(-9, 9), min_size=1))
def test_select(values):
    count = len(values)
    padded = np.array([*values, -100.0])  # what stands beyond the count is not looked at
    found = [beam.select(padded.copy(), count, k) for k in range(count)]
    np.testing.assert_array_equal(found, np.sort(values))
    twin = [reference_search.select(padded.copy(), count, k) for k in range(count)]
    np.testing.assert_array_equal(found, twin)
    np.testing.assert_array_equal(np.sort(padded[:count]), np.sort(values))


@given(st.tuples(*[st.integers(-90, 90).map(lambda n: n / 10)] * 3), st.integers(0, 30), st.data())
def test_partial_loss(terms, low, data):
    yy, yv, vv = terms
    low, high = low / 10, (low + data.draw(st.integers(0, 30))) / 10
    found = beam.partial_loss(yy, yv, vv, low, high)
    twin = reference_search.partial_loss(yy, np.array([yv]), np.array([vv]), low, high)
    assert found == twin[0]
    if vv <= 0.0 and yv < high * vv:  # rows that no scale fits; ranked by the largest
        assert found == yy - 2 * high * yv + high**2 * vv
        return
    tried = np.linspace(low if vv > 0.0 else high, high, 50)
    assert (found <= yy - 2 * tried * yv + tried**2 * vv + 1e-9).all()


def test_column_state_loss_and_flip(column):
    gram, cross, energy, free = column
    size = len(cross)
    codes = random_codes(1, size)
    fall, rise, twin_fall, twin_rise = np.empty((4, size))
    found = flips.column_state(gram, cross, codes, fall, rise)
    twin = reference_search.column_state(gram, cross, codes, twin_fall, twin_rise)
    tolerance = {"rtol": 1e-13, "atol": 1e-13 * np.abs(gram).sum() + 1e-13 * np.abs(cross).sum()}
    np.testing.assert_allclose(found, twin, **tolerance)
    np.testing.assert_allclose([fall, rise], [twin_fall, twin_rise], **tolerance)
    p, q, floor = found
    wanted = losses(column, codes)
    assert flips.column_loss(p, q, floor, energy, free) == pytest.approx(
        float(wanted[0] if free else wanted), abs=1e-9 * column.size
    )
    assert flips.column_loss(p, q, floor, energy, free) == reference_search.column_loss(
        p, q, floor, energy, free
    )
    rng = np.random.default_rng(2)
    twin_codes = codes.copy()
    for i in rng.integers(size, size=12):
        p, q = p - 2 * fall[i], q + 4 * rise[i]
        flips.flip(gram, codes, fall, rise, i)
        reference_search.flip(gram, twin_codes, twin_fall, twin_rise, i)
    np.testing.assert_array_equal(codes, twin_codes)
    np.testing.assert_allclose([fall, rise], [twin_fall, twin_rise], **tolerance)
    fresh_fall, fresh_rise = np.empty((2, size))
    fresh = flips.column_state(gram, cross, codes, fresh_fall, fresh_rise)
    tolerance["atol"] *= 100
    np.testing.assert_allclose((p, q), fresh[:2], **tolerance)
    np.testing.assert_allclose([fall, rise], [fresh_fall, fresh_rise], **tolerance)


def test_a_vanishing_norm_gains_nothing():
    assert flips.column_loss(3.0, 1e-20, 1e-12, 5.0, True) == 5.0
    assert flips.column_loss(3.0, -1.0, 1e-12, 5.0, True) == 5.0
    assert flips.column_loss(3.0, -1.0, 1e-12, 5.0, False) == -2.0


@given(st.integers(1, 9), st.booleans(), SEEDS)
def test_canonical_sign(size, free, seed):
    rng = np.random.default_rng(seed)
    cross = rng.integers(-2, 3, size).astype(float)
    codes = random_codes(seed, size)
    one, two = codes.copy(), codes.copy()
    tabu.canonical_sign(cross, one, free)
    reference_search.canonical_sign(cross, two, free)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, -codes if free and cross @ codes < 0 else codes)


@given(st.integers(1, 6), st.integers(1, 5), SEEDS)
def test_contains(members, size, seed):
    pool = random_codes(seed, members, size)
    for codes in (*pool, *random_codes(seed + 1, 4, size)):
        wanted = codes.tolist() in pool.tolist()
        assert tabu.contains(pool, codes) == reference_search.contains(pool, codes) == wanted


# beam


@pytest.mark.parametrize("width", (1, 5, 64))
def test_beam(column, width):
    form = triangle_of(column)
    scale = np.abs(column.cross).sum() / np.abs(np.trace(column.gram))
    for low, high in ((1.0, 1.0), (0.8 * scale, 1.2 * scale), (0.0, 5.0)):
        lower = unpacked(form.lower)
        arguments = (form.target, form.shift, low, high, width)
        codes, p, q = beam.beam(form.lower, *arguments)
        twin = reference_search.beam(lower, *arguments)
        assert len(codes) == min(width, 2 ** min(len(form.order), 10))
        assert len(np.unique(codes, axis=0)) == len(codes) and (np.abs(codes) == 1).all()
        for found, wanted in zip((codes, p, q), twin, strict=True):
            np.testing.assert_array_equal(found, wanted)
        rows = codes @ lower  # what p and q are of: R = Lᵀ
        size = form.target @ form.target + abs(form.shift) + (rows**2).sum(axis=1).max()
        np.testing.assert_allclose(p, rows @ form.target, atol=1e-12 * size)
        np.testing.assert_allclose(q, (rows**2).sum(axis=1) - form.shift, atol=1e-12 * size)


@pytest.mark.parametrize("size", (31, 32, 33, 64, 65, 100))
def test_beam_across_its_blocks(size):
    form = triangle_of(make_column("full", size, size))
    arguments = (form.target, form.shift, 0.5, 1.5, 20)
    twin = reference_search.beam(unpacked(form.lower), *arguments)
    for found, wanted in zip(beam.beam(form.lower, *arguments), twin, strict=True):
        np.testing.assert_array_equal(found, wanted)


# tabu


def test_tabu_walk(column):
    gram, cross, energy, free = column
    one = random_codes(4, len(cross))
    two, start = one.copy(), one.copy()
    seeds = np.array([5], np.uint64), np.array([5], np.uint64)
    search = (free, 300, 100, 7)
    found = tabu.tabu_walk(gram, cross, energy, one, *search, seeds[0])
    twin = reference_search.tabu_walk(gram, cross, energy, two, *search, seeds[1])
    assert found == twin and seeds[0] == seeds[1]
    np.testing.assert_array_equal(one, two)
    before, after = (float(np.squeeze(losses(column, codes))) for codes in (start, one))
    assert found[0] == pytest.approx(after, abs=1e-9 * column.size)
    assert after <= before + 1e-9 * column.size
    assert 0 < found[1] <= 300


@pytest.mark.parametrize(("moves", "patience"), [(0, 5), (1, 5), (9, 100), (500, 3)])
def test_tabu_walk_keeps_its_limits(moves, patience):
    column = make_column("full", 12, 1)
    codes = random_codes(2, 12)
    start = codes.copy()
    search = (column.free, moves, patience, 3, np.array([1], np.uint64))
    loss, made = tabu.tabu_walk(column.gram, column.cross, column.energy, codes, *search)
    assert made == moves if moves < 10 else made < moves
    assert loss == pytest.approx(losses(column, codes)[0], rel=1e-9)
    if moves == 0:
        np.testing.assert_array_equal(codes, start)


def test_evolve(column):
    gram, cross, energy, free = column
    one = random_codes(6, 4, len(cross))
    two, start = one.copy(), one.copy()
    search = (free, 2_000, 40, 5, 3, 50, 9)
    found = tabu.evolve(gram, cross, energy, one, *search)
    twin = reference_search.evolve(gram, cross, energy, two, *search)
    np.testing.assert_array_equal(found, twin)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(found, losses(column, one), atol=1e-9 * column.size)
    assert found.min() <= losses(column, start).min() + 1e-9 * column.size
    if free:
        assert (one @ cross >= -1e-12 * np.abs(cross).sum()).all()


# orders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_orders(kind, size):
    gram = make_column(kind, size, size).gram
    matrix = gram + (0.01 * np.abs(np.diag(gram)).mean() + np.abs(gram).sum()) * np.eye(size)
    inverse = np.linalg.inv(matrix)
    inverse = 0.5 * (inverse + inverse.T)
    upper = np.triu(inverse) + np.tril(np.full_like(inverse, np.nan), -1)  # never looked at
    found = order.least_pivots(upper)
    np.testing.assert_array_equal(found, reference_search.least_pivots(inverse.copy()))
    assert sorted(found) == list(range(size))
    for first in (0, 1, size):
        for share in (0.0, 0.5, 1.0):
            one, two = np.zeros((2, size), dtype=np.int64)
            order.decision_order(matrix, inverse.copy(), first, share, one)
            reference_search.decision_order(matrix, inverse.copy(), first, share, two)
            np.testing.assert_array_equal(one, two)
            assert sorted(one) == list(range(size))
            assert one[:first].tolist() == list(range(first))


@pytest.mark.parametrize("size", [15, 16, 17, 33, 70])
def test_the_least_pivot_of_what_is_left(size):
    """By Schur complements, made anew for every pivot; across the kernel's panels."""
    matrix = make_column("full", size, size).gram + np.eye(size)
    left, wanted = list(range(size)), []
    while left:
        taken = np.ix_(wanted, wanted)
        rest = matrix[np.ix_(left, left)]
        if wanted:
            rest = rest - matrix[np.ix_(left, wanted)] @ np.linalg.solve(
                matrix[taken], matrix[np.ix_(wanted, left)]
            )
        wanted.append(left.pop(int(np.argmin(np.diag(rest)))))
    assert order.least_pivots(matrix.copy()).tolist() == wanted


@given(st.integers(1, 80), SEEDS)
def test_triangles_in_another_order_and_packed(size, seed):
    rng = np.random.default_rng(seed)
    array, diagonal, new = (
        rng.normal(size=(size, size)),
        rng.normal(size=size),
        rng.permutation(size),
    )
    one, two = array.copy(), array.copy()
    triangle.reorder(one, diagonal, new)
    reference_search.reorder(two, diagonal, new)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(triangle.pack(one), reference_search.pack(two))
    np.testing.assert_array_equal(unpacked(triangle.pack(one)), np.triu(one).T)


def test_the_order_by_energy_alone_is_that_of_the_diagonal():
    matrix = np.diag([2.0, 5.0, 1.0, 3.0])
    found = np.zeros(4, dtype=np.int64)
    order.decision_order(matrix, np.linalg.inv(matrix), 0, 1.0, found)
    assert found.tolist() == [1, 3, 0, 2]
    order.decision_order(matrix, np.linalg.inv(matrix), 2, 1.0, found)
    assert found.tolist() == [0, 1, 3, 2]
    assert order.least_pivots(matrix.copy()).tolist() == [2, 0, 3, 1]


# sums in twice the precision


@pytest.mark.parametrize("seed", range(10))
def test_twofold(seed):
    """What is left of terms that cancel is as though it had been rounded once."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 9))
    large = 10.0 ** rng.uniform(0, 12)
    bits = rng.choice([-1.0, 1.0], size)
    gram = rng.normal(size=(size, size)) + large * rng.choice([-1, 1], (size, size))
    cross = rng.normal(size=size) - large
    found = twofold.precise(gram, cross, bits)
    np.testing.assert_allclose(found, reference_search.precise(gram, cross, bits), rtol=4e-16)
    crosses, codes = np.stack([2 * cross, cross]), np.stack([-bits, bits]).astype(np.int8)
    p, q = np.empty(2), np.empty(2)
    twofold.precise_products(gram, crosses, codes, p, q)
    assert (p[0], q[0]) == twofold.precise(gram, 2 * cross, -bits) and (p[1], q[1]) == found
    wanted = np.empty((2, 2))
    reference_search.precise_products(gram, crosses, codes, *wanted)
    np.testing.assert_allclose([p, q], wanted, rtol=4e-16)
    energy = 2 * bits @ cross - bits @ gram @ bits
    assert twofold.fixed_loss(gram, cross, energy, bits) == pytest.approx(
        reference_search.fixed_loss(gram, cross, energy, bits), rel=4e-16, abs=0
    )
    weights = codes * rng.uniform(0.5, 2.0, size)
    energies = [2 * u @ c - u @ gram @ u for u, c in zip(weights, crosses, strict=True)]
    found, wanted = np.empty((2, 2))
    twofold.weighted_losses(gram, crosses, np.array(energies), weights, found)
    reference_search.weighted_losses(gram, crosses, energies, weights, wanted)
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=0)
    both, rests = np.stack([gram, gram]), np.empty((2, size, size))
    for module, values, rest in zip((twofold, reference_search), both, rests, strict=True):
        module.divide(values, np.abs(cross), rest)
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_allclose(rests[0], rests[1], rtol=1e-15, atol=0)
    first, second, weight = gram[0], cross[: size // 2 + 1], float(rng.uniform(0.1, 1e6))
    total = np.outer(first, second) / weight * (1 + 1e-14 * rng.normal(size=(size, len(second))))
    wanted = total.copy()
    twofold.about_means(total, first, second, weight)
    reference_search.about_means(wanted, first, second, weight)
    np.testing.assert_allclose(total, wanted, rtol=4e-16, atol=0)
    energy = cross**2 / weight * (1 + 1e-14 * rng.normal(size=size))
    wanted = energy.copy()
    twofold.about_own_mean(energy, cross, weight)
    reference_search.about_own_mean(wanted, cross, weight)
    np.testing.assert_allclose(energy, wanted, rtol=4e-16, atol=0)


# enumeration and sphere search


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", (1, 2, 3, 8, 12))
def test_gray(kind, size):
    column = make_column(kind, size, size + 50)
    codes, twin = np.zeros((2, size), dtype=np.int8)
    steps = 2 ** (size - 1 if column.free else size)
    start = np.inf, np.inf
    loss, lowest, _ = gray.gray(*column, 0, steps, *start, codes)
    twin_loss, twin_lowest, _ = reference_search.gray(*column, 0, steps, *start, twin)
    if "integer" in kind or kind in REAL:
        np.testing.assert_array_equal(codes, twin)
    every = losses(column, reference.all_codes(size).T)
    tolerance = 1e-8 * column.size
    assert loss == pytest.approx(every.min(), abs=tolerance)
    assert loss == pytest.approx(twin_loss, abs=tolerance)
    assert lowest <= loss and lowest <= every.min() and twin_lowest <= twin_loss
    if kind in REAL:
        assert lowest == pytest.approx(twin_lowest, abs=tolerance)
        assert lowest >= loss - tolerance
    assert float(np.squeeze(losses(column, codes))) == pytest.approx(loss, abs=tolerance)
    if column.free:
        assert codes[-1] == 1


@pytest.mark.parametrize("seed", range(20))
def test_gray_passes_over_codes_that_cancel(seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(7, 3))
    inputs = (inputs - inputs.mean(0)).astype(np.float32).astype(float)
    target = inputs.T @ rng.normal(size=7) + 0.3 * rng.normal(size=3)
    gram, cross, energy = inputs @ inputs.T, inputs @ target, float(target @ target)
    codes, twin = np.zeros((2, 7), dtype=np.int8)
    arguments = gram, cross, energy, True, 0, 64, np.inf, np.inf
    loss, lowest, _ = gray.gray(*arguments, codes)
    twin_loss, twin_lowest, _ = reference_search.gray(*arguments, twin)
    np.testing.assert_array_equal(codes, twin)
    assert loss == pytest.approx(twin_loss, abs=1e-9 * energy) and lowest <= min(loss, twin_lowest)
    assert codes @ gram @ codes > 1e-12 * np.trace(gram)


@pytest.mark.parametrize("kind", KINDS)
def test_gray_in_slices(kind):
    column = make_column(kind, 10, 3)
    steps = 512 if column.free else 1024
    whole, cut = np.zeros((2, 10), dtype=np.int8)
    found = gray.gray(*column, 0, steps, np.inf, np.inf, whole)
    best, lowest, again = np.inf, np.inf, 0
    for begin, end in itertools.pairwise((0, 64, 192, steps)):
        best, lowest, more = gray.gray(*column, begin, end, best, lowest, cut)
        again += more
    assert found == (best, lowest, again)
    np.testing.assert_array_equal(whole, cut)


def test_gray_takes_the_first_of_equals():
    column = make_column("zero cross", 5, 1)
    codes = np.zeros(5, dtype=np.int8)
    gray.gray(*column, 0, 16, np.inf, np.inf, codes)
    assert codes.tolist() == [1, 1, 1, 1, 1]


def tree(column, share=0.5):
    """The sphere decoder's tree of a column from its starting diagonal, and a cutoff."""
    start = start_diagonals(column.instance)[0]
    if column.free:
        start = start - start.mean()
    return branch._plant(*column[:3], start, column.free, share)


@given(
    st.sampled_from(("full", "asymmetric", "indefinite", "scale one", "integer indefinite")),
    st.integers(1, 12),
    SEEDS,
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(1, 400),
    st.integers(1, 50),
)
def test_sphere_and_estimate(kind, size, seed, share, limit, width):
    column = make_column(kind, size, seed)
    free = column.free
    planted = tree(column, share)
    first = float(np.squeeze(losses(column, random_codes(seed, size))))
    for cutoff in (first, planted.offset + 0.5 * (first - planted.offset), planted.offset - 1.0):
        codes, twin = np.zeros((2, size), dtype=np.int8)
        shared = (planted.lower, planted.target, planted.offset, cutoff)
        more = (-1e-9 * column.size, free, limit, 1e-3 * column.size, 1e-3 * share, 5.0)
        found = sphere.sphere(*shared, *more, codes)
        wanted = reference_search.sphere(*shared, *more, twin)
        assert found[::2] == wanted[::2]
        assert found[1::2] == pytest.approx(wanted[1::2], rel=1e-9, abs=1e-9 * column.size)
        assert found[3] <= found[1] - 1e-3 * column.size or not free
        np.testing.assert_array_equal(codes, twin)
        found = estimate.estimate(*shared, free, width, seed)
        assert found == pytest.approx(
            reference_search.estimate(*shared, free, width, seed), rel=1e-9
        )


@pytest.mark.parametrize("kind", ("full", "asymmetric", "indefinite", "scale one"))
@pytest.mark.parametrize("size", (1, 2, 5, 10))
def test_a_complete_sphere_finds_the_optimum(kind, size):
    column = make_column(kind, size, 3 * size)
    planted = tree(column)
    codes = np.zeros(size, dtype=np.int8)
    search = (planted.offset, 1e9, 0.0, column.free, 10**7, 0.0, 0.0, 1.0, codes)
    nodes, best, complete, lowest = sphere.sphere(planted.lower, planted.target, *search)
    assert complete and nodes >= size
    every = losses(column, reference.all_codes(size).T)
    assert best == pytest.approx(every.min(), abs=1e-9 * column.size)
    if column.free:
        assert lowest == best
    else:  # of what was reached, but the best
        assert lowest >= best
        assert lowest == np.inf or np.isclose(lowest, every, rtol=0, atol=1e-9 * column.size).any()
    ordered = np.empty_like(codes)
    ordered[planted.order] = codes
    assert np.squeeze(losses(column, ordered)) == pytest.approx(best, abs=1e-9 * column.size)


@pytest.mark.parametrize("kind", ("asymmetric", "indefinite"))
def test_an_estimate_of_all_nodes_is_their_number(kind):
    column = make_column(kind, 10, 3)
    planted = tree(column)
    every = losses(column, reference.all_codes(10).T)
    cutoff = every.min() + 0.05 * (np.median(every) - every.min())
    codes = np.zeros(10, dtype=np.int8)
    shared = (planted.lower, planted.target, planted.offset, cutoff)
    size = estimate.estimate(*shared, column.free, 1024, 0)
    more = (np.inf, column.free, 10**6, 0.0, 0.0, 1.0)
    nodes, _, complete, _ = sphere.sphere(*shared, *more, codes)
    assert complete and size == nodes > 10  # slack so large that the cutoff stays


# group scales


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("groups", (1, 2, 4, 12))
def test_group_dcc_sweep(kind, groups):
    gram = make_column(kind, 12, groups).gram
    rng = np.random.default_rng(groups)
    columns = 5
    cross = rng.integers(-2, 3, (columns, 12)).astype(float) @ gram
    codes = random_codes(groups, columns, 12)
    scales = rng.integers(0, 5, (columns, groups)) / 4
    active = np.array([True, True, False, True, True])
    spread = np.repeat(scales, 12 // groups, axis=1)
    h = (spread * codes) @ gram
    before, twin, twin_h = codes.copy(), codes.copy(), h.copy()
    flipped, twin_flipped = np.zeros((2, columns), dtype=np.int64)
    group_dcc.group_dcc_sweep(gram, cross, codes, h, scales, active, flipped)
    reference.group_dcc_sweep(gram, cross, twin, twin_h, scales, active, twin_flipped)
    if kind in ("full", "asymmetric", "integer"):
        np.testing.assert_array_equal(codes, twin)
    np.testing.assert_array_equal(codes[2], before[2])
    np.testing.assert_array_equal(flipped, (codes != before).sum(axis=1))
    np.testing.assert_allclose(h, (spread * codes) @ gram, atol=1e-12 * np.abs(gram).sum())

    def loss(b):
        u = spread * b
        return ((u @ gram) * u).sum(axis=1) - 2 * (cross * u).sum(axis=1)

    size = np.abs(gram).sum() + np.abs(cross).sum()
    assert (loss(codes) <= loss(before) + 1e-12 * size).all()
    if groups == 1:  # one group is plain DCC, but that a scale of 0 changes nothing
        active = active & (scales[:, 0] > 0)
        plain, plain_h = before.copy(), before @ gram
        reference.dcc_sweep(gram, cross, plain, plain_h, scales[:, 0], active, twin_flipped)
        if kind in ("full", "asymmetric", "integer"):
            np.testing.assert_array_equal(codes[active], plain[active])


def test_a_group_of_scale_zero_keeps_its_bits():
    codes = np.array([[1, -1, 1, -1]], dtype=np.int8)
    h, flipped = np.zeros((1, 4)), np.zeros(1, dtype=np.int64)
    scales, active = np.array([[0.0, 1.0]]), np.ones(1, dtype=np.bool_)
    h[0, 2:] = [1.0, -1.0]
    group_dcc.group_dcc_sweep(
        np.eye(4), np.array([[-5.0, 5.0, -5.0, 5.0]]), codes, h, scales, active, flipped
    )
    assert codes.tolist() == [[1, -1, -1, 1]] and flipped.tolist() == [2]


def test_orders_of_columns_and_threads_change_nothing():
    """`Control.each` on a pool: the same codes for every cut."""
    column = make_column("full", 20, 1)
    cross = np.random.default_rng(1).normal(size=(6, 20)) @ column.gram
    instance = Instance(**{**vars(column.instance), "cross": cross, "energy": np.full(6, 20.0)})
    found = {}
    for threads in (1, 3):
        pools = random_codes(2, 6, 4, 20)

        def search(t, pools=pools):
            tabu.evolve(instance.gram, cross[t], 20.0, pools[t], True, 2_000, 20, 5, 3, 50, 9)

        with Control(threads=threads) as control:
            control.each(search, 6)
        found[threads] = pools
    np.testing.assert_array_equal(found[1], found[3])
