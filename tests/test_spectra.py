"""Sums by spectra: those over patches to rounding, input by input, at stride 1."""

from __future__ import annotations

import itertools
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_geometry import convolutions
from test_lags import CONV, draw_weights, same
from ways import by

import hashsolve as hs
from hashsolve import activations, lags, spectra, threads
from hashsolve.activations import layer_sums
from hashsolve.lags import Plan
from hashsolve.spectra import Spectra
from hashsolve.spectral_sums import SpectralSums

TOLERANCE = 2e-14


@st.composite
def layers(draw):
    """A convolution of stride 1 and its maps, some of them zero, or nearly so, in parts."""
    geometry, maps = draw(convolutions())
    geometry = replace(geometry, stride=(1,) * len(geometry.kernel))
    plan = Plan(geometry, maps.shape[2:])
    assume(plan.one_phase())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (draw(st.integers(1, 9)), *maps.shape[1:])
    streams = []
    for _ in range(draw(st.integers(1, 2))):
        stream = rng.normal(size=shape) + draw(st.sampled_from([0.0, 3.0]))
        for channel in range(shape[1]):
            scale = draw(st.sampled_from([1.0, 1.0, 1e-9, 0.0]))
            axis = draw(st.integers(2, len(shape) - 1))
            inner = [slice(None)] * (len(shape) - 1)
            inner[axis - 1] = draw(st.sampled_from([slice(1, None), slice(-1), slice(1, -1)]))
            stream[(slice(None), channel)][tuple(inner)] *= scale
        streams.append(stream.astype(maps.dtype))
    return geometry, *streams, *[None] * (2 - len(streams))


@given(layers(), st.sampled_from([1, 2**23]))
def test_each_input_is_summed_to_rounding(layer, room):
    """Errors are small beside the energies of both inputs, however little these are of all."""
    geometry, maps, reference = layer
    weights = draw_weights(geometry, maps) + 0.1
    found = {}
    for way in ("patches", "spectra"):
        with by(way), mock.patch.object(lags, "SPECTRA", room * 10_000):
            found[way] = [
                total.finish() for total in layer_sums(maps, weights, geometry, reference)
            ]
    matrices = activations.group_weights(weights, geometry)
    for group, (a, b, w) in enumerate(zip(*found.values(), matrices, strict=True)):
        root = np.sqrt(np.diagonal(a.gram))
        np.testing.assert_array_equal(np.diagonal(b.gram) == 0, root == 0)
        assert (np.abs(a.gram - b.gram) <= TOLERANCE * np.outer(root, root)).all()
        np.testing.assert_array_equal(b.gram[root == 0], 0)
        if reference is not None:
            shown = geometry.patches(reference, group)
            size = np.abs(w.T) @ np.sqrt((shown * shown).sum(axis=1))  # at least |Y|
            assert (np.abs(a.cross - b.cross) <= 2 * TOLERANCE * np.outer(root, size)).all()
            assert (np.abs(a.energy - b.energy) <= 2 * TOLERANCE * size**2).all()
            np.testing.assert_array_equal(b.cross[root == 0], 0)
            scale = np.abs(w.T) @ np.abs(shown).sum(axis=1)
            assert (np.abs(a.target_sum - b.target_sum) <= TOLERANCE * scale).all()
        scale = np.abs(geometry.patches(maps, group)).sum(axis=1)
        assert (np.abs(a.input_sum - b.input_sum) <= TOLERANCE * scale).all()
        assert (a.rows, a.row_weight) == (b.rows, b.row_weight)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 99))
def test_correlations_are_those_of_plain_sums(sizes, seed):
    rng = np.random.default_rng(seed)
    channels, samples = 3, 2
    reach = [int(n) for n in rng.integers(0, 3, size=len(sizes))]
    found = [(0,) * len(sizes), *itertools.product(*(range(-n, n + 1) for n in reach))]
    maps = rng.normal(size=(channels, samples, *sizes))
    transformed = Spectra(sizes, found, channels)
    transformed.reserve(samples)
    for channel in range(channels):
        transformed.transform(channel, maps[channel])
    with mock.patch.object(spectra, "_TILE", 2):
        values = np.empty((len(found), channels, channels))
        transformed.correlations(values)
    for lag, value in zip(found, values, strict=True):
        a, b = maps, maps
        for axis, along in enumerate(lag, start=2):
            size = sizes[axis - 2]
            a = a.take(range(max(0, -along), min(size, size - along)), axis)
            b = b.take(range(max(0, along), min(size, size + along)), axis)
        wanted = a.reshape(channels, -1) @ b.reshape(channels, -1).T
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-13 * samples * np.prod(sizes))


@pytest.mark.parametrize("reference", [False, True])
def test_no_cut_changes_a_bit(reference, rng):
    """Cores, and slabs of one or of many chunks; of one channel only the border is not zero."""
    maps = rng.normal(size=(23, 6, 7, 7))
    maps[:, 1, 1:] = 0
    weights = rng.normal(size=(4, 3, 3, 3))
    geometry = hs.Geometry.conv((3, 3), padding=1, groups=2)
    shown = maps + 1 if reference else None
    found = []
    for cores, slab in [(1, 2**26), (2, 1), (3, 20_000)]:
        with (
            by("spectra"),
            mock.patch.object(threads, "cores", lambda cores=cores: cores),
            mock.patch.object(activations, "_SLAB_BYTES", slab),
            mock.patch.object(lags, "SPECTRA", 5000),
        ):
            found.append(layer_sums(maps, weights, geometry, shown))
    for other in found[1:]:
        same(other, found[0])


def test_memory_taken_over_changes_no_bit(rng):
    """Spectra leave their memory, whatever is in it, to the next ones, where that is asked for."""
    maps, weights = rng.normal(size=(9, 4, 7, 7)), rng.normal(size=(4, 4, 3, 3))
    found = []
    with by("spectra"), spectra.kept_memory():
        for _ in range(2):
            found.append(layer_sums(maps, weights, CONV, maps + 1))
            (left,) = spectra._Spare.arrays
            left.fill(np.nan)
        assert spectra._Spare.arrays[0] is left
        other = Spectra((5, 5), [(0, 0)], 2), Spectra((5, 5), [(0, 0)], 2)
        assert other[0]._memory is left and other[1]._memory.size == 0
    same(found[1], found[0])
    assert not spectra._Spare.arrays
    with by("spectra"):
        layer_sums(maps, weights, CONV)
    assert not spectra._Spare.arrays and spectra._Spare.holders == 0


def test_a_large_layer_is_left_no_memory_of_spectra(rng):
    """Its Gram is filled once they are gone, and those of small layers stay for the next ones."""
    maps, weights = rng.normal(size=(9, 4, 7, 7)), rng.normal(size=(4, 4, 3, 3))
    held = []

    def add_to(self, sums, add_to=SpectralSums.add_to):
        held.append((len(spectra._Spare.arrays), hasattr(self, "spectra"), self.plan.shared))
        return add_to(self, sums)

    for large in (4 * 9, 4 * 9 - 1):
        with (
            by("spectra"),
            spectra.kept_memory(),
            mock.patch.object(activations, "LARGE", large),
            mock.patch.object(SpectralSums, "add_to", add_to),
        ):
            layer_sums(maps, weights, CONV)
    assert held == [(1, False, None), (0, False, None)]


def test_outputs_that_cancel_are_zero(rng):
    """Weights of 3 and −1 on an input and thrice that: Y = 0, not what rounding leaves of it."""
    maps = rng.normal(size=(5, 2, 6, 6)) + 1
    reference = np.float32(rng.normal(size=(5, 1, 6, 6)) + 1) * np.array([1.0, 3.0])[:, None, None]
    weights = np.ones((3, 2, 3, 3))
    weights[0] = rng.normal(size=(3, 3)).astype(np.float32)
    weights[0] *= np.array([3.0, -1.0])[:, None, None]
    weights[1] = 0
    with by("spectra"):
        (total,) = layer_sums(maps, weights, CONV, reference)
    problem = hs.Problem.from_sums(total, activations.group_weights(weights, CONV)[0])
    np.testing.assert_array_equal(problem.energy[:2], 0)
    np.testing.assert_array_equal(problem.cross[:, :2], 0)
    assert problem.energy[2] > 0


def test_targets_that_leave_the_range_are_refused(rng):
    maps = rng.normal(size=(3, 2, 5, 5))
    for weight in (1e-170, 1e170):
        with by("spectra"), pytest.raises(ValueError, match=r"target column 0.*leaves the range"):
            (total,) = layer_sums(maps, np.full((1, 2, 3, 3), weight), CONV, maps)
            total.finish()
