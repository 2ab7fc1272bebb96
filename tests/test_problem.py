"""Problem and Sums: what is summed, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve.reference import all_codes, explicit_loss
from hashsolve.sums import Sums, block_rows
from hashsolve.testing.strategies import cases, quadratics

X = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
W = np.array([[1.0, -2.0], [3.0, 0.25]])
H = np.eye(2)
C = np.ones((2, 1))
SUMS = ("gram", "cross", "energy", "input_sum", "target_sum")


def same(a: hs.Problem, b: hs.Problem, rtol=0.0) -> None:
    """Equal sums (to ``rtol`` of the largest, at most), rows and weights."""
    assert a.rows == b.rows
    for field in (*SUMS, "weights", "fixed_scales"):
        x, y = getattr(a, field), getattr(b, field)
        assert (x is None) == (y is None), field
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max(), err_msg=field)


# building


@given(cases())
def test_sums_are_what_they_are_called(case):
    p, y = case.problem, case.target
    unit = np.abs(case.inputs).max() + np.abs(y).max()
    near = {"rtol": 1e-12, "atol": 1e-12 * unit**2 * len(y) * len(case.inputs)}
    np.testing.assert_allclose(p.gram, case.inputs @ case.inputs.T, **near)
    np.testing.assert_allclose(p.cross, case.inputs @ y, **near)
    np.testing.assert_allclose(p.energy, (y**2).sum(axis=0), **near)
    np.testing.assert_allclose(p.input_sum, case.inputs.sum(axis=1), **near)
    np.testing.assert_allclose(p.target_sum, y.sum(axis=0), **near)
    np.testing.assert_array_equal(p.gram, p.gram.T)
    np.testing.assert_array_equal(p.weights, case.weights)
    assert p.rows == case.inputs.shape[1]
    assert (p.inputs, p.columns) == case.weights.shape


@given(cases())
def test_three_ways_to_the_same_problem(case):
    target = hs.Problem.from_arrays(case.inputs, case.weights, target=case.target)
    same(target, case.problem, rtol=1e-9)
    shown = case.inputs if case.reference is None else case.reference
    same(hs.Problem.from_arrays(case.inputs, case.weights, reference=shown), target, rtol=1e-9)


def test_target_alone_has_no_weights():
    p = hs.Problem.from_arrays(X, target=X.T @ W)
    assert p.weights is None
    same(hs.Problem.from_arrays(X, W, target=X.T @ W), hs.Problem(**{**vars(p), "weights": W}))


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "bool"]
)
def test_dtypes_are_summed_in_float64(dtype, rng):
    x = rng.integers(0, 2 if dtype == "bool" else 100, size=(3, 5000)).astype(dtype)
    w = np.array([[1, 0], [2, 1], [0, 3]])
    p = hs.Problem.from_arrays(x, w)
    exact = x.astype(object).astype(int)  # Python's integers neither round nor wrap
    np.testing.assert_array_equal(p.gram, exact @ exact.T)
    assert p.gram.dtype == p.cross.dtype == p.energy.dtype == np.float64


@pytest.mark.parametrize("role", ["inputs", "target", "reference"])
def test_hdf5_data_sets(role, tmp_path, rng):
    rows = block_rows(4) + 100  # more than one block
    arrays = {"inputs": rng.normal(size=(4, rows)), "target": None, "reference": None}
    weights = rng.normal(size=(4, 2))
    if role != "inputs":
        arrays[role] = rng.normal(size=(rows, 2) if role == "target" else (4, rows))
    wanted = hs.Problem.from_arrays(**arrays, weights=weights)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        stored = {**arrays, role: file.create_dataset("a", data=arrays[role])}
        same(hs.Problem.from_arrays(**stored, weights=weights), wanted)


@given(quadratics())
def test_quadratic_loss_is_the_quadratic(p):
    b = all_codes(p.inputs).astype(float)
    s = hs.solve(p)
    for t in range(p.columns):
        values = (b * (p.gram @ b)).sum(axis=0) - 2 * p.cross[:, t] @ b
        code = s.codes[:, t].astype(float)
        assert s.loss[t] == pytest.approx(code @ p.gram @ code - 2 * p.cross[:, t] @ code, abs=1e-9)
        assert s.loss[t] >= values.min() - 1e-9
        assert s.lower_bound[t] <= values.min() + 1e-9


def test_only_the_symmetric_part_of_a_quadratic_counts():
    upper = hs.Problem.from_quadratic([[1, 4], [0, -3]], [1, 2])
    np.testing.assert_array_equal(upper.gram, [[1, 2], [2, -3]])
    assert not upper.free_scale
    np.testing.assert_array_equal(hs.Problem.from_quadratic(np.eye(2)).cross, [[0], [0]])


# summing


@given(cases(rows=(2, 40)), st.data())
def test_merging_adds_rows(case, data):
    cut = data.draw(st.integers(1, case.inputs.shape[1] - 1))
    rows = slice(None, cut), slice(cut, None)
    y = case.target
    try:
        parts = [hs.Problem.from_arrays(case.inputs[:, r], case.weights, target=y[r]) for r in rows]
    except ValueError as error:  # one part may be all zero
        assert "all zero" in str(error)
        return
    whole = hs.Problem.from_arrays(case.inputs, case.weights, target=y)
    same(parts[0] + parts[1], whole, rtol=1e-12)
    assert (parts[0] + parts[1]).rows == case.inputs.shape[1]
    same(sum(parts), parts[0] + parts[1], rtol=0)


def test_what_cannot_be_merged():
    p = hs.Problem.from_arrays(X, W)
    with pytest.raises(ValueError, match=r"weights differ"):
        p + hs.Problem.from_arrays(X, 2 * W)
    with pytest.raises(ValueError, match=r"cross differ in shape"):
        p + hs.Problem.from_arrays(X, W[:, :1])
    with pytest.raises(ValueError, match=r"weights differ in shape"):
        p + hs.Problem.from_arrays(X, target=X.T @ W)
    with pytest.raises(ValueError, match=r"fixed_scales differ"):
        quadratic = hs.Problem.from_quadratic(H)
        quadratic + hs.Problem(H, 0 * C, [0.0], fixed_scales=[2.0])
    with pytest.raises(TypeError):
        p + 1


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=4), st.integers(1, 3))
def test_batch_cuts_change_no_bit(cuts, targets):
    rng = np.random.default_rng(len(cuts))
    rows = 2 * block_rows(2) + 1234
    x, y = rng.normal(size=(2, rows)), rng.normal(size=(targets, rows)).astype(np.float32)
    whole = Sums(2, targets)
    whole.add(x, y)
    split, start = Sums(2, targets), 0
    for stop in [*np.cumsum(cuts).tolist(), rows]:
        split.add(x[:, start:stop], y[:, start:stop])
        start = stop
    a, b = whole.finish(), split.finish()
    assert a.rows == b.rows == rows
    for field in SUMS:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    np.testing.assert_allclose(a.gram, x @ x.T, rtol=1e-12, atol=1e-9)
    direct = hs.Problem.from_arrays(x, target=y.T)
    np.testing.assert_array_equal(direct.gram, b.gram)
    np.testing.assert_array_equal(direct.cross, b.cross)


def test_no_rows():
    with pytest.raises(ValueError, match=r"layer9: no rows"):
        Sums(2, 1, "layer9").finish()


# saving


@given(st.one_of(cases().map(lambda case: case.problem), quadratics()))
def test_save_and_load(tmp_path_factory, p):
    path = tmp_path_factory.mktemp("problems") / "p.h5"
    p.save(path)
    same(hs.Problem.load(path), p)


def test_group_of_a_file(tmp_path):
    p = hs.Problem.from_arrays(X, W, name="conv7")
    path = tmp_path / "p.h5"
    with h5py.File(path, "w") as file:
        p.write(file.create_group("a/b"))
    loaded = hs.Problem.load(path, "a/b")
    same(loaded, p)
    assert loaded.name == "conv7"
    with pytest.raises(ValueError, match=r"p\.h5: no group 'c'; it holds \['a'\]"):
        hs.Problem.load(path, "c")
    with pytest.raises(ValueError, match=r"is no problem: no data set 'gram'"):
        hs.Problem.load(path, "a")
    with pytest.raises(ValueError, match=r"no group 'a/b/gram'"):
        hs.Problem.load(path, "a/b/gram")


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "p.h5"
    with pytest.raises(ValueError, match=r"p\.h5: no such file"):
        hs.Problem.load(path)
    hs.Problem.from_arrays(X, W).save(path)
    whole = path.read_bytes()
    for stop in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:stop])
        with pytest.raises(ValueError, match=r"p\.h5: damaged or not an HDF5 file"):
            hs.Problem.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    p, path = hs.Problem.from_arrays(X, W), tmp_path / "p.h5"
    p.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(hs.Problem, "write", lambda self, group: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hs.Problem.from_arrays(2 * X, W).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.h5"]


# refusing


def replaced(array, value):
    copy = array.copy()
    copy[1, 0] = value
    return copy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3), W), r"inputs \(X\): expected 2 dimensions, got shape \(3,\)"),
        ((X, np.ones((3, 2))), r"weights \(W\): must be \(S, T\) with S = 2, got \(3, 2\)"),
        ((X, W[:, 0]), r"weights \(W\): expected 2 dimensions"),
        ((X.astype(object), W), r"inputs \(X\): dtype object"),
        ((X, W * 1j), r"weights \(W\): dtype complex128"),
        ((X, [["a", "b"]] * 2), r"weights \(W\): dtype <U1"),
        ((np.ma.masked_less(X, X.max()), W), r"inputs \(X\): has masked entries"),
        (([[1, 2], [3]], W), r"inputs \(X\): not an array of numbers"),
        ((replaced(X, np.nan), W), r"inputs: nan at \(1, 0\)"),
        ((replaced(X, -np.inf), W), r"inputs: -inf at \(1, 0\)"),
        ((X, replaced(W, np.nan)), r"weights \(W\): nan at \(1, 0\)"),
        ((X[:, :0], W), r"inputs \(X\): empty, shape \(2, 0\)"),
        ((X[:0], W[:0]), r"inputs \(X\): empty"),
        ((X, W[:, :0]), r"weights \(W\): empty"),
        ((0 * X, W), r"gram: all zero"),
        ((X, 0 * W), r"energy: all zero"),
        ((X,), r"give weights \(W\) or a target \(Y\)"),
    ],
)
def test_unusable_arrays_are_named(arguments, message):
    with pytest.raises(ValueError, match=r"layer9: " + message):
        hs.Problem.from_arrays(*arguments, name="layer9")


def test_what_is_not_finite_is_named_by_its_place_in_the_whole_array(rng):
    x, w = rng.normal(size=(3, 20_000)), rng.normal(size=(3, 2))
    place = (2, 18_500)
    for other in (None, x):
        bad = x.copy()
        bad[place] = np.nan
        with pytest.raises(ValueError, match=r"inputs: nan at \(2, 18500\)"):
            hs.Problem.from_arrays(bad, w, reference=other)
    with pytest.raises(ValueError, match=r"reference \(X\): nan at \(2, 18500\)"):
        hs.Problem.from_arrays(x, w, reference=bad)
    y = x.T @ w
    y[18_500, 1] = np.inf
    with pytest.raises(ValueError, match=r"targets: inf at \(18500, 1\)"):
        hs.Problem.from_arrays(x, target=y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": X.T[:2]}, r"target \(Y\): must be \(N, T\) with N = 3, got \(2, 2\)"),
        ({"target": np.ones((3, 5))}, r"target \(Y\): must be \(N, T\)"),
        ({"target": replaced(X.T @ W, np.nan)}, r"targets: nan at \(1, 0\)"),
        ({"target": np.ones((3, 2), complex)}, r"target \(Y\): dtype complex128"),
        ({"reference": X[:, :2]}, r"reference \(X\): must have the shape of inputs, \(2, 3\)"),
        ({"reference": replaced(X, np.inf)}, r"reference \(X\): inf at \(1, 0\)"),
        ({"reference": X, "target": X.T @ W}, r"reference \(X\): has no use beside Y"),
        ({"reference": 0 * X}, "energy: all zero"),
    ],
)
def test_unusable_targets_are_named(arguments, message):
    with pytest.raises(ValueError, match=r"layer9: " + message):
        hs.Problem.from_arrays(X, W, **arguments, name="layer9")


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ({"gram": np.ones((2, 3))}, r"gram: must be square"),
        ({"gram": [[1, 0.5], [0.4, 1]]}, r"gram: not symmetric: entry \(0, 1\) is 0\.5, \(1, 0\)"),
        ({"gram": [[1, 0], [0, -1]]}, r"gram: negative diagonal entry at 1.*from_quadratic"),
        ({"gram": [[0, 1], [1, 1]]}, r"gram: zero on the diagonal but not in its row"),
        ({"gram": np.zeros((2, 2))}, r"gram: all zero"),
        ({"gram": [[1, np.nan], [np.nan, 1]]}, r"gram: nan at \(0, 1\)"),
        ({"gram": 1e-310 * H}, r"gram: the sum of squares .* leaves the range of float64"),
        ({"cross": np.ones((3, 1))}, r"cross: must be \(S, T\) with S = 2, got \(3, 1\)"),
        ({"cross": [[np.inf], [0]]}, r"cross: inf at \(0, 0\)"),
        ({"energy": [1, 2]}, r"energy: must have shape \(1,\), got \(2,\)"),
        ({"gram": [[1, 0], [0, 0]]}, r"cross: .* with gram diagonal 0 "),
        (
            {"cross": [[0], [1e60]]},
            r"cross: 1e\+60 at \(1, 0\), with gram diagonal .* no inputs and",
        ),
        ({"gram": 1e-200 * H}, r"cross: .* no inputs and targets have such sums"),
        (
            {"cross": [[1, 0], [0, 1e200]], "energy": [4, 0]},
            r"cross: 1e\+200 at \(1, 1\), .* and energy 0: no inputs and targets have such sums",
        ),
        ({"energy": [-1]}, r"energy: negative at 0"),
        ({"energy": [0]}, r"energy: all zero"),
        ({"energy": ["a"]}, r"energy: dtype <U1"),
        ({"weights": np.ones((2, 2))}, r"weights: must have shape \(2, 1\), got \(2, 2\)"),
        ({"weights": [np.nan, 1]}, r"weights: nan at \(0,\)"),
        ({"fixed_scales": [0]}, r"fixed_scales: every scale must be > 0"),
        ({"fixed_scales": [1, 1]}, r"fixed_scales: must have shape \(1,\)"),
        ({"input_sum": [1]}, r"input_sum: must have shape \(2,\)"),
        ({"target_sum": [1, 1]}, r"target_sum: must have shape \(1,\)"),
        ({"rows": None}, "rows: must be a whole number >= 1, got None"),
        ({"row_weight": 0}, "row_weight: must be > 0, got 0"),
        ({"row_weight": np.nan}, "row_weight: must be > 0, got nan"),
        ({"rows": 0}, r"rows: must be a whole number >= 1, got 0"),
        ({"rows": 1.5}, r"rows: must be a whole number >= 1, got 1\.5"),
    ],
)
def test_unusable_sums_are_named(sums, message):
    with pytest.raises(ValueError, match=r"layer9: " + message):
        hs.Problem(**{"gram": H, "cross": C, "energy": [4.0], "name": "layer9", **sums})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 3)),), r"quadratic \(Q\): must be square"),
        ((np.ones(2),), r"quadratic \(Q\): expected 2 dimensions"),
        (([[1, np.nan], [0, 1]],), r"quadratic \(Q\): nan at \(0, 1\)"),
        ((H, [1, 2, 3]), r"cross: must be \(S, T\) with S = 2"),
        ((H, [1, np.inf]), r"linear \(c\): inf at \(1,\)"),
        ((H, "ab"), r"linear \(c\): dtype <U2"),
        ((1e-200 * H, [0, 1e150]), r"cross, energy: column 0: inf times as large as the quadratic"),
        ((H, [[0, 1], [0, 1e200]]), r"cross, energy: column 1: 1e\+200 times as large as the quad"),
        ((1e300 * H, [0, 1]), r"gram, cross: the loss can reach"),
    ],
)
def test_unusable_quadratics_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        hs.Problem.from_quadratic(*arguments)


def test_a_programme_of_linear_terms_alone_has_any_size():
    s = hs.solve(hs.Problem.from_quadratic(np.zeros((2, 2)), [1e130, -2e130]))
    assert s.status is hs.Status.OPTIMAL and s.loss.tolist() == [-6e130]


@pytest.mark.parametrize("exponent", [-800, 0, 800])
def test_row_weights_of_any_size_beside_an_intercept(exponent, rng):
    x, w = rng.normal(size=(4, 50)) + 3, rng.normal(size=(4, 2))
    rows = np.full(50, np.ldexp(1.0, exponent))
    s = hs.solve(hs.Problem.from_arrays(x, w, row_weights=rows, intercept=True))
    plain = hs.solve(hs.Problem.from_arrays(x, w, intercept=True))
    np.testing.assert_array_equal(s.codes, plain.codes)
    np.testing.assert_allclose(np.ldexp(s.loss, -exponent), plain.loss, rtol=1e-9)


def test_rounding_of_a_gram_is_mended():
    p = hs.Problem([[1, 0.5 + 1e-9], [0.5, 1]], C, [4.0])
    np.testing.assert_array_equal(p.gram, p.gram.T)


def test_one_column_may_be_given_flat():
    p = hs.Problem(H, [1.0, 2.0], 5.0, weights=[3.0, 4.0])
    assert p.cross.shape == p.weights.shape == (2, 1)


# magnitudes

EXPONENT = st.integers(-500, 500)  # powers of two from 1e-150 to 1e150


@given(cases(kinds=("gaussian", "relu", "integer"), rows=(5, 40)), EXPONENT, st.data())
def test_no_magnitude_loses_anything_in_silence(case, exponent, data):
    """Inputs and each column at any magnitude: the same codes and errors, or a clear error."""
    x = np.ldexp(case.inputs, exponent)
    columns = np.array([data.draw(EXPONENT) for _ in case.weights.T])
    w = np.ldexp(case.weights, columns)
    built = {
        "weights": lambda: hs.Problem.from_arrays(x, w),
        "reference": lambda: hs.Problem.from_arrays(x, w, reference=x),
    }
    with np.errstate(over="ignore", under="ignore"):
        y = x.T @ w
    if np.isfinite(y).all():
        built["target"] = lambda: hs.Problem.from_arrays(x, w, target=y)
    for build in built.values():
        try:
            problem = build()
        except ValueError as error:
            message = str(error)
            assert "leaves the range of float64" in message or "must be finite" in message
            continue
        plain = hs.Problem.from_arrays(case.inputs, case.weights)
        found, wanted = hs.solve(problem), hs.solve(plain)
        np.testing.assert_allclose(
            np.ldexp(found.scales, -columns), wanted.scales, rtol=1e-6, atol=1e-9
        )
        loss = np.ldexp(np.ldexp(found.loss, -exponent - columns), -exponent - columns)
        np.testing.assert_allclose(loss, wanted.loss, rtol=1e-6, atol=1e-9 * plain.energy.max())
        exact = explicit_loss(case.inputs, case.target, found.codes, wanted.scales)
        np.testing.assert_allclose(exact, wanted.loss, rtol=1e-6, atol=1e-9 * plain.energy.max())


@pytest.mark.parametrize("exponent", [-500, -250, 0, 250, 500])
def test_moderate_products_are_solved_at_any_magnitude(exponent, rng):
    """Where X and W are far from 1 but XᵀW is not, there is nothing to refuse."""
    x, w = rng.normal(size=(6, 50)), rng.normal(size=(6, 3))
    wanted = hs.solve(hs.Problem.from_arrays(x, w))
    found = hs.solve(hs.Problem.from_arrays(np.ldexp(x, exponent), np.ldexp(w, -exponent)))
    np.testing.assert_array_equal(found.codes, wanted.codes)
    np.testing.assert_array_equal(found.loss, wanted.loss)


@pytest.mark.parametrize(
    "x, w", [(1e200, 1), (1e-200, 1), (1, 1e200), (1, 1e-200), (1e-150, 1e-180)]
)
def test_magnitudes_out_of_range_are_refused(x, w, rng):
    with pytest.raises(
        ValueError, match=r"leaves the range of float64; multiply by a power of two"
    ):
        hs.Problem.from_arrays(x * rng.normal(size=(2, 9)), w * rng.normal(size=(2, 2)))


def test_outputs_that_cancel_are_zero(rng):
    """Weights +1 and −1 on equal inputs: what is left of the energy is rounding, not a target."""
    x = rng.normal(size=(3, 40))[[0, 0, 1]]
    p = hs.Problem.from_arrays(x, [[0.3, 1.0], [-0.3, 1.0], [0.0, 1.0]])
    s = hs.solve(p)
    assert p.energy[0] == s.scales[0] == s.loss[0] == 0
    assert not p.cross[:, 0].any() and p.energy[1] > 1
    assert hs.verify(p, s.codes, s.scales, claimed_loss=s.loss).ok


# a problem of its own


def test_what_callers_do_to_their_arrays_changes_nothing(rng):
    x, w = rng.normal(size=(5, 30)), rng.normal(size=(5, 3))
    gram, cross, energy = x @ x.T, x @ (x.T @ w), ((x.T @ w) ** 2).sum(axis=0)
    p = hs.Problem(gram, cross, energy, weights=w, fixed_scales=np.ones(3))
    before = hs.solve(p, "exact").loss
    for array in (gram, cross, energy, w):
        array[...] = 7
    np.testing.assert_array_equal(hs.solve(p, "exact").loss, before)
    with pytest.raises(ValueError, match="read-only"):
        p.gram[0, 0] = 1


def test_select(rng):
    p = hs.Problem.from_arrays(rng.normal(size=(5, 30)), rng.normal(size=(5, 3)))
    mask = [True, False, True]
    for columns in ([0, 2], mask, np.array(mask), (0, -1)):
        np.testing.assert_array_equal(p.select(columns).cross, p.cross[:, [0, 2]])


@pytest.mark.parametrize("columns", [[True, False], [0.0, 1.0], [3], [-4], [], [[0]], ["a"], 1])
def test_select_refuses(rng, columns):
    p = hs.Problem.from_arrays(rng.normal(size=(5, 30)), rng.normal(size=(5, 3)))
    with pytest.raises(ValueError, match=r"problem: columns: .*T = 3"):
        p.select(columns)


def test_a_field_that_is_lost_is_noticed(rng, tmp_path):
    p = hs.Problem.from_arrays(rng.normal(size=(5, 30)), rng.normal(size=(5, 3)))
    p.save(tmp_path / "p.h5")
    with h5py.File(tmp_path / "p.h5", "a") as file:
        file.move("weights", "weightt")
    with pytest.raises(ValueError, match="damaged: its contents do not match"):
        hs.Problem.load(tmp_path / "p.h5")


def test_what_lies_the_wrong_way_round_is_told(rng):
    x, w = rng.normal(size=(4, 30)), rng.normal(size=(4, 3))
    for arguments, end in (
        ((x.T, w), "transpose X"),
        ((x, w.T), "transpose W"),
        ((x.T, None, x.T @ w), "transpose X"),
        ((x, None, w.T @ x), "transpose Y"),
        ((x, rng.normal(size=(5, 3))), r"got \(5, 3\)"),
    ):
        with pytest.raises(ValueError, match=f"{end}$"):
            hs.Problem.from_arrays(*arguments[:2], target=dict(enumerate(arguments)).get(2))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.ones((2, 1)), r"codes: must have shape \(S, T\) = \(2, 2\), got \(2, 1\)"),
        (np.ones(2), "codes: expected 2 or 3 dimensions"),
        (np.eye(2) > 0, "codes: entries other than -1 and"),
        (np.full((2, 2), 255, np.uint8), "codes: entries other than -1 and"),
        (np.ones((3, 2, 2)), "scales: give them where a column has several"),
    ],
)
def test_what_are_no_codes_has_no_loss(codes, message):
    p = hs.Problem.from_arrays(X, W)
    for evaluate in (p.loss, p.best_scales):
        with pytest.raises(ValueError, match=message):
            evaluate(codes)


def test_scales_of_another_shape_give_no_loss():
    p = hs.Problem.from_arrays(X, W)
    codes = np.where(W < 0, -1, 1)
    with pytest.raises(ValueError, match=r"scales: must have shape \(2,\), got \(1,\)"):
        p.loss(codes, [1.0])
    for wrong in (np.ones((3, 2)), np.ones((1, 1, 2)), np.ones((0, 2))):
        with pytest.raises(ValueError, match="scales: must have shape"):
            p.loss(codes, wrong)
    with pytest.raises(ValueError, match="scales: must have shape"):
        p.loss(np.stack([codes, codes]), [1.0, 2.0])
    np.testing.assert_array_equal(p.loss(codes, 2.0), p.loss(codes, [2.0, 2.0]))
    grouped = hs.Problem.from_arrays(X, W, scale_group=1)
    with pytest.raises(ValueError, match="scales: give them where a column has several"):
        grouped.loss(codes)
    assert grouped.loss(codes, np.abs(W)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["p.npz", "p.npy", "p.safetensors", ""])
def test_files_are_hdf5_and_named_so(name, tmp_path, rng):
    p = hs.Problem.from_arrays(rng.normal(size=(4, 9)), rng.normal(size=(4, 2)))
    for saved in (p, hs.solve(p)):
        match = r"is HDF5: name it p\.h5" if name else "is a folder; name a file in it"
        with pytest.raises(ValueError, match=match):
            saved.save(tmp_path / name)
    assert not list(tmp_path.iterdir())
