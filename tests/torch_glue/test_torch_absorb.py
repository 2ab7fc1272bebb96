# ruff: noqa: E402
"""absorb_scales: weights of exactly ±1, the same outputs; a clear error where nothing absorbs."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch_support import content

import torch_glue


def lively(norm):
    """A BatchNorm as training leaves it."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 2)
        if norm.affine:
            norm.weight.normal_()
            norm.bias.normal_()
    return norm


class Net(nn.Module):
    """Convolutions, a transposed and a linear one, a shortcut, biases."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = lively(nn.BatchNorm2d(6))
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.bn2 = lively(nn.BatchNorm2d(6))
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.bn3 = lively(nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, 8)
        self.bn4 = lively(nn.BatchNorm1d(8, affine=False))
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        x = torch.relu(self.bn3(self.up(x))).mean((2, 3))
        return self.last(self.bn4(self.fc(x)))


LAYERS = ["conv1", "conv2", "up", "fc"]
NORMS = {"conv1": "bn1", "conv2": "bn2", "up": "bn3", "fc": "bn4"}


def binary(model, layers=LAYERS):
    torch_glue.attach(model, layers)
    torch_glue.detach(model)
    return model.eval()


def same_after_absorbing(model, inputs, found):
    """Absorbing tells these BatchNorms, and leaves the outputs as they were."""
    before = model(inputs)
    assert torch_glue.absorb_scales(model) == found
    torch.testing.assert_close(model(inputs), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("followers", [None, NORMS])
def test_outputs_are_the_same_and_weights_exactly_one(followers):
    model = binary(Net())
    images = torch.randn(20, 3, 8, 8)
    with torch.no_grad():
        before = model(images)
        assert torch_glue.absorb_scales(model, followers=followers) == NORMS
        after = model(images)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()
    for name in LAYERS:
        layer = model.get_submodule(name)
        assert (layer.weight.abs() == 1).all()
        assert layer.bias is None or not layer.bias.any()


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-4, 0.3, 50.0, 3e3]), st.floats(1e-12, 10))
def test_any_scale_and_variance(seed, scale, variance):
    """Scales far above the spread, whose variance would be negative, and scales of 0."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 3), lively(nn.BatchNorm1d(3))).double().eval()
    with torch.no_grad():
        weight = model[0].weight
        weight.copy_(torch.where(weight < 0, -1, 1))[0] *= scale  # torch.sign(0) is 0
        model[1].running_var[0] = variance
        inputs = torch.randn(40, 5, dtype=torch.float64)
        before = model(inputs)
        torch_glue.absorb_scales(model)
        after = model(inputs)
    assert (model[1].running_var >= 0).all() and (model[0].weight.abs() == 1).all()
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9 * float(before.abs().max()))


def test_training_statistics_still_fit():
    """In train mode too, but for ε: the variance that BatchNorm sees is that of the new output."""
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, momentum=None))
    binary(model, ["0"])
    inputs = torch.randn(400, 5)
    torch_glue.recalibrate_batchnorm(model, inputs)
    torch_glue.absorb_scales(model)
    held = model[1].running_var.clone(), model[1].running_mean.clone()
    torch_glue.recalibrate_batchnorm(model, inputs)
    torch.testing.assert_close(model[1].running_var, held[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model[1].running_mean, held[1], rtol=1e-3, atol=1e-3)


def test_where_nothing_can_absorb_the_model_is_left_alone():
    def refused(match, model, **options):
        before = {name: content(value) for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=match):
            torch_glue.absorb_scales(model, **options)
        assert before == {name: content(value) for name, value in model.state_dict().items()}

    refused("binarise first", Net())
    refused("conv1: no layer whose weight is exactly", Net(), layers=["conv1"])
    refused("conv9: no layer", Net(), layers=["conv9"])
    refused("last: its output goes to output", binary(Net(), [*LAYERS, "last"]))
    model = binary(Net())
    refused(
        "fc: is followed by nothing that is known",
        model,
        followers={n: NORMS[n] for n in LAYERS[:3]},
    )
    refused("fc: is followed by 'last'", model, followers=NORMS | {"fc": "last"})
    refused("followers: the model has no layer 'fcc'; did", model, followers=NORMS | {"fcc": "bn1"})
    refused("bn1: has 6 features, fc 8", model, followers=NORMS | {"fc": "bn1"})
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3))
    refused("0: is followed by '1'", binary(plain, ["0"]))
    without = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    refused("no BatchNorm with running statistics", binary(without, ["0"]))
    dead = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False))
    dead[0].weight.data[1] = 0.0
    refused("1: lacks the weight or bias that alone could take", binary(dead, ["0"]))
    tied = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Embedding(4, 4))
    binary(tied, ["0"])
    tied[2].weight = tied[0].weight
    refused("0: shares its weight with 2", tied)
    for place in (1, 2):
        tied = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        tied[place].bias = binary(tied, ["0"])[0].bias
        refused(f"0: shares its bias with {place}", tied, layers=["0"])

    class Twice(Net):
        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.bn2(self.conv2(self.bn2(self.conv2(x))))

    refused("conv2: is called more than once", binary(Twice()))
    twice = NORMS | {"conv2": "bn1"}
    refused("bn1 follows more than one layer", binary(Net()), followers=twice)

    class Elsewhere(Net):
        def forward(self, x):
            return super().forward(x) + self.conv2.weight.sum()

    refused("conv2: its weight or bias is used in other ways", binary(Elsewhere()))

    class Elsewhere(Net):
        def forward(self, x):
            x = self.conv1(x)
            return self.bn1(x) + x

    refused("conv1: its output goes to bn1, add", binary(Elsewhere(), ["conv1"]))

    class Untraceable(Net):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    refused("cannot be traced", binary(Untraceable()))
    model = binary(Untraceable())
    twin = copy.deepcopy(model)
    assert torch_glue.absorb_scales(model, followers=NORMS) == NORMS
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(model(images), twin(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-22), (torch.float16, 1e-3)])
def test_scales_too_small_for_a_variance_are_in_the_gain(dtype, size):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), lively(nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[0].weight[0] *= size / model[0].weight[0].abs().mean()
        model[1].running_var[0] = 2.0
    binary(model.to(dtype), ["0"])
    images = torch.randn(5, 3, 6, 6).to(dtype)
    with torch.no_grad():
        before = model(images)
        torch_glue.absorb_scales(model, layers="0")
        after = model(images)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert (model[0].weight.abs() == 1).all()
    close = 1e-5 if dtype == torch.float32 else 1e-2
    assert (before - after).abs().max() < close * before.abs().max()


def test_what_follows_is_what_follows_in_eval_mode():
    class Modes(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            return self[2](self[1](x)) if self.training else self[2](x)

    model = Modes(nn.Linear(4, 3), lively(nn.BatchNorm1d(3)), lively(nn.BatchNorm1d(3)))
    binary(model, ["0"])
    inputs = torch.randn(6, 4)
    before = model(inputs)
    model.train()
    assert torch_glue.absorb_scales(model) == {"0": "2"}
    assert model.training
    torch.testing.assert_close(model.eval()(inputs), before, rtol=1e-5, atol=1e-5)


def test_a_mean_too_large_for_its_scale_is_in_the_shift():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), lively(nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[0].weight[0] *= 1e-30
        model[1].running_mean[0], model[1].running_var[0] = 1e10, 1e20
    binary(model, ["0"])
    images = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        before = model(images)
        torch_glue.absorb_scales(model)
        after = model(images)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_reading_a_type_and_a_forward_of_its_own_are_no_use_elsewhere():
    class Own(nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight, self.bias)

    class Casting(nn.Sequential):
        def forward(self, x):
            return super().forward(x.to(self[0].weight.dtype))

    model = Casting(Own(4, 3), lively(nn.BatchNorm1d(3)))
    binary(model, ["0"])
    same_after_absorbing(model, torch.randn(6, 4), {"0": "1"})


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.linear(x, self.weight, self.bias) ** 2,
        lambda self, x: F.linear(x, self.weight / self.weight.norm(), self.bias),
        lambda self, x: F.gelu(nn.Linear.forward(self, x)),
        lambda self, x: F.linear(x, self.weight),
    ],
)
def test_a_forward_that_does_more_than_its_layer_is_refused(forward):
    own = type("Own", (nn.Linear,), {"forward": forward})
    model = nn.Sequential(own(4, 3), lively(nn.BatchNorm1d(3)))
    binary(model, ["0"])
    with pytest.raises(ValueError, match=r"^0: its (weight or bias is used in other|output goes)"):
        torch_glue.absorb_scales(model)


def test_a_forward_that_pads_first_is_taken():
    class Same(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(F.pad(x, (1, 2, 1, 2)), self.weight, self.bias)

    model = nn.Sequential(Same(3, 4, 4), lively(nn.BatchNorm2d(4)))
    binary(model, ["0"])
    same_after_absorbing(model, torch.randn(5, 3, 6, 6), {"0": "1"})


def test_names_of_layers_may_be_those_of_arguments_and_methods():
    class Names(nn.Module):
        def __init__(self):
            super().__init__()
            self.output, self.input = nn.Linear(4, 3), lively(nn.BatchNorm1d(3))
            self.squeeze, self.bn = nn.Linear(3, 3), lively(nn.BatchNorm1d(3))

        def forward(self, input):
            return self.bn(self.squeeze(self.input(self.output(input.squeeze(-1)))))

    model = binary(Names(), ["output", "squeeze"])
    same_after_absorbing(model, torch.randn(6, 4, 1), {"output": "input", "squeeze": "bn"})


def test_filters_on_the_other_axis_are_no_call_of_the_layer():
    class Turned(nn.Conv2d):
        def forward(self, x):
            return F.conv_transpose2d(x, self.weight)

    model = nn.Sequential(Turned(4, 4, 3, bias=False), lively(nn.BatchNorm2d(4)))
    binary(model, ["0"])
    with pytest.raises(ValueError, match="0: its weight or bias is used in other ways"):
        torch_glue.absorb_scales(model)


def test_what_cannot_be_traced_disturbs_no_other_layer():
    class Same(nn.Conv2d):
        def forward(self, x):
            missing = -x.size(-1) % 4
            return super().forward(F.pad(x, (0, missing)) if missing > 0 else x)

    model = nn.Sequential(Same(3, 4, 1), nn.Conv2d(4, 4, 1), lively(nn.BatchNorm2d(4)))
    binary(model, ["1"])
    assert torch_glue.absorb_scales(model, ["1"]) == {"1": "2"}


def test_a_layer_that_reads_another_ones_weight_is_seen():
    class Tied(nn.Linear):
        def __init__(self, other):
            super().__init__(3, 4)
            self.other = [other]

        def forward(self, x):
            return F.linear(x, self.other[0].weight.t(), self.bias)

    first = nn.Linear(4, 3)
    model = nn.Sequential(first, lively(nn.BatchNorm1d(3)), Tied(first))
    binary(model, ["0"])
    with pytest.raises(ValueError, match="0: its weight or bias is used in other ways"):
        torch_glue.absorb_scales(model, ["0"])


@pytest.mark.parametrize(
    "use",
    [
        lambda self: sum(p.abs().sum() for p in self.layer.parameters()),
        lambda self: self.kept[0].abs().sum(),
        lambda self: self.kept[0].data[0, 0],
        lambda self: self.kept[0].tolist()[0][0],
        lambda self: float(torch.allclose(self.kept[0], torch.ones(3, 4))),
        lambda self: sum(float(row.sum()) for row in self.kept[0]),
    ],
)
def test_a_weight_that_is_no_attribute_where_it_is_used_is_seen(use):
    class Using(Holding):
        def forward(self, x):
            return super().forward(x) + use(self)

    with pytest.raises(ValueError, match="layer: its weight or bias is used in other ways"):
        torch_glue.absorb_scales(binary(Using(), ["layer"]))


@pytest.mark.parametrize(
    "use",
    [
        lambda layer, x: x.new_tensor(layer.weight).sum(),
        lambda layer, x: torch.full_like(x[:, :3], layer.bias[0].sum()),
        lambda layer, x: F.linear(layer.weight, layer.weight, layer.bias).sum(),
    ],
)
def test_values_of_weights_beside_a_call_of_the_layer_are_seen(use):
    class Using(Holding):
        def forward(self, x):
            return super().forward(x) + use(self.layer, x)

    with pytest.raises(ValueError, match="layer: its weight or bias is used in other ways"):
        torch_glue.absorb_scales(binary(Using(), ["layer"]))


@pytest.mark.parametrize("traceable", [True, False])
def test_a_layer_that_is_not_traced_may_use_what_it_holds(traceable):
    class Checking(nn.Linear):
        def __init__(self, held):
            super().__init__(3, 4)
            self.held = held

        def forward(self, x):
            if not traceable and x.shape[-1] != 3:
                raise ValueError("bad shape")
            used = self.weight if self.held is None else self.weight + self.held[0]["first"].T
            return F.linear(x, used, self.bias)

    def network(holds):
        first, norm = nn.Linear(4, 3), lively(nn.BatchNorm1d(3))
        last = Checking([{"first": first.weight}] if holds else None)
        return binary(nn.Sequential(first, norm, last), ["0"])

    how = "is used in other ways" if traceable else "is held by a module that cannot be traced"
    with pytest.raises(ValueError, match=f"0: its weight or bias {how}"):
        torch_glue.absorb_scales(network(True), ["0"])
    same_after_absorbing(network(False), torch.randn(6, 4), {"0": "1"})


class Pairs(nn.Module):
    """Two layers, each before its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Linear(4, 3), lively(nn.BatchNorm1d(3))
        self.b, self.nb = nn.Linear(4, 3), lively(nn.BatchNorm1d(3))

    def forward(self, x):
        return self.na(self.a(x)) + self.nb(self.b(x))


def _share_statistics(model):
    model.nb.running_var = model.na.running_var


def _share_gains(model):
    model.nb.weight = model.na.weight


def _share_bytes(model):
    model.b.weight.data = model.a.weight.data


@pytest.mark.parametrize(
    ("share", "scale", "refused"),
    [
        (_share_statistics, 1.0, "na: shares its running_var with nb"),
        (_share_gains, 0.0, "na: shares its weight with nb"),
        (_share_gains, 1.0, None),  # the gain does not change
        (_share_bytes, 1.0, "a: shares its weight with b"),
    ],
)
def test_what_others_hold_too_is_not_changed(share, scale, refused):
    model = binary(Pairs(), ["a"])
    share(model)
    with torch.no_grad():
        model.a.weight[0] *= scale
    if refused is None:
        same_after_absorbing(model, torch.randn(6, 4), {"a": "na"})
        return
    before = {name: content(value) for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=refused):
        torch_glue.absorb_scales(model, "a")
    assert {name: content(value) for name, value in model.state_dict().items()} == before


@pytest.mark.parametrize(
    "use",
    [
        lambda norm, x: F.batch_norm(x[:, :3], norm.running_mean, torch.ones(3)),
        lambda norm, x: norm.running_mean.view(1, -1),
        lambda norm, x: norm.running_var.mean(),
    ],
)
def test_statistics_that_are_used_elsewhere_are_seen(use):
    class Reading(Holding):
        def forward(self, x):
            return self.norm(self.layer(x)) + use(self.norm, x)

    with pytest.raises(ValueError, match=r"norm: its running_\w+ is used elsewhere too"):
        torch_glue.absorb_scales(binary(Reading(), ["layer"]))


def test_a_gain_may_be_used_elsewhere_unless_it_changes():
    class Reading(Holding):
        def forward(self, x):
            y = self.norm(self.layer(x))
            return y + self.norm.weight.abs().sum() / self.norm.weight.numel()

    model = binary(Reading(), ["layer"])
    computed = binary(Holding(), ["layer"])
    nn.utils.parametrize.register_parametrization(computed.norm, "weight", nn.Softplus())
    for each in (model, computed):
        same_after_absorbing(each, torch.randn(6, 4), {"layer": "norm"})
    model = binary(Reading(), ["layer"])
    with torch.no_grad():
        model.layer.weight[0] = 0
    with pytest.raises(ValueError, match="norm: its weight is used elsewhere too"):
        torch_glue.absorb_scales(model)


@pytest.mark.parametrize("kind", ["sparse", "rows", "nested"])
def test_tensors_of_any_kind_may_be_beside(kind):
    model = binary(Holding(), ["layer"])
    buffers = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "rows": lambda: torch.eye(3).to_sparse_csr(),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # beta states
        model.register_buffer("beside", buffers[kind]())
    same_after_absorbing(model, torch.randn(6, 4), {"layer": "norm"})


def test_parts_of_one_memory_share_nothing_unless_they_overlap():
    for begin in (12, 11):
        model = binary(Pairs(), ["a"])
        flat = torch.cat([model.a.weight.detach().sign().ravel(), torch.randn(12)])
        model.a.weight.data = flat[:12].view(3, 4)
        model.b.weight.data = flat[begin : begin + 12].view(3, 4)
        if begin < 12:
            with pytest.raises(ValueError, match="a: shares its weight with b"):
                torch_glue.absorb_scales(model, ["a"])
        else:
            before = model(torch.ones(2, 4))
            assert torch_glue.absorb_scales(model, ["a"]) == {"a": "na"}
            torch.testing.assert_close(model(torch.ones(2, 4)), before, rtol=1e-5, atol=1e-5)


class _Summing(nn.Linear):
    """A layer that cannot be traced, and uses what it holds."""

    def __init__(self, held):
        super().__init__(3, 3)
        self.held = [held]

    def forward(self, x):
        if x.shape[-1] != 3:
            raise ValueError("three features")
        return F.linear(x, self.weight, self.bias) + self.held[0]


def test_statistics_held_by_a_layer_that_is_not_traced():
    layer, norm = nn.Linear(4, 3), lively(nn.BatchNorm1d(3))
    model = binary(nn.Sequential(layer, norm, _Summing(norm.running_mean)), ["0"])
    with pytest.raises(ValueError, match="1: its running_mean is used elsewhere too"):
        torch_glue.absorb_scales(model, ["0"])


def test_a_gain_that_changes_may_not_be_used_through_a_list():
    class Reading(Holding):
        def forward(self, x):
            return super().forward(x) + sum(p.abs().sum() for p in self.norm.parameters())

    model = binary(Reading(), ["layer"])
    same_after_absorbing(model, torch.randn(6, 4), {"layer": "norm"})
    model = binary(Reading(), ["layer"])
    with torch.no_grad():
        model.layer.weight[0] = 0
    with pytest.raises(ValueError, match="norm: its weight is used elsewhere too"):
        torch_glue.absorb_scales(model)


def test_models_made_in_inference_mode():
    with torch.inference_mode():
        model = Holding().eval()
        model.layer.weight.copy_(0.3 * model.layer.weight.sign())
    with torch.no_grad():
        same_after_absorbing(model, torch.randn(6, 4), {"layer": "norm"})


def test_statistics_that_are_no_buffers_are_refused():
    plain, computed = binary(Holding(), ["layer"]), binary(Holding(), ["layer"])
    mean = plain.norm.running_mean
    del plain.norm.running_mean
    plain.norm.running_mean = mean
    nn.utils.parametrize.register_parametrization(computed.norm, "running_var", nn.Softplus())
    for model, key in ((plain, "running_mean"), (computed, "running_var")):
        with pytest.raises(ValueError, match=f"norm: its {key} is parametrized, or no parameter"):
            torch_glue.absorb_scales(model)


def test_subclasses_of_batchnorm_and_a_model_that_is_a_layer():
    class Slow(nn.BatchNorm1d):
        def __init__(self, size):
            super().__init__(size, momentum=0.01)

    class Root(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.norm = lively(Slow(3))

        def forward(self, x):
            return self.norm(F.linear(x, self.weight, self.bias))

    model = Holding()
    model.norm = lively(Slow(3))
    same_after_absorbing(binary(model, ["layer"]), torch.randn(6, 4), {"layer": "norm"})
    same_after_absorbing(binary(Root(), [""]), torch.randn(6, 4), {"": "norm"})


def test_of_wrapped_models_it_is_what_is_within():
    model = nn.DataParallel(torch.optim.swa_utils.AveragedModel(binary(Holding(), ["layer"])))
    inputs = torch.randn(6, 4)
    same_after_absorbing(model.eval(), inputs, {"module.module.layer": "module.module.norm"})

    class Reading(Holding):
        def forward(self, x):
            return super().forward(x) * self.norm.running_var.sum()

    class Changing(nn.DataParallel):
        def forward(self, x):
            return self.module(x) + self.module.norm.running_var.sum()

    for model in (
        nn.DataParallel(binary(Reading(), ["layer"])),
        Changing(binary(Holding(), ["layer"])),
    ):
        with pytest.raises(ValueError, match="norm: its running_var is used elsewhere too"):
            torch_glue.absorb_scales(model.eval())


class _Twice(nn.Linear):
    """A model that is a layer, called twice."""

    def __init__(self):
        super().__init__(4, 3)
        self.one, self.other = lively(nn.BatchNorm1d(3)), lively(nn.BatchNorm1d(3))

    def forward(self, x):
        rows = F.linear(x, self.weight, self.bias), F.linear(x.flip(0), self.weight, self.bias)
        return self.one(rows[0]) + self.other(rows[1])


def test_a_model_that_is_a_layer_called_twice():
    with pytest.raises(ValueError, match="the model: is called more than once"):
        torch_glue.absorb_scales(binary(_Twice(), [""]))


@pytest.mark.parametrize("part", ["layer", "norm"])
def test_what_a_container_that_is_one_call_holds_too_is_seen(part):
    class Also(Holding):
        def __init__(self):
            super().__init__()
            self.also = nn.DataParallel(getattr(self, part))

        def forward(self, x):
            return super().forward(x) + self.also(x[:, : 3 if part == "norm" else 4])

    with pytest.raises(ValueError, match=r"held by a module|is used elsewhere too"):
        torch_glue.absorb_scales(binary(Also(), ["layer"]))


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_a_forward_set_on_the_object_is_not_traced(wrap):
    model = wrap(binary(Holding(), ["layer"]))
    model.forward = lambda x: x
    with pytest.raises(ValueError, match=r"forward is set on the object.*by followers"):
        torch_glue.absorb_scales(model)


def test_errors_tell_names_as_they_are_in_the_wrapped_model():
    class Bare(Holding):
        def forward(self, x):
            return self.layer(x).relu()

    with pytest.raises(ValueError, match=r"^module\.layer: its output goes to relu"):
        torch_glue.absorb_scales(nn.DataParallel(binary(Bare(), ["layer"])))
    with pytest.raises(ValueError, match=r"^the model: its output goes to output"):
        torch_glue.absorb_scales(binary(nn.Linear(4, 3), [""]))


def test_an_error_tells_all_layers_that_cannot_be_absorbed():
    model = nn.Sequential(Net(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.LayerNorm(2))
    layers = [*(f"0.{name}" for name in [*LAYERS, "last"]), "1", "3"]
    binary(model, layers)
    with pytest.raises(ValueError) as error:
        torch_glue.absorb_scales(model)
    told = str(error.value)
    assert told.startswith("0.last: is followed by '1', no BatchNorm")
    others = layers[:4]
    assert told.endswith(f"; also refused: 1, 3; not refused: layers={others}")
    assert torch_glue.absorb_scales(model, others) == {f"0.{n}": f"0.{NORMS[n]}" for n in LAYERS}


def test_what_cannot_be_written_is_refused_before_anything_is():
    model = binary(Holding(), ["layer"])
    model.norm.running_var = torch.ones(1).expand(3)
    before = model.layer.weight.detach().clone()
    with pytest.raises(ValueError, match="norm: its running_var is expanded"):
        torch_glue.absorb_scales(model)
    assert torch.equal(before, model.layer.weight)
    model.norm = nn.LazyBatchNorm1d()
    with pytest.raises(ValueError, match="norm: has no size yet: run the model"):
        torch_glue.absorb_scales(model, followers={"layer": "norm"})
    with pytest.raises(ValueError, match="layers: names none"):
        torch_glue.absorb_scales(model, layers=[])


def test_buffers_made_in_inference_mode_are_as_before_tracing():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return F.linear(x, self.weight, self.bias)

    with torch.inference_mode():
        model = nn.Sequential(Counting(), lively(nn.BatchNorm1d(3)))
        model[0].weight.copy_(model[0].weight.sign())
        assert torch_glue.absorb_scales(model.eval()) == {"0": "1"}
        assert model[0].calls == 0


def test_buffers_of_a_layer_may_be_used_as_its_weight_may_not():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("factor", torch.ones(4))

        def forward(self, x):
            self.calls.add_(1)
            if self.calls.item() < 0:
                raise ValueError("so few")
            return F.linear(x * self.factor.abs().mean(), self.weight, self.bias)

    model = Holding()
    model.layer = Counting()
    same_after_absorbing(binary(model, ["layer"]), torch.randn(6, 4), {"layer": "norm"})


def test_a_batchnorm_of_another_forward_is_not_taken_for_one():
    class Bent(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x.abs())

    model = Holding()
    model.norm = lively(Bent(3))
    with pytest.raises(ValueError, match="the model cannot be traced"):
        torch_glue.absorb_scales(binary(model, ["layer"]))


def test_what_is_no_model_or_no_mapping_is_refused():
    with pytest.raises(ValueError, match=r"model: must be a torch.nn.Module, got a NoneType"):
        torch_glue.absorb_scales(None)
    with pytest.raises(ValueError, match="followers: must be a mapping"):
        torch_glue.absorb_scales(binary(Holding(), ["layer"]), followers="norm")


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_a_batchnorm_that_cannot_take_it_is_refused(scale):
    computed, without = binary(Holding(), ["layer"]), binary(Holding(), ["layer"])
    nn.utils.parametrize.register_parametrization(computed.norm, "weight", nn.Softplus())
    without.norm.bias = None
    for model in (computed, without):
        with torch.no_grad():
            model.layer.weight[0] *= scale
    with pytest.raises(ValueError, match="norm: its weight is parametrized"):
        torch_glue.absorb_scales(computed)
    if scale:
        same_after_absorbing(without, torch.randn(6, 4), {"layer": "norm"})
        return
    with pytest.raises(ValueError, match="norm: lacks the weight or bias"):
        torch_glue.absorb_scales(without)


def test_types_of_parameters_are_no_use_of_them():
    class Casting(Holding):
        def forward(self, x):
            first = next(self.layer.parameters())
            assert first.is_floating_point() and first.size(0) == len(first) == 3
            x = x.to(self.layer.weight).type_as(self.layer.weight)
            zeros = (
                first.new_zeros(1) + torch.zeros_like(first).sum() + self.layer.bias.new_zeros(1)
            )
            return super().forward(x.to(first.dtype).to(first.device) + zeros)

    same_after_absorbing(binary(Casting(), ["layer"]), torch.randn(6, 4), {"layer": "norm"})


def test_layers_without_a_bias_among_functions_that_take_none():
    class Own(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight, self.bias, self.stride)

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 4, 3, bias=False), lively(nn.BatchNorm2d(4))
            self.b, self.nb = Own(4, 5, 3, bias=False), lively(nn.BatchNorm2d(5))

        def forward(self, x):
            x = F.max_pool2d(F.pad(self.na(self.a(x)), (1, 1, 1, 1)), 2)
            x = F.interpolate(torch.clamp(x, min=None, max=1.0), scale_factor=2)
            return F.softmax(self.nb(self.b(x)), 1)

    model = binary(Pooled(), ["a", "b"])
    same_after_absorbing(model, torch.randn(2, 3, 8, 8), {"a": "na", "b": "nb"})


def test_layers_that_have_not_been_run_disturb_no_other():
    model = nn.Sequential(nn.Linear(4, 3), lively(nn.BatchNorm1d(3)), nn.LazyBatchNorm1d())
    assert torch_glue.absorb_scales(binary(model, ["0"])) == {"0": "1"}


def test_a_bias_that_is_computed_is_refused():
    model = nn.Sequential(nn.Linear(4, 3), lively(nn.BatchNorm1d(3)))
    nn.utils.parametrize.register_parametrization(model[0], "bias", nn.Tanh())
    with pytest.raises(ValueError, match="0: its bias is parametrized"):
        torch_glue.absorb_scales(binary(model, ["0"]), followers={"0": "1"})


@pytest.mark.parametrize("traceable", [True, False])
def test_what_forwards_keep_is_as_before_tracing(traceable):
    class Keeping(Holding):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.number = 0

        def forward(self, x):
            self.calls += 1
            self.number += 1
            self.shape, self.kept = x.shape, self.layer(x * torch.tensor([1.0, 2, 3, 4]))
            y = self.norm(self.kept)
            return y if traceable or y.sum() > 0 else -y

    model = binary(Keeping(), ["layer"])
    names = set(vars(model)), set(vars(model.layer))
    if traceable:
        same_after_absorbing(model, torch.randn(6, 4), {"layer": "norm"})
        assert model.calls == model.number == 2
        return
    with pytest.raises(ValueError, match="cannot be traced"):
        torch_glue.absorb_scales(model)
    assert model.calls == model.number == 0 and isinstance(model.kept, list)
    assert (set(vars(model)), set(vars(model.layer))) == names
    copy.deepcopy(model)


class Holding(nn.Module):
    """A layer, its BatchNorm, and the weight in a list too."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), lively(nn.BatchNorm1d(3))
        self.kept = [self.layer.weight]

    def forward(self, x):
        return self.norm(self.layer(x))


def test_reading_the_shape_of_an_output_is_no_use_of_it():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.size = nn.Conv2d(3, 4, 3), lively(nn.BatchNorm2d(4))

        def forward(self, x):
            y = self.conv(x)
            return self.size(y).reshape(y.shape[0], y.size(1), -1)

    model = binary(Flat(), ["conv"])
    same_after_absorbing(model, torch.randn(2, 3, 5, 5), {"conv": "size"})


def test_modules_called_like_descriptions_are_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), lively(nn.BatchNorm2d(4))
            self.dim = nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + self.dim(y)

    with pytest.raises(ValueError, match="conv: its output goes to norm, dim"):
        torch_glue.absorb_scales(binary(Twice(), ["conv"]))
