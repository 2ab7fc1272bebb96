"""The activation cache and the sums over it."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve import activations
from hashsolve.activations import (
    BINARIZED,
    DTYPES,
    FULL,
    group_weights,
    layer_sums,
    open_activations,
    write_activations,
)
from hashsolve.sums import Sums

CONV = hs.Geometry.conv((3, 3), stride=2, padding=1)
LINEAR = hs.Geometry()


def batches(*arrays, stream=FULL):
    return [{stream: array} for array in arrays]


def cut(array, sizes):
    """An array cut into batches of these sizes, and what is left."""
    return np.split(array, np.cumsum(sizes)[np.cumsum(sizes) < len(array)])


# the cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry, shape", [(CONV, (7, 2, 6, 6)), (LINEAR, (7, 5))])
def test_round_trip(geometry, shape, dtype, tmp_path, rng):
    maps = rng.normal(size=shape).astype(dtype)
    path = tmp_path / "a.h5"
    parts = cut(maps, [3, 1])
    both = [{FULL: part, BINARIZED: 2 * part} for part in parts]
    assert write_activations(path, both, geometry, dtype) == 7
    with open_activations(path) as streams:
        assert sorted(streams) == sorted([FULL, BINARIZED])
        np.testing.assert_array_equal(streams[FULL][()], maps)
        np.testing.assert_array_equal(streams[BINARIZED][()], 2 * maps)
        assert streams[FULL].dtype == dtype
        assert streams[FULL].fletcher32
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_leading_dimensions_of_a_linear_layer_become_samples(tmp_path, rng):
    maps = rng.normal(size=(2, 3, 4, 5))
    path = tmp_path / "a.h5"
    assert write_activations(path, batches(maps), LINEAR, "float64") == 24
    with open_activations(path) as streams:
        np.testing.assert_array_equal(streams[FULL][()], maps.reshape(24, 5))


def test_float16_overflow(tmp_path):
    fits, too_large = np.full((2, 3), 65504.0), np.full((2, 3), 65600.0)
    path = tmp_path / "a.h5"
    assert write_activations(path, batches(fits), LINEAR, "float16") == 2
    with pytest.raises(ValueError, match=r"fc: full_precision inputs: values above 65504.*float16"):
        write_activations(path, batches(fits, too_large), LINEAR, "float16", "fc")
    with open_activations(path) as streams:  # the earlier file stands
        assert len(streams[FULL]) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "fc: the calibration held no samples"),
        (batches(np.ones((0, 3))), "fc: the calibration held no samples"),
        (batches(np.array([[1, np.nan]])), r"fc: full_precision inputs: nan at \(0, 1\)"),
        (batches(np.array([[-np.inf]])), r"fc: full_precision inputs: -inf at \(0, 0\)"),
        (
            [{FULL: np.ones((2, 2))}, {FULL: np.array([[1, 1], [1, np.nan]])}],
            r"fc: full_precision inputs: nan at \(3, 1\)",
        ),
        (batches(np.ones((2, 3)), np.ones((2, 4))), r"samples of shape \(4,\) after one of \(3,\)"),
        ([{FULL: np.ones((2, 3)), BINARIZED: np.ones((1, 3))}], "fc: streams differ in samples"),
        ([{FULL: np.ones((2, 3))}, {BINARIZED: np.ones((2, 3))}], "missing from the first batch"),
        ([{FULL: np.ones((2, 3)), BINARIZED: np.ones((2, 3))}, {FULL: np.ones((2, 3))}], "differ"),
    ],
)
def test_unusable_batches_leave_nothing(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_activations(tmp_path / "a.h5", given, LINEAR, name="fc")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path):
    def failing():
        yield {FULL: np.ones((2, 3))}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_activations(tmp_path / "a.h5", failing(), LINEAR)
    assert not list(tmp_path.iterdir())


def test_unknown_dtype(tmp_path):
    with pytest.raises(ValueError, match=r"dtype: 'float23' is not one of .*; did you mean"):
        write_activations(tmp_path / "a.h5", batches(np.ones((2, 3))), LINEAR, "float23")


def test_truncated_files_are_named(tmp_path, rng):
    path = tmp_path / "a.h5"
    write_activations(path, batches(rng.normal(size=(50, 3))), LINEAR)
    whole = path.read_bytes()
    for stop in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:stop])
        with pytest.raises(ValueError, match=r"a\.h5: damaged"), open_activations(path):
            pass
    path.unlink()
    with pytest.raises(ValueError, match=r"a\.h5: no such file"), open_activations(path):
        pass


@pytest.mark.parametrize("position", [0.0, 0.3, 0.99])
def test_a_flipped_bit_is_found(position, tmp_path, rng):
    path = tmp_path / "a.h5"
    write_activations(path, batches(rng.normal(size=(50, 3))), LINEAR)
    with h5py.File(path) as file:
        chunk = file[FULL].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + int(position * 50 * 3 * 4)] ^= 16
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.h5: damaged"), open_activations(path) as streams:
        layer_sums(streams[FULL], np.ones((1, 3)), LINEAR)


# the sums over it


@st.composite
def layers(draw):
    """A layer with its maps: linear or convolution, grouped or not, in one or two streams."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    samples = draw(st.integers(1, 6))
    if draw(st.booleans()):
        geometry, shape, weights = LINEAR, (samples, 3), rng.normal(size=(2, 3))
    else:
        groups = draw(st.integers(1, 2))
        geometry = hs.Geometry.conv(
            (3, 2), draw(st.integers(1, 2)), ((1, 0), (0, 1)), groups=groups
        )
        shape = (samples, 2 * groups, 6, 5)
        weights = rng.normal(size=(2 * groups, 2, 3, 2))
    maps = rng.normal(size=shape)
    reference = maps + rng.normal(size=shape) if draw(st.booleans()) else None
    return geometry, weights, maps, reference


@given(layers(), st.lists(st.integers(1, 3), max_size=4))
def test_sums_are_those_of_the_explicit_matrix(tmp_path_factory, layer, sizes):
    geometry, weights, maps, reference = layer
    path = tmp_path_factory.mktemp("cache") / "a.h5"
    streams = {BINARIZED: cut(maps, sizes)}
    if reference is not None:
        streams[FULL] = cut(reference, sizes)
    together = [
        dict(zip(streams, parts, strict=True)) for parts in zip(*streams.values(), strict=True)
    ]
    write_activations(path, together, geometry, "float64")
    with open_activations(path) as cached:
        sums = layer_sums(cached[BINARIZED], weights, geometry, cached.get(FULL))
    for group, w in enumerate(group_weights(weights, geometry)):
        x = geometry.patches(maps, group)
        shown = x if reference is None else geometry.patches(reference, group)
        y = w.T @ shown
        found = hs.Problem.from_sums(sums[group], w)
        assert found.rows == x.shape[1]
        np.testing.assert_allclose(found.gram, x @ x.T, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(found.cross, x @ y.T, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(found.energy, (y**2).sum(axis=1), rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(found.input_sum, x.sum(axis=1), rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(found.target_sum, y.sum(axis=1), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("block", [1, 7, 40, 1000])
@given(layers())
def test_any_size_of_block_sums_every_row(block, layer):
    geometry, weights, maps, reference = layer
    whole = layer_sums(maps, weights, geometry, reference)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "block_rows", lambda inputs, precision="double": block)
        cut_up = layer_sums(maps, weights, geometry, reference)
    for a, b in zip(whole, cut_up, strict=True):
        assert a.finish().rows == b.finish().rows
        np.testing.assert_allclose(a.gram, b.gram, rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(a.cross, b.cross, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("geometry", [CONV, LINEAR])
def test_batch_cuts_change_no_bit(geometry, tmp_path, rng):
    shape = (40, 2, 33, 33) if geometry is CONV else (20000, 3)
    maps = rng.normal(size=shape).astype(np.float32)
    reference = maps + rng.normal(size=shape).astype(np.float32)
    weights = rng.normal(size=(2, 2, 3, 3) if geometry is CONV else (2, 3))
    found = []
    for sizes in ([], [1, 1, 5], [17, 3]):
        path = tmp_path / "a.h5"
        parts = zip(cut(maps, sizes), cut(reference, sizes), strict=True)
        write_activations(path, ({BINARIZED: a, FULL: b} for a, b in parts), geometry)
        with open_activations(path) as streams:
            (sums,) = layer_sums(streams[BINARIZED], weights, geometry, streams[FULL])
        found.append(hs.Problem.from_sums(sums, group_weights(weights, geometry)[0]))
    assert found[0].rows > Sums(9)._block_rows
    for other in found[1:]:
        for field in ("gram", "cross", "energy", "input_sum", "target_sum"):
            np.testing.assert_array_equal(getattr(other, field), getattr(found[0], field))


def test_streams_of_different_shapes():
    with pytest.raises(ValueError, match=r"fc: reference .* and inputs .* differ"):
        layer_sums(np.ones((2, 3)), np.ones((1, 3)), LINEAR, np.ones((3, 3)), "fc")


@pytest.mark.parametrize("targets", (False, True))
@pytest.mark.parametrize("geometry", (LINEAR, CONV, hs.Geometry.conv((3, 3), padding=1)))
def test_no_samples_are_named_as_such(geometry, targets):
    maps = np.zeros((0, 64) if geometry.linear else (0, 64, 8, 8), np.float32)
    weights = np.ones((2, 64, *geometry.kernel))
    (sums,) = layer_sums(maps, weights, geometry, reference=maps if targets else None)
    with pytest.raises(ValueError, match="no rows were summed"):
        sums.finish()
