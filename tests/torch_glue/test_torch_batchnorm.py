# ruff: noqa: E402
"""recalibrate_batchnorm: pooled statistics, and everything else left as found."""

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch_support import record

from torch_glue import recalibrate_batchnorm


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d, (130, 3)),
        (nn.BatchNorm1d, (50, 3, 4)),
        (nn.BatchNorm2d, (50, 3, 4, 5)),
        (nn.BatchNorm3d, (20, 3, 2, 3, 4)),
    ],
)
@pytest.mark.parametrize("cut", [None, 10, 13, 49])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_those_of_all_values_pooled(norm, shape, cut, momentum):
    data = 5 + torch.randn(shape) * torch.arange(1, shape[0] + 1).reshape(-1, *[1] * len(shape[1:]))
    layer = norm(3, momentum=momentum)
    layer.running_mean.fill_(9)
    batches = data if cut is None else (batch for batch in data.split(cut))
    assert recalibrate_batchnorm(layer, batches) == 1
    values = data.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.running_mean.double(), values.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var.double(), values.var(1), rtol=1e-5, atol=0)
    assert layer.momentum == momentum and layer.training


def test_a_single_sample_left_over_is_no_trouble():
    layer = nn.BatchNorm1d(2)
    data = torch.randn(65, 2)
    recalibrate_batchnorm(layer, data)
    torch.testing.assert_close(layer.running_mean, data.mean(0))
    assert layer.num_batches_tracked == 2


def chain():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False)
    )
    model[3].eval()
    model[2].weight.requires_grad_(False)
    return model


def test_a_later_layer_sees_what_training_would_show_it_without_dropout():
    model, data = chain(), torch.randn(40, 4)
    assert recalibrate_batchnorm(model, [data]) == 2
    first = nn.functional.batch_norm(data, None, None, training=True)
    values = model[2](first).detach()
    torch.testing.assert_close(model[3].running_mean, values.mean(0))
    torch.testing.assert_close(model[3].running_var, values.var(0))


@pytest.mark.parametrize("batches", [[], iter([torch.randn(8, 4), torch.randn(8, 5)])])
def test_an_error_leaves_everything_as_found(batches):
    model = chain()
    before = record(model)
    with pytest.raises((ValueError, RuntimeError)):
        recalibrate_batchnorm(model, batches)
    assert record(model) == before
    assert all(m.track_running_stats for m in model if isinstance(m, nn.BatchNorm1d))


def test_only_the_statistics_change():
    model, data = chain(), torch.randn(8, 4)
    before = record(model)
    recalibrate_batchnorm(model, [(data, torch.zeros(8))])
    after = record(model)
    for name in before.keys() - {"tensors"}:
        assert after[name] == before[name]
    changed = [b[0] for b, a in zip(before["tensors"], after["tensors"], strict=True) if a != b]
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == [f"{layer}.{name}" for layer in (0, 3) for name in names]


def test_a_layer_that_is_not_reached_keeps_its_own():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.extra = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
            self.extra.running_mean.fill_(3)

        def forward(self, x):
            return self.norm(input=x)

    model = Auxiliary()
    assert recalibrate_batchnorm(model, torch.randn(8, 4)) == 1
    assert (model.extra.running_mean == 3).all()


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2)]
)
def test_no_batchnorm_is_an_error(model):
    with pytest.raises(ValueError, match="no BatchNorm"):
        recalibrate_batchnorm(model, torch.ones(4, 2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_change_nothing(value):
    model, data = chain(), torch.randn(8, 4)
    data[5, 1] = value
    before = record(model)
    with pytest.raises(ValueError, match="BatchNorm '0': what reaches it is not finite"):
        recalibrate_batchnorm(model, data)
    assert record(model) == before


def test_lazy_ones_have_a_size_then():
    data = 3 + torch.randn(8, 3)
    model = nn.Sequential(nn.LazyBatchNorm1d(affine=False), nn.LazyLinear(2), nn.LazyBatchNorm1d())
    assert recalibrate_batchnorm(model, [data]) == 2
    torch.testing.assert_close(model[0].running_mean, data.mean(0))
    torch.testing.assert_close(model[0].running_var, data.var(0))
    assert model[0].track_running_stats and torch.isfinite(model.eval()(data)).all()
    norm = nn.BatchNorm1d(3)
    norm.unused = nn.LazyBatchNorm1d()
    assert recalibrate_batchnorm(norm, data) == 1


def test_large_means_and_variances_that_half_precision_holds():
    norm, data = nn.BatchNorm1d(1).half(), torch.tensor([[3e4], [3e4 + 272]]).half()
    assert recalibrate_batchnorm(norm, data) == 1
    assert norm.running_mean.isfinite().all() and norm.running_var.item() > 3.6e4


def test_of_models_made_in_inference_mode():
    data = torch.randn(8, 3)
    with torch.inference_mode():
        norm = nn.BatchNorm1d(3)
    assert recalibrate_batchnorm(norm, data) == 1
    torch.testing.assert_close(norm.running_var, data.var(0))


@pytest.mark.parametrize(
    ("model", "batches", "says"),
    [
        (None, [torch.ones(2, 3)], "model: must be a torch.nn.Module, got a NoneType"),
        (nn.BatchNorm1d(3), None, "batches: must give batches, got a NoneType"),
        (nn.BatchNorm1d(3), torch.ones(3), "batches: needs samples along the first axis"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), [None], "batches: the model takes no"),
    ],
)
def test_what_is_given_is_checked(model, batches, says):
    with pytest.raises(ValueError, match=says):
        recalibrate_batchnorm(model, batches)


def test_a_variance_out_of_range_changes_nothing():
    norm = nn.BatchNorm1d(3).half()
    with pytest.raises(ValueError, match="its variance is out of range"):
        recalibrate_batchnorm(norm, 1000 * torch.randn(8, 3).half())
    assert (norm.running_mean == 0).all()


def test_arrays_are_taken_as_they_are():
    data = torch.randn(200, 3)
    locked = data.double().numpy()
    locked.flags.writeable = False
    found = []
    for images in (data, data.double().numpy(), [data.double().numpy()], locked):
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(3))
        recalibrate_batchnorm(model, images)
        found.append(model[1].running_var)
    for variance in found[1:]:
        torch.testing.assert_close(variance, found[0])


def test_a_compiled_model_that_has_run_is_recalibrated():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    images = 3 * torch.randn(24, 3, 6, 6) + 1
    inner = copy.deepcopy(plain)
    model = torch.compile(inner, backend="eager")
    try:
        with torch.no_grad():
            before = model(images)
    except RuntimeError as error:  # a Python that torch does not compile for yet
        pytest.skip(str(error))
    assert recalibrate_batchnorm(plain, images) == 1
    assert recalibrate_batchnorm(model, images) == 1
    torch.testing.assert_close(inner[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(inner[1].running_var, plain[1].running_var)
    with torch.no_grad():
        assert not torch.allclose(model(images), before)
        torch.testing.assert_close(model(images), plain(images))


def test_a_batchnorm_that_is_no_call_of_a_module_is_not_set():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            norm = self.norm
            return nn.functional.batch_norm(x, norm.running_mean, norm.running_var)

    with pytest.raises(ValueError, match="no batch reaches a BatchNorm"):
        recalibrate_batchnorm(Functional(), torch.randn(8, 3))


@pytest.mark.parametrize("training", [None, True])
def test_a_batchnorm_that_is_no_call_of_a_module_keeps_its_statistics(training):
    """Its forward may say whether it is in training, or train whatever it is."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            norm = self.norm
            mode = norm.training if training is None else training
            y = nn.functional.batch_norm(x, norm.running_mean, norm.running_var, training=mode)
            return self.last(y)

    model, x = Mixed(), 3 * torch.randn(64, 3) + 1
    before = copy.deepcopy(model.norm.state_dict())
    assert recalibrate_batchnorm(model, x) == 1
    for name, value in model.norm.state_dict().items():
        assert torch.equal(value, before[name])
    if training is None:  # it normalises by what it keeps
        torch.testing.assert_close(model.last.running_mean, x.mean(0))
