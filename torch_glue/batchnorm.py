"""BatchNorm after binarised layers: its statistics estimated anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_glue.checks import check_model
from torch_glue.filters import NORMS
from torch_glue.passes import batches_of, evaluating, run_batch, run_model
from torch_glue.places import fill


def recalibrate_batchnorm(model: nn.Module, batches: Tensor | Iterable[Any]) -> int:
    """Set the running mean and variance of every BatchNorm from data, in one pass.

    Each gets the mean and the (unbiased) variance of all the values that reach it, as if they had
    come in one batch: a smaller last batch counts for less. During the pass every BatchNorm
    normalises by the batch at hand, as in training, so where one follows another its statistics
    do depend on the batches: give batches as large as in training. Give images augmented as in
    training, too: black where they were shifted, they have other statistics than as they are, which
    is several per cent of accuracy.

    Parameters
    ----------
    model : torch.nn.Module
        Only the statistics change, and only once all batches have been seen; a BatchNorm that no
        batch reaches keeps its own, and what had no size yet has one then. Everything but BatchNorm
        runs in eval mode.
    batches : tensor, array, data set, or iterable of batches
        As in `binarize`, but one pass is all that is needed; labels are not used.

    Returns
    -------
    int
        The number of BatchNorm layers set, at least one.

    Raises
    ------
    ValueError
        Where there is no BatchNorm with running statistics, or none that a batch reaches, or no
        batch, or what reaches one is not finite.

    Examples
    --------
    >>> import torch, torch_glue
    >>> norm = torch.nn.BatchNorm1d(1)
    >>> torch_glue.recalibrate_batchnorm(norm, torch.tensor([[1.0], [3.0]]))
    1
    >>> norm.running_mean, norm.running_var
    (tensor([2.]), tensor([2.]))
    """
    check_model(model)
    norms: list[Any] = running_norms(model)
    names = {module: name for name, module in model.named_modules()}
    seen: dict[Any, list[tuple[int, Tensor, Tensor]]] = {norm: [] for norm in norms}

    def by_batch(norm: Any) -> None:
        norm.training, norm.track_running_stats = True, False

    def observe(norm: Any, args: tuple, kwargs: dict) -> None:
        by_batch(norm)  # a lazy one has its size by now
        values = args[0] if args else kwargs["input"]
        values = values if values.dtype == torch.float64 else values.float()
        axes = [axis for axis in range(values.dim()) if axis != 1]
        var, mean = torch.var_mean(values, dim=axes, correction=0)
        rows = values.numel() // values.shape[1]
        seen[norm].append((rows, mean.cpu().double(), var.cpu().double()))

    sized = [norm for norm in norms if not is_lazy(norm.running_mean)]
    kept = [(buffer, buffer.detach().clone()) for norm in sized for buffer in norm.buffers(False)]
    count = 0
    handles = [norm.register_forward_pre_hook(observe, with_kwargs=True) for norm in norms]
    try:
        with evaluating(model):
            if any(map(_is_compiled, model.modules())):
                for norm in sized:
                    by_batch(norm)  # before the pass, so that a compiled model sees that it changed
            for batch in batches_of(batches, "batches"):
                run_model(run_batch, model, batch, "batches: the model")
                count += 1
    finally:
        for norm, handle in zip(norms, handles, strict=True):
            norm.track_running_stats = True
            handle.remove()
        for buffer, value in kept:  # a forward that calls no module may have written them
            fill(buffer, value)
    if not count:
        raise ValueError("batches: it holds no batches")
    if not any(seen.values()):
        raise ValueError("no batch reaches a BatchNorm: the forward calls none as a module")
    found = {}
    for norm, parts in seen.items():
        if not parts:
            continue
        rows = torch.tensor([n for n, _, _ in parts], dtype=torch.float64)
        means = torch.stack([mean for _, mean, _ in parts])
        variances = torch.stack([variance for _, _, variance in parts])
        mean = rows @ means / rows.sum()
        spread = rows @ (variances + (means - mean).square())
        mean = mean.to(norm.running_mean)
        variance = (spread / (rows.sum() - 1)).to(norm.running_var)
        if not (mean.isfinite() & variance.isfinite()).all():
            raise ValueError(
                f"BatchNorm {names[norm]!r}: what reaches it is not finite, or its variance is "
                "out of range: look at the data and the weights"
            )
        found[norm] = (mean, variance, len(parts))
    for norm, (mean, variance, batch_count) in found.items():
        fill(norm.running_mean, mean)
        fill(norm.running_var, variance)
        if norm.num_batches_tracked is not None:
            fill(norm.num_batches_tracked, torch.tensor(batch_count))
    return len(found)


def _is_compiled(module: nn.Module) -> bool:
    """Whether it runs, or is a wrapper that runs, what torch.compile has made of it."""
    # a wrapper keeps the module that it was made of
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def running_norms(model: nn.Module) -> list[NORMS]:
    """Every BatchNorm with running statistics; ValueError where there is none."""
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    if not norms:
        raise ValueError("the model has no BatchNorm with running statistics to recalibrate")
    return norms
