"""attach, detach: binarised layers as torch parametrizations, ready for anyone's training loop."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import hashsolve
from hashsolve import checks
from torch_glue.binary_weight import (
    Attached,
    BinaryWeight,
    Projections,
    attached,
    scales_of,
)
from torch_glue.checks import check_model
from torch_glue.filters import (
    as_rows,
    binary_scales,
    from_rows,
    group_length,
    transposed_groups,
)
from torch_glue.passes import unwrapped
from torch_glue.places import Place, places_of, state_name
from torch_glue.run_codes import check_written, magnitudes_of, of_run

SCALES = ("trained", "fixed", "mean", "none")


def attach(
    model: nn.Module,
    layers: hashsolve.Run | str | Iterable[str],
    *,
    scales: str = "trained",
    magnitudes: nn.Module | Mapping[str, Tensor] | None = None,
    stochastic: bool = False,
    clip: float | None = None,
) -> list[str]:
    """Make binarised layers trainable, by `torch.nn.utils.parametrize`.

    A layer's ``weight`` becomes α·sign(latent). Latents start **at the codes**: |W|·B, not W,
    whose sign would discard the solution. Until it is trained, the network computes what it did.

    Attach before the optimiser is built (latents keep the weights' places in an older one).
    Wrapping for data parallelism, `torch.compile`, averages of the parameters and state dicts work
    as with any parametrization.

    Parameters
    ----------
    model : torch.nn.Module
        Rewritten in place: ``layer.parametrizations.weight.original`` holds the latents,
        ``layer.parametrizations.weight[0].scales`` the scales (of packed projections
        ``in_proj_weight[0].parts[n].scales``).
    layers : Run, or names
        A run of `binarize` gives layers, codes, scales, and |W| from its folder. Else dotted names
        of layers: codes are then the signs of the weights they hold, scales their magnitude where
        each filter, or each group of its consecutive inputs, is exactly ±α, else mean |W| (BWN).
        The projections q_proj, k_proj and v_proj of `nn.MultiheadAttention` are mostly parts of one
        packed weight, and attached by one call: parts that are not are trained with it as they are.
        Layers that share one weight are attached together, whichever is named; what is random or
        partial in training is drawn by each. Detach the model that holds them all.
    scales : {"trained", "fixed", "mean", "none"}
        Trained as parameters; fixed (better where BatchNorm follows: in training that divides
        scales out again, and Adam would let them drift by rounding); mean |latent| at all times
        (BWN: latents of a run are scaled so that this is α at the start); or no scale at all
        (BinaryConnect).
    magnitudes : module or state dict, optional
        The network in full precision, to take |W| from instead.
    stochastic, clip
        BinaryConnect's; see `BinaryWeight`.

    Returns
    -------
    list of str
        The names of the layers, as given; what shares a weight with one is attached too.

    Raises
    ------
    ValueError
        For a layer that is not there, is attached already, shares its weight with what is no layer
        of its kind, has another shape or no finite weight, is binary but not as the run left it
        (or not binary, where the run has intercepts), or a run's folder that is damaged; the model
        is then as before.

    Examples
    --------
    >>> import tempfile, torch, torch_glue
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = torch_glue.binarize(model, torch.randn(100, 8), run_dir=folder, skip=["2"])
    ...     before = model[0].weight.clone()
    ...     torch_glue.attach(model, run)
    ['0']
    >>> torch.equal(model[0].weight, before)
    True
    >>> [name for name, _ in model[0].named_parameters()]  # doctest: +NORMALIZE_WHITESPACE
    ['bias', 'parametrizations.weight.original', 'parametrizations.weight.0.scales']
    """
    check_model(model)
    checks.choice(scales, "scales", SCALES)
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip: must be a positive number or None, got {clip!r}")
    run = layers if isinstance(layers, hashsolve.Run) else None
    if isinstance(layers, PathLike):
        raise ValueError(
            f"layers: {layers} is a path; give the run itself, which binarize returns also where "
            "its folder is complete, or names of layers"
        )
    results = {}
    if isinstance(layers, hashsolve.Run):
        results = {result.name: result for result in layers.layers}
        names = list(results)
    elif isinstance(layers, Iterable):
        names = [layers] if isinstance(layers, str) else list(layers)
    else:
        raise ValueError(
            f"layers: give what binarize returns, or names of layers, got a {type(layers).__name__}"
        )
    known = _full_precision(magnitudes)
    places = attachable(model, names)
    if results and len(places) < len(names):
        raise ValueError(
            "layers: the run has codes of layers that share one weight here: it is not the model "
            "of this run"
        )
    starts = []
    for name, (whole, holders) in places.items():
        place = holders[0]
        groups = transposed_groups(place.owner)
        weight = place.own(whole).detach()
        if run:
            result = results[name]
            codes, alpha = of_run(result, weight, groups)
            full = None if known else magnitudes_of(run, result, weight, groups)
        else:
            rows, full = as_rows(weight, groups), weight
            length = group_length(rows)
            # a weight whose magnitude changes at every input is not binary
            count = 1 if length == 1 else rows.shape[1] // length
            codes, alpha = torch.where(rows >= 0, 1, -1).to(rows.dtype), scales_of(rows, count)
        if known:
            full = place.own(_checked(name, known.get(state_name(name, place)), whole.shape))
        full = _checked(name, full, weight.shape)
        if not full.isfinite().all():
            raise ValueError(f"magnitudes: the weight of {name} holds what is not finite")
        size = as_rows(full.to(weight).abs(), groups)
        if run:
            check_written(run, result, weight, groups, codes, alpha)
        if scales == "mean" and run:
            mean = size.mean(1, keepdim=True)
            # one scale a filter is all that its mean can stand for
            size = torch.where(mean > 0, size * alpha.mean(1, keepdim=True) / mean, alpha[:, :1])
        latent = codes * torch.maximum(size, _least(size, scales == "mean"))
        binary = BinaryWeight(
            alpha if scales in ("trained", "fixed") else None,
            str(scales),  # checkpoints take nothing of NumPy's
            groups,
            stochastic=bool(stochastic),
            clip=None if clip is None else float(clip),
        )
        starts.append((whole, holders, binary, from_rows(latent, weight.shape, groups), alpha))
    _register([(holders, binary) for _, holders, binary, *_ in starts])
    with torch.no_grad():
        for whole, (place, *_), binary, latent, alpha in starts:
            Attached(place.owner, place.weight, binary, place.part).latent.copy_(latent)
            if binary.scales is not None:
                binary.scales.copy_(alpha)
            for parameter in binary.parameters():  # a frozen layer stays as it is
                parameter.requires_grad_(whole.requires_grad)
    return names


def _least(size: Tensor, averaged: bool) -> Tensor:
    """What a filter's latents, of these sizes, are where W is 0, so that they keep the codes: next
    to nothing, but no zero in float16 either, which a model may be brought to; where their mean is
    the scale and next to nothing itself, that goes before."""
    mean = size.mean(1, keepdim=True)
    half = torch.full_like(mean, 2.0**-24)  # float16's smallest
    if averaged:
        half = torch.minimum(half, 1e-2 * mean)
    smallest = 2.0**-24 if size.dtype == torch.float16 else torch.finfo(size.dtype).tiny
    return torch.maximum(1e-4 * mean, half).clamp(smallest, 2.0**-23)


def _register(layers: Sequence[tuple[list[Place], BinaryWeight]]) -> None:
    """Have weights computed: those packed in one parameter by one parametrization, and one that
    several modules hold by the same."""
    computed: dict[int, tuple[BinaryWeight | Projections, list[Place]]] = {}
    orders = {holders[0].owner: tuple(holders[0].owner._parameters) for holders, _ in layers}
    for holders, binary in layers:
        key, part = id(holders[0].parameter), holders[0].part
        by: BinaryWeight | Projections = binary
        if part is not None:
            by = computed[key][0] if key in computed else Projections()
            by.get_submodule("parts").register_module(str(part), binary)
        computed[key] = by, holders
    for by, holders in computed.values():
        by.order = orders[holders[0].owner]
        for place in holders:
            by.train(place.owner.training)
            parametrize.register_parametrization(place.owner, place.weight, by)


def detach(model: nn.Module) -> list[str]:
    """Turn attached layers back into plain ones, whose weights are exactly ±α.

    Parameters
    ----------
    model : torch.nn.Module
        Rewritten in place.

    Returns
    -------
    list of str
        The names of the layers detached.

    Raises
    ------
    ValueError
        Where a weight is not ±α in each filter (it is not finite, or another parametrization
        follows), or layers with the same latents compute different weights; nothing is then
        changed.

    Examples
    --------
    >>> import torch, torch_glue
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 1))
    >>> torch_glue.attach(model, ["0"]), torch_glue.detach(model)
    (['0'], ['0'])
    >>> model[0].weight.abs().unique().numel()
    1
    """
    check_model(model)
    found = attached(model)
    for name, layer in found.items():
        rows = as_rows(layer.weight, transposed_groups(layer.module))
        if layer.binary.scales is not None:
            rows = rows.reshape(layer.binary.scales.numel(), -1)
        if binary_scales(rows) is None:
            raise ValueError(
                f"{name}: its weight is not exactly ±α in each filter: training has left numbers "
                "that are not finite, or another parametrization follows the signs"
            )
    holders: dict[int, dict[tuple[nn.Module, str], Attached]] = {}
    for name, layer in found.items():
        sharing = holders.setdefault(id(layer.parameter), {})
        if any(layer.computed_by != other.computed_by for other in sharing.values()):
            raise ValueError(
                f"{name}: shares its latents with another layer, but computes another weight from "
                "them: give each its own"
            )
        sharing[layer.module, layer.tensor] = layer
    by_module: dict[nn.Module, list[tuple[str, ...]]] = defaultdict(list)
    for sharing in holders.values():
        for number, (module, tensor) in enumerate(sharing):
            parametrizations: Any = module.parametrizations
            by_module[module].append(parametrizations[tensor][0].order)
            parametrizations[tensor].eval()  # nothing random, nothing left out
            _own_class(module)
            # the first leaves ±α in the parameter, which the others hold too
            parametrize.remove_parametrizations(module, tensor, leave_parametrized=not number)
    for module, orders in by_module.items():
        own = module._parameters
        names = (*max(orders, key=len), *own)
        ordered = {name: own[name] for name in names if name in own}
        own.clear()
        own.update(ordered)
    torch.clear_autocast_cache()  # of what the latents were cast to
    return list(found)


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    Copies of it (of the model, averages of its parameters) share the class that torch made for it,
    from which `remove_parametrizations` deletes the weight: of the copies too.
    """
    kind = type(module)
    members = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, members)


def _full_precision(given: nn.Module | Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """A state dict, which is empty where nothing is given."""
    if given is None:
        return {}
    state = given.state_dict() if isinstance(given, nn.Module) else given
    if not isinstance(state, Mapping):
        raise ValueError(
            f"magnitudes: expected a module or a state dict, got {type(given).__name__}"
        )
    if not state:
        raise ValueError("magnitudes: it holds no tensors")
    return state


def _checked(name: str, full: Tensor | None, shape: torch.Size) -> Tensor:
    """A weight to take |W| from, of the shape it must have."""
    if full is None or full.shape != shape:
        raise ValueError(
            f"magnitudes: the weight of {name} must be of shape {tuple(shape)}, got "
            f"{None if full is None else tuple(full.shape)}"
        )
    return full


def attachable(model: nn.Module, names: list[str]) -> dict[str, tuple[Tensor, list[Place]]]:
    """Of each layer of these names its parameter and all layers that it is of, as long as all can
    be attached; of those with one weight, the first."""
    known, places = dict(model.named_modules()), places_of(model)
    found: dict[str, tuple[Tensor, list[Place]]] = {}
    for number, name in enumerate(names):
        if name not in places:
            if name not in known:
                inner, _ = unwrapped(model)
                hint = ": it is wrapped; attach to what is within" if inner is not model else ""
                raise ValueError(f"layers: the model has no module {name!r}{hint}")
            kind = type(known[name]).__name__
            raise ValueError(f"layers: {name} is a {kind}, which has no codes")
        if name in names[:number]:
            raise ValueError(f"layers: {name} is named twice")
        place = places[name]
        if parametrize.is_parametrized(place.owner, place.weight):
            forms = place.owner.parametrizations[place.weight]  # type: ignore[index]
            if not any(isinstance(form, (BinaryWeight, Projections)) for form in forms):
                kinds = ", ".join(type(form).__name__ for form in forms)
                raise ValueError(
                    f"{name}: its weight is parametrized by others ({kinds}): "
                    "torch.nn.utils.parametrize.remove_parametrizations first"
                )
            hint = "" if place.part is None else ", and attach all that lies in it by one call"
            raise ValueError(
                f"{name}: its weight is parametrized already: detach(model) first{hint}"
            )
        weight = place.parameter
        if weight is None or not place.own(weight).isfinite().all():
            raise ValueError(f"{name}: its weight is computed from other tensors, or not finite")
        if weight.is_complex():
            raise ValueError(f"{name}: its weight is complex, and has no signs")
        if weight.is_inference():
            raise ValueError(
                f"{name}: its weight was made in inference mode, and cannot be trained: load the "
                "state into a model made outside of it"
            )
        if any(weight is other and place.part == at[0].part for other, at in found.values()):
            continue
        holders = {(place.owner, place.weight): place}
        for other in places.values():
            same = other.parameter is weight and other.part == place.part
            if same and _kind(other) == _kind(place):
                holders.setdefault((other.owner, other.weight), other)
        sharing = [
            f"{other}.{tensor}".strip(".")
            for other, module in known.items()
            for tensor, value in module.named_parameters(recurse=False, remove_duplicate=False)
            if value is weight and (module, tensor) not in holders
        ]
        if sharing:
            holder, _, inside = sharing[0].partition("parametrizations.")
            if inside:
                raise ValueError(
                    f"{name}: shares its weight with {holder.strip('.') or 'the model'}, which is "
                    "attached: detach the whole model first"
                )
            raise ValueError(
                f"{name}: shares its weight with {holder.removesuffix('.weight')}, which is no "
                "layer of the same kind: give each its own, or leave it out by attaching the other "
                "layers by name"
            )
        found[name] = weight, list(holders.values())
    return found


def _kind(place: Place) -> tuple[Any, ...]:
    """What layers that share one weight must agree in."""
    return place.layout, place.shape, place.geometry.groups
