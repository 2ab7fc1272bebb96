# ruff: noqa: E402
"""Small networks, calibration images, and a record of all that a model holds."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn


def small_net(bias=True):
    """Two convolutions and a classifier: layers "0", "2", "5"."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 5, bias=bias),
    )


def small_images(count=24):
    """Images of 3×8×8 that `small_net` takes."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def mlp():
    """Layers "0" and "2", of 4 inputs."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


class Wandering(nn.Module):
    """A branch, dropout and BatchNorm, mixed modes, frozen weights, gradients, hooks of its own;
    modules are registered in another order than they run in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.last = nn.Linear(4, 2)
        self.first = nn.Linear(4, 4)
        self.branch = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.fail = False
        self.reach = True
        self.first.weight.requires_grad_(False)
        self.last(torch.ones(1, 4)).sum().backward()
        self.train()
        self.branch.eval()
        self.first.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        self.first.register_forward_hook(lambda module, args, output: output + 1)
        self.last.register_full_backward_hook(lambda module, grads, outs: None)

    def forward(self, x):
        x = self.drop(self.norm(self.first(x)))
        if self.reach:
            x = x + self.branch(x)
        if self.fail:
            raise RuntimeError("the model's own error")
        return self.last(x + torch.rand_like(x))


def content(tensor):
    """A tensor's bytes."""
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def record(model):
    """All that a pass must leave as found, in comparable form."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [
            (name, list(value.items()))
            for module in model.modules()
            for name, value in vars(module).items()
            if "hook" in name and isinstance(value, dict)
        ],
        "tensors": [
            (name, id(t), t.data_ptr(), t.stride(), t.requires_grad, t.device, t.dtype, content(t))
            for name, t in named
        ],
        "grads": [p.grad if p.grad is None else content(p.grad) for p in model.parameters()],
        "random": content(torch.get_rng_state()),
        "grad mode": torch.is_grad_enabled(),
    }
