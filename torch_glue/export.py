"""export_onnx: a binarised model as ONNX."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hashsolve.files import atomic
from torch_glue.checks import check_model, check_target
from torch_glue.parametrize import detach
from torch_glue.passes import (
    are_arguments,
    evaluating,
    no_fused_attention,
    to_device,
    unwrapped,
)
from torch_glue.places import tensors_in


def export_onnx(model: nn.Module, path: str | PathLike, example: Any, **options: Any) -> None:
    """Write a model as ONNX, in eval mode, for any number of samples.

    The model is left as it is: a copy is exported, and detached first, so that its weights are
    plain tensors of exactly ±α. ONNX has no type of one bit: the file holds them in full.

    Parameters
    ----------
    model : torch.nn.Module
        Of one that is wrapped (data parallelism, torch.compile, AveragedModel), what is within.
    path : path
        The file appears whole or not at all.
    example : tensor, array, tuple or list, or mapping
        The forward's arguments to trace with: one, or all in order, or by name; no labels. A
        mapping that names none of them is one itself, and so is a list that does not fit them. The
        first axis of each tensor is left open, for which tensors of one sample are traced as two;
        what else there is, such as numbers and None, stays as it is here.
    **options
        Of `torch.onnx.export`, such as ``opset_version`` or ``kwargs``: more arguments by name.
        With ``dynamic_shapes`` or ``dynamic_axes``, no other axes are left open.

    Raises
    ------
    ValueError
        As `detach`, where the forward does not take the example, for ``dynamo=False`` without
        ``dynamic_axes``, and where the path's folder is not there.
    ImportError
        Without ``pip install 'hashsolve[onnx]'``.
    """
    check_model(model)
    check_target(path, "path")
    options = {"dynamo": True} | options  # before torch 2.9 that is not the default
    model = copy.deepcopy(unwrapped(model, computing=True)[0])
    detach(model)
    given = _arguments(model, example, options.pop("kwargs", None) or {})
    if "dynamic_shapes" not in options and "dynamic_axes" not in options:
        if not options["dynamo"]:
            raise ValueError(
                "dynamo=False: that exporter leaves no axis open by itself: give dynamic_axes and "
                "input_names too"
            )
        if all(len(x) == 1 for x in tensors_in(given.arguments) if x.dim()):
            # an axis of 1 would be taken to be always 1
            given.arguments = tree_map(_doubled, given.arguments)
        options["dynamic_shapes"] = _shapes(given)
    trial = copy.deepcopy((model, given.args, given.kwargs))  # a forward may change any of them
    try:
        with evaluating(trial[0]):
            trial[0](*trial[1], **trial[2])
    except Exception as error:
        raise ValueError(
            f"example: the model does not take it ({type(error).__name__}: {error})"
        ) from error
    del trial
    args = (*given.args, given.kwargs)  # without a mapping for these, one that is last would be it
    with evaluating(model), no_fused_attention(), atomic(path) as part, _quiet():
        torch.onnx.export(model, args, part, external_data=False, verbose=False, **options)


def _arguments(model: nn.Module, example: Any, more: Mapping) -> inspect.BoundArguments:
    """What the forward is called with, as tensors on the model's device."""
    args, kwargs = to_device(example, model), to_device(more, model)
    if isinstance(args, dict) and are_arguments(model.forward, args, alone=True):
        kwargs = {**args, **kwargs}
        args = ()
    elif not isinstance(args, (list, tuple)):
        args = (args,)
    signature = inspect.signature(model.forward)
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        if isinstance(args, list):  # which a forward may take whole
            with suppress(TypeError):
                return signature.bind(args, **kwargs)
        raise ValueError(
            f"example: the model's forward does not take it ({error}); give all its arguments and "
            "no labels: one, a tuple of them, or a mapping by name"
        ) from error


def _doubled(value: Any) -> Any:
    """A tensor's samples, twice."""
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value


def _shapes(given: inspect.BoundArguments) -> dict[str, Any]:
    """Each argument, with what is open in place of tensors."""
    for name, parameter in given.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and name in given.arguments:
            raise ValueError(
                f"example: the model's forward takes {min(given.arguments[name])!r} by **{name}, "
                "whose axes torch.export cannot leave open: name it there"
            )
    return tree_map(_open, given.arguments)


def _open(value: Any) -> dict[int, Any] | None:
    """Which axes of an argument are left open."""
    opened = {0: torch.export.Dim.DYNAMIC}
    return opened if isinstance(value, Tensor) and value.dim() else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, the exporter does not warn about itself, nor that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
