# ruff: noqa: E402
"""refit on torch modules: constants go to a bias or a BatchNorm, and all else stays."""

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn
from torch_support import record, small_images, small_net

import torch_glue


def binarized(model, *names):
    """A copy with layers at ±mean |W|."""
    found = copy.deepcopy(model)
    for name in names:
        weight = found.get_submodule(name).weight
        with torch.no_grad():
            weight.copy_(weight.sign() * weight.abs().flatten(1).mean(1)[:, None, None, None])
    return found


def test_weight_and_bias_by_least_squares():
    full, images = small_net(), small_images(200)
    model = binarized(full, "0")
    with torch.no_grad():
        x, y = (net[:5](images).double() for net in (model, full))
        y = full[5](y.float()).double()
        mean_x, mean_y = x.mean(0), y.mean(0)
        start = full[5].weight.double()
        x, y = x - mean_x, y - mean_y
        hold = 0.01 * (x**2).sum(0).mean()
        system = x.T @ x + hold * torch.eye(54, dtype=torch.float64)
        expected = start.T + torch.linalg.solve(system, x.T @ (y - x @ start.T))
    before, after = torch_glue.refit(model, full, images.split(64), ["5"])["5"]
    torch.testing.assert_close(model[5].weight.double(), expected.T, rtol=1e-4, atol=1e-6)
    constant = mean_y - mean_x @ expected
    torch.testing.assert_close(model[5].bias.double(), constant, rtol=1e-4, atol=1e-5)
    assert after < before
    with pytest.raises(ValueError, match="the bias or BatchNorm of 5 is not the reference's"):
        torch_glue.refit(model, full, images, ["5"])  # the constant would be added twice


def test_a_batchnorm_takes_the_constant_up_and_all_else_stays():
    torch.manual_seed(7)
    full = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5)
    )
    full[3].running_mean.normal_()
    full.train()
    images = small_images(50)
    model = binarized(full, "0")
    before = record(model)
    torch_glue.refit(model, full, images, ["2"])
    after = record(model)
    changed = [a[0] for a, b in zip(before["tensors"], after["tensors"], strict=True) if a != b]
    assert changed == ["2.weight", "3.running_mean"]
    assert {k: v for k, v in after.items() if k != "tensors"} == {
        k: v for k, v in before.items() if k != "tensors"
    }
    with torch.no_grad():
        means = [net.eval()(images).mean((0, 2, 3)) for net in (model, full)]
    torch.testing.assert_close(*means, rtol=0, atol=1e-5)


def test_what_is_binarised_is_not_fitted():
    full, images = small_net(), small_images(50)
    model = binarized(full, "0", "2")
    with pytest.raises(ValueError, match="layers: 2 is binarised"):
        torch_glue.refit(model, full, images, ["2"])
    groups = binarized(full, "0")
    with torch.no_grad():
        groups[2].weight.copy_(groups[2].weight.sign())
        groups[2].weight[:, 1:] *= 2
    with pytest.raises(ValueError, match="layers: 2 is binarised"):
        torch_glue.refit(groups, full, images, ["2"])
    with torch.no_grad():
        full[5].weight.fill_(0.3)
    torch_glue.refit(binarized(full, "0"), full, images, ["5"])  # so in full precision


def test_networks_in_the_wrong_order_are_told(tmp_path):
    full = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    model, images = copy.deepcopy(full), torch.randn(60, 8)
    torch_glue.binarize(model, images, tmp_path, method="dcc", skip=["2"])
    before = full[2].weight.clone()
    with pytest.raises(ValueError, match="reference: its layer 0 is binary, the model's is not"):
        torch_glue.refit(full, model, images, ["2"])
    assert torch.equal(full[2].weight, before)
    torch_glue.refit(model, full, images, ["2"])


def test_other_layers_need_not_be_readable(tmp_path):
    """Of a weight that is computed, nothing is asked."""
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    full = nn.Sequential(normed, nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    model, images = copy.deepcopy(full), torch.randn(60, 8)
    torch_glue.binarize(model, images, tmp_path, method="dcc", skip=["0", "4"])
    before, after = torch_glue.refit(model, full, images, ["4"])["4"]
    assert after < before
