"""TorchNetwork: hashsolve's Network protocol for torch modules; binarize, in one call."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data

import hashsolve
from hashsolve.files import update

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
BATCH = 64  # at most so many samples a forward pass, where images do not come in batches
_RANDOM = (data.RandomSampler, data.SubsetRandomSampler, data.WeightedRandomSampler)


@update.register
def _(value: Tensor, state: Any) -> None:
    update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy(), state)
    update(f"{value.dtype}{tuple(value.shape)}", state)


class _Reached(BaseException):
    """Ends a forward pass at the layer whose input was wanted.

    Not an Exception: a model that catches those, and hooks that run after those, must not see it.
    """


class TorchNetwork:
    """A torch module as a `hashsolve.Network`.

    Layers are Conv1d, Conv2d, Conv3d and Linear. Their order is that in which one forward pass
    reaches them. Passes run in eval mode without gradients; the module's modes, hooks, gradients,
    device and the random state are left as found, also after an error.

    A module that one pass reaches twice, a weight that two modules share, and a module that is
    never called are reported by `layers`; `hashsolve.binarize` refuses them unless skipped. So it
    does a weight that is computed from other tensors, as parametrizations and pruning leave it.

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
        self._forward = forward or run_batch
        self._modules = {
            name: module for name, module in model.named_modules() if isinstance(module, KINDS)
        }
        self._original: dict[str, Tensor] = {}

    def layers(self, batch: Any) -> list[hashsolve.Layer]:
        """All layers in the order in which a forward pass of ``batch`` reaches them.

        Weights that an earlier run has written through this adapter are put back first.
        """
        for name in list(self._original):
            self.write(name, self.weight(name))
        self._original.clear()
        order: list[str] = []
        hooks = {name: (lambda *_, name=name: order.append(name)) for name in self._modules}
        self._run(batch, hooks)
        calls = Counter(order)
        owners = {  # of each weight's memory; modules that are no layers (an embedding) come first
            parameter.data_ptr(): name
            for name, module in self.model.named_modules()
            if name not in self._modules
            for parameter in module.parameters(recurse=False)
        }
        result = []
        for name in [*dict.fromkeys(order), *(n for n in self._modules if n not in calls)]:
            module = self._modules[name]
            weight = module._parameters.get("weight")
            owner = name if weight is None else owners.setdefault(weight.data_ptr(), name)
            result.append(
                hashsolve.Layer(
                    name=name,
                    geometry=_geometry(module),
                    shape=_shape(module),
                    calls=calls[name],
                    shares=None if owner == name else owner,
                    bits=8 * next(module.parameters()).element_size(),
                )
            )
        return result

    def weight(self, name: str) -> np.ndarray:
        """The full-precision weight of a layer, float64."""
        weight = self._original.get(name, self._parameter(name))
        return weight.detach().to("cpu", torch.float64, copy=True).numpy()

    def layer_input(self, name: str, batch: Any, *, binarized: bool) -> np.ndarray:
        """The input of a layer for one batch; the pass ends there."""
        caught: list[np.ndarray] = []

        def catch(module: nn.Module, args: tuple, kwargs: dict) -> None:
            value = args[0] if args else kwargs["input"]
            caught.append(_array(value, module))
            raise _Reached

        with self._weights(binarized):
            self._run(batch, {name: catch})
        if not caught:
            raise ValueError(f"layer {name} is not reached by this batch: add it to skip")
        return caught[0]

    def write(self, name: str, weight: np.ndarray) -> None:
        """Replace a layer's weight, in place and in its own dtype."""
        current = self._parameter(name)
        with torch.inference_mode(current.is_inference()), torch.no_grad():
            self._original.setdefault(name, current.detach().clone())
            current.copy_(torch.from_numpy(np.ascontiguousarray(weight)))

    def state(self) -> dict[str, Any]:
        """The full-precision parameters and the buffers, persistent or not."""
        with self._weights(binarized=False):
            tensors = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
            return {name: value.detach().clone() for name, value in tensors}

    def _parameter(self, name: str) -> Tensor:
        """A layer's weight, as long as it is one that can be written."""
        weight = self._modules[name]._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"layer {name}: its weight is computed from other tensors (a parametrization, "
                "weight_norm, pruning): remove that first, or add it to skip"
            )
        return weight

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
        with evaluating(self.model):
            handles = []
            try:
                for name, hook in hooks.items():
                    module = self._modules[name]
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                run_model(self._forward, self.model, batch)
            except _Reached:
                pass
            finally:
                for handle in handles:
                    handle.remove()


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
    images : tensor, array, data set, or iterable of batches
        Calibration data: no labels are used. Batches must be the same each time it is gone
        through (a loader that shuffles is refused); of (images, labels) the first is taken.
        A batch may also be a mapping of keyword arguments.
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
    images = batches_of(images)
    if isinstance(getattr(images, "sampler", None), _RANDOM):
        raise ValueError(
            "images: this loader shuffles, but each layer needs the same batches again; build it "
            "with shuffle=False"
        )
    with random_state_kept():
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


def batches_of(images: Any) -> Iterable[Any]:
    """What was given as images, in batches: a tensor in nearly equal ones, a data set in order."""
    if isinstance(images, np.ndarray):
        images = torch.as_tensor(images)
    if isinstance(images, Tensor):
        if images.dim() < 2 or len(images) == 0:
            raise ValueError(
                f"images: needs samples along the first axis, got shape {tuple(images.shape)}"
            )
        return images.tensor_split(-(-len(images) // BATCH))
    return data.DataLoader(images, BATCH) if isinstance(images, data.Dataset) else images


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Within, random numbers may be drawn; afterwards torch's random state is as it was."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=cuda):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within: eval mode, no gradients. Afterwards each module's mode and the random state are as
    they were."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with random_state_kept(), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Call the model on a batch, however that holds its inputs."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (list, tuple)) else batch)


def run_model(forward: Callable[[nn.Module, Any], Any], model: nn.Module, batch: Any) -> Any:
    """One forward pass of a batch, which is brought to the model's device first."""
    batch = to_device(batch, model)
    try:
        return forward(model, batch)
    except RuntimeError as error:
        first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
        if not isinstance(first, Tensor):
            raise
        integer = not first.is_floating_point()
        mend = (
            "convert them as for training, such as images.float() / 255"
            if integer
            else ("give them in the shape and dtype that the model was trained on")
        )
        raise (ValueError if integer else RuntimeError)(
            f"images: the model does not take {first.dtype} of shape {tuple(first.shape)} "
            f"({error}); {mend}"
        ) from error


def to_device(batch: Any, model: nn.Module) -> Any:
    """The batch on the device of the model's first parameter; NumPy's floats in its dtype too."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device

    def move(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.as_tensor(value)  # float64 is what NumPy makes by itself
            if value.is_floating_point() and first is not None and first.is_floating_point():
                value = value.to(first.dtype)
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, Mapping):
            return {key: move(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(move, value))
        if isinstance(value, (list, tuple)):
            return [move(item) for item in value]
        return value

    return move(batch)


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


def _shape(module: nn.Module) -> tuple[int, ...]:
    """Of the weight, which is not touched: a parametrized one would be computed."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels // module.groups, *module.kernel_size


def _array(value: Tensor, module: nn.Module) -> np.ndarray:
    """A copy with a sample axis, in a type that NumPy knows."""
    if not isinstance(module, nn.Linear) and value.dim() == len(module.kernel_size) + 1:
        value = value[None]
    dtype = torch.float32 if value.dtype == torch.bfloat16 else value.dtype
    return value.detach().to("cpu", dtype, copy=True).numpy()
