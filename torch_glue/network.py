"""TorchNetwork: hashsolve's Network protocol for torch modules; binarize, in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hashsolve
from hashsolve.files import update

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
BATCH = 64  # samples a forward pass, where images come as one tensor


@update.register
def _(value: Tensor, state: Any) -> None:
    value = value.detach().cpu().contiguous()
    update(value.view(torch.uint8).numpy() if value.dim() else value.float().numpy(), state)
    update(f"{value.dtype}{tuple(value.shape)}", state)


class _Reached(Exception):
    """Ends a forward pass at the layer whose input was wanted."""


class TorchNetwork:
    """A torch module as a `hashsolve.Network`.

    Layers are Conv1d, Conv2d, Conv3d and Linear. Their order is that in which one forward pass
    reaches them. Passes run in eval mode without gradients; the module's modes, hooks, gradients,
    device and the random state are left as found, also after an error.

    A module that one pass reaches twice, a weight that two modules share, and a module that is
    never called are reported by `layers`; `hashsolve.binarize` refuses them unless skipped.

    Parameters
    ----------
    model : torch.nn.Module
    forward : callable, optional
        Runs a batch: ``forward(model, batch)``. By default a tensor is passed as it is, of a list
        or tuple (images, labels) the first, and a mapping as keyword arguments.

    Examples
    --------
    >>> import torch, torch_glue
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> network = torch_glue.TorchNetwork(model)
    >>> [layer.name for layer in network.layers(torch.ones(5, 4))]
    ['0', '2']
    >>> network.layer_input("2", torch.ones(5, 4), binarized=False).shape
    (5, 3)
    """

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Any] | None = None):
        self.model = model
        self._forward = forward or _forward
        self._modules = {
            name: module for name, module in model.named_modules() if isinstance(module, KINDS)
        }
        self._original: dict[str, Tensor] = {}

    def layers(self, batch: Any) -> list[hashsolve.Layer]:
        """All layers in the order in which a forward pass of ``batch`` reaches them."""
        order: list[str] = []
        hooks = {name: (lambda *_, name=name: order.append(name)) for name in self._modules}
        self._run(batch, hooks)
        calls = Counter(order)
        owners: dict[int, str] = {}
        result = []
        for name in [*dict.fromkeys(order), *(n for n in self._modules if n not in calls)]:
            module = self._modules[name]
            if nn.utils.parametrize.is_parametrized(module, "weight"):
                raise ValueError(f"layer {name}: its weight is parametrized; remove that first")
            owner = owners.setdefault(id(module.weight), name)
            result.append(
                hashsolve.Layer(
                    name=name,
                    geometry=_geometry(module),
                    shape=tuple(module.weight.shape),
                    calls=calls[name],
                    shares=None if owner == name else owner,
                    bits=8 * module.weight.element_size(),
                )
            )
        return result

    def weight(self, name: str) -> np.ndarray:
        """The full-precision weight of a layer, float64."""
        weight = self._original.get(name, self._modules[name].weight)
        return weight.detach().to("cpu", torch.float64).numpy()

    def layer_input(self, name: str, batch: Any, *, binarized: bool) -> np.ndarray:
        """The input of a layer for one batch; the pass ends there."""
        caught: list[np.ndarray] = []

        def catch(module: nn.Module, args: tuple, kwargs: dict) -> None:
            value = args[0] if args else kwargs["input"]
            caught.append(_batched(value.detach(), module).cpu().numpy())
            raise _Reached

        with self._weights(binarized):
            self._run(batch, {name: catch})
        if not caught:
            raise ValueError(f"layer {name} is not reached by this batch: add it to skip")
        return caught[0]

    def write(self, name: str, weight: np.ndarray) -> None:
        """Replace a layer's weight, in place and in its own dtype."""
        current = self._modules[name].weight
        self._original.setdefault(name, current.detach().clone())
        with torch.no_grad():
            current.copy_(torch.from_numpy(np.ascontiguousarray(weight)))

    def state(self) -> dict[str, Any]:
        """The full-precision state dict."""
        with self._weights(binarized=False):
            return {
                name: value.clone()
                for name, value in self.model.state_dict().items()
                if isinstance(value, Tensor)
            }

    @contextmanager
    def _weights(self, binarized: bool) -> Iterator[None]:
        """Within, the modules hold the full-precision weights, if so asked."""
        if binarized or not self._original:
            yield
            return
        kept = {name: self._modules[name].weight.data for name in self._original}
        try:
            for name, weight in self._original.items():
                self._modules[name].weight.data = weight
            yield
        finally:
            for name, weight in kept.items():
                self._modules[name].weight.data = weight

    def _run(self, batch: Any, hooks: dict[str, Callable]) -> None:
        """One forward pass with pre-hooks on some layers; everything is left as found."""
        modes = {module: module.training for module in self.model.modules()}
        cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        handles = []
        try:
            for name, hook in hooks.items():
                handles.append(
                    self._modules[name].register_forward_pre_hook(hook, with_kwargs=True)
                )
            with torch.random.fork_rng(devices=cuda), torch.no_grad():
                self.model.eval()
                self._forward(self.model, _to(batch, _device(self.model)))
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode


def binarize(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    run_dir: str | PathLike,
    skip: Iterable[str] = (),
    method: str = "auto",
    effort: str = "default",
    propagation: str = "asym",
    seed: int = 0,
    **options: Any,
) -> hashsolve.Run:
    """Binarise a model in place, layer by layer.

    Parameters
    ----------
    model : torch.nn.Module
    images : tensor, or iterable of batches
        Calibration data: no labels are used. Batches must be the same each time it is gone
        through (a loader that shuffles is refused); of (images, labels) the first is taken.
    run_dir : path
        The run folder; an interrupted run in it is taken up where it was.
    skip : iterable of str
        Whole dotted names or globs: "conv1" is not "layer1.0.conv1".
    method, effort, propagation, seed, **options
        As in `hashsolve.binarize`.

    Returns
    -------
    hashsolve.Run

    Raises
    ------
    ValueError
        As in `hashsolve.binarize`; the model's weights are then as before.

    Examples
    --------
    >>> import tempfile, torch, torch_glue
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = torch_glue.binarize(model, torch.randn(100, 8), run_dir=folder, skip=["2"])
    >>> model[0].weight.abs().unique(dim=1).shape  # one magnitude a filter
    torch.Size([6, 1])
    """
    if isinstance(images, Tensor):
        if images.dim() < 2 or len(images) == 0:
            raise ValueError(f"images: needs samples along the first axis, got {images.shape}")
        images = list(images.split(BATCH))
    return hashsolve.binarize(
        TorchNetwork(model),
        images,
        run_dir,
        method,
        effort,
        propagation,
        skip=skip,
        seed=seed,
        **options,
    )


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (list, tuple)) else batch)


def _geometry(module: nn.Module) -> hashsolve.Geometry:
    if isinstance(module, nn.Linear):
        return hashsolve.Geometry()
    return hashsolve.Geometry.conv(
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.padding_mode,
    )


def _batched(value: Tensor, module: nn.Module) -> Tensor:
    """With a sample axis, and in a type that NumPy knows."""
    if not isinstance(module, nn.Linear) and value.dim() == module.weight.dim() - 1:
        value = value[None]
    return value.float() if value.dtype == torch.bfloat16 else value


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_to(value, device) for value in batch]
    return batch
