"""Geometry: patches against plain loops; blocks, groups and linear layers."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve.activations import group_weights, layer_sums

MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def convolutions(draw):
    """A geometry in 1, 2 or 3 dimensions and feature maps that it fits."""
    dims = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, stride, dilation = draw(each), draw(each), draw(each)
    spatial, padding = [], []
    for k, d in zip(kernel, dilation, strict=True):
        reach = (k - 1) * d + 1
        size = draw(st.integers(max(2, reach - 1), reach + 4))
        pads = draw(st.tuples(*[st.integers(0, min(3, size - 1))] * 2))
        if size + sum(pads) < reach:
            pads = (1, pads[1])
        spatial.append(size)
        padding.append(pads)
    groups = draw(st.integers(1, 2))
    shape = (draw(st.integers(1, 3)), groups * draw(st.integers(1, 2)), *spatial)
    mode = draw(st.sampled_from(MODES))
    geometry = hs.Geometry.conv(kernel, stride, tuple(padding), dilation, groups, mode)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return geometry, rng.normal(size=shape).astype(draw(st.sampled_from(["f4", "f8"])))


def loops(geometry, maps, group=0):
    """The same patches by `naive`."""
    share = maps.shape[1] // geometry.groups
    return naive.patches(
        maps[:, group * share : (group + 1) * share],
        geometry.kernel,
        geometry.stride,
        geometry.padded(maps.shape[2:]),
        geometry.dilation,
        geometry.padding_mode,
    )


@given(convolutions())
def test_patches(case):
    geometry, maps = case
    for group in range(geometry.groups):
        found = geometry.patches(maps, group)
        np.testing.assert_array_equal(found, loops(geometry, maps, group))
        assert found.dtype == np.float64 and found.flags.c_contiguous
        assert found.shape[1] == geometry.rows(maps.shape)
    assert geometry.rows(maps.shape) == len(maps) * np.prod(geometry.output(maps.shape[2:]))


@given(convolutions(), st.data())
def test_lines_are_cut_from_the_first_axis(case, data):
    geometry, maps = case
    positions = geometry.output(maps.shape[2:])
    first = data.draw(st.integers(0, positions[0] - 1))
    last = data.draw(st.integers(first + 1, positions[0]))
    whole = geometry.patches(maps).reshape(-1, len(maps), *positions)
    part = geometry.patches(maps, lines=slice(first, last))
    np.testing.assert_array_equal(part, whole[:, :, first:last].reshape(len(part), -1))


@given(convolutions(), st.integers(1, 60))
def test_blocks_hold_each_row_once_in_order(case, max_rows):
    geometry, maps = case
    blocks = list(geometry.blocks(maps.shape, max_rows))
    parts = [geometry.patches(maps[samples], 0, lines) for samples, lines in blocks]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), geometry.patches(maps))
    line = int(np.prod(geometry.output(maps.shape[2:])[1:]))
    assert all(0 < part.shape[1] <= max(max_rows, line) for part in parts)


@given(st.integers(1, 50), st.integers(1, 60))
def test_blocks_of_a_linear_layer(rows, max_rows):
    maps = np.arange(3.0 * rows).reshape(rows, 3)
    geometry = hs.Geometry()
    parts = [
        geometry.patches(maps[samples], 0, lines)
        for samples, lines in geometry.blocks(maps.shape, max_rows)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), maps.T)
    assert all(0 < part.shape[1] <= max_rows for part in parts)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2))
def test_same_padding(size, kernel, stride, dilation):
    """ceil(size / stride) outputs, the odd padding behind."""
    geometry = hs.Geometry.conv((kernel,), stride, "same", dilation)
    assert geometry.output((size,)) == (-(-size // stride),)
    ((before, after),) = geometry.padded((size,))
    assert after - before in (0, 1)
    maps = np.arange(1.0, 2 * size + 1).reshape(2, 1, size)
    np.testing.assert_array_equal(geometry.patches(maps), loops(geometry, maps))


def test_a_kernel_that_fits_exactly():
    geometry = hs.Geometry.conv((2, 3), padding="valid")
    maps = np.arange(6.0).reshape(1, 1, 2, 3)
    np.testing.assert_array_equal(geometry.patches(maps), np.arange(6.0)[:, None])


@given(st.lists(st.integers(1, 3), max_size=3), st.integers(1, 4))
def test_linear_over_leading_dimensions(leading, features):
    geometry = hs.Geometry()
    maps = np.arange(np.prod([*leading, features], dtype=float)).reshape(*leading, features)
    samples = geometry.samples(maps)
    assert geometry.linear
    np.testing.assert_array_equal(geometry.patches(samples), maps.reshape(-1, features).T)
    assert geometry.rows(samples.shape) == maps.size // features


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_grouped_is_separate_convolutions(groups, asymmetric, rng):
    """Sums and solutions of the groups are those of convolutions of their own."""
    maps = rng.normal(size=(4, 6, 5, 5))
    reference = maps + rng.normal(size=maps.shape) if asymmetric else None
    weights = rng.normal(size=(2 * groups, 6 // groups, 3, 3))
    grouped = hs.Geometry.conv((3, 3), padding=1, groups=groups)
    single = hs.Geometry.conv((3, 3), padding=1)
    sums = layer_sums(maps, weights, grouped, reference)
    assert len(sums) == groups
    share = 6 // groups
    for group, (total, w) in enumerate(zip(sums, group_weights(weights, grouped), strict=True)):
        channels, filters = (
            slice(group * share, (group + 1) * share),
            slice(2 * group, 2 * group + 2),
        )
        (alone,) = layer_sums(
            maps[:, channels],
            weights[filters],
            single,
            None if reference is None else reference[:, channels],
        )
        np.testing.assert_array_equal(total.finish().gram, alone.finish().gram)
        np.testing.assert_array_equal(total.cross, alone.cross)
        np.testing.assert_array_equal(w, weights[filters].reshape(2, -1).T)
        a, b = (hs.solve(hs.Problem.from_sums(s, w)) for s in (total, alone))
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.scales, b.scales)


@given(convolutions())
def test_weights_and_patches_agree_on_their_order(case):
    """Wᵀ times the patches is the convolution, position by position."""
    geometry, maps = case
    rng = np.random.default_rng(0)
    share = maps.shape[1] // geometry.groups
    weights = rng.normal(size=(2 * geometry.groups, share, *geometry.kernel))
    (w, *_) = group_weights(weights, geometry)
    outputs = w.T @ geometry.patches(maps)
    first = naive.patches(
        maps[:1, :share],
        geometry.kernel,
        geometry.stride,
        geometry.padded(maps.shape[2:]),
        geometry.dilation,
        geometry.padding_mode,
    )[:, 0]
    assert outputs[1, 0] == pytest.approx((weights[1].reshape(-1) * first).sum(), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": ()}, r"kernel: 1, 2 or 3 dimensions, got \(\)"),
        ({"kernel": (1, 1, 1, 1)}, "kernel: 1, 2 or 3 dimensions"),
        ({"stride": (1, 2, 3)}, r"stride: \(1, 2, 3\) does not fit a kernel of 2 dimensions"),
        ({"padding": (1,)}, "padding: .* does not fit a kernel of 2 dimensions"),
        ({"padding": -1}, "padding: negative"),
        ({"padding": "some"}, "padding: 'some' is neither 'same', 'valid' nor numbers"),
        ({"stride": 0}, "must be >= 1"),
        ({"dilation": (1, 0)}, "must be >= 1"),
        ({"groups": 0}, "must be >= 1"),
        ({"kernel": (0, 3)}, "must be >= 1"),
        ({"padding_mode": "mirror"}, "padding_mode: 'mirror' is not one of zeros, reflect"),
    ],
)
def test_unusable_geometries(arguments, message):
    with pytest.raises(ValueError, match=message):
        hs.Geometry.conv(**{"kernel": (3, 3), **arguments})


def test_maps_that_do_not_fit():
    with pytest.raises(ValueError, match=r"maps of size \(2, 9\) are smaller than the kernel"):
        hs.Geometry.conv((3, 3)).patches(np.ones((1, 1, 2, 9)))
    with pytest.raises(ValueError, match=r"3 channels do not divide into 2 groups"):
        hs.Geometry.conv((1, 1), groups=2).patches(np.ones((1, 3, 2, 2)))
    with pytest.raises(ValueError, match=r"3 filters do not divide into 2 groups"):
        group_weights(np.ones((3, 1, 1, 1)), hs.Geometry.conv((1, 1), groups=2))
    with pytest.raises(ValueError, match=r"conv5: maps of 3 channels do not fit weights"):
        layer_sums(
            np.ones((1, 3, 2, 2)), np.ones((1, 2, 1, 1)), hs.Geometry.conv((1, 1)), None, "conv5"
        )
