"""binarize: `hashsolve.binarize` for torch modules, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from torch import Tensor, nn
from torch.utils import data

import hashsolve
from torch_glue.checks import check_again
from torch_glue.network import TorchNetwork
from torch_glue.passes import batches_of, random_state_kept
from torch_glue.shortcuts import Shortcuts

_RANDOM = (data.RandomSampler, data.SubsetRandomSampler, data.WeightedRandomSampler)


def binarize(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    run_dir: str | PathLike,
    skip: Iterable[str] = (),
    method: str = "auto",
    effort: str = "default",
    propagation: str = "asym",
    seed: int = 0,
    *,
    residual: Shortcuts = False,
    **options: Any,
) -> hashsolve.Run:
    """Binarise a model in place, layer by layer.

    Parameters
    ----------
    model : torch.nn.Module
    images : tensor, array, data set, or iterable of batches
        Calibration data: no labels are used. Batches must be the same each time it is gone
        through (a loader that shuffles is refused); of (images, labels) the first is taken.
        A batch may also be a mapping of keyword arguments, or (mapping, labels).
    run_dir : path
        The run folder; an interrupted run in it is taken up where it was.
    skip : iterable of str
        Whole dotted names or globs: "conv1" is not "layer1.0.conv1".
    method, effort, propagation, seed
        As in `hashsolve.binarize`.
    residual : {"auto", True, False} or mapping
        Whether layers make up for what the shortcuts that their outputs are added to lack, as in
        `hashsolve.binarize`; a mapping names the shortcuts, as `TorchNetwork` takes them.
    **options
        As in `hashsolve.binarize`, such as ``intercept`` and ``scale_group``.

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
    check_again(images, "images", "layer")
    if isinstance(getattr(images, "sampler", None), _RANDOM):
        raise ValueError(
            "images: this loader shuffles, but each layer needs the same batches again; build it "
            "with shuffle=False"
        )
    named = isinstance(residual, Mapping)
    wanted = True if isinstance(residual, Mapping) else residual
    with random_state_kept():
        return hashsolve.binarize(
            TorchNetwork(model, shortcuts=residual if named else bool(residual)),
            images,
            run_dir,
            method,
            effort,
            propagation,
            skip=skip,
            seed=seed,
            residual=wanted,
            **options,
        )
