"""absorb_scales: scales of binarised layers folded into the BatchNorm that follows each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from torch_glue.filters import LAYERS, as_rows, binary_scales, transposed_groups
from torch_glue.own_forwards import has_own_forward
from torch_glue.passes import evaluating

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
_LEAVE = (
    "leave it out of layers; or name the BatchNorm, by followers, if all that it does with weight "
    "and bias is linear and goes there"
)


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
        Detached; it is rewritten in place.
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
        statistics, or a layer's own forward uses its weight or bias in other ways than in one call
        of torch's; the model is then as before.

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
    if not scales:
        raise ValueError(
            "no layer's weight is exactly ±α in each filter: binarise first, and detach(model)"
        )
    for name in scales:
        for kind in ("weight", "bias"):
            own = modules[name]._parameters.get(kind)
            for other, module in modules.items():
                shared = own is not None and any(p is own for p in module._parameters.values())
                if shared and other not in scales:
                    raise ValueError(
                        f"{name}: shares its {kind} with {other}, which would change too"
                    )
    found = _followers(model, scales) if followers is None else dict(followers)
    folded = [_folded(modules, name, alpha, found.get(name)) for name, alpha in scales.items()]
    for follower, count in Counter(found[name] for name in scales).items():
        if count > 1:
            raise ValueError(f"followers: {follower} follows more than one layer")
    with torch.no_grad():
        for changes in folded:
            for tensor, value in changes:
                tensor.copy_(value)
    return {name: found[name] for name in scales}


class _Tracer(fx.Tracer):
    """Goes into layers whose forward is their own; if names are given, into those alone."""

    def __init__(self, names: Iterable[str] | None = None):
        super().__init__()
        self.names = names

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one call."""
        if not isinstance(m, LAYERS):
            return super().is_leaf_module(m, module_qualified_name)
        left_out = self.names is not None and module_qualified_name not in self.names
        return left_out or not has_own_forward(m)


_FRESH = (
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
    *("zeros_like", "ones_like", "empty_like", "full_like"),
)
"""Functions that take no values of their tensor."""
_READ = ("item", "tolist", "numpy", "__array__", "__float__", "__int__", "__bool__", "equal")
"""Functions that take its values, and give no tensor."""


class _Uses(TorchFunctionMode):
    """Notes of which layers a parameter is taken, by torch, for more than a description of it.

    Tracing itself sees only those that forwards read as an attribute of their module.
    """

    def __init__(self, layers: dict[int, str]):
        super().__init__()
        self.layers, self.used = layers, set[str]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        result, name = func(*args, **kwargs), getattr(func, "__name__", "")
        gives = any(isinstance(value, (Tensor, fx.Proxy)) for value in tree_leaves(result))
        if (gives and name not in _FRESH) or name in _READ:
            given = {id(value) for value in tree_leaves((args, kwargs))}
            self.used |= {name for key, name in self.layers.items() if key in given}
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
        (buffer, buffer._version, buffer.clone())
        for buffer in model.buffers()
        if not is_lazy(buffer) and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        for changed, as_it_was in kept:
            changed.clear()
            changed.update(as_it_was)
        for buffer, version, value in buffers:
            if buffer._version != version:
                buffer.copy_(value)


def _traced(model: nn.Module, layers: Iterable[str]) -> tuple[fx.Graph, set[str]]:
    """The graph of a model in eval mode, as what follows a layer may depend on the mode; and the
    layers of which a parameter is used without being read as an attribute.

    It is not of a copy, since many models cannot be copied.
    """
    parameters = {
        id(parameter): name
        for name in layers
        for parameter in model.get_submodule(name).parameters(recurse=False)  # no None
    }

    def trace(tracer: fx.Tracer) -> tuple[fx.Graph, set[str]]:
        with evaluating(model), _as_before(model), _Uses(parameters) as uses:
            return tracer.trace(model), uses.used

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
    names = ("dtype", "device", "shape", "ndim", "dim", "size", *_FRESH)
    return asked in names or getattr(asked, "__name__", None) in _FRESH


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
    expected = None if layer.bias is None else f"{name}.bias"
    return name if getattr(bias, "target", None) == expected else None


def _followers(model: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """The BatchNorm that alone takes the output of each layer, by tracing."""
    modules = dict(model.named_modules())
    graph, used = _traced(model, layers)
    nodes = graph.nodes
    calls = Counter(
        name or node.target
        for node in nodes
        if (name := _layer_of(node, modules)) or node.op == "call_module"
    )
    read = {
        name
        for node in nodes
        if node.op == "get_attr"
        for name in [str(node.target).rpartition(".")[0]]
        if not all(
            _is_description(user, node) or _layer_of(user, modules) == name for user in node.users
        )
    }
    used |= read.intersection(layers)
    if used:
        raise ValueError(
            f"{min(used)}: its weight or bias is used in other ways than in one call of torch's, "
            f"where it would change too: {_LEAVE}"
        )
    found = {}
    for node in nodes:
        name = _layer_of(node, modules)
        if name is None or name not in layers:
            continue
        users = [user for user in node.users if not _is_description(user, node)]
        if len(users) != 1 or users[0].op != "call_module" or calls[name] > 1:
            takers = ", ".join(str(user) for user in users) or "nothing"
            raise ValueError(
                f"{name}: its output goes to {takers}, not to one BatchNorm alone: {_LEAVE}"
            )
        if calls[users[0].target] > 1:
            raise ValueError(f"{users[0].target}: follows more than {name}")
        found[name] = str(users[0].target)
    return found


def _folded(
    modules: dict[str, nn.Module], name: str, alpha: Tensor, follower: str | None
) -> list[tuple[Tensor, Tensor]]:
    """What to write where, so that a layer's scales and bias are in its BatchNorm."""
    layer: Any = modules[name]
    norm = None if follower is None else modules.get(follower)
    kind = nn.modules.batchnorm._BatchNorm
    if not isinstance(norm, kind) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            f"{name}: is followed by {follower!r}, no BatchNorm with running statistics, which "
            "could take its scales: leave it out of layers"
        )
    if norm.num_features != len(alpha):
        raise ValueError(f"{follower}: has {norm.num_features} features, {name} {len(alpha)}")
    if layer.bias is not None and layer._parameters.get("bias") is None:
        raise ValueError(f"{name}: its bias is parametrized: make it a plain one first")
    alpha = alpha.double()
    mean, variance = norm.running_mean.double(), norm.running_var.double() + norm.eps
    bias = torch.zeros_like(alpha) if layer.bias is None else layer.bias.detach().double()
    weight = layer.weight.detach()
    changes = [(layer.weight, torch.where(weight.signbit(), -1, 1).to(weight))]
    if layer.bias is not None:
        changes.append((layer.bias, torch.zeros_like(layer.bias)))
    alpha_or_one = torch.where(alpha == 0, 1, alpha)
    scaled = variance / alpha_or_one.square() - norm.eps
    centre = (mean - bias) / alpha_or_one
    most = torch.finfo(norm.running_var.dtype).max
    dead = (alpha == 0) | (centre.abs() > most)  # all that it gives goes to the shift
    in_gain = dead | (scaled < 0) | (scaled > most)
    if in_gain.any():
        if not norm.affine:
            raise ValueError(f"{follower}: has no weight, which alone could take a scale of {name}")
        gain, shift = norm.weight.detach().double(), norm.bias.detach().double()
        fixed = shift + gain * (bias - mean) / variance.sqrt()  # without z
        changes += [
            (norm.weight, torch.where(in_gain, gain * alpha, gain)),
            (norm.bias, torch.where(dead, fixed, shift)),
        ]
    centre = torch.where(dead, 0, centre)
    spread = torch.where(in_gain, norm.running_var.double(), scaled)
    return [*changes, (norm.running_mean, centre), (norm.running_var, spread)]
