"""Forward passes over calibration data: batches of any form, and a model left as found."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils import data

from torch_glue.checks import check_batches

BATCH = 64  # at most so many samples a forward pass, where images do not come in batches


def batches_of(images: Any, name: str = "images") -> Iterable[Any]:
    """What was given as images, in batches: a tensor in nearly equal ones, a data set in order.

    Errors start with ``name``.
    """
    if isinstance(images, (np.ndarray, Tensor)):
        if images.ndim < 2 or len(images) == 0:
            raise ValueError(
                f"{name}: needs samples along the first axis, got shape {tuple(images.shape)}"
            )
        split: Any = np.array_split if isinstance(images, np.ndarray) else torch.tensor_split
        return split(images, -(-len(images) // BATCH))
    if isinstance(images, (str, Mapping)):
        raise ValueError(
            f"{name}: a {type(images).__name__} is no iterable of batches; one batch is [batch]"
        )
    if isinstance(images, (list, tuple)) and _are_images_and_labels(images):
        raise ValueError(
            f"{name}: (images, labels) are taken for two batches: give images alone; one batch is "
            "[(images, labels)]"
        )
    check_batches(images, name)
    return data.DataLoader(images, BATCH) if isinstance(images, data.Dataset) else images


def _are_images_and_labels(batches: list | tuple) -> bool:
    """Whether two tensors are more probably one batch than two."""
    if len(batches) != 2 or not all(isinstance(part, (np.ndarray, Tensor)) for part in batches):
        return False
    images, labels = batches
    return labels.ndim == 1 < images.ndim and len(labels) == len(images)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Within, random numbers may be drawn; afterwards torch's random state is as it was."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=cuda):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within: eval mode, no gradients. Afterwards each module's mode and the random state are as
    they were. An autocast around it keeps casts of weights for neither side."""
    modes = [(module, module.training) for module in model.modules()]
    torch.clear_autocast_cache()
    try:
        with random_state_kept(), torch.no_grad():
            model.eval()
            yield
    finally:
        torch.clear_autocast_cache()
        for module, mode in modes:
            module.training = mode


@contextmanager
def no_fused_attention() -> Iterator[None]:
    """Within, encoder layers call their modules; fused, they skip some and make nested tensors."""
    switch = torch.backends.mha
    if not hasattr(switch, "set_fastpath_enabled"):  # before torch 2.3
        yield
        return
    before = switch.get_fastpath_enabled()
    switch.set_fastpath_enabled(False)
    try:
        yield
    finally:
        switch.set_fastpath_enabled(before)


def unwrapped(model: nn.Module, computing: bool = False) -> tuple[nn.Module, str]:
    """The model itself, where it is wrapped by data parallelism, torch.compile or an average; and
    what its modules' names begin with in the wrapped one. Where what is ``computing`` matters, only
    of wrappers whose forward is torch's own."""
    # no compiled model is there before that module is
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    prefix = ""
    while True:
        if isinstance(model, compiled):
            name = "_orig_mod"
        elif isinstance(model, wrappers):
            own = not type(model).forward.__module__.startswith("torch.")
            if computing and (own or "forward" in vars(model)):
                return model, prefix
            name = "module"
        else:
            return model, prefix
        model, prefix = getattr(model, name), f"{prefix}{name}."


def inner_name(name: str, prefix: str) -> str:
    """What a module of a wrapped model is called within, by `unwrapped`'s prefix."""
    return f"{name}.".removeprefix(prefix).removesuffix(".")


def outer_name(name: str, prefix: str) -> str:
    """What a module within is called in the wrapped model."""
    return f"{prefix}{name}".removesuffix(".")


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Call the model on a batch: of a list or tuple on what comes first, labels being the rest. A
    mapping gives the forward's arguments, or is its one argument where it names none of them."""
    alone = not isinstance(batch, (list, tuple))
    inputs = batch if alone else batch[0]
    if isinstance(inputs, Mapping):
        forward = unwrapped(model, computing=True)[0].forward
        if are_arguments(forward, inputs, alone):
            return model(**inputs)
    return model(inputs)


def are_arguments(forward: Callable[..., Any], inputs: Mapping, alone: bool) -> bool:
    """Whether a mapping names arguments. Where a forward takes any, one that is alone does."""
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # it has none
        return True

    def fits(*args: Any, **kwargs: Any) -> bool:
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    single = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    named = {name: p for name, p in signature.parameters.items() if p.kind in single}
    names_some = any(name in named for name in inputs)
    if fits(**inputs) and (names_some or alone):
        return True
    if not fits(inputs):
        return True  # in neither way, perhaps: the call will say why
    lacking = any(p.default is p.empty and name not in inputs for name, p in named.items())
    return names_some and not lacking


def run_model(
    forward: Callable[[nn.Module, Any], Any],
    model: nn.Module,
    batch: Any,
    who: str = "images: the model",
) -> Any:
    """One forward pass of a batch, which is brought to the model's device first.

    Errors of what it is given start with ``who``.
    """
    if isinstance(batch, (list, tuple)) and not batch:
        raise ValueError(f"{who} takes no batch that is empty")
    batch = to_device(batch, model)
    try:
        return forward(model, batch)
    except TypeError as error:
        if isinstance(batch, (Number, str, type(None))):
            raise ValueError(f"{who} takes no batch that is {batch!r} ({error})") from error
        name = getattr(unwrapped(model, computing=True)[0].forward, "__qualname__", "forward")
        for sign, what in (("missing", "more than"), ("got an unexpected", "not all that")):
            if f"{name}() {sign}" in str(error):
                raise ValueError(
                    f"{who} takes {what} a batch gives ({error}); give batches that are mappings "
                    "of its arguments, with labels beside them: (mapping, labels)"
                ) from error
        raise
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        # torch's layers do not say whose input it is
        if "more than 1 value per channel" in str(error):
            raise ValueError(
                f"{who} takes no batch of one sample as it trains ({error}); leave out what does "
                "not fill a batch, by drop_last=True"
            ) from error
        if "expected" in str(error) and "D input (got" in str(error):
            raise ValueError(
                f"{who} does not take what it is given ({error}); give batches, whose first axis "
                "is that of the samples, in the shape that the model was trained on"
            ) from error
        raise
    except RuntimeError as error:
        first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
        integer = isinstance(first, Tensor) and not first.is_floating_point()
        # a subclass is of another matter, but that some layers have no form for integers
        kind = NotImplementedError if integer else RuntimeError
        starved = "t allocate memory" in str(error)
        if starved or not isinstance(first, Tensor) or type(error) not in (kind, RuntimeError):
            raise
        mend = (
            "convert them as for training, such as images.float() / 255"
            if integer and (first.dtype == torch.uint8 or first.dim() > 2)
            else "give them in the shape and dtype that the model was trained on"
        )
        raise (ValueError if integer else RuntimeError)(
            f"{who} does not take {first.dtype} of shape {tuple(first.shape)} ({error}); {mend}"
        ) from error


def to_device(batch: Any, model: nn.Module) -> Any:
    """The batch on the device of the model's first parameter; NumPy's floats in its dtype too."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device

    def move(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            writable = value if value.flags.writeable else value.copy()  # a layer may work in place
            value = torch.as_tensor(writable)  # float64 is what NumPy makes by itself
            if value.is_floating_point() and first is not None and first.is_floating_point():
                value = value.to(first.dtype)
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, Mapping):
            return {key: move(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(move, value))
        if isinstance(value, (list, tuple)):
            moved = [move(item) for item in value]
            return tuple(moved) if isinstance(value, tuple) else moved
        return value

    return move(batch)
