"""Re-estimation of BatchNorm statistics after the weights before them have changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torch_glue.network import BATCH, _device, _forward, _to


def recalibrate_batchnorm(model: nn.Module, batches: Tensor | Iterable[Any]) -> int:
    """Set the running mean and variance of every BatchNorm from data, in one pass.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place; its modes and momenta are left as found.
    batches : tensor, or iterable of batches
        As in `binarize`; labels are not used.

    Returns
    -------
    int
        The number of BatchNorm layers set.

    Raises
    ------
    ValueError
        Where there is no BatchNorm with running statistics, or no batch.

    Examples
    --------
    >>> import torch, torch_glue
    >>> norm = torch.nn.BatchNorm1d(1)
    >>> torch_glue.recalibrate_batchnorm(norm, torch.tensor([[1.0], [3.0]]))
    1
    >>> norm.running_mean
    tensor([2.])
    """
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in model.modules() if isinstance(m, kind) and m.track_running_stats]
    if not norms:
        raise ValueError("the model has no BatchNorm with running statistics")
    if isinstance(batches, Tensor):
        batches = batches.split(BATCH)
    modes = {module: module.training for module in model.modules()}
    kept = [{k: v.clone() for k, v in norm.state_dict().items()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    device = _device(model)
    seen = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over batches
            norm.training = True
        with torch.no_grad():
            for batch in batches:
                _forward(model, _to(batch, device))
                seen += 1
        if not seen:
            raise ValueError("batches: it holds no batches")
    except BaseException:
        for norm, state in zip(norms, kept, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
