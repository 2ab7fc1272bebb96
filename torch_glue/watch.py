"""Watching a forward pass: what a layer's output is added to, what takes up a constant, and the
projections inside attention, which are no calls of modules.

A pass is watched as it runs (`torch.overrides.TorchFunctionMode`), not traced symbolically as
torch.fx would: any control flow will do, and the values are those of the pass itself.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from torch_glue.filters import NORMS, PROJECTIONS
from torch_glue.places import Place, tensors_in

_PRODUCTS = (
    F.linear,
    *(getattr(F, f"{kind}{d}d") for kind in ("conv", "conv_transpose") for d in (1, 2, 3)),
)
_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_MULTIPLICATIONS = {"mul", "multiply", "__mul__", "__rmul__"}
_SAME = {  # the same values in the same order, perhaps in another shape
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
    "contiguous",
    "clone",
    "to",
    "float",
    "double",
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
}
_VANISHING = 1e-6  # a factor this much smaller than the largest cannot be made up through

Undo = Callable[[Tensor], Tensor]


class _Path(NamedTuple):
    """A tensor that is a layer's output, but for what ``undo`` undoes, the last first."""

    layer: str
    undo: tuple[Undo, ...] = ()
    norm: str | None = None


@dataclass
class Seen:
    """What a watched pass has shown of a layer.

    Attributes
    ----------
    shortcuts : int
        How often its output is added to something of its shape that does not depend on it.
    norm : str or None
        The BatchNorm that its output last went through before that, or else the first.
    users : list of (str or None)
        Who takes its output as it is: the name of a BatchNorm, or None for anything else.
    """

    shortcuts: int = 0
    norm: str | None = None
    users: list[str | None] = field(default_factory=list)


class Found(BaseException):
    """Ends a pass at what was wanted. Not an Exception: see `torch_glue.network`."""


class Watch(TorchFunctionMode):
    """Within, a forward pass is watched.

    Parameters
    ----------
    places : dict of Place
        The layers, by name.
    wanted : str, optional
        Of this layer alone the shortcut is looked for; it is kept in ``shortcut``, and ends the
        pass. Otherwise those of all layers are noted in ``seen``.
    """

    def __init__(self, places: dict[str, Place], wanted: str | None = None):
        super().__init__()
        self.places = places
        self.wanted = wanted
        self.seen: dict[str, Seen] = {}
        self.shortcut: Tensor | None = None
        self.projected: dict[str, Callable[..., Any]] = {}
        self.otherwise: set[str] = set()  # projections that are made by other weights than theirs
        self._bits = {name: 1 << n for n, name in enumerate(places)}
        self._inside: str | None = None
        self._attention: str | None = None
        self._norm: str | None = None
        self._known: dict[int, tuple[weakref.ref, _Path | None, int]] = {}

    def hooks(self, model: nn.Module) -> list[tuple[nn.Module, Callable]]:
        """Pre-hooks that tell the watch which module is about to run."""

        def note(slot: str, name: str) -> Callable:
            return lambda *_: setattr(self, slot, name)

        found: list[tuple[nn.Module, Callable]] = []
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                found.append((module, note("_attention", f"{name}." if name else "")))
            elif name in self.places:
                found.append((module, note("_inside", name)))
            elif isinstance(module, NORMS):
                found.append((module, note("_norm", name)))
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run a function, and note where its result comes from."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._attend(func, args, kwargs)
        name = getattr(func, "__name__", "")
        operands = tensors_in((args, kwargs))
        found = [self._look(tensor) for tensor in operands]
        before = [found for found in found if found is not None]
        if name in _ADDITIONS:
            self._add(operands, args, kwargs)
        result = func(*args, **kwargs)
        made = tensors_in(result)
        if not made and name != "__setitem__":
            return result
        taint = 0
        for _, bits in before:
            taint |= bits
        for path, _ in before:
            if path is not None and not path.undo:
                norm = self._norm if func is F.batch_norm else None
                self._of(path.layer).users.append(norm)
        path = None
        if func in _PRODUCTS and self._inside is not None:
            layer, self._inside = self._inside, None
            path, taint = self._start(layer), taint | self._bit(layer)
        elif found and found[0] is not None and found[0][0] is not None:
            path = self._onward(found[0][0], func, name, args, kwargs, made)
        elif name in _MULTIPLICATIONS and len(operands) == 2 and found[1] is not None:
            path = self._onward(found[1][0], func, name, args[::-1], kwargs, made)
        if func is F.batch_norm:
            self._norm = None
        for tensor in made if made else operands[:1]:
            self._keep(tensor, path, taint)
        return result

    def _look(self, tensor: Tensor) -> tuple[_Path | None, int] | None:
        known = self._known.get(id(tensor))
        return known[1:] if known is not None and known[0]() is tensor else None

    def _keep(self, tensor: Tensor, path: _Path | None, taint: int) -> None:
        if path is None and not taint:
            self._known.pop(id(tensor), None)
        else:
            self._known[id(tensor)] = weakref.ref(tensor), path, taint

    def _of(self, layer: str) -> Seen:
        return self.seen.setdefault(layer, Seen())

    def _bit(self, layer: str) -> int:
        return self._bits[layer] if self.wanted in (None, layer) else 0

    def _start(self, layer: str) -> _Path | None:
        return _Path(layer) if self.wanted in (None, layer) else None

    def _onward(
        self,
        path: _Path | None,
        func: Any,
        name: str,
        args: tuple,
        kwargs: dict,
        made: list[Tensor],
    ) -> _Path | None:
        """The path of what a function makes of a tensor on a path."""
        if not args:
            args, kwargs = (kwargs.get("input"),), {k: v for k, v in kwargs.items() if k != "input"}
        if path is None or len(made) != 1 or not isinstance(args[0], Tensor):
            return None
        shape, result = args[0].shape, made[0]
        undo: Undo
        if func is F.batch_norm:
            bound = inspect.signature(F.batch_norm).bind(*args, **kwargs)
            bound.apply_defaults()
            if bound.arguments["training"] or bound.arguments["running_var"] is None:
                return None
            factor = _norm_factor(*(bound.arguments[k] for k in ("running_var", "weight", "eps")))
            factor = factor.reshape(-1, *(1,) * (len(shape) - 2))
            return path._replace(
                undo=(*path.undo, lambda v: divided(v, factor)), norm=self._norm or path.norm
            )
        if name in _MULTIPLICATIONS:
            given: Any = next(iter((*args[1:], *kwargs.values())), None)
            number = isinstance(given, Real)
            whole = getattr(given, "_base", None)  # of a view
            known = isinstance(given, nn.Parameter) or isinstance(whole, nn.Parameter)
            if not (number or known) or result.shape != shape:
                return None
            factor = torch.tensor(float(given), dtype=torch.float64) if number else given
            undo = lambda v: divided(v, factor)  # noqa: E731
        elif name in _SAME and result.numel() == args[0].numel() and result.is_floating_point():
            if result is args[0]:
                return path
            undo = lambda v: v.reshape(shape)  # noqa: E731
        elif name in ("transpose", "swapaxes"):
            axes = (*args[1:], *kwargs.values())
            undo = lambda v: v.transpose(*axes)  # noqa: E731
        elif name == "permute":
            axes = args[1:] or tuple(kwargs["dims"])
            axes = tuple(axes[0]) if isinstance(axes[0], (list, tuple)) else axes
            back = [0] * len(axes)
            for n, axis in enumerate(axes):
                back[axis % len(axes)] = n
            undo = lambda v: v.permute(back)  # noqa: E731
        else:
            return None
        return path._replace(undo=(*path.undo, undo))

    def _add(self, operands: list[Tensor], args: tuple, kwargs: dict) -> None:
        """Note a sum of a layer's output and something that does not depend on it."""
        if len(operands) != 2 or kwargs.get("alpha", 1) != 1 or len(args) > 2:
            return
        for one, other in (operands, operands[::-1]):
            found, partner = self._look(one), self._look(other)
            if found is None or found[0] is None or other.shape != one.shape:
                continue
            path = found[0]
            if partner is not None and partner[1] & self._bits[path.layer]:
                continue
            seen = self._of(path.layer)
            seen.shortcuts += 1
            seen.norm = path.norm
            if self.wanted == path.layer:
                self.shortcut = undone(other, path.undo)
                raise Found

    def _attend(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Attention, its projections told apart: the last one is made here."""
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        prefix, self._attention = self._attention, None
        if prefix is None:  # not called by a module: none of our layers
            return func(*args, **kwargs)
        for part in (*PROJECTIONS, "out_proj") if self.wanted is None else ():
            place = self.places.get(prefix + part)
            if place is not None and not _uses_own(place, part, given):
                self.otherwise.add(prefix + part)
        names = dict(zip(("query", "key", "value"), PROJECTIONS, strict=True))
        for role, part in names.items():
            self.projected.get(prefix + part, lambda *_: None)(given[role])
        weight, bias = given["out_proj_weight"], given["out_proj_bias"]
        given["out_proj_weight"] = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        given["out_proj_bias"] = None
        values, shares = func(*bound.args, **bound.kwargs)
        layer = f"{prefix}out_proj"
        self.projected.get(layer, lambda *_: None)(values)
        result = F.linear(values, weight, bias)
        taint = 0
        for tensor in tensors_in((args, kwargs)):
            taint |= (self._look(tensor) or (None, 0))[1]
        for part in (*PROJECTIONS, "out_proj"):
            taint |= self._bit(prefix + part)
        path = self._start(layer)
        if path is not None and result.dim() == 3:  # inputs are seen with samples first
            path = path._replace(undo=(lambda v: v.transpose(0, 1),))
        self._keep(result, path, taint)
        return result, shares


def _uses_own(place: Place, part: str, given: Mapping[str, Any]) -> bool:
    """Whether attention is given a projection's own weight, perhaps in another type."""
    packed, own = given["in_proj_weight"], place.parameter
    if own is None:  # refused by itself
        return True
    if packed is None or part == "out_proj":
        used = given[f"{part}_weight"]
    else:
        used = packed.chunk(len(PROJECTIONS))[PROJECTIONS.index(part)]
    try:
        own = place.own(own).detach().to(used.dtype)
        return torch.allclose(used.detach(), own, rtol=0, atol=0, equal_nan=True)
    except RuntimeError:  # of other shapes, or within torch.func
        return False


def _norm_factor(var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """What a BatchNorm multiplies each channel by: γ/σ."""
    factor = (var.double() + eps).rsqrt()
    return factor if weight is None else factor * weight.double()


def norm_factor(norm: Any) -> Tensor:
    """What a BatchNorm module multiplies each channel by in eval mode."""
    return _norm_factor(norm.running_var, norm.weight, norm.eps)


def divided(values: Tensor, factor: Tensor) -> Tensor:
    """Values over a factor; zero where that all but vanishes beside its largest: nothing can be
    made up through it."""
    factor = factor.detach().double()
    size = factor.abs()
    lost = size <= _VANISHING * size.max()
    inverse = torch.where(lost, 0.0, 1 / torch.where(lost, 1.0, factor))
    return values.double() * inverse


def undone(values: Tensor, undo: tuple[Undo, ...]) -> Tensor:
    """Values as they would be before the steps that ``undo`` undoes, the last of them first."""
    for step in reversed(undo):
        values = step(values)
    return values
