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
        def left(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if _computes_otherwise(module, args, kwargs, output):
                found.add(name)

        # before hooks of the user's, which may change the output
        handles.append(module.register_forward_hook(left, with_kwargs=True, prepend=True))

    try:
        for name, place in places.items():
            if not place.watched and _has_own_forward(place.module):
                compare(name, place.module)
        if handles:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _has_own_forward(module: nn.Module) -> bool:
    """Whether a layer's class, or the module itself, has another forward than torch's."""
    kind, base = type(module), _torch_class(module)
    names = ("forward", "_conv_forward")
    own = any(getattr(kind, name, None) is not getattr(base, name, None) for name in names)
    return own or any(name in vars(module) for name in names)


def _computes_otherwise(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> bool:
    """Whether a layer's own forward gives something else than torch's, beyond rounding."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if module._parameters.get("weight") is None or not given or not isinstance(output, Tensor):
        return not isinstance(output, Tensor)
    more = args[1:] if isinstance(module, TRANSPOSED) else ()
    try:
        expected, size = (_plain_output(module, given[0], more, change) for change in (None, abs))
        if output.shape != expected.shape:
            return True
        # rounding in 16 bits is of the output, cancellation in 32 bits of what is summed
        limit = 0.01 * expected.abs() + 64 * torch.finfo(torch.float32).eps * size
        return not bool(((output.to(expected) - expected).abs() <= limit.amax()).all())
    except Exception:  # what torch's forward does not even take
        return bool(output.numel())


def _plain_output(
    module: nn.Module, inputs: Tensor, more: tuple, change: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """What torch's forward gives, in float32 at least, perhaps of changed inputs and weights."""
    wide = torch.float64 if inputs.dtype == torch.float64 else torch.float32

    def turned(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return value.to(wide) if change is None else change(value.to(wide))

    plain: Any = object.__new__(_torch_class(module))
    state = {k: v for k, v in vars(module).items() if k not in ("forward", "_conv_forward")}
    parameters = {name: turned(value) for name, value in module._parameters.items()}
    vars(plain).update(state | {"_parameters": parameters})
    return plain.forward(turned(inputs), *more)


def _torch_class(module: nn.Module) -> type:
    return next(k for k in type(module).__mro__ if k.__module__.startswith("torch.nn.modules."))
