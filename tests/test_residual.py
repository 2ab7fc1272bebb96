"""Residual-aware targets, intercepts and scale groups in the driver, and the sums under them."""

from __future__ import annotations

import functools
import itertools
from unittest import mock

import h5py
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy_network import NumpyNetwork, Product, ScaleShift, relu
from test_lags import draw_weights, fields, layers, same
from ways import by

import hashsolve as hs
from hashsolve import activations, cluster, lags, planes, threads
from hashsolve.activations import (
    BINARIZED,
    FULL,
    SHIFT,
    layer_streams,
    layer_sums,
    stream,
    write_activations,
)
from hashsolve.estimate import estimate

# the sums


def outputs_of(geometry, maps, weights):
    """Where the outputs go: their shape."""
    positions = () if geometry.linear else geometry.output(maps.shape[2:])
    return len(maps), len(weights), *positions


@given(layers(), st.sampled_from(["patches", "lags"]), st.sampled_from([1, 128]))
def test_a_shift_is_added_to_the_targets(layer, way, wide):
    """Whole numbers, so exactly: H, C, e of patches by plain loops, group by group."""
    geometry, maps, reference = layer
    weights = draw_weights(geometry, maps)
    rng = np.random.default_rng(2)
    shift = rng.integers(-9, 10, size=outputs_of(geometry, maps, weights)) / 1
    with by(way), mock.patch.object(planes, "_WIDE", wide):
        sums = layer_sums(maps, weights, geometry, reference, shift=shift)
    share, filters = maps.shape[1] // geometry.groups, len(weights) // geometry.groups
    pads, mode = geometry.padded(maps.shape[2:]), geometry.padding_mode
    shape = geometry.kernel, geometry.stride, pads, geometry.dilation, mode
    for group, total in enumerate(sums):
        cut = slice(group * share, (group + 1) * share)
        own = slice(group * filters, (group + 1) * filters)
        x = naive.patches(maps[:, cut], *shape)
        ref = x if reference is None else naive.patches(reference[:, cut], *shape)
        y = weights[own].reshape(filters, -1) @ ref
        y = y + np.moveaxis(shift[:, own], 1, 0).reshape(filters, -1)
        wanted = {"gram": x @ x.T, "cross": x @ y.T, "energy": (y * y).sum(1)}
        wanted |= {"input_sum": x.sum(1), "target_sum": y.sum(1), "rows": x.shape[1]}
        for field, value in wanted.items():
            np.testing.assert_array_equal(getattr(total.finish(), field), value, err_msg=field)


def test_a_shift_of_a_linear_layer(rng):
    x, ref, w = rng.normal(size=(50, 6)), rng.normal(size=(50, 6)), rng.normal(size=(3, 6))
    shift = rng.normal(size=(50, 3))
    (found,) = layer_sums(x, w, hs.Geometry(), ref, shift=shift)
    problem = hs.Problem.from_arrays(x.T, target=ref @ w.T + shift)
    np.testing.assert_allclose(found.cross, problem.cross, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.energy, problem.energy, rtol=1e-12)


@pytest.mark.parametrize("wide", [1, 128])
def test_no_cut_changes_a_bit(wide, rng):
    maps = rng.normal(size=(23, 6, 7, 7))
    geometry = hs.Geometry.conv((3, 3), padding=1, groups=2)
    weights, shift = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(23, 4, 7, 7))
    found = []
    for cores, slab, side in [(1, 2**26, 128), (2, 1, wide), (3, 20_000, wide)]:
        with (
            by("lags"),
            mock.patch.object(threads, "cores", lambda cores=cores: cores),
            mock.patch.object(activations, "_SLAB_BYTES", slab),
            mock.patch.object(planes, "_WIDE", side),
            mock.patch.object(lags, "_CHUNK_ROWS", (200, 200)),
        ):
            found.append(layer_sums(maps, weights, geometry, maps + 1, shift=shift))
    for other in found[1:]:
        same(other, found[0])


class Here:
    """A client whose only worker is this process."""

    def submit(self, job, *arguments, pure, retries):
        return type("Future", (), {"result": staticmethod(functools.partial(job, *arguments))})

    def cancel(self, futures):
        assert not futures


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_batches_calls_and_workers_change_no_bit(tmp_path, rng, padding_mode):
    """Two calls of one layer, of other sizes and strides, cut into shards of three samples."""
    geometries = [
        hs.Geometry.conv((3, 3), padding=1, padding_mode=padding_mode),
        hs.Geometry.conv((3, 3), 2, 1),
    ]
    maps = [rng.normal(size=(10, 16, n, n)).astype(np.float32) for n in (9, 12)]
    shift = rng.normal(size=(10, 5, 9, 9)).astype(np.float32)
    weights = rng.normal(size=(5, 16, 3, 3))
    found = []
    with mock.patch.object(activations, "_SHARD_NUMBERS", 3 * 16 * 81):
        for sizes in ([10], [1, 1, 5, 3], [7, 3]):
            cuts = np.cumsum([0, *sizes])
            batches = [
                {
                    stream(BINARIZED): maps[0][a:b],
                    stream(FULL): 2 * maps[0][a:b],
                    stream(SHIFT): shift[a:b],
                    stream(BINARIZED, 1): maps[1][a:b],
                    stream(FULL, 1): maps[1][a:b] - 1,
                }
                for a, b in itertools.pairwise(cuts)
            ]
            path = tmp_path / "a.h5"
            assert write_activations(path, iter(batches), geometries) == 20
            with layer_streams(path) as calls:
                found.append(activations.calls_sums(calls, weights, geometries, "a"))
            found.append(cluster.layer_sums(Here(), path, weights, geometries))
    for other in found[1:]:
        same(other, found[0])
    apart = [
        layer_sums(maps[0], weights, geometries[0], 2 * maps[0], shift=shift),
        layer_sums(maps[1], weights, geometries[1], maps[1] - 1),
    ]
    for field, value in zip(("gram", "cross", "energy"), fields(found[0])[0], strict=False):
        wanted = sum(getattr(total.finish(), field) for (total,) in apart)
        np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-8 * np.abs(wanted).max())


def test_a_shift_that_does_not_fit_is_refused(tmp_path, rng):
    conv, weights = hs.Geometry.conv((3, 3)), np.ones((2, 1, 3, 3))
    with pytest.raises(ValueError, match=r"targets has shape \(4, 2, 5, 5\), .*\(4, 2, 3, 3\)"):
        layer_sums(np.ones((4, 1, 5, 5)), weights, conv, shift=np.ones((4, 2, 5, 5)))
    bad = np.full((4, 2, 3, 3), np.nan)
    with by("lags"), pytest.raises(ValueError, match="layer: shift: nan"):
        layer_sums(np.ones((4, 1, 5, 5)), weights, conv, shift=bad)
    batch = {FULL: np.ones((4, 1, 5, 5)), BINARIZED: np.ones((4, 1, 5, 5))}
    with pytest.raises(ValueError, match="conv: shift: nan"):
        write_activations(tmp_path / "a.h5", [batch | {SHIFT: bad}], conv, name="conv")
    with pytest.raises(ValueError, match="conv: streams differ in samples"):
        write_activations(
            tmp_path / "a.h5", [batch | {SHIFT: np.ones((3, 2, 3, 3))}], conv, name="conv"
        )


# the driver


class Block:
    """Adds to its input what some steps make of it."""

    def __init__(self, *steps):
        self.steps = steps


class Residual(NumpyNetwork):
    """A network with blocks: the adapter knows that each block's first step is followed by the
    factor and the shift of its second, and then by the addition of the block's input."""

    def __init__(self, steps):
        self.blocks = {}
        flat = []
        for name, step in steps:
            if isinstance(step, Block):
                (inner, _), (_, norm) = step.steps
                self.blocks[inner] = norm
                flat += [(f"{name}.in", self._enter), *step.steps, (f"{name}.out", self._leave)]
            else:
                flat.append((name, step))
        super().__init__(flat)
        self.shifts = {name: norm.shift for name, norm in self.blocks.items()}

    def _enter(self, maps):
        self.held = maps
        return maps

    def _leave(self, maps):
        return maps + self.held

    def __call__(self, batch, inputs_of="", binarized=True):
        if binarized:
            return super().__call__(batch, inputs_of, binarized)
        kept = {name: norm.shift for name, norm in self.blocks.items()}
        try:
            for name, norm in self.blocks.items():
                norm.shift = self.shifts[name]
            return super().__call__(batch, inputs_of, binarized)
        finally:
            for name, norm in self.blocks.items():
                norm.shift = kept[name]

    def layers(self, batch):
        return [
            hs.Layer(
                layer.name,
                layer.geometry,
                layer.shape,
                shortcut="the block" if layer.name in self.blocks else None,
                constant="norm" if layer.name in self.blocks else None,
            )
            for layer in super().layers(batch)
        ]

    def shortcut(self, name, batch, *, binarized):
        (maps,) = self(batch, f"{name.split('.')[0]}.in", binarized)
        scale = self.blocks[name].scale
        return maps / scale.reshape(-1, *(1,) * (maps.ndim - 2))

    def write(self, name, weight, constant=None):
        super().write(name, weight)
        norm = self.blocks.get(name)
        if norm is not None:
            norm.shift = self.shifts[name] + (0.0 if constant is None else norm.scale * constant)


def residual_network():
    rng = np.random.default_rng(0)

    def conv(*shape):
        return Product(rng.normal(size=shape), hs.Geometry.conv(shape[2:], padding=shape[2] // 2))

    def norm(size):
        scale = rng.choice([-1, 1], size) * rng.uniform(0.1, 0.3, size)
        return ScaleShift(scale, rng.normal(size=size))

    def block(name):
        return Block((f"{name}.conv", conv(4, 4, 3, 3)), (f"{name}.norm", norm(4)))

    return Residual(
        [
            ("stem", conv(4, 3, 1, 1)),
            ("relu0", relu),
            ("b1", block("b1")),
            ("relu1", relu),
            ("b2", block("b2")),
            ("relu2", relu),
            ("last", conv(2, 4, 1, 1)),
        ]
    )


BATCHES = [
    np.random.default_rng(1).normal(size=(count, 3, 5, 5)).astype(np.float32) for count in (6, 3, 7)
]
EXACT = {"method": "dcc", "dtype": "float64"}
AWARE = {"residual": "auto", **EXACT}


@pytest.mark.parametrize("intercept", [False, "auto"])
def test_the_loss_is_that_of_the_blocks_output(tmp_path, intercept):
    """What a layer's loss measures is the error of the block's sum, over the norm's factor."""
    net = residual_network()
    run = hs.binarize(net, BATCHES, tmp_path / "run", intercept=intercept, **AWARE)
    batch = np.concatenate(BATCHES).astype(float)
    full, binary = residual_network(), net
    for result in run.layers:
        aware = result.name in net.blocks
        assert (result.row["shortcut"] == "the block") == aware
        assert (result.row["constant"] == "norm") == (aware and bool(intercept))
        if not aware:
            continue
        after = {"b1.conv": "relu1", "b2.conv": "relu2"}[result.name]
        (wanted,), (found,) = full(batch, after, False), binary(batch, after, True)
        error = (wanted - found) / net.blocks[result.name].scale[:, None, None]
        loss = (error**2).sum(axis=(0, 2, 3))
        np.testing.assert_allclose(result.solution.loss, loss, rtol=1e-8)
        assert (result.solution.intercept is not None) == bool(intercept)
        if intercept:  # the best constant leaves no mean
            np.testing.assert_allclose(error.mean(axis=(0, 2, 3)), 0, atol=1e-9)


def test_blocks_are_nearer_than_without(tmp_path):
    """The same codes before the first block; after it the residual-aware one is nearer."""
    batch = np.concatenate(BATCHES)
    (wanted,) = residual_network()(batch, "relu1", False)
    error = {}
    for residual in ("auto", False):
        net = residual_network()
        run = hs.binarize(net, BATCHES, tmp_path / str(residual), residual=residual, **EXACT)
        assert run.report.summary["residual"] == (["b1.conv", "b2.conv"] if residual else [])
        (found,) = net(batch, "relu1", True)
        error[residual] = ((found - wanted) ** 2).sum()
    assert error["auto"] < error[False]


def test_a_run_without_it_is_that_of_a_plain_adapter(tmp_path):
    class Plain:
        """The same network, with the six methods alone."""

        def __init__(self, net):
            for name in ("layers", "weight", "layer_input", "write", "state"):
                setattr(self, name, getattr(net, name))

    for residual, propagation in (("auto", "asym"), (False, "asym"), ("auto", "symfp")):
        plain = hs.binarize(
            Plain(residual_network()),
            BATCHES,
            tmp_path / f"p{residual}{propagation}",
            propagation=propagation,
            **EXACT,
        )
        without = hs.binarize(
            residual_network(),
            BATCHES,
            tmp_path / f"w{residual}{propagation}",
            propagation=propagation,
            residual=False,
            **EXACT,
        )
        assert plain.codes_sha256 == without.codes_sha256


@pytest.mark.parametrize("stage", ["extracting activations", "summing", "solving"])
def test_interrupted_and_resumed_it_ends_with_the_same_bits(tmp_path, stage):
    options = {"intercept": "auto", **AWARE}
    whole = residual_network()
    expected = hs.binarize(whole, BATCHES, tmp_path / "whole", **options)
    net = residual_network()
    for layer in ("b1.conv", "b2.conv", "last"):

        def interrupt(name, index, count, what, layer=layer):
            if (name, what) == (layer, stage):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            hs.binarize(net, BATCHES, tmp_path / "run", progress=interrupt, **options)
        fresh = residual_network()
        for name, norm in net.blocks.items():  # constants are taken back too
            np.testing.assert_array_equal(norm.shift, fresh.blocks[name].shift)
            np.testing.assert_array_equal(net.products[name].weight, fresh.original[name])
    run = hs.binarize(net, [np.concatenate(BATCHES)], tmp_path / "other", **options)
    assert run.codes_sha256 == expected.codes_sha256
    run = hs.binarize(net, BATCHES, tmp_path / "run", **options)
    assert run.codes_sha256 == expected.codes_sha256
    for a, b in zip(run.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
        if a.solution.intercept is not None:
            np.testing.assert_array_equal(a.solution.intercept, b.solution.intercept)


def test_another_setting_is_another_run(tmp_path):
    hs.binarize(residual_network(), BATCHES, tmp_path / "run", **AWARE)
    for other in ({"residual": False}, {"intercept": "auto"}, {"scale_group": 1}):
        with pytest.raises(ValueError, match="other settings"):
            hs.binarize(residual_network(), BATCHES, tmp_path / "run", **{**AWARE, **other})


REFUSED = {
    "residual: 'yes' is not one of": {"residual": "yes"},
    "residual: with propagation 'symqt'": {"residual": True, "propagation": "symqt"},
    "intercept: None is not one of": {"intercept": None},
    "intercept: layer stem has no bias": {"intercept": True},
    "scale_group: 7 does not divide the 36 inputs of layer b1.conv": {
        "scale_group": 7,
        "skip": ["stem"],
    },
    "scale_group: must be a whole number": {"scale_group": 0},
    "fixed_scales: must be > 0": {"fixed_scales": -1},
    "give one of them": {"scale_group": 1, "fixed_scales": 1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_are_refused(tmp_path, message):
    with pytest.raises(ValueError, match=message):
        hs.binarize(residual_network(), BATCHES, tmp_path / "run", "dcc", **REFUSED[message])
    assert not (tmp_path / "run").exists()


def test_residual_is_refused_where_there_is_no_shortcut(tmp_path):
    net = NumpyNetwork([("a", Product(np.ones((2, 3)), hs.Geometry()))])
    with pytest.raises(ValueError, match="residual: the network shows no layer"):
        hs.binarize(net, [np.ones((4, 3))], tmp_path / "run", residual=True)


@pytest.mark.parametrize("method", ["sign", "dcc", "auto"])
def test_scale_groups(tmp_path, method):
    net = residual_network()
    run = hs.binarize(net, BATCHES, tmp_path / "run", method, scale_group=9, skip=["stem", "last"])
    for result in run.layers:
        scales = result.solution.scales
        assert scales.shape == (4, 4)
        magnitudes = np.abs(net.products[result.name].weight).reshape(4, 4, 9)
        np.testing.assert_array_equal(magnitudes, np.broadcast_to(scales.T[..., None], (4, 4, 9)))
        assert result.row["bits_after"] == 4 * 36 + 32 * 16
        if method == "sign":
            mean = np.abs(net.original[result.name]).reshape(4, 4, 9).mean(axis=2)
            np.testing.assert_allclose(magnitudes[..., 0], mean)


def test_more_scales_are_nearer(tmp_path):
    errors = []
    for group in (None, 9, 3):
        options = {"scale_group": group, "residual": False, "skip": ["stem", "last", "b2.conv"]}
        run = hs.binarize(residual_network(), BATCHES, tmp_path / str(group), "dcc", **options)
        errors.append(run.layers[0].relative_error)
    assert errors[0] > errors[1] > errors[2] > 0


def test_fixed_scales(tmp_path):
    net = residual_network()
    hs.binarize(net, BATCHES, tmp_path / "run", "dcc", fixed_scales=0.5)
    assert all((np.abs(p.weight) == 0.5).all() for p in net.products.values())


def test_the_estimate_counts_the_shift(tmp_path):
    options = {"residual": "auto", "keep_activations": True}
    said = estimate(residual_network(), BATCHES, **options)
    hs.binarize(residual_network(), BATCHES, tmp_path, "sign", **options)
    for row in said.rows:
        with h5py.File(tmp_path / "activations" / f"{row['layer']}.h5") as file:
            assert row["activations"] == sum(data.nbytes for data in file.values())
            assert (SHIFT in file) == (row["layer"] in ("b1.conv", "b2.conv"))
