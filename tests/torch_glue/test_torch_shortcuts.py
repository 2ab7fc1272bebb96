# ruff: noqa: E402
"""Shortcuts and constants: found by watching a pass, or named; their values; what they do."""

import operator

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch_support import content, record

import torch_glue
from torch_glue import TorchNetwork


class BasicBlock(nn.Module):
    """As torchvision's: an in-place sum, perhaps a strided shortcut with layers of its own."""

    def __init__(self, channels, filters, stride=1, add=operator.iadd):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )
        self.add = add

    def forward(self, x):
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        return self.relu(self.add(out, identity))


def resnet(add=operator.iadd):
    """Layers "0", "3.conv1", "3.conv2", "4.conv1", "4.conv2", "4.downsample.0"."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        BasicBlock(4, 4, add=add),
        BasicBlock(4, 6, 2, add=add),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 3)
            nn.init.uniform_(module.weight, 0.3, 2)
            nn.init.normal_(module.bias)
    return model.eval()


IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
AWARE = {
    "3.conv2": "3.bn2",
    "4.conv2": "4.bn2",
    "4.downsample.0": "4.downsample.1",
}
SUMS = {
    "iadd": operator.iadd,
    "add": operator.add,
    "swapped": lambda a, b: b + a,
    "torch.add": torch.add,
    "method": lambda a, b: a.add(b),
    "in place": lambda a, b: a.add_(b),
    "alpha": lambda a, b: torch.add(a, b, alpha=1),
}


@pytest.mark.parametrize("add", SUMS)
def test_shortcuts_are_found_and_have_their_values(add):
    model = resnet(SUMS[add])
    network = TorchNetwork(model)
    layers = {layer.name: layer for layer in network.layers(IMAGES)}
    assert {name: layer.shortcut for name, layer in layers.items() if layer.shortcut} == AWARE
    network.write("0", np.sign(network.weight("0")) / 4)
    for binarized in (False, True):
        seen = {}

        def note(name, seen=seen):
            return lambda m, args, out: seen.update({name: out.detach().clone()})

        other = {"3.conv2": "2", "4.conv2": "4.downsample.1", "4.downsample.0": "4.bn2"}
        handles = [
            model.get_submodule(name).register_forward_hook(note(name)) for name in other.values()
        ]
        with network._weights(binarized), torch.no_grad():
            model(IMAGES)
        for handle in handles:
            handle.remove()
        for name, norm in AWARE.items():
            bn = model.get_submodule(norm)
            factor = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach()[:, None, None]
            wanted = seen[other[name]] / factor
            for early in (True, False):  # with the input of the layer, and alone
                if early:
                    network.layer_input(name, IMAGES, binarized=binarized)
                found = network.shortcut(name, IMAGES, binarized=binarized)
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("add", SUMS)
def test_the_blocks_output_is_nearer(tmp_path, add):
    errors = []
    for residual in ("auto", False):
        model = resnet(SUMS[add])
        options = {"residual": residual, "skip": ["4.*"], "method": "dcc"}
        run = torch_glue.binarize(model, IMAGES, tmp_path / str(residual), **options)
        assert run.report.summary["residual"] == (["3.conv2"] if residual else [])
        with torch.no_grad():
            wanted, found = (m[:4](IMAGES) for m in (resnet(), model))
        errors.append(float((wanted - found).square().sum()))
    assert errors[0] < errors[1]


def test_the_loss_is_the_error_before_the_last_relu(tmp_path):
    """Σ of squares of what the block's sum lacks, over γ/σ, filter by filter."""
    model, full = resnet(), resnet()
    options = {"method": "dcc", "skip": ["4.*"], "dtype": "float64", "residual": True}
    run = torch_glue.binarize(model, IMAGES, tmp_path, **options)
    sums = []
    for m in (full, model):
        m[3].add = lambda a, b: sums.append(a + b) or a + b
        with torch.no_grad():
            m[:4](IMAGES)
    bn = full[3].bn2
    factor = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach()[:, None, None]
    loss = ((sums[0] - sums[1]) / factor).double().square().sum((0, 2, 3))
    found = {result.name: result.solution.loss for result in run.layers}["3.conv2"]
    np.testing.assert_allclose(found, loss, rtol=1e-4)


class Plain(nn.Module):
    """A layer and, by ``how``, what is done with its output."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.gain, self.how = nn.Parameter(torch.tensor([0.5, -2.0, 1.0, 0.0])), how
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.first(x)
        y = self.layer(x)
        if self.how == "of itself":
            return y + torch.sigmoid(y)
        if self.how == "broadcast":
            return y + x.mean(-1, keepdim=True)
        if self.how == "both twice":
            return (y + x) * (y + x.sin())
        if self.how == "bent":
            return torch.relu(y) + x
        if self.how == "half":
            return torch.add(y, x, alpha=0.5)
        if self.how == "scaled":
            return x + self.gain * self.drop(y)
        if self.how == "seen":  # layer scale as it is often written
            return x.double() + (self.gain.view(1, -1) * y).float().to(torch.float64)
        if self.how == "whole":
            return x + y.to(torch.int64)
        if self.how == "a tenth":
            return x + 0.1 * self.drop(y) * 1
        if self.how == "by keyword":
            y = torch.clone(input=torch.flatten(input=y.permute(dims=(0, 1)), start_dim=1))
            return torch.add(input=x, other=torch.mul(input=y, other=np.float32(0.1)))
        if self.how == "nothing":
            return x + 0 * y
        if self.how == "turned":
            return (y.unsqueeze(0).transpose(0, 1).permute(2, 0, 1) + x.t()[..., None]).sum(-1)
        return x + self.drop(y)


@pytest.mark.parametrize("how", ["of itself", "broadcast", "both twice", "bent", "half", "whole"])
def test_what_is_no_shortcut_of_the_layer(how):
    layers = TorchNetwork(Plain(how)).layers(torch.randn(5, 4))
    assert [layer.shortcut for layer in layers] == [None, None]


@pytest.mark.parametrize(
    "how", ["plain", "scaled", "seen", "a tenth", "by keyword", "nothing", "turned"]
)
def test_steps_in_between_are_undone(how):
    model, x = Plain(how).eval(), torch.randn(5, 4)
    network = TorchNetwork(model)
    assert [layer.shortcut for layer in network.layers(x)] == [None, "added"]
    wanted = model.first(x).detach().numpy()
    if how in ("scaled", "seen"):  # through a factor of zero nothing can be made up
        wanted = wanted * np.array([2.0, -0.5, 1.0, 0.0])
    elif how in ("a tenth", "by keyword", "nothing"):
        wanted = wanted * (0 if how == "nothing" else 10)
    found = network.shortcut("layer", x, binarized=False)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_vanishing_factor_makes_up_for_nothing(tmp_path):
    model = resnet()
    with torch.no_grad():
        model[3].bn2.weight[:2] = torch.tensor([0.0, 1e-30])
    run = torch_glue.binarize(model, IMAGES, tmp_path, method="dcc", intercept="auto")
    assert all(np.isfinite(result.solution.loss).all() for result in run.layers)
    assert torch.isfinite(model(IMAGES)).all()


NAMED = {
    "the block's input": {"3.conv2": "3:input"},
    "with the norm": {"3.conv2": ("3.bn2", "3:input")},
    "a module's output": {"3.conv2": "2"},
}


@pytest.mark.parametrize("how", NAMED)
def test_shortcuts_that_are_named(tmp_path, how):
    runs = [
        torch_glue.binarize(
            resnet(), IMAGES, tmp_path / str(n), method="dcc", skip=["4.*"], residual=residual
        )
        for n, residual in enumerate((NAMED[how], True, False))
    ]
    assert runs[0].codes_sha256 == runs[1].codes_sha256 != runs[2].codes_sha256


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"3.conv9": "2"}, "'3.conv9' is no layer"),
        ({"3.conv2": "3.input"}, "'3.input', named for layer 3.conv2, is no module"),
        ({"3.conv2": "3:output"}, "'3:output', named for layer 3.conv2"),
        ({"3.conv2": ("3.relu", "2")}, "'3.relu', named for layer 3.conv2, is no BatchNorm"),
        (
            {"4.conv2": "4:input"},
            r"'4:input', named for layer 4.conv2, is of shape \(20, 4, 8, 8\)",
        ),
        ({"3.conv2": "4"}, r"shape \(20, 6, 4, 4\): it does not fit the 4 channels of 3.bn2"),
        ("yes", "'yes' is not one of 'auto', True, False"),
    ],
)
def test_names_that_are_refused(tmp_path, named, message):
    with pytest.raises(ValueError, match=message):
        torch_glue.binarize(resnet(), IMAGES, tmp_path, method="sign", residual=named)


def test_a_sequence_has_no_shortcut(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    run = torch_glue.binarize(
        model, torch.randn(9, 4), tmp_path / "auto", method="sign", residual="auto"
    )
    assert run.report.summary["residual"] == []
    with pytest.raises(ValueError, match="shows no layer whose output is added"):
        torch_glue.binarize(model, torch.randn(9, 4), tmp_path / "run", residual=True)


def test_a_pass_that_cannot_be_watched_is_reported(tmp_path):
    """And goes on without shortcuts; but not where they are asked for."""

    class Shy(Plain):
        def forward(self, x):
            if torch.overrides._len_torch_function_stack():
                raise RuntimeError("not under a mode")
            return super().forward(x)

    run = torch_glue.binarize(
        Shy("plain"), torch.randn(9, 4), tmp_path / "a", method="sign", residual="auto"
    )
    assert "not under a mode" in run.report.summary["remarks"][0]
    with pytest.raises(ValueError, match="shows no layer"):
        torch_glue.binarize(Shy("plain"), torch.randn(9, 4), tmp_path / "b", residual=True)


# constants


def test_constants_are_taken_up_by_biases_and_running_means(tmp_path):
    model, full = resnet(), resnet()
    keys = list(model.state_dict())
    run = torch_glue.binarize(model, IMAGES, tmp_path, method="dcc", intercept=True)
    takers = {result.name: result.row["constant"] for result in run.layers}
    assert takers == {name: "bias" if name == "0" else "running_mean" for name in takers}
    assert list(model.state_dict()) == keys
    by_hand = resnet()
    for result in run.layers:
        constant = torch.from_numpy(result.solution.intercept)
        layer = by_hand.get_submodule(result.name)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(result.weight))
        layer.register_forward_hook(lambda m, a, out, c=constant: out + c[:, None, None].float())
        assert (np.abs(result.solution.intercept) > 0).all()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), by_hand(IMAGES), rtol=1e-4, atol=1e-4)
        means = [m[0](IMAGES).mean((0, 2, 3)) for m in (full, model)]
    torch.testing.assert_close(*means)


class Odd(nn.Module):
    """Layers whose outputs nothing can take a constant for."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.norm, self.how = nn.BatchNorm1d(4), how
        if how == "tied":
            self.layer.bias = self.other.bias = nn.Parameter(torch.zeros(4))
        if how == "no statistics":
            self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x):
        y = self.layer(x)
        if self.how == "no norm":
            return torch.relu(y) + self.other(x)
        if self.how == "seen elsewhere":
            return self.norm(y) + torch.relu(y) + self.other(x)
        if self.how == "shared norm":
            return self.norm(y) * self.norm(self.other(x))
        return self.norm(y) * self.other(x)


@pytest.mark.parametrize("how", ["no norm", "seen elsewhere", "shared norm", "tied"])
def test_layers_that_get_no_constant(tmp_path, how):
    x = torch.randn(30, 4)
    layers = TorchNetwork(Odd(how)).layers(x)
    assert [layer.constant for layer in layers] == [None, None]
    run = torch_glue.binarize(Odd(how), x, tmp_path / "a", method="dcc", intercept="auto")
    assert run.report.summary["intercept"] == []
    with pytest.raises(ValueError, match="layer layer has no bias of its own and no norm"):
        torch_glue.binarize(Odd(how), x, tmp_path / "b", method="dcc", intercept=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_interrupted_it_is_restored_and_resumed_to_the_same_bits(tmp_path, dtype):
    def stop(name, index, count, what):
        if (index, what) == (4, "solving"):
            raise KeyboardInterrupt

    options = {"method": "dcc", "intercept": True}
    model, images = resnet().to(dtype), IMAGES.to(dtype)
    before = record(model)
    with pytest.raises(KeyboardInterrupt):
        torch_glue.binarize(model, images, tmp_path / "run", progress=stop, **options)
    assert record(model) == before
    run = torch_glue.binarize(model, images, tmp_path / "run", **options)
    whole = resnet().to(dtype)
    expected = torch_glue.binarize(whole, images, tmp_path / "whole", **options)
    assert run.codes_sha256 == expected.codes_sha256
    for key, value in whole.state_dict().items():
        assert content(value) == content(model.state_dict()[key]), key


def test_a_constant_is_written_once(tmp_path):
    """`apply` and a second write do not add it again."""
    model, other = resnet(), resnet()
    run = torch_glue.binarize(model, IMAGES, tmp_path, method="dcc", intercept=True)
    network = TorchNetwork(other)
    network.layers(IMAGES)
    run.apply(network)
    run.apply(network)
    for key, value in model.state_dict().items():
        assert content(value) == content(other.state_dict()[key]), key


def test_constants_are_not_half_applied(tmp_path):
    """A copy that has seen no pass knows no taker of them; then nothing is written."""
    run = torch_glue.binarize(resnet(), IMAGES, tmp_path, method="dcc", intercept=True)
    fresh = resnet()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    network = TorchNetwork(fresh)
    with pytest.raises(ValueError, match=r"call layers\(batch\) first"):
        run.apply(network)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, before[name]), name
    network.layers(IMAGES[:2])
    run.apply(network)
    with torch.no_grad():
        assert not torch.equal(fresh.eval()(IMAGES), resnet().eval()(IMAGES))


class Encoder(nn.Module):
    """Attention with a shortcut; "around": it has positions first, all else samples."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.first = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=layout == "samples first")

    def forward(self, x):
        x = self.first(x)
        y = x.transpose(0, 1) if self.layout == "around" else x
        y = self.attention(y, y, y, need_weights=False)[0]
        return x + (y.transpose(0, 1) if self.layout == "around" else y)


def test_a_named_shortcut_of_as_many_positions_as_samples(tmp_path):
    named = {"attention.out_proj": "first"}
    options = {"method": "sign", "residual": named}
    torch_glue.binarize(Encoder("samples first"), torch.randn(6, 6, 8), tmp_path / "a", **options)
    with pytest.raises(ValueError, match="as many positions as samples"):
        torch_glue.binarize(Encoder("around"), torch.randn(6, 6, 8), tmp_path / "b", **options)


@pytest.mark.parametrize("source", ["first", "attention:input"])
def test_a_last_batch_of_as_many_samples_as_positions(tmp_path, source):
    """Which come first is known from those before, or because the attention itself is named."""
    torch.manual_seed(0)
    state, inputs = Encoder("around").state_dict(), [torch.randn(n, 6, 8) for n in (9, 9, 6)]
    codes = []
    for n, residual in enumerate(("auto", {"attention.out_proj": source}, False)):
        model = Encoder("around")
        model.load_state_dict(state)
        run = torch_glue.binarize(model, inputs, tmp_path / str(n), method="dcc", residual=residual)
        codes.append(run.codes_sha256)
    assert codes[0] == codes[1] != codes[2]


@pytest.mark.parametrize("layout", ["positions first", "samples first", "around"])
def test_a_named_shortcut_of_attention_is_that_which_is_found(tmp_path, layout):
    torch.manual_seed(0)
    state, inputs = Encoder(layout).state_dict(), [torch.randn(5, 12, 8) for _ in range(4)]
    codes = []
    for n, residual in enumerate(("auto", {"attention.out_proj": "first"}, False)):
        model = Encoder(layout)
        model.load_state_dict(state)
        run = torch_glue.binarize(model, inputs, tmp_path / str(n), method="dcc", residual=residual)
        codes.append(run.codes_sha256)
    assert codes[0] == codes[1] != codes[2]


def test_a_named_module_that_is_called_twice_is_refused(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

        def forward(self, x):
            return self.relu(self.b(self.relu(self.a(x))) + x)

    model = nn.Sequential(nn.Linear(4, 4), Block(), Block())
    before = content(model[2].b.weight)
    with pytest.raises(ValueError, match=r"'1.relu', named for layer 2.b, is called 2 times"):
        torch_glue.binarize(
            model, torch.randn(9, 4), tmp_path, method="dcc", residual={"2.b": "1.relu"}
        )
    assert content(model[2].b.weight) == before


def test_shortcuts_of_single_samples_are_those_of_batches(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x):
            x = self.a(x).relu()
            return x + self.b(x)

    torch.manual_seed(0)
    state, images = Block().state_dict(), torch.randn(6, 3, 8, 8)
    errors = []
    for n, batches in enumerate(([images], list(images))):
        model = Block()
        model.load_state_dict(state)
        run = torch_glue.binarize(model, batches, tmp_path / str(n), method="dcc", residual="auto")
        assert run.report.summary["residual"] == ["b"]
        errors.append([layer.relative_error for layer in run.layers])
    np.testing.assert_allclose(*errors, rtol=1e-5)


@pytest.mark.parametrize("part", ["in_proj_weight", "out_proj.weight"])
def test_attention_that_computes_with_other_weights_is_refused_unless_skipped(tmp_path, part):
    class Doubled(nn.MultiheadAttention):
        def forward(self, x):
            weights = {name: p * (1 + (name == part)) for name, p in self.named_parameters()}
            own = dict(self.named_parameters())
            own[part] = weights[part]
            return nn.functional.multi_head_attention_forward(
                x,
                x,
                x,
                self.embed_dim,
                self.num_heads,
                own["in_proj_weight"],
                own["in_proj_bias"],
                None,
                None,
                False,
                0.0,
                own["out_proj.weight"],
                own["out_proj.bias"],
            )[0]

    inputs = torch.randn(5, 7, 8)
    model = nn.Sequential(Doubled(8, 2))
    changed, plain = (
        ("0.?_proj", "0.out_proj") if part == "in_proj_weight" else ("0.out_proj", "0.?_proj")
    )
    with pytest.raises(
        ValueError, match=r"layer 0\.\w+_proj: the forward of Doubled gives another"
    ):
        torch_glue.binarize(model, inputs, tmp_path / "a", skip=[plain], method="sign")
    run = torch_glue.binarize(model, inputs, tmp_path / "b", skip=[changed], method="sign")
    assert len(run.layers) == (1 if changed == "0.?_proj" else 3)


@pytest.mark.parametrize("use", ["cast", "joined", "turned"])
def test_attention_is_judged_by_the_values_of_its_weights(tmp_path, use):
    class Own(nn.MultiheadAttention):
        def forward(self, x):
            packed, last = self.in_proj_weight, self.out_proj.weight
            if use == "cast":
                packed = packed.to(torch.float64).to(x.dtype)
            if use == "joined":
                packed = torch.cat(packed.chunk(3))
            if use == "turned":
                last = last.t()
            return nn.functional.multi_head_attention_forward(
                x, x, x, 8, 2, packed, self.in_proj_bias, None, None, False, 0.0, last, None
            )[0]

    model, inputs = nn.Sequential(Own(8, 2, bias=False)), torch.randn(5, 7, 8)
    if use != "turned":
        assert len(torch_glue.binarize(model, inputs, tmp_path, method="sign").layers) == 4
        return
    with pytest.raises(ValueError, match=r"layer 0\.out_proj: the forward of Own gives another"):
        torch_glue.binarize(model, inputs, tmp_path, method="sign")
