"""refit: against NumPy's least squares, whatever the batches; and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import small_network
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_network import NumpyNetwork, Product, relu

import hashsolve as hs


def pair(*names: str, seed: int = 0) -> tuple[NumpyNetwork, NumpyNetwork]:
    """A network whose named layers are ±mean |W|, in an adapter that has not written it, and the
    same in full precision."""
    full, binary = small_network.network(seed), small_network.network(seed)
    for name in names:
        weight = binary.original[name]
        size = np.abs(weight).mean(axis=tuple(range(1, weight.ndim)), keepdims=True)
        binary.original[name] = size * np.where(weight < 0, -1, 1)
    return binary, full


def images(count: int = 12, seed: int = 5) -> np.ndarray:
    """What the small network takes, exact in float32."""
    draw = np.random.default_rng(seed).normal(size=(count, 3, 9, 9))
    return draw.astype(np.float32).astype(float)


def twin(binary: NumpyNetwork, full: NumpyNetwork, name: str, batch: np.ndarray, ridge: float):
    """The weight of one layer by NumPy's least squares over rows, in float32 as they are cached."""
    product = full.products[name]
    inputs, shown = (
        network.layer_input(name, batch, binarized=own)[0].astype(np.float32).astype(float)
        for network, own in ((full, False), (binary, True))
    )
    found = []
    for group, part in enumerate(np.split(full.original[name], product.geometry.groups)):
        w = part.reshape(len(part), -1).T
        x = product.geometry.patches(shown, group).T
        y = product.geometry.patches(inputs, group).T @ w
        hold = np.sqrt(ridge * (x**2).sum(0).mean()) * np.eye(len(w))
        rows = np.concatenate([x, hold]), np.concatenate([y - x @ w, 0 * w])
        found.append((w + np.linalg.lstsq(*rows, rcond=None)[0]).T.reshape(part.shape))
    return np.concatenate(found)


@pytest.mark.parametrize("name", ["block.grouped", "block.depth", "block.point", "fc"])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_least_squares(name, ridge):
    binary, full = pair("stem.conv")
    batch = images()
    binary.layers(batch)
    expected = twin(binary, full, name, batch, ridge)
    (before, after) = hs.refit(binary, full, [batch], [name], ridge=ridge)[name]
    found = binary.products[name].weight
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())
    assert 0 <= after < before


@settings(max_examples=40)
@given(st.integers(0, 5), st.floats(1e-4, 1e4), st.lists(st.integers(1, 11), max_size=3))
def test_never_worse_whatever_the_batches(seed, ridge, cuts):
    batch = images(seed=seed)
    results = []
    for batches in ([batch], np.split(batch, sorted(set(cuts)))):
        binary, full = pair("stem.conv", "block.point", seed=seed)
        errors = hs.refit(binary, full, batches, ["fc", "block.depth"], ridge=ridge)
        assert list(errors) == ["block.depth", "fc"]  # as a pass reaches them
        assert all(after <= before for before, after in errors.values())
        results.append([errors, *(binary.products[name].weight.tobytes() for name in errors)])
    assert results[0] == results[1]


def test_a_network_in_full_precision_is_refused():
    binary, full = pair("fc")
    with pytest.raises(ValueError, match="network: these layers have the inputs"):
        hs.refit(binary, full, [images()], ["block.depth", "fc"])


def test_few_data_leave_the_weight_where_they_say_nothing():
    binary, full = pair("stem.conv")
    (before, after) = hs.refit(binary, full, [images(1)], ["fc"], ridge=1e-9)["fc"]
    assert after < 1e-6 * before
    moved = binary.products["fc"].weight - full.original["fc"]
    assert np.abs(moved).max() < 10 * np.abs(full.original["fc"]).max()


def test_a_later_layer_sees_an_earlier_fit():
    batch = images()
    alone, full = pair("stem.conv")
    hs.refit(alone, full, [batch], ["fc"])
    both, full = pair("stem.conv")
    hs.refit(both, full, [batch], ["fc", "block.depth"])
    binary, full = pair("stem.conv")
    hs.refit(binary, full, [batch], ["block.depth"])
    binary.original["block.depth"] = binary.products["block.depth"].weight
    hs.refit(binary, full, [batch], "fc")
    found = [network.products["fc"].weight for network in (alone, both, binary)]
    assert not np.array_equal(found[0], found[1])
    assert np.array_equal(found[1], found[2])


def test_what_is_refused():
    binary, full = pair("stem.conv")
    batch = images()
    for names, says in (
        (["fcc"], "layers: no layer 'fcc'; did you mean 'fc'"),
        ([], "layers: none is named"),
    ):
        with pytest.raises(ValueError, match=says):
            hs.refit(binary, full, [batch], names)
    for ridge in (0, 1e-20):
        with pytest.raises(ValueError, match="ridge"):
            hs.refit(binary, full, [batch], ["fc"], ridge=ridge)
    with pytest.raises(ValueError, match="calibration: it holds no batches"):
        hs.refit(binary, full, [], ["fc"])
    with pytest.raises(ValueError, match="gone through only once"):
        hs.refit(binary, full, iter([batch]), ["fc"])
    with pytest.raises(ValueError, match=r"reference: a Product is no hashsolve\.Network"):
        hs.refit(binary, full.products["fc"], [batch], ["fc"])
    lacking = NumpyNetwork(full.steps[:-1])
    with pytest.raises(ValueError, match="reference: its layer fc is missing"):
        hs.refit(binary, lacking, [batch], ["fc"])
    silent, dead = pair("stem.conv")
    dead.original["fc"] = 0 * dead.original["fc"]
    with pytest.raises(ValueError, match="fc: its outputs are zero"):
        hs.refit(silent, dead, [batch], ["fc"])
    one = Product(np.ones((4, 4)), hs.Geometry())
    tied = NumpyNetwork([("a", one), ("relu", relu), ("b", Product(one.weight, hs.Geometry()))])
    with pytest.raises(ValueError, match="layers: a: its weight is shared"):
        hs.refit(tied, tied, [np.ones((3, 4))], ["a"])


def test_after_an_error_nothing_is_written():
    binary, full = pair("stem.conv")
    kept = {name: weight.copy() for name, weight in binary.original.items()}
    passes = []

    class Failing(list):
        def __iter__(self):
            passes.append(1)
            if len(passes) == 3:  # a look at the first batch, one layer, then the second
                raise OSError("the disk is gone")
            return super().__iter__()

    with pytest.raises(OSError, match="the disk"):
        hs.refit(binary, full, Failing([images()]), ["block.depth", "fc"])
    for name, weight in kept.items():
        assert np.array_equal(binary.products[name].weight, weight)
