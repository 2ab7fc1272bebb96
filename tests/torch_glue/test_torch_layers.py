# ruff: noqa: E402
"""Kinds of layers: what is captured, times the weight, is what the layer itself gives."""

import copy
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch.nn import functional as F
from torch_support import content, record

import hashsolve
import torch_glue
from torch_glue import TorchNetwork

TRANSPOSED = [
    ("ConvTranspose1d", (3, 4, 3), {}, (2, 3, 7)),
    ("ConvTranspose1d", (4, 6, 4), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 5)),
    ("ConvTranspose1d", (2, 3, 2), {"stride": 3, "padding": 2}, (2, 2, 6)),
    ("ConvTranspose1d", (2, 3, 1), {"stride": 3, "padding": 1, "output_padding": 2}, (2, 2, 6)),
    ("ConvTranspose2d", (4, 4, (3, 2)), {"groups": 4, "stride": (2, 1)}, (2, 4, 4, 5)),
    (
        "ConvTranspose2d",
        (6, 4, (3, 4)),
        {"groups": 2, "stride": (2, 3), "padding": (1, 2), "dilation": (2, 1)}
        | {"output_padding": (1, 2)},
        (2, 6, 4, 3),
    ),
    (
        "ConvTranspose3d",
        (2, 4, (2, 3, 1)),
        {"stride": (2, 1, 2), "padding": (1, 1, 0)},
        (1, 2, 3, 4, 2),
    ),
]


def rows_of(network, name, batch, layer):
    """The patches of a layer's captured input times its weight, (filters, rows)."""
    maps = layer.geometry.samples(network.layer_input(name, batch, binarized=True))
    weight = network.weight(name).reshape(layer.geometry.groups, -1, layer.fan_in)
    return np.concatenate([w @ layer.geometry.patches(maps, g) for g, w in enumerate(weight)])


@pytest.mark.parametrize(("kind", "sizes", "options", "shape"), TRANSPOSED)
@pytest.mark.parametrize("size", ["given", "asked"])
def test_a_transposed_convolution_is_weight_times_patches(kind, sizes, options, shape, size):
    layer = getattr(nn, kind)(*sizes, bias=False, dtype=torch.float64, **options)
    x = torch.randn(shape, dtype=torch.float64)
    expected = layer(x).detach()
    asked = None
    if size == "asked" and "output_padding" not in options and layer.stride[0] > 1:
        asked = [expected.shape[2] + 1, *expected.shape[3:]]
        expected = layer(x, output_size=asked).detach()
    model = nn.Module()
    model.layer = layer
    model.forward = lambda x: layer(x) if asked is None else layer(x, asked)
    network = TorchNetwork(model)
    (found,) = network.layers(x)
    assert found.shape == network.weight("layer").shape
    assert found.shape[0] == layer.out_channels
    rows = rows_of(network, "layer", x, found)
    np.testing.assert_allclose(rows, expected.transpose(0, 1).flatten(1), rtol=1e-12, atol=1e-12)
    before = content(layer.weight)
    network.write("layer", network.weight("layer"))
    assert content(layer.weight) == before
    other = np.random.default_rng(0).normal(size=found.shape)
    network.write("layer", other)
    groups = other.reshape(found.geometry.groups, -1, found.fan_in)
    maps = found.geometry.samples(network.layer_input("layer", x, binarized=False))
    rows = np.concatenate([w @ found.geometry.patches(maps, g) for g, w in enumerate(groups)])
    np.testing.assert_allclose(
        rows, model(x).detach().transpose(0, 1).flatten(1), rtol=1e-12, atol=1e-12
    )


def test_a_transposed_convolution_is_binarised_by_output_channels(tmp_path):
    model = nn.Sequential(
        nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    torch_glue.binarize(model, torch.randn(8, 6, 4, 4), tmp_path, method="dcc")
    weight = model[0].weight.detach().reshape(2, 3, 2, 9)  # group, channel, filter, tap
    for group, filter in itertools.product(range(2), range(2)):
        assert len(weight[group, :, filter].abs().unique()) == 1


class Attending(nn.Module):
    """Attention of every form."""

    def __init__(self, batch_first=True, cross=False, masked=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options)
        self.cross, self.masked = cross, masked
        self.kdim, self.vdim = self.attention.kdim, self.attention.vdim

    def forward(self, x):
        key = value = x
        if self.cross:
            key = torch.cat([x, x.flip(-1)], -2 if self.attention.batch_first else 0).sin()
            key = key[..., : self.kdim]
            value = (
                key.repeat_interleave(2, -1)[..., : self.vdim] if self.vdim != self.kdim else key
            )
        mask = None
        if self.masked:
            mask = torch.triu(torch.ones(x.shape[-2], key.shape[-2], dtype=torch.bool), 1)
        return self.attention(x, key, value, attn_mask=mask, need_weights=self.cross)[0]


ATTENTION = [
    {},
    {"masked": True},
    {"bias": False},
    {"batch_first": False},
    {"cross": True},
    {"cross": True, "kdim": 6, "vdim": 5},
    {"add_bias_kv": True, "add_zero_attn": True},
]


@pytest.mark.parametrize("options", ATTENTION)
@pytest.mark.parametrize("shape", [(3, 5, 8), (5, 8)])
def test_the_projections_of_attention(options, shape):
    """By hand from the captured inputs: project, attend, project again."""
    model = Attending(**options).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    wanted = model(x)
    network = TorchNetwork(model)
    layers = {layer.name: layer for layer in network.layers(x)}
    names = [f"attention.{part}_proj" for part in ("q", "k", "v", "out")]
    assert list(layers) == names and {layer.calls for layer in layers.values()} == {1}
    inputs = {n: torch.from_numpy(network.layer_input(n, x, binarized=False)) for n in names}
    attention = model.attention
    bias = attention.in_proj_bias
    q, k, v = (
        F.linear(inputs[n], torch.from_numpy(network.weight(n)))
        + (0 if bias is None else bias[8 * i : 8 * i + 8])
        for i, n in enumerate(names[:3])
    )
    if len(shape) == 2:
        q, k, v = q[None], k[None], v[None]
    if attention.bias_k is not None:
        more = lambda b: b.reshape(1, 1, 8).expand(len(q), 1, 8)  # noqa: E731
        zero = torch.zeros(len(q), 1, 8, dtype=torch.float64)
        k, v = (
            torch.cat([k, more(attention.bias_k), zero], 1),
            torch.cat([v, more(attention.bias_v), zero], 1),
        )
    heads = [t.reshape(*t.shape[:2], 2, 4).transpose(1, 2) for t in (q, k, v)]
    mask = None
    if model.masked:
        mask = ~torch.triu(torch.ones(q.shape[1], k.shape[1], dtype=torch.bool), 1)
    mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
    mixed = mixed.reshape(inputs[names[3]].shape)
    torch.testing.assert_close(inputs[names[3]], mixed)
    out = F.linear(mixed, torch.from_numpy(network.weight(names[3])), attention.out_proj.bias)
    if len(shape) == 3 and not attention.batch_first:
        out = out.transpose(0, 1)
    torch.testing.assert_close(out, wanted)


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_is_binarised_whole(tmp_path, norm_first):
    model, x = encoder(norm_first=norm_first), torch.randn(16, 6, 8)
    untouched = record(model)
    network = TorchNetwork(model)
    names = [layer.name for layer in network.layers(x)]
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    assert names == [f"layers.{n}.{p}" for n in (0, 1) for p in (*parts, "linear1", "linear2")]
    assert record(model) == untouched
    run = torch_glue.binarize(model, x, tmp_path, method="dcc", residual="auto")
    assert [result.name for result in run.layers] == names
    for layer in model.layers:
        for weight in (layer.self_attn.in_proj_weight, layer.self_attn.out_proj.weight):
            assert all(len(row.abs().unique()) == 1 for row in weight.detach())
    aware = {result.name for result in run.layers if result.row["shortcut"]}
    assert aware == {f"layers.{n}.{p}" for n in (0, 1) for p in ("self_attn.out_proj", "linear2")}


def test_the_fast_path_is_off_while_inputs_are_captured():
    """Which never calls the modules; what a user runs afterwards may take it."""
    model, x = encoder(dropout=0.0).eval(), torch.randn(4, 6, 8)
    with torch.no_grad():
        fast = model(x)
        network = TorchNetwork(model)
        found = network.layer_input("layers.1.linear2", x, binarized=True)
        assert found.shape == (4, 6, 16)
        torch.testing.assert_close(model(x), fast)
        out = F.linear(torch.from_numpy(found), model.layers[1].linear2.weight)
        hidden = []
        handle = model.layers[1].linear2.register_forward_hook(lambda m, a, o: hidden.append(o))
        model.train()
        model(x)
        handle.remove()
    torch.testing.assert_close(out + model.layers[1].linear2.bias, hidden[0], atol=1e-5, rtol=1e-4)


class Recurring(nn.Module):
    """A layer that one pass reaches three times, and two that share a weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.step = nn.Linear(4, 4), nn.Linear(4, 4)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return self.two(torch.relu(self.one(x)))


def test_repeated_and_shared_layers(tmp_path):
    model, x = Recurring(), torch.randn(40, 4)
    seen = {"step": [], "one": [], "two": []}
    for name, inputs in seen.items():
        getattr(model, name).register_forward_pre_hook(lambda m, a, i=inputs: i.append(a[0]))
    with torch.no_grad():
        model(x)
    full = {name: torch.cat(inputs) for name, inputs in seen.items()}
    network = TorchNetwork(model)
    layers = {layer.name: layer for layer in network.layers(x)}
    assert layers["step"].calls == 3 and layers["two"].shares == "one"
    found = network.layer_input("step", x, binarized=False)
    np.testing.assert_array_equal(np.concatenate(found), full["step"])
    before = {name: content(p) for name, p in model.named_parameters()}
    weights = {name: network.weight(name) for name in seen}
    run = torch_glue.binarize(
        model, x, tmp_path, method="dcc", propagation="symfp", dtype="float64"
    )
    assert [r.name for r in run.layers] == ["first", "step", "one"]
    for result, names in zip(run.layers[1:], (["step"], ["one", "two"]), strict=True):
        rows = torch.cat([full[name] for name in names]).double().numpy()
        weight = weights[result.name]
        problem = hashsolve.Problem.from_arrays(rows.T, weight.T)
        wanted = hashsolve.solve(problem, "dcc")
        np.testing.assert_array_equal(result.solution.codes, wanted.codes)
        np.testing.assert_allclose(result.solution.scales, wanted.scales, rtol=1e-9)
    assert model.two.weight is model.one.weight
    changed = {n for n, p in model.named_parameters() if content(p) != before[n]}
    assert changed == {"first.weight", "step.weight", "one.weight"}


def test_equal_memory_under_two_parameters_is_restored(tmp_path):
    model, x = Recurring(), torch.randn(40, 4)
    model.two.weight = nn.Parameter(model.one.weight.detach())
    before = record(model)

    def stop(name, index, count, what):
        if index == 2 and what == "solving":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torch_glue.binarize(model, x, tmp_path / "a", method="dcc", progress=stop)
    assert record(model) == before
    network = TorchNetwork(model)
    network.layers(x)
    network.write("one", np.ones((4, 4)))
    full = network.layer_input("two", x, binarized=False)
    assert record(model)["tensors"] != before["tensors"]
    np.testing.assert_array_equal(network.weight("two"), network.weight("one"))
    network.layers(x)
    assert record(model)["tensors"] == before["tensors"]
    np.testing.assert_array_equal(network.layer_input("two", x, binarized=True), full)


def test_a_weight_that_is_used_transposed_as_well_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"shares its weight with ., which uses it in another way"):
        torch_glue.binarize(model, torch.randn(4, 4, 6, 6), tmp_path / "run", skip=[])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_attention_and_transposed_convolutions(tmp_path, dtype):
    model = nn.Sequential(nn.ConvTranspose1d(8, 8, 2, 2), Attending()).to(dtype)
    model[1].attention.batch_first = True
    x = torch.randn(12, 8, 4).to(dtype)
    run = torch_glue.binarize(model, x, tmp_path, method="dcc")
    assert len(run.layers) == 5
    assert all(p.dtype == dtype for p in model.parameters())
    assert all(len(row.abs().unique()) == 1 for row in model[1].attention.in_proj_weight.detach())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_models_on_a_gpu(tmp_path):
    runs = [
        torch_glue.binarize(
            encoder().to(device), torch.ones(4, 6, 8), tmp_path / device, method="dcc"
        )
        for device in ("cpu", "cuda")
    ]
    assert runs[0].relative_errors == pytest.approx(runs[1].relative_errors, rel=0.05)


class Padded(nn.Module):
    """An encoder that is given which of its inputs are padding."""

    def __init__(self):
        super().__init__()
        self.encoder = encoder()

    def forward(self, x, mask):
        return self.encoder(x, src_key_padding_mask=mask)


def test_an_encoder_with_padding(tmp_path):
    """Which torch would run fused, on nested tensors; its switch is left as found."""
    mask = torch.zeros(16, 6, dtype=torch.bool)
    mask[0, 3:] = True
    batches = [{"x": torch.randn(16, 6, 8), "mask": mask}] * 2
    before = torch.backends.mha.get_fastpath_enabled()
    run = torch_glue.binarize(Padded(), batches, tmp_path, method="dcc")
    assert len(run.layers) == 12 and run.layers[5].row["rows"] == 2 * 16 * 6
    assert torch.backends.mha.get_fastpath_enabled() == before


class Same(nn.Conv2d):
    """As libraries pad it: by its own forward, not by an option."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 2, 1, 2)), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, (weight - weight.mean()) / weight.std(), bias)


class Logging(nn.Linear):
    def forward(self, input):
        self.seen = input.shape
        return super().forward(input)


@pytest.mark.parametrize("kind", [Same, Standardised])
def test_a_layer_that_computes_something_else_is_refused(tmp_path, kind):
    torch.manual_seed(1)
    model = nn.Sequential(kind(3, 4, 4), nn.ReLU(), nn.Flatten(), Logging(4 * 36, 2))
    size = 6 if kind is Same else 9
    images, before = torch.randn(20, 3, size, size), record(model)
    with pytest.raises(ValueError, match=f"layer 0: the forward of {kind.__name__} gives another"):
        torch_glue.binarize(model, images, tmp_path / "a", method="dcc")
    assert record(model) == before
    run = torch_glue.binarize(model, images, tmp_path / "b", method="dcc", skip=["0"])
    assert [result.name for result in run.layers] == ["3"]


def test_a_forward_of_the_module_itself_is_compared_too(tmp_path):
    model = nn.Sequential(nn.Linear(6, 3))
    model[0].forward = lambda x: F.linear(x, model[0].weight) ** 2
    with pytest.raises(ValueError, match="layer 0: the forward of Linear gives another output"):
        torch_glue.binarize(model, torch.randn(20, 6), tmp_path, method="dcc")


class Otherwise(nn.Linear):
    """Whose filters but the first give something else, beside a loud one or a large bias."""

    def __init__(self, act, loud, bias):
        super().__init__(16, 8)
        self.act = act
        with torch.no_grad():
            self.weight[0] *= loud
            self.bias[0] += bias

    def forward(self, x):
        outputs = F.linear(x, self.weight, self.bias)
        return torch.cat([outputs[:, :1], self.act(outputs[:, 1:])], 1)


@pytest.mark.parametrize("act", [torch.abs, torch.square, torch.zeros_like])
@pytest.mark.parametrize(("loud", "bias"), [(1, 0), (300, 0), (1, 300)])
def test_quiet_filters_are_compared_too(tmp_path, act, loud, bias):
    torch.manual_seed(4)
    model = nn.Sequential(Otherwise(act, loud, bias))
    with pytest.raises(ValueError, match="the forward of Otherwise gives another output"):
        torch_glue.binarize(model, torch.randn(100, 16), tmp_path, method="sign")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 1000])
def test_forwards_are_compared_under_autocast_too(tmp_path, dtype, size):
    class Cast(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            with torch.autocast("cpu", dtype):
                return self.layer(x).float()

    torch.manual_seed(8)
    images = size * torch.randn(100, 16)
    torch_glue.binarize(Cast(Logging(16, 8)), images, tmp_path / "a", method="sign")
    with pytest.raises(ValueError, match="the forward of Otherwise gives another output"):
        torch_glue.binarize(Cast(Otherwise(torch.abs, 1, 0)), images, tmp_path / "b", method="sign")


def test_a_large_bias_of_its_own_hides_no_filter(tmp_path):
    torch.manual_seed(9)
    model = nn.Sequential(Louder(64, 5))
    with torch.no_grad():
        model[0].bias += 30
    with pytest.raises(ValueError, match="the forward of Louder gives another output"):
        torch_glue.binarize(model, torch.randn(100, 64), tmp_path, method="sign")


class Half(nn.Linear):
    """Computed in 16 bits, whatever it is given."""

    def forward(self, x):
        outputs = F.linear(x.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16())
        return outputs.to(x.dtype)


def autocasting(self, x):
    """A linear layer's forward under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x, self.weight, self.bias).float()


@pytest.mark.parametrize("mean", [0, 10])
def test_rounding_in_16_bits_is_no_other_output(tmp_path, mean):
    torch.manual_seed(5)
    model = nn.Sequential(Half(256, 64))
    torch_glue.binarize(model, torch.randn(500, 256) + mean, tmp_path, method="sign")


@pytest.mark.parametrize("kind", [Half, type("Own", (nn.Linear,), {"forward": autocasting})])
def test_rounding_of_a_bias_that_products_cancel_is_no_other_output(tmp_path, kind):
    torch.manual_seed(8)
    images, layer = torch.randn(300, 1024).relu(), kind(1024, 32)
    with torch.no_grad():
        layer.weight.copy_(0.05 * (torch.randn(32, 1024) + 0.5))
        layer.bias.copy_(-F.linear(images.mean(0), layer.weight))
    torch_glue.binarize(nn.Sequential(layer), images, tmp_path, method="sign")


def test_cancellation_is_no_other_output(tmp_path):
    class Backwards(nn.Linear):
        def forward(self, x):
            return F.linear(x.flip(-1), self.weight.flip(-1), self.bias)

    torch.manual_seed(6)
    model = nn.Sequential(Backwards(512, 16))
    with torch.no_grad():  # what is summed is large, the sums are not
        model[0].weight.copy_(1 + 1e-3 * torch.randn(16, 512))
    images = torch.randn(100, 512)
    images -= images.mean(1, keepdim=True)
    torch_glue.binarize(model, images * 1e3, tmp_path, method="sign")


def test_a_forward_that_works_in_place_is_refused(tmp_path):
    class Rectifying(nn.Linear):
        def forward(self, x):
            return F.linear(F.relu_(x), self.weight, self.bias)

    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), Rectifying(8, 5))
    with pytest.raises(ValueError, match="layer 1: the forward of Rectifying gives another"):
        torch_glue.binarize(model, torch.randn(50, 6), tmp_path, method="sign")


class Named(nn.Module):
    """Calls its layer with inputs by whatever name."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, images):
        return self.call(self.layer, images)


def test_inputs_by_another_name_are_refused_and_output_sizes_taken(tmp_path):
    class Second(nn.Linear):
        def forward(self, x=None, y=None):
            return super().forward(y if x is None else x)

    for number, call in enumerate(
        [lambda layer, images: layer(x=images), lambda layer, images: layer(None, images)]
    ):
        with pytest.raises(ValueError, match="layer: the forward of Second gives another"):
            torch_glue.binarize(
                Named(Second(6, 5), call), torch.randn(50, 6), tmp_path / str(number)
            )

    class Sized(nn.ConvTranspose2d):
        def forward(self, x, output_size=None):
            return super().forward(x, output_size)

    model = Named(Sized(3, 4, 3, stride=2), lambda layer, images: layer(images, output_size=[8, 8]))
    torch_glue.binarize(model, torch.randn(6, 3, 3, 3), tmp_path / "sized", method="sign")


def test_nan_is_named_before_forwards_are_judged(tmp_path):
    images = torch.randn(50, 6)
    images[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"nan at \(3, 2\)"):
        torch_glue.binarize(nn.Sequential(Logging(6, 5)), images, tmp_path, method="sign")


class Casting(nn.Linear):
    """As mixed precision has it, with an argument that it leaves aside."""

    def forward(self, x, task=None):
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Louder(nn.Linear):
    def forward(self, x):
        return F.linear(x, 1.5 * self.weight, self.bias)


class Holding(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x, "task"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_forwards_are_compared_in_every_type(tmp_path, dtype, size):
    torch.manual_seed(2)
    images = size * torch.randn(40, 64)
    model = Holding(Casting(64, 5), nn.Identity()).to(dtype)
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    torch_glue.binarize(model, images.to(dtype), tmp_path / "a", method="sign")
    model = nn.Sequential(Louder(64, 5, bias=False)).to(dtype)
    with pytest.raises(ValueError, match="the forward of Louder gives another output"):
        torch_glue.binarize(model, images.to(dtype), tmp_path / "b", method="sign")


def test_comparing_forwards_disturbs_nothing(tmp_path):
    torch.manual_seed(3)
    plain = nn.Sequential(
        nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)
    ).eval()
    own = copy.deepcopy(plain)
    own[0].__class__ = Logging
    images = torch.randn(30, 6)
    layers = [TorchNetwork(model).layers(images) for model in (plain, own)]
    assert layers[0] == layers[1] and layers[0][0].constant is not None
    own[3].__class__ = Logging
    nn.utils.parametrizations.weight_norm(own[3])
    torch_glue.binarize(own, images, tmp_path, skip=["3"], method="dcc")
    with torch.no_grad():
        assert TorchNetwork(own).layers(images[:0])[0].name == "0"
