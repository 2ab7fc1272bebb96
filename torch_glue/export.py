"""export_onnx: a binarised model as ONNX."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from hashsolve.files import atomic
from torch_glue.checks import check_model, check_target
from torch_glue.network import _no_fused_attention
from torch_glue.parametrize import detach
from torch_glue.passes import evaluating, unwrapped


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
    example : tensor, or tuple of tensors
        Inputs to trace with; their first axis is left open, for which tensors of one sample are
        traced as two.
    **options
        Of `torch.onnx.export`, such as ``opset_version`` or ``dynamic_shapes``.

    Raises
    ------
    ValueError
        As `detach`, and where the path's folder is not there.
    ImportError
        Without ``pip install 'hashsolve[onnx]'``.
    """
    check_model(model)
    check_target(path, "path")
    args = example if isinstance(example, tuple) else (example,)
    model = copy.deepcopy(unwrapped(model, computing=True)[0])
    detach(model)
    if "dynamic_shapes" not in options:
        options["dynamic_shapes"] = tuple({0: torch.export.Dim.DYNAMIC} for _ in args)
        single = (isinstance(x, Tensor) and x.dim() > 0 and len(x) == 1 for x in args)
        if all(single):  # an axis of 1 would be taken to be always 1
            args = tuple(torch.cat([x, x]) for x in args)
    with evaluating(model), _no_fused_attention(), atomic(path) as part, _quiet():
        torch.onnx.export(model, args, part, external_data=False, verbose=False, **options)


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
