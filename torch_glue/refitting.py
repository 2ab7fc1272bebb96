"""refit: `hashsolve.refit` for torch modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

import hashsolve
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
        As `binarize` left it; these layers are rewritten in place.
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
    with random_state_kept():
        return hashsolve.refit(
            TorchNetwork(model, shortcuts=False),
            TorchNetwork(reference, shortcuts=False),
            batches_of(images),
            layers,
            ridge=ridge,
        )
