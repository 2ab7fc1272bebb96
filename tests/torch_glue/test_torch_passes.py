# ruff: noqa: E402
"""TorchNetwork: geometry, order, early stop, both kinds of pass, and a model left as found."""

import contextlib
import warnings
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch_support import Wandering, content, mlp, record, small_images, small_net

import hashsolve
import torch_glue
from torch_glue import TorchNetwork
from torch_glue.passes import batches_of, run_batch, run_model, to_device

MODES = ("zeros", "reflect", "replicate", "circular")
PLAIN = [
    ("Linear", (7, 4), {}, (5, 7)),
    ("Linear", (7, 4), {}, (2, 3, 5, 7)),
    ("Conv1d", (2, 3, 3), {"stride": 2, "padding": 1}, (2, 2, 9)),
    ("Conv1d", (2, 4, 5), {"padding": "valid", "groups": 2}, (2, 2, 9)),
    ("Conv2d", (4, 6, (1, 3)), {"groups": 2, "padding": (0, 2), "dilation": (1, 2)}, (2, 4, 6, 9)),
    ("Conv2d", (4, 8, 3), {"groups": 4, "stride": (1, 2), "padding": 1}, (2, 4, 6, 7)),
    ("Conv2d", (3, 2, 1), {"stride": 3}, (2, 3, 7, 8)),
    ("Conv2d", (2, 3, (2, 5)), {"padding": "same", "dilation": (3, 1)}, (2, 2, 8, 7)),
    ("Conv3d", (2, 4, (2, 3, 1)), {"stride": (2, 1, 1), "padding": (1, 1, 0)}, (2, 2, 5, 4, 3)),
    ("Conv3d", (2, 4, (2, 3, 4)), {"padding": "same", "groups": 2}, (1, 2, 5, 4, 6)),
]
PADDED = [
    ("Conv1d", (2, 3, kernel), {"padding": padding, "padding_mode": mode, "dilation": 2}, (2, 2, 9))
    for mode in MODES
    for kernel, padding in ((2, "same"), (4, "same"), (3, "same"), (3, 2))
] + [
    ("Conv2d", (4, 2, 3), {"padding": (1, 2), "padding_mode": m, "groups": 2}, (2, 4, 6, 7))
    for m in MODES
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
@pytest.mark.parametrize(("kind", "sizes", "options", "shape"), PLAIN + PADDED)
def test_the_layers_output_is_weight_times_patches(kind, sizes, options, shape):
    layer = getattr(nn, kind)(*sizes, bias=False, dtype=torch.float64, **options)
    x = torch.randn(shape, dtype=torch.float64)
    network = TorchNetwork(nn.Sequential(nn.Identity(), layer))
    (found,) = network.layers(x)
    maps = found.geometry.samples(network.layer_input("1", x, binarized=False))
    weight = network.weight("1")
    assert found.shape == weight.shape == tuple(layer.weight.shape)
    groups = found.geometry.groups
    rows = np.concatenate(
        [
            w @ found.geometry.patches(maps, group)
            for group, w in enumerate(weight.reshape(groups, -1, found.fan_in))
        ]
    )
    expected = layer(x).detach()
    expected = expected.flatten(0, -2).T if kind == "Linear" else expected.transpose(0, 1)
    np.testing.assert_allclose(rows, expected.flatten(1), rtol=1e-12, atol=1e-12)


def test_layers_come_in_the_order_of_execution():
    network = TorchNetwork(Wandering())
    assert [layer.name for layer in network.layers(torch.ones(3, 4))] == ["first", "branch", "last"]


@pytest.mark.parametrize("binarized", [False, True])
def test_a_pass_stops_at_the_layer(binarized):
    model, ran = small_net(), []
    for name, module in model.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    TorchNetwork(model).layer_input("2", small_images(), binarized=binarized)
    assert ran == ["0", "1"]


@pytest.mark.parametrize("swallowed", [Exception, RuntimeError])
def test_a_model_that_catches_exceptions_does_not_catch_the_signal(swallowed):
    class Catching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.later = nn.Linear(4, 4), nn.Linear(4, 2)
            self.fallbacks = 0

        def forward(self, x):
            try:
                x = self.layer(x)
            except swallowed:
                self.fallbacks += 1
            return self.later(x)

    model = Catching()
    model.layer.register_forward_hook(lambda *_: pytest.fail("ran"), always_call=True)
    found = TorchNetwork(model).layer_input("layer", torch.ones(2, 4), binarized=False)
    assert found.shape == (2, 4) and model.fallbacks == 0


def test_both_passes_see_their_own_weights():
    model, images = small_net(), small_images()
    network = TorchNetwork(model)
    full = {name: network.weight(name) for name in ("0", "2")}
    written = {name: np.sign(w) * 0.25 for name, w in full.items()}
    plain = [torch.relu(model[0](images))]
    plain.append(torch.relu(model[2](plain[0])).flatten(1))
    network.write("0", written["0"])
    network.write("2", written["2"])
    model.train()
    changed = [torch.relu(model[0](images))]
    changed.append(torch.relu(model[2](changed[0])).flatten(1))
    for name, fp, binary in zip(("2", "5"), plain, changed, strict=True):
        for binarized, expected in ((False, fp), (True, binary), (False, fp)):
            found = network.layer_input(name, images, binarized=binarized)
            np.testing.assert_array_equal(found, expected.detach().numpy())
    for name in full:
        np.testing.assert_array_equal(network.weight(name), full[name])
        np.testing.assert_array_equal(model[int(name)].weight.detach().numpy(), written[name])


def test_state_is_that_of_full_precision():
    model = mlp()
    model.register_buffer("constant", torch.ones(2), persistent=False)
    network = TorchNetwork(model)
    before = hashsolve.files.digest(network.state())
    network.write("0", np.ones((3, 4)))
    assert hashsolve.files.digest(network.state()) == before
    model.constant[0] = 2
    assert hashsolve.files.digest(network.state()) != before


@pytest.mark.parametrize("binarized", [False, True])
@pytest.mark.parametrize("case", ["layers", "input", "error", "unreached", "interrupt"])
def test_the_model_is_left_as_found(case, binarized):
    model = Wandering()
    network = TorchNetwork(model)
    untouched = record(model)
    network.write("first", np.ones((4, 4)))
    model.fail, model.reach = case == "error", case != "unreached"
    if case == "interrupt":
        model.norm.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    # `layers` begins a run, and so puts back what an earlier one wrote
    before = untouched if case == "layers" else record(model)
    x = torch.ones(3, 4)
    if case == "layers":
        network.layers(x)
    elif case == "input":
        network.layer_input("last", x, binarized=binarized)
    else:
        error = {"error": RuntimeError, "unreached": ValueError, "interrupt": KeyboardInterrupt}
        with pytest.raises(error[case]):
            network.layer_input("branch" if case == "unreached" else "last", x, binarized=binarized)
    assert record(model) == before


def test_dropout_and_batch_statistics_are_off():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    x = torch.randn(8, 4)
    found = TorchNetwork(model).layer_input("2", x, binarized=False)
    np.testing.assert_allclose(found, x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_the_models_own_hooks_apply():
    x = torch.randn(3, 4)
    found = TorchNetwork(Wandering()).layer_input("first", x, binarized=False)
    np.testing.assert_array_equal(found, 2 * x)


def test_captured_inputs_and_weights_are_copies():
    model, x = mlp().double(), torch.ones(2, 4, dtype=torch.float64)
    network = TorchNetwork(model)
    found, weight = network.layer_input("0", x, binarized=False), network.weight("0")
    x.zero_()
    kept = weight.copy()
    network.write("0", np.zeros((3, 4)))
    np.testing.assert_array_equal(found, np.ones((2, 4)))
    np.testing.assert_array_equal(weight, kept)
    network.weight("0")[:] = 7
    np.testing.assert_array_equal(network.weight("0"), kept)


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, values, scale=1.0):
        return self.layer(input=values * scale)


class Pair(NamedTuple):
    values: object
    scale: object


X = torch.arange(8.0).reshape(2, 4)
BATCHES = [
    (X, None),
    ([X, torch.zeros(2)], None),
    ((X, ["a", "b"]), None),
    ({"values": X, "scale": 1.0}, None),
    (Pair(X, 3.0), lambda model, pair: model(pair.values)),
    ({"image": {"x": X}}, lambda model, batch: model(batch["image"]["x"], scale=1)),
]


@pytest.mark.parametrize(("batch", "forward"), BATCHES)
def test_batches_of_every_form(batch, forward):
    found = TorchNetwork(Keyword(), forward).layer_input("layer", batch, binarized=False)
    np.testing.assert_array_equal(found, X)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv1d(2, 3, 2), (2, 5), (1, 2, 5)),
        (nn.Conv2d(2, 3, 2), (2, 5, 5), (1, 2, 5, 5)),
        (nn.Conv3d(2, 3, 2), (2, 3, 3, 3), (1, 2, 3, 3, 3)),
    ],
)
def test_unbatched_maps_get_a_sample_axis(layer, shape, expected):
    network = TorchNetwork(nn.Sequential(layer))
    assert network.layer_input("0", torch.ones(shape), binarized=False).shape == expected


def test_an_unbatched_vector_is_one_row():
    network = TorchNetwork(mlp())
    (layer, _) = network.layers(torch.ones(4))
    maps = network.layer_input("0", torch.ones(4), binarized=False)
    assert layer.geometry.samples(maps).shape == (1, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type(dtype):
    model, images = small_net().to(dtype), small_images(4).to(dtype)
    network = TorchNetwork(model)
    assert {layer.bits for layer in network.layers(images)} == {8 * images.element_size()}
    found = network.layer_input("0", images, binarized=False)
    np.testing.assert_array_equal(found, images.to(torch.float64))
    before = content(model[0].weight)
    network.write("0", network.weight("0"))
    assert content(model[0].weight) == before and model[0].weight.dtype == dtype


def test_channels_last():
    plain, images = small_net(), small_images(4)
    last = small_net().to(memory_format=torch.channels_last)
    stride = last[0].weight.stride()
    found = []
    for model, batch in ((plain, images), (last, images.to(memory_format=torch.channels_last))):
        network = TorchNetwork(model)
        found.append([network.weight("0"), network.layer_input("0", batch, binarized=False)])
        network.write("0", np.sign(network.weight("0")))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert torch.equal(plain[0].weight, last[0].weight) and last[0].weight.stride() == stride


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.enable_grad, torch.inference_mode, contextlib.nullcontext]
)
def test_any_grad_mode_of_the_caller(mode):
    model, x = mlp(), torch.ones(5, 4)
    with mode():
        network = TorchNetwork(model)
        network.layers(x)
        network.write("0", np.ones((3, 4)))
        full = network.layer_input("2", x, binarized=False)
        binary = network.layer_input("2", x, binarized=True)
    assert (full != binary).any() and not model[0].weight.is_inference()
    model(x).sum().backward()
    assert model[0].weight.grad is not None


def test_a_model_built_in_inference_mode():
    with torch.inference_mode():
        model = mlp()
    network = TorchNetwork(model)
    before = network.layer_input("2", torch.ones(5, 4), binarized=False)
    network.write("0", np.ones((3, 4)))
    assert (network.layer_input("2", torch.ones(5, 4), binarized=True) != before).any()
    np.testing.assert_array_equal(
        network.layer_input("2", torch.ones(5, 4), binarized=False), before
    )


def test_an_array_that_cannot_be_written_to_is_copied():
    """For a layer may work in place; its batches are those of the same array otherwise."""
    array = np.arange(260, dtype=np.float32).reshape(65, 4)
    locked = array.copy()
    locked.flags.writeable = False
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))
    for batch in (locked, *batches_of(locked)):
        to_device(batch, model).sub_(1)
    assert np.array_equal(locked, array)
    for one, other in zip(batches_of(locked), batches_of(array), strict=True):
        assert np.array_equal(one, other)


def test_memory_that_does_not_suffice_is_told_as_such():
    def forward(model, batch):
        raise error

    for error in (
        torch.OutOfMemoryError("no more"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        with pytest.raises(RuntimeError) as raised:
            run_model(forward, nn.Linear(2, 2), torch.ones(1, 2))
        assert raised.value is error
    bytes_ = torch.ones(1, 2, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="convert them as for training"):
        run_model(run_batch, nn.AvgPool2d(2), bytes_)
    with pytest.raises(RuntimeError, match=r"^loader: it does not take .* of shape \(1, 3\)"):
        run_model(run_batch, nn.Linear(2, 2), torch.ones(1, 3), "loader: it")


class Stop(RuntimeError):
    """A user's own."""


@pytest.mark.parametrize(
    "error", [Stop("enough"), RecursionError("deep"), NotImplementedError("mode 'b'")]
)
def test_errors_of_the_models_own_kinds_stay_what_they_are(error):
    def forward(model, batch):
        raise error

    with pytest.raises(type(error)) as raised:
        run_model(forward, nn.Linear(2, 2), torch.ones(1, 2))
    assert raised.value is error


def test_tokens_are_not_told_to_be_images():
    model = nn.Embedding(10, 4)
    with pytest.raises(ValueError, match="in the shape and dtype that the model was trained on"):
        run_model(lambda m, batch: m(batch) + torch.ones(5, 4), model, torch.ones(8, 7).long())


class OfMapping(nn.Module):
    """Takes its inputs in one mapping."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, batch):
        return self.layer(batch["x"])


class Delegating(OfMapping):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class AnyMore(OfMapping):
    def forward(self, batch=None, **more):
        return super().forward(batch)


class WithMask(OfMapping):
    def forward(self, batch, mask=None):
        return super().forward(batch)


@pytest.mark.parametrize("kind", [OfMapping, Delegating, AnyMore, WithMask, nn.DataParallel])
def test_a_mapping_before_labels_is_passed_as_it_is_where_it_names_no_arguments(kind):
    model = kind(OfMapping()) if kind is nn.DataParallel else kind()
    batch = {"x": torch.ones(4, 3), "mask": torch.ones(4)}
    assert run_model(run_batch, model, (batch, torch.zeros(4))).shape == (4, 2)


def test_images_and_labels_are_no_two_batches(tmp_path):
    images, labels = small_images(), torch.zeros(len(small_images()), dtype=torch.long)
    for batch in ((images, labels), [images.numpy(), labels.numpy()]):
        with pytest.raises(
            ValueError, match=r"images: \(images, labels\) are taken for two batches"
        ):
            torch_glue.binarize(small_net(), batch, tmp_path, method="sign")
    torch_glue.binarize(small_net(), [(images, labels)], tmp_path, method="sign")


def test_single_images_are_told_from_batches(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"images: the model does not take.*give batches"):
        torch_glue.binarize(model, list(torch.randn(4, 3, 8, 8)), tmp_path, method="sign")


def test_scripted_models_and_complex_weights_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(small_net())
    with pytest.raises(ValueError, match="model: is scripted"):
        torch_glue.binarize(scripted, small_images(), tmp_path, method="sign")
    model = nn.Sequential(nn.Linear(4, 3, dtype=torch.cfloat))
    with pytest.raises(ValueError, match="layer 0: its weight is complex"):
        torch_glue.binarize(model, [torch.ones(5, 4, dtype=torch.cfloat)], tmp_path, method="sign")
    with pytest.raises(ValueError, match="0: its weight is complex"):
        torch_glue.attach(model, ["0"])
