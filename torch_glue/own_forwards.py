"""Layers whose own forward may compute something else than torch's: compared in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_glue.filters import TRANSPOSED
from torch_glue.places import Place


def computed_otherwise(places: Mapping[str, Place], run: Callable[[], None]) -> set[str]:
    """Names of layers whose outputs are not what torch's forward gives of weight and input.

    Parameters
    ----------
    places : mapping
        Every layer that can be binarised, by name.
    run : callable
        Makes one pass of the model; it is not called where all forwards are torch's.
    """
    found: set[str] = set()
    handles = []

    def compare(name: str, module: nn.Module) -> None:
        given: list[Tensor | None] = []  # one for each call that is under way

        def entered(_: nn.Module, args: tuple, kwargs: dict) -> None:
            value = args[0] if args else kwargs.get("input")
            # a copy, since a forward may work in place
            given.append(value.detach().clone() if isinstance(value, Tensor) else None)

        def left(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            more = (*args[1:], *([kwargs["output_size"]] if "output_size" in kwargs else []))
            if _computes_otherwise(module, given.pop(), more, output):
                found.add(name)

        handles.append(module.register_forward_pre_hook(entered, with_kwargs=True))
        # before hooks of the user's, which may change the output
        handles.append(module.register_forward_hook(left, with_kwargs=True, prepend=True))

    try:
        for name, place in places.items():
            if not place.watched and has_own_forward(place.module):
                compare(name, place.module)
        if handles:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def has_own_forward(module: nn.Module) -> bool:
    """Whether a layer's class, or the module itself, has another forward than torch's."""
    kind, base = type(module), _torch_class(module)
    names = ("forward", "_conv_forward")
    own = any(getattr(kind, name, None) is not getattr(base, name, None) for name in names)
    return own or any(name in vars(module) for name in names)


def _computes_otherwise(module: nn.Module, inputs: Tensor | None, more: tuple, output: Any) -> bool:
    """Whether a layer's own forward gives something else than torch's, beyond rounding."""
    if not isinstance(output, Tensor) or inputs is None:
        return True
    if module._parameters.get("weight") is None:
        return False
    more = more if isinstance(module, TRANSPOSED) else ()
    try:
        plain, size, spread = (
            _plain_output(module, inputs, more, change) for change in (None, abs, torch.square)
        )
        if output.shape != plain.shape:
            return True
        # rounding in 16 bits, of the output, and of inputs, weights and bias; in 32 bits of what is
        # summed
        limit = 0.01 * plain.abs() + 0.02 * spread.sqrt()
        limit += 64 * torch.finfo(torch.float32).eps * size
        differ = (output.to(plain) - plain).abs() > limit
        # inputs that are not finite are refused later, by their place
        return bool((differ | output.isnan())[plain.isfinite() & limit.isfinite()].any())
    except Exception:  # what torch's forward does not even take
        return bool(output.numel())


def _plain_output(
    module: nn.Module, inputs: Tensor, more: tuple, change: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """What torch's forward gives, in float32 at least, perhaps of changed inputs and parameters."""
    wide = torch.float64 if inputs.dtype == torch.float64 else torch.float32

    def turned(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return value.to(wide) if change is None else change(value.to(wide))

    plain: Any = object.__new__(_torch_class(module))
    state = {k: v for k, v in vars(module).items() if k not in ("forward", "_conv_forward")}
    parameters = {name: turned(value) for name, value in module._parameters.items()}
    if change is torch.square and (bias := parameters.get("bias")) is not None:
        parameters["bias"] = bias / 16  # it is rounded once: half a per cent of it in all
    vars(plain).update(state | {"_parameters": parameters})
    with torch.autocast(inputs.device.type, enabled=False):
        return plain.forward(turned(inputs), *more)


def _torch_class(module: nn.Module) -> type:
    return next(k for k in type(module).__mro__ if k.__module__.startswith("torch.nn.modules."))
