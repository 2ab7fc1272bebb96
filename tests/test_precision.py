"""precision="single": blocks multiplied in float32, within what is stated of float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_residual import Here

import hashsolve as hs
from hashsolve import activations, cluster, sums
from hashsolve.activations import BINARIZED, FULL, layer_sums, open_activations, write_activations
from hashsolve.readers import read_problem
from hashsolve.sums import Sums, in_single
from hashsolve.testing.strategies import make_case

UNIT = 2.0**-24
LINEAR = hs.Geometry()
FIELDS = ("gram", "cross", "energy", "input_sum", "target_sum")
SCALES = st.sampled_from([1.0, 2.0**-30, 2.0**40, 1e-30, 1e-41, 1e30, 3e38])


@st.composite
def arrays(draw):
    """X̂ float32, X, W, Y over a few hundred rows, inputs at scales of their own, some dead."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    size, rows, columns = draw(st.integers(2, 30)), draw(st.integers(1, 300)), 3
    scale = np.array(draw(st.lists(SCALES, min_size=size, max_size=size)))
    if draw(st.booleans()):
        scale[:] = scale[0]
    scale[draw(st.integers(0, size - 1))] *= draw(st.sampled_from([0.0, 1.0]))
    mean = draw(st.sampled_from([0.0, 10.0]))
    x = rng.normal(mean, size=(size, rows)) / (mean + 6) * scale[:, None]
    reference = x * rng.uniform(0.5, 1, size=x.shape)
    w = rng.normal(size=(size, columns)) * 2.0 ** rng.integers(-20, 20, columns)
    return x.astype(np.float32), reference.astype(np.float32), w


def test_means_that_single_precision_has_too_few_digits_for(rng):
    """The message says so, and both ways out that it names are ones."""
    x, w = 1e3 + 1e-3 * rng.normal(size=(6, 500)), rng.normal(size=(6, 2))
    fields = {"intercept": True, "precision": "single"}
    with pytest.raises(ValueError, match=r"has a mean of 1e\+03 .*use precision='double', or"):
        hs.solve(hs.Problem.from_arrays(x, w, name="layer", **fields))
    double = hs.solve(hs.Problem.from_arrays(x, w, intercept=True))
    aside = hs.solve(hs.Problem.from_arrays(x - x.mean(axis=1, keepdims=True), w, **fields))
    np.testing.assert_array_equal(double.codes, aside.codes)


def norms(values):
    return np.sqrt((values.astype(float) ** 2).sum(axis=1))


@given(arrays(), st.sampled_from(["float64", "float32"]))
def test_single_is_near_double(given, dtype):
    """To n·2⁻²⁴ of the norms, at any scale; and exactly symmetric, dead inputs exactly dead."""
    x, reference, w = given
    x, reference = x.astype(dtype), reference.astype(dtype)
    size, rows = x.shape
    found = {}
    for precision in ("double", "single"):
        total, _ = sums.sum_arrays(x, w, None, reference, None, "p", precision)
        try:
            found[precision] = total.finish()
        except ValueError as error:  # a column of targets so small that its squares vanish
            assert "leaves the range of float64" in str(error)
            return
    a, b = found["single"], found["double"]
    share, norm = (rows + 2) * UNIT, norms(x)
    assert (np.abs(a.gram - b.gram) <= share * np.outer(norm, norm)).all()
    assert (a.gram == a.gram.T).all()
    assert not a.gram[norm == 0].any()
    assert (np.abs(a.input_sum - b.input_sum) <= UNIT * np.abs(x).sum(axis=1, dtype=float)).all()
    weight = np.abs(w).max(axis=0)
    target = norms(reference).sum() * weight
    share += (size + 4) * UNIT
    assert (np.abs(a.cross - b.cross) <= share * np.outer(norm, target)).all()
    assert (np.abs(a.energy - b.energy) <= 3 * share * target**2).all()
    assert a.rows == b.rows and a.row_weight == b.row_weight


@pytest.mark.parametrize("kind", ["relu", "asymmetric"])
def test_whole_blocks_are_much_nearer_than_is_promised(kind):
    """A full block of 8,192 rows; and so are losses of codes."""
    x = make_case(kind, 0, size=40, columns=3, rows=9000).inputs.astype(np.float32)
    w = np.random.default_rng(0).normal(size=(40, 3))
    single, double = (hs.Problem.from_arrays(x, w, precision=p) for p in ("single", "double"))
    norm = np.sqrt(np.diagonal(double.gram))
    off = np.abs(single.gram - double.gram) / np.outer(norm, norm)
    assert 0 < off.max() < 3e-6
    solution = hs.solve(single, "dcc")
    np.testing.assert_allclose(solution.loss, double.loss(solution.codes), rtol=1e-4)


@pytest.mark.parametrize("scale", [2.0**-60, 1e-30, 2.0**62, 3e38])
@pytest.mark.parametrize("where", ["inputs", "reference", "weights", "target"])
def test_what_float32_cannot_multiply_is_multiplied_in_float64(scale, where, rng):
    arrays = {
        "inputs": rng.uniform(0.5, 1, size=(5, 40)).astype(np.float32),
        "reference": rng.uniform(0.5, 1, size=(5, 40)).astype(np.float32),
        "weights": rng.uniform(0.5, 1, size=(5, 2)),
    }
    if where == "target":
        arrays = {"inputs": arrays["inputs"], "target": rng.uniform(0.5, 1, size=(40, 2))}
    arrays[where][1] *= scale
    if where in ("weights", "target"):
        arrays[where] *= scale / arrays[where].max()
    single, double = (hs.Problem.from_arrays(**arrays, precision=p) for p in ("single", "double"))
    for field in ("gram", "cross", "energy"):
        a, b = getattr(single, field), getattr(double, field)
        unit = np.abs(b).max(axis=0)
        assert np.isfinite(a).all() and (np.abs(a - b) <= 1e-5 * unit).all(), field
    if where == "inputs":
        np.testing.assert_array_equal(single.gram, double.gram)


def test_subnormal_values_are_no_zeros():
    x = np.full((2, 9), 1e-200)
    assert in_single(x)[0] is None
    total = Sums(2, precision="single")
    total.add_block(np.array([[1.0, 2.0], [1e-150, 2e-150]]))
    np.testing.assert_allclose(np.diagonal(total.finish().gram), [5, 5e-300], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["inputs (X)", "reference (X)", "target (Y)"])
def test_what_is_not_finite_is_named(bad, where, rng):
    x, w = rng.normal(size=(4, 6)).astype(np.float32), np.ones((4, 2))
    other = x.copy()
    options = {"reference": other} if where == "reference (X)" else {}
    if where == "target (Y)":
        options["target"] = y = rng.normal(size=(6, 2)).astype(np.float32)
        y[3, 1] = bad
    else:
        (x if where == "inputs (X)" else other)[2, 3] = bad
    with pytest.raises(ValueError, match=f"{where[:6]}.* at "):
        hs.Problem.from_arrays(x, w, precision="single", **options)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "geometry, shape, weights",
    [(LINEAR, (700, 9), (3, 9)), (hs.Geometry.conv((2, 2), 2), (40, 6, 8, 8), (2, 3, 2, 2))],
)
def test_cached_layers(geometry, shape, weights, dtype, tmp_path, rng, monkeypatch):
    """From a file, from memory, on a cluster: the same bits, near those of double."""
    if geometry is not LINEAR:
        geometry = hs.Geometry.conv((2, 2), 2, groups=2)
    monkeypatch.setattr(activations, "block_rows", lambda inputs, precision="double": 256)
    maps = np.maximum(rng.normal(size=shape), 0).astype(dtype)
    reference = (maps + rng.normal(size=shape)).astype(dtype)
    kernels = rng.normal(size=weights)
    path = tmp_path / "a.h5"
    write_activations(path, [{BINARIZED: maps, FULL: reference}], geometry, dtype)
    with open_activations(path) as streams:
        filed = layer_sums(streams[BINARIZED], kernels, geometry, streams[FULL], precision="single")
    held = layer_sums(maps, kernels, geometry, reference, precision="single")
    spread = cluster.layer_sums(Here(), path, kernels, geometry, precision="single")
    double = layer_sums(maps, kernels, geometry, reference)
    for a, b, c, d in zip(filed, held, spread, double, strict=True):
        for field in FIELDS:
            value = getattr(a.finish(), field)
            np.testing.assert_array_equal(value, getattr(b.finish(), field))
            np.testing.assert_array_equal(value, getattr(c.finish(), field))
            scale = np.abs(getattr(d.finish(), field)).max()
            np.testing.assert_allclose(value, getattr(d, field), rtol=0, atol=1e-6 * scale)
        assert (a.gram != d.gram).any()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.booleans())
def test_batches_change_no_bit(sizes, transposed):
    rng = np.random.default_rng(len(sizes))
    x = rng.normal(size=(4, sum(sizes))).astype(np.float32)
    y = rng.normal(size=(2, sum(sizes)))
    whole, parts = Sums(4, 2, precision="single"), Sums(4, 2, precision="single")
    for total in (whole, parts):
        total._block_rows = 50
    whole.add(x, y)
    start = 0
    for size in sizes:
        piece = x[:, start : start + size]
        parts.add(piece.T.copy().T if transposed else piece, y[:, start : start + size])
        start += size
    for field in FIELDS:
        np.testing.assert_array_equal(
            getattr(whole.finish(), field), getattr(parts.finish(), field)
        )


@pytest.mark.parametrize("name", ["half", "Single", "", None])
def test_unknown_precision(name, tmp_path):
    with pytest.raises(ValueError, match=r"precision: .* is not one of 'double', 'single'"):
        hs.Problem.from_arrays(np.eye(3), np.eye(3), precision=name)
    with pytest.raises(ValueError, match=r"precision: .* is not one of 'double', 'single'"):
        hs.binarize(None, [np.ones(1)], tmp_path, precision=name)


def test_sums_that_are_made_have_no_precision(tmp_path):
    x, w, made = np.eye(3), np.eye(3), str(tmp_path / "p.h5")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(3, 999)))
    np.save(tmp_path / "w.npy", w)
    hs.Problem.from_arrays(x, w).save(made)
    with pytest.raises(ValueError, match="precision: its sums are made already"):
        read_problem(made, precision="single")
    files = str(tmp_path / "x.npy"), str(tmp_path / "w.npy")
    assert (read_problem(*files, precision="single").gram != read_problem(*files).gram).any()
