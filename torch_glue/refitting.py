"""refit: `hashsolve.refit` for torch modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import hashsolve
from hashsolve.plan import first_of
from torch_glue.checks import check_again
from torch_glue.filters import group_length
from torch_glue.network import TorchNetwork
from torch_glue.passes import batches_of, random_state_kept


def refit(
    model: nn.Module,
    reference: nn.Module,
    images: Tensor | Iterable[Any],
    layers: Iterable[str],
    *,
    ridge: float = 0.01,
) -> dict[str, tuple[float, float]]:
    """Fit layers left in full precision to what binarised ones give: `hashsolve.refit`.

    Parameters
    ----------
    model : torch.nn.Module
        As `binarize` left it; these layers are rewritten in place, each at most once.
    reference : torch.nn.Module
        The network in full precision.
    images : tensor, array, data set, or iterable of batches
        As in `binarize`.
    layers : iterable of str
        Their dotted names, such as the classifier's.
    ridge : float
        What keeps weights where the data say little of them.

    Returns
    -------
    dict
        By layer: its relative error before and after.

    Raises
    ------
    ValueError
        As in `hashsolve.refit`; the model is then as before.

    Examples
    --------
    >>> import copy, tempfile, torch, torch_glue
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> full, images = copy.deepcopy(model), torch.randn(100, 8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = torch_glue.binarize(model, images, run_dir=folder, skip=["2"])
    >>> errors = torch_glue.refit(model, full, images, ["2"])
    >>> errors["2"][1] < errors["2"][0]
    True
    """
    layers = [layers] if isinstance(layers, str) else list(layers)
    network, full = (TorchNetwork(module, shortcuts=False) for module in (model, reference))
    batches = batches_of(images)
    check_again(batches, "images", "layer")
    with random_state_kept():
        first = first_of(batches)
        both = [{layer.name for layer in each.layers(first)} for each in (network, full)]
        for name in sorted(set.intersection(*both)):
            if _binary(full, name) and not _binary(network, name):
                raise ValueError(
                    f"reference: its layer {name} is binary, the model's is not: give the "
                    "binarised network first, then the one in full precision"
                )
        for name in layers:
            if not _same(network.takers(name), full.takers(name)):
                raise ValueError(
                    f"layers: the bias or BatchNorm of {name} is not the reference's: it was "
                    "fitted or trained since; fit each layer once, before training"
                )
        return hashsolve.refit(network, full, batches, layers, ridge=ridge)


def _binary(network: TorchNetwork, name: str) -> bool:
    """Whether a layer is, as far as its weight can be read."""
    try:
        rows = torch.from_numpy(network.weight(name)).flatten(1)
    except ValueError:  # computed from other tensors, say
        return False
    return rows.shape[1] > 1 and group_length(rows) > 1


def _same(own: list[Tensor], full: list[Tensor]) -> bool:
    return len(own) == len(full) and all(map(torch.equal, own, full))
