"""Sums by lags: equal to the sums over patches, on any geometry, whatever the cut."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_geometry import convolutions
from ways import by

import hashsolve as hs
from hashsolve import activations, lags, planes, threads
from hashsolve.activations import BINARIZED, FULL, layer_sums, open_activations, write_activations
from hashsolve.lags import plan_of

FIELDS = ("gram", "cross", "energy", "input_sum", "target_sum", "rows", "row_weight")
CONV = hs.Geometry.conv((3, 3), padding=1)


def draw_weights(geometry, maps, seed=0):
    share = maps.shape[1] // geometry.groups
    shape = (2 * geometry.groups, share, *geometry.kernel)
    return np.random.default_rng(seed).integers(-3, 4, size=shape) / 1


def fields(sums):
    return [[getattr(total.finish(), field) for field in FIELDS] for total in sums]


def same(a, b):
    for x, y in zip(fields(a), fields(b), strict=True):
        for field, u, v in zip(FIELDS, x, y, strict=True):
            np.testing.assert_array_equal(u, v, err_msg=field)


@st.composite
def layers(draw):
    """A convolution, "same" padding too, with whole numbers as maps, and perhaps a reference."""
    geometry, maps = draw(convolutions())
    if draw(st.booleans()):
        geometry = hs.Geometry.conv(
            geometry.kernel, geometry.stride, "same", geometry.dilation, geometry.groups
        )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    count = draw(st.integers(1, 4))
    maps = rng.integers(-9, 10, size=(count, *maps.shape[1:])) / 1
    return (
        geometry,
        maps,
        rng.integers(-9, 10, size=maps.shape) / 1 if draw(st.booleans()) else None,
    )


@given(layers(), st.sampled_from([0.0, 1.15, 9.0]), st.sampled_from([1, 128]))
def test_whole_numbers_are_summed_exactly(layer, waste, wide):
    """The sums over patches, to the bit, where these are exact."""
    geometry, maps, reference = layer
    weights = draw_weights(geometry, maps)
    with by("patches"):
        wanted = layer_sums(maps, weights, geometry, reference)
    with (
        by("lags"),
        mock.patch.object(lags, "_WASTE", waste),
        mock.patch.object(planes, "_WIDE", wide),
    ):
        same(layer_sums(maps, weights, geometry, reference), wanted)


@given(layers(), st.integers(-3, 3))
def test_real_numbers_are_summed_to_rounding(layer, exponent):
    geometry, maps, reference = layer
    rng = np.random.default_rng(1)
    maps = (maps + rng.normal(size=maps.shape)).astype(np.float32) * 10.0**exponent
    if reference is not None:
        reference = maps + 10.0**exponent * rng.normal(size=maps.shape)
    weights = draw_weights(geometry, maps) + 0.1
    found = {}
    for way in ("patches", "lags"):
        with by(way):
            found[way] = fields(layer_sums(maps, weights, geometry, reference))
    for x, y in zip(found["lags"], found["patches"], strict=True):
        for field, u, v in zip(FIELDS, x, y, strict=True):
            scale = np.abs(v).max(initial=0.0)
            np.testing.assert_allclose(u, v, rtol=0, atol=1e-12 * scale, err_msg=field)


@pytest.mark.parametrize("wide", [1, 128])
@pytest.mark.parametrize("reference", [False, True])
def test_no_cut_changes_a_bit(reference, wide, rng):
    """Cores, slabs, and whether chunks or products are spread over the cores."""
    maps = rng.normal(size=(23, 6, 7, 7))
    weights = rng.normal(size=(4, 3, 3, 3))
    geometry = hs.Geometry.conv((3, 3), padding=1, groups=2)
    shown = maps + 1 if reference else None
    found = []
    for cores, slab, side in [(1, 2**26, 128), (2, 1, wide), (3, 20_000, wide)]:
        with (
            by("lags"),
            mock.patch.object(threads, "cores", lambda cores=cores: cores),
            mock.patch.object(activations, "_SLAB_BYTES", slab),
            mock.patch.object(planes, "_WIDE", side),
            mock.patch.object(lags, "_CHUNK_ROWS", (200, 200)),
        ):
            found.append(layer_sums(maps, weights, geometry, shown))
    for other in found[1:]:
        same(other, found[0])


def test_batches_change_no_bit(tmp_path, rng):
    maps = rng.normal(size=(40, 16, 9, 9)).astype(np.float32)
    weights = rng.normal(size=(5, 16, 3, 3))
    assert plan_of(CONV, (9, 9), 16, 5, 40, False)
    found = []
    for sizes in ([40], [1, 1, 5, 33], [17, 23]):
        parts = np.split(maps, np.cumsum(sizes)[:-1])
        write_activations(tmp_path / "a.h5", ({BINARIZED: p, FULL: 2 * p} for p in parts), CONV)
        with open_activations(tmp_path / "a.h5") as streams:
            found.append(layer_sums(streams[BINARIZED], weights, CONV, streams[FULL]))
    for other in found[1:]:
        same(other, found[0])


@pytest.mark.parametrize("way", ["lags", "spectra"])
def test_an_input_that_no_tap_sees_is_exactly_dead(way, rng):
    """Channel 0 is 0 but in a corner, which the opposite taps never see."""
    maps = rng.normal(size=(5, 2, 6, 6))
    maps[:, 0] = 0
    maps[:, 0, -1, -1] = 1e8 * rng.normal(size=5)
    with by(way):
        (total,) = layer_sums(maps, rng.normal(size=(3, 2, 3, 3)), hs.Geometry.conv((3, 3)))
    dead = np.flatnonzero(total.finish().gram.any(axis=1) == 0)
    np.testing.assert_array_equal(dead, range(8))  # all taps of channel 0 but the last


@pytest.mark.parametrize("exponent", [-600, 600])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("way", ["lags", "spectra"])
def test_squares_that_leave_the_range_are_refused(way, exponent, reference, rng):
    maps = rng.normal(size=(3, 2, 5, 5))
    far = np.ldexp(maps, exponent)
    with by(way), pytest.raises(ValueError, match="leaves the range of float64"):
        (total,) = layer_sums(
            maps if reference else far, np.ones((1, 2, 3, 3)), CONV, far if reference else None
        )
        total.finish()


@pytest.mark.parametrize("stream", ["inputs", "reference"])
@pytest.mark.parametrize("way", ["lags", "spectra"])
def test_values_that_are_not_finite_are_named(way, stream, rng):
    maps = {key: rng.normal(size=(3, 2, 5, 5)) for key in ("inputs", "reference")}
    maps[stream][1, 0, 2, 2] = np.nan
    with by(way), pytest.raises(ValueError, match=rf"conv7: {stream}: nan at \(1, 0, 2, 2\)"):
        layer_sums(maps["inputs"], np.ones((1, 2, 3, 3)), CONV, maps["reference"], "conv7")


def test_lags_and_spectra_are_chosen_where_they_pay():
    for targets in (0, 64):
        assert plan_of(CONV, (32, 32), 64, targets, 512, False).spectral
        assert not plan_of(CONV, (32, 32), 64, targets, 512, True).spectral  # shifted targets
        assert not plan_of(CONV, (16, 16), 64, targets, 16, False).spectral  # too few samples
        assert not plan_of(CONV, (200, 200), 64, targets, 512, False).spectral  # too large
        for geometry, size, channels in [
            (CONV, 32, 1),  # depthwise
            (CONV, 4096, 64),  # too large a sample
            (hs.Geometry.conv((1, 1)), 32, 64),
            (hs.Geometry.conv((2, 2), 2), 32, 64),
        ]:
            assert plan_of(geometry, (size, size), channels, targets, 512, False) is None
    assert not plan_of(hs.Geometry.conv((5, 5), 2, 2), (32, 32), 64, 0, 512, False).spectral
    assert plan_of(hs.Geometry.conv((11, 11)), (32, 32), 64, 0, 512, False) is None  # too many taps
    assert plan_of(hs.Geometry(), (), 64, 0, 512, False) is None
