"""Which BatchNorm follows each layer: found by tracing, with torch.fx, what a model computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from torch_glue.filters import LAYERS, NORMS
from torch_glue.own_forwards import has_own_forward
from torch_glue.passes import evaluating, inner_name, outer_name, unwrapped
from torch_glue.places import dotted, fill, own_tensors

FUNCTIONS: dict[Any, Any] = {
    F.linear: nn.Linear,
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
    F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d,
    F.conv_transpose3d: nn.ConvTranspose3d,
}
"""What layers call with their weight and bias."""
CHANGED = ("weight", "bias", "running_mean", "running_var")
"""What is rewritten of a layer or its BatchNorm."""


class _Tracer(fx.Tracer):
    """Goes into layers whose forward is their own; if names are given, into those alone. Keeps in
    ``left_out`` the others, and modules of torch's that hold modules and are one call."""

    def __init__(self, names: Iterable[str] | None = None):
        super().__init__()
        self.names = names
        self.left_out: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one call."""
        if isinstance(m, NORMS) and not has_own_forward(m):
            return True
        if not isinstance(m, LAYERS):
            leaf = super().is_leaf_module(m, module_qualified_name)
            if leaf and m._modules:
                self.left_out.append(m)
            return leaf
        if not has_own_forward(m):
            return True
        if self.names is None or module_qualified_name in self.names:
            return False
        self.left_out.append(m)
        return True


_FRESH = (
    *("new_zeros", "new_ones", "new_empty", "new_full"),
    *("zeros_like", "ones_like", "empty_like", "full_like"),
)
"""Functions that take no values of their first argument."""
_DESCRIPTIONS = (
    *("dtype", "device", "shape", "ndim", "dim", "size", "numel", "is_floating_point"),
    *_FRESH,
)
"""What is asked of a tensor without its values."""
_READ = (
    *("item", "tolist", "numpy", "__array__", "__iter__", "__contains__", "__setitem__"),
    *("__float__", "__int__", "__index__", "__complex__", "__bool__"),
    *("equal", "allclose", "is_nonzero"),
)
"""Functions that take values, and give no tensor."""


class _Uses(TorchFunctionMode):
    """Notes which tensors are taken, by torch, for more than a description of them.

    Tracing itself sees only those that forwards read as an attribute of their module.
    """

    def __init__(self, names: dict[int, str]):
        super().__init__()
        self.names, self.used = names, set[str]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        result, name = func(*args, **kwargs), getattr(func, "__name__", "")
        gives = any(isinstance(value, (Tensor, fx.Proxy)) for value in tree_leaves(result))
        if gives or name in _READ:
            taken = args[1:] if name in _FRESH else args
            given = {id(value) for value in tree_leaves((taken, kwargs))}
            self.used |= {self.names[key] for key in given & self.names.keys()}
        return result


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Afterwards all modules' attributes and the values of buffers are what they were."""
    kept = []
    for module in model.modules():
        attributes = vars(module)
        parts = ("_parameters", "_buffers", "_modules")
        held = [(d, dict(d)) for part in parts if isinstance(d := attributes.get(part), dict)]
        kept += [*held, (attributes, dict(attributes))]
    buffers = [
        (buffer, None if buffer.is_inference() else buffer._version, buffer.clone())
        for buffer in model.buffers()
        if not is_lazy(buffer)
    ]
    try:
        yield
    finally:
        for changed, as_it_was in kept:
            changed.clear()
            changed.update(as_it_was)
        for buffer, version, value in buffers:
            if version is None or buffer._version != version:
                fill(buffer, value)


def _within_reach(modules: list[nn.Module], names: dict[int, str]) -> set[str]:
    """Which of the named tensors modules hold, in attributes, containers or other modules."""
    found, seen, left = set[str](), set[int](), list[Any](modules)
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if id(value) in names:
            found.add(names[id(value)])
        elif isinstance(value, nn.Module):
            left += vars(value).values()
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, (list, tuple, set)):
            left += value
    return found


@dataclass(frozen=True)
class _Traced:
    """A model's graph in eval mode, as what follows a layer may depend on the mode.

    ``used`` names tensors of layers and BatchNorms that torch took without their being read as an
    attribute; ``held`` those that a module holds whose forward was not traced.
    """

    graph: fx.Graph
    used: set[str]
    held: set[str]


def _traced(model: nn.Module, layers: Iterable[str]) -> _Traced:
    """Trace a model; not a copy, since many models cannot be copied."""
    names = {
        id(tensor): dotted(name, key)
        for name, module in model.named_modules()
        if name in layers or isinstance(module, NORMS)
        for key, tensor in own_tensors(module).items()
        if key in CHANGED
    }

    def trace(tracer: _Tracer) -> _Traced:
        if "forward" in vars(model):
            raise ValueError("its forward is set on the object; tracing takes that of its class")
        with evaluating(model), _as_before(model), _Uses(names) as uses:
            graph = tracer.trace(model)
        return _Traced(graph, uses.used, _within_reach(tracer.left_out, names))

    try:
        return trace(_Tracer())
    except Exception:  # perhaps a forward, of a layer not asked about, that cannot be traced
        try:
            return trace(_Tracer(layers))
        except Exception as error:  # tracing runs the model's own code on stand-ins
            raise ValueError(
                f"the model cannot be traced ({type(error).__name__}: {error}); name what "
                "follows each layer, by followers={'conv1': 'bn1'}"
            ) from error


def _is_description(node: fx.Node, tensor: fx.Node) -> bool:
    """Whether a use of a tensor leaves its values aside."""
    if node.op not in ("call_function", "call_method"):
        return False
    asked = node.args[1] if node.target is getattr else node.target
    if asked in ("to", "type_as"):  # another tensor, as this one
        return node.args[0] is not tensor
    if any(value is tensor for value in tree_leaves((node.args[1:], node.kwargs))):
        return False
    return asked in _DESCRIPTIONS or getattr(asked, "__name__", None) in _FRESH


def _layer_of(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """The layer that a call is of: of its module, or torch's function of its weight and bias."""
    if node.op == "call_module":
        return str(node.target) if isinstance(modules[str(node.target)], LAYERS) else None
    if node.target not in FUNCTIONS:
        return None
    weight, bias = (
        node.args[place] if len(node.args) > place else node.kwargs.get(name)
        for place, name in ((1, "weight"), (2, "bias"))
    )
    name, _, attribute = str(getattr(weight, "target", None)).rpartition(".")
    layer = modules.get(name)
    if attribute != "weight" or not isinstance(layer, FUNCTIONS[node.target]):
        return None
    expected = None if layer.bias is None else dotted(name, "bias")
    return name if getattr(bias, "target", None) == expected else None


def _read(nodes: Iterable[fx.Node], modules: dict[str, nn.Module]) -> set[str]:
    """Tensors that are read for their values, but by a call of the layer whose they are."""

    def harmless(tensor: fx.Node, user: fx.Node) -> bool:
        if _is_description(user, tensor):
            return True
        given = user.args[0] if user.args else user.kwargs.get("input")
        owner = str(tensor.target).rpartition(".")[0]
        return _layer_of(user, modules) == owner and given is not tensor

    return {
        str(node.target)
        for node in nodes
        if node.op == "get_attr" and not all(harmless(node, user) for user in node.users)
    }


def followers_of(
    model: nn.Module, layers: Iterable[str]
) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """The BatchNorm that alone takes the output of each layer, by tracing; why others have none;
    and the tensors that are used elsewhere than in a call of their module, or may be."""
    model, prefix = unwrapped(model, computing=True)
    layers = {inner_name(name, prefix) for name in layers}
    modules = dict(model.named_modules())
    traced = _traced(model, layers)
    nodes = traced.graph.nodes
    calls = Counter(
        node.target if name is None else name
        for node in nodes
        if (name := _layer_of(node, modules)) is not None or node.op == "call_module"
    )
    used = traced.used | _read(nodes, modules)
    refused = {}
    for names, how in (
        (traced.held, "is held by a module that cannot be traced, and may be used there"),
        (used, "is used in other ways than in one call of torch's, where it would change too"),
    ):
        parts = (name.rpartition(".") for name in names)
        owners = {owner for owner, _, key in parts if key in CHANGED}
        for owner in sorted(owners.intersection(layers)):
            refused[owner] = f"its weight or bias {how}"
    found = {}
    for node in nodes:
        name = _layer_of(node, modules)
        if name is None or name not in layers or name in refused:
            continue
        users = [user for user in node.users if not _is_description(user, node)]
        if calls[name] > 1:
            refused[name] = "is called more than once"
        elif len(users) != 1 or users[0].op != "call_module":
            takers = ", ".join(str(user) for user in users) or "nothing"
            refused[name] = f"its output goes to {takers}, not to one BatchNorm alone"
        elif calls[users[0].target] > 1:
            follower = outer_name(str(users[0].target), prefix)
            refused[name] = f"is followed by {follower}, which is called more than once"
        else:
            found[outer_name(name, prefix)] = outer_name(str(users[0].target), prefix)
    told = {outer_name(name, prefix): why for name, why in refused.items()}
    return found, told, {prefix + name for name in used | traced.held}
