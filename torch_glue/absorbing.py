"""absorb_scales: scales of binarised layers folded into the BatchNorm that follows each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hashsolve.suggest import did_you_mean
from torch_glue.checks import check_model
from torch_glue.filters import LAYERS, NORMS, as_rows, binary_scales, transposed_groups
from torch_glue.places import dotted, fill, own_tensors
from torch_glue.tracing import followers_of


def absorb_scales(
    model: nn.Module,
    layers: str | Iterable[str] | None = None,
    followers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Fold the scales and biases of binarised layers into the BatchNorm that follows each.

    A layer is then left with weights of exactly ±1 and biases of 0; outputs of the network in eval
    mode stay the same, to rounding. Of α z + bias, z being the output with weights ±1, BatchNorm
    takes the mean (μ − bias) / α and the variance (σ² + ε) / α² − ε. Where that is negative or not
    finite, or α is 0, α is folded into its weight γ instead.

    Tracing runs the model's own code on stand-ins; attributes and buffers that it sets are put
    back, but for what it adds to lists and the like. What hooks do between a layer and its
    BatchNorm is not looked at, nor along which axis that normalises: it should be the filters'.

    Parameters
    ----------
    model : torch.nn.Module
        Detached; it is rewritten in place. Of one that is wrapped (data parallelism, torch.compile,
        AveragedModel), what is within.
    layers : str or iterable of str, optional
        Names; by default all whose weights are exactly ±α in each filter.
    followers : mapping, optional
        The name of the BatchNorm that follows each layer, and takes nothing else, for models that
        torch.fx cannot trace. By default what follows is found by tracing.

    Returns
    -------
    dict
        The name of the BatchNorm that each layer's scales are now in.

    Raises
    ------
    ValueError
        Where no layer is binary, one's output goes to anything but one BatchNorm with running
        statistics, a layer's own forward uses its weight or bias in other ways than in one call
        of torch's, or what would change is parametrized, used elsewhere, or in memory that other
        modules hold too; the model is then as before.

    Examples
    --------
    >>> import torch, torch_glue
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    >>> torch_glue.attach(model, ["0"]), torch_glue.detach(model)  # sign(W), mean |W|
    (['0'], ['0'])
    >>> before = model(torch.ones(1, 3, 5, 5))
    >>> torch_glue.absorb_scales(model)
    {'0': '1'}
    >>> model[0].weight.abs().unique(), torch.allclose(before, model(torch.ones(1, 3, 5, 5)))
    (tensor([1.], grad_fn=<Unique2Backward0>), True)
    """
    check_model(model)
    if followers is not None and not isinstance(followers, Mapping):
        raise ValueError("followers: must be a mapping, such as {'conv1': 'bn1'}")
    modules = dict(model.named_modules())
    scales: dict[str, Tensor] = {}
    for name in modules if layers is None else [layers] if isinstance(layers, str) else layers:
        module = modules.get(name)
        alpha = None
        if isinstance(module, LAYERS) and (weight := module._parameters.get("weight")) is not None:
            alpha = binary_scales(as_rows(weight.detach(), transposed_groups(module)))
        if alpha is not None:
            scales[name] = alpha
        elif layers is not None:
            raise ValueError(f"{name}: no layer whose weight is exactly ±α in each filter")
    if not scales and layers is not None:
        raise ValueError("layers: names none")
    if not scales:
        raise ValueError(
            "no layer's weight is exactly ±α in each filter: binarise first, with one scale a "
            "filter, and detach(model)"
        )
    if unknown := set(followers or {}) - set(modules):
        name = min(unknown)
        raise ValueError(f"followers: the model has no layer {name!r}{did_you_mean(name, scales)}")
    given: tuple[dict[str, str], dict[str, str], set[str]] = (dict(followers or {}), {}, set())
    found, refused, used = followers_of(model, scales) if followers is None else given
    for name in scales:
        if name not in refused and (why := _why_not(modules, found.get(name))):
            refused[name] = why
    if refused:
        raise ValueError(_refusal(refused, [name for name in scales if name not in refused]))
    folded = [_folded(modules, name, alpha, found[name]) for name, alpha in scales.items()]
    for follower, count in Counter(found[name] for name in scales).items():
        if count > 1:
            raise ValueError(f"followers: {follower} follows more than one layer")
    changes = [change for part in folded for change in part]
    for tensor, value in _targets(modules, scales, changes, used):
        fill(tensor, value)
    return {name: found[name] for name in scales}


def _why_not(modules: dict[str, nn.Module], follower: str | None) -> str | None:
    """Why what follows a layer could not take its scales."""
    norm: Any = None if follower is None else modules.get(follower)
    if isinstance(norm, NORMS) and norm.running_mean is not None and norm.running_var is not None:
        return None
    by = "nothing that is known" if follower is None else repr(follower)
    return f"is followed by {by}, no BatchNorm with running statistics"


def _refusal(refused: Mapping[str, str], others: list[str]) -> str:
    """What to say of all layers that have no BatchNorm to take their scales."""
    (name, why), *more = ((name or "the model", why) for name, why in refused.items())
    also = f"; also refused: {', '.join(name for name, _ in more)}" if more else ""
    left = f"; not refused: layers={others}" if others else ""
    return (
        f"{name}: {why}: leave it out of layers, or name the BatchNorm, by followers, if all that "
        f"is done with its weight and bias is linear and goes there{also}{left}"
    )


def _folded(
    modules: dict[str, nn.Module], name: str, alpha: Tensor, follower: str
) -> list[tuple[str, str, Tensor]]:
    """Which tensors of which modules to set to what, so that a layer's scales and bias are in its
    BatchNorm."""
    layer: Any = modules[name]
    norm: Any = modules[follower]
    if is_lazy(norm.running_mean):
        raise ValueError(f"{follower}: has no size yet: run the model on a batch before")
    if norm.num_features != len(alpha):
        raise ValueError(f"{follower}: has {norm.num_features} features, {name} {len(alpha)}")
    alpha = alpha.double()
    mean, variance = norm.running_mean.double(), norm.running_var.double() + norm.eps
    bias = torch.zeros_like(alpha) if layer.bias is None else layer.bias.detach().double()
    changes = [(name, "weight", torch.where(layer.weight.detach().signbit(), -1, 1))]
    if layer.bias is not None:
        changes.append((name, "bias", torch.zeros_like(alpha)))
    alpha_or_one = torch.where(alpha == 0, 1, alpha)
    scaled = variance / alpha_or_one.square() - norm.eps
    centre = (mean - bias) / alpha_or_one
    most = torch.finfo(norm.running_var.dtype).max
    dead = (alpha == 0) | (centre.abs() > most)  # all that it gives goes to the shift
    in_gain = dead | (scaled < 0) | (scaled > most)
    if in_gain.any():
        if norm.weight is None or (norm.bias is None and dead.any()):
            raise ValueError(
                f"{follower}: lacks the weight or bias that alone could take a scale of {name}"
            )
        gain = norm.weight.detach().double()
        changes.append((follower, "weight", torch.where(in_gain, gain * alpha, gain)))
        if norm.bias is not None:
            shift = norm.bias.detach().double()
            fixed = shift + gain * (bias - mean) / variance.sqrt()  # without z
            changes.append((follower, "bias", torch.where(dead, fixed, shift)))
    centre = torch.where(dead, 0, centre)
    spread = torch.where(in_gain, norm.running_var.double(), scaled)
    return [*changes, (follower, "running_mean", centre), (follower, "running_var", spread)]


def _targets(
    modules: dict[str, nn.Module],
    layers: Collection[str],
    changes: list[tuple[str, str, Tensor]],
    used: set[str],
) -> list[tuple[Tensor, Tensor]]:
    """The tensors to write to; refuses what is computed, what is used elsewhere, and what another
    module holds too, but for what layers share."""
    held = defaultdict(list)  # by where their memory begins
    for name, module in modules.items():
        for tensor in own_tensors(module).values():
            # what is sparse, or has no shape yet, shares no memory with what is changed
            if not is_lazy(tensor) and tensor.layout is torch.strided:
                held[tensor.untyped_storage().data_ptr()].append((name, tensor))
    targets = []
    for name, key, value in changes:
        target = own_tensors(modules[name]).get(key)
        if target is None:
            raise ValueError(
                f"{name}: its {key} is parametrized, or no parameter or buffer: make it one first"
            )
        if dotted(name, key) in used:
            raise ValueError(
                f"{name}: its {key} is used elsewhere too, where it would change: leave the layer "
                "before it out of layers"
            )
        first, end = _span(target)
        if end - first < target.numel() * target.element_size():
            raise ValueError(f"{name}: its {key} is expanded: make it contiguous first")
        for other, theirs in held[target.untyped_storage().data_ptr()]:
            others_first, others_end = _span(theirs)
            apart = first >= others_end or others_first >= end
            if not apart and other != name and not (name in layers and other in layers):
                raise ValueError(f"{name}: shares its {key} with {other}, which may change too")
        targets.append((target, value))
    return targets


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's bytes begin and end."""
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (steps + 1) * tensor.element_size() if tensor.numel() else start
