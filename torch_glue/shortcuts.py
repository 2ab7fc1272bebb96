"""Shortcuts that are named, not found by watching: what their names may be, and their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_glue.filters import NORMS
from torch_glue.places import Place, samples_first
from torch_glue.watch import divided, norm_factor

Shortcuts = str | bool | Mapping[str, str | tuple[str | None, str]]


def checked_shortcuts(
    shortcuts: Shortcuts, model: nn.Module, places: dict[str, Place]
) -> bool | dict[str, tuple[str | None, str]]:
    """What is asked of shortcuts; of a mapping (norm, source) by layer, its names checked."""
    if not isinstance(shortcuts, Mapping):
        if shortcuts != "auto" and not isinstance(shortcuts, bool):
            raise ValueError(f"residual: {shortcuts!r} is not 'auto', True, False or a mapping")
        return bool(shortcuts)
    modules = dict(model.named_modules())
    result = {}
    for name, given in shortcuts.items():
        norm, source = (None, given) if isinstance(given, str) else given
        module, colon, which = source.partition(":")
        if name not in places:
            raise ValueError(f"residual: {name!r} is no layer; layers: {', '.join(places)}")
        if norm is not None and not isinstance(modules.get(norm), NORMS):
            raise ValueError(f"residual: {norm!r}, named for layer {name}, is no BatchNorm")
        if module not in modules or (colon and which != "input"):
            raise ValueError(
                f"residual: {source!r}, named for layer {name}, is no module, nor 'NAME:input'"
            )
        result[name] = norm, source
    return result


def named_shortcut(
    model: nn.Module,
    place: Place,
    name: str,
    norm: str | None,
    source: str,
    orders: dict[str, bool],
    run: Callable[[], None],
) -> Tensor | None:
    """What a named module gives, or is given, in the pass that ``run`` makes; over the factor of
    the BatchNorm before the addition. None where the pass does not reach it.

    ``orders`` remembers of each source for attention whether its positions come first.
    """
    source_name, _, which = source.partition(":")
    target = model.get_submodule(source_name)
    caught: list[Tensor] = []

    def entered(_: Any, args: tuple, kwargs: dict) -> None:
        caught.append((args or tuple(kwargs.values()))[0].detach().clone())

    def left(_: Any, args: tuple, output: Any) -> None:
        caught.append((output if isinstance(output, Tensor) else output[0]).detach().clone())

    module: Any = place.module
    shapes: list[torch.Size] = []  # of attention that has positions first
    handles = []
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        handles.append(module.register_forward_hook(lambda *a: shapes.append(a[2][0].shape)))
    if which:
        handles.append(target.register_forward_pre_hook(entered, with_kwargs=True))
    else:
        handles.append(target.register_forward_hook(left))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if len(caught) > 1:
        raise ValueError(
            f"residual: {source!r}, named for layer {name}, is called {len(caught)} times in a "
            "pass: name what is called once, such as the module around it"
        )
    if not caught:
        return None
    (value,) = caught
    if shapes and len(shapes[0]) == 3:
        positions, samples, _ = shapes[0]
        if target is module:
            orders[source] = True
        elif positions != samples:
            orders[source] = value.shape[:2] == (positions, samples)
        elif source not in orders:
            raise ValueError(
                f"residual: {source!r}, named for layer {name}: there are as many positions as "
                "samples, so that it is not known which come first: let the first batch be "
                "another, or use residual='auto'"
            )
        if orders[source]:
            value = samples_first(value)
    if norm is None:
        return value
    factor = norm_factor(model.get_submodule(norm))
    if value.dim() < 2 or value.shape[1] != len(factor):
        raise ValueError(
            f"residual: {source!r}, named for layer {name}, is of shape {tuple(value.shape)}: "
            f"it does not fit the {len(factor)} channels of {norm}"
        )
    return divided(value, factor.reshape(-1, *(1,) * (value.dim() - 2)))
