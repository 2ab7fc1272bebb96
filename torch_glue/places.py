"""Where a model's weights are: one place a layer, whatever kind of module it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hashsolve
from torch_glue.filters import PLAIN, PROJECTIONS, TRANSPOSED


@dataclass(frozen=True, eq=False)
class Place:
    """A convolution or linear module: its weight lies as a `hashsolve.Layer` has it.

    Attributes
    ----------
    module : nn.Module
        Whose call is the layer's.
    owner : nn.Module
        Who holds the weight and the bias.
    weight, bias : str
        Their names there.
    rows, bias_rows : (first, end)
        The part of each that is this layer's; all where None.
    """

    module: nn.Module
    owner: nn.Module
    weight: str = "weight"
    bias: str = "bias"
    rows: tuple[int | None, int | None] = (None, None)
    bias_rows: tuple[int | None, int | None] = (None, None)

    @property
    def watched(self) -> bool:
        """Whether its inputs are seen only where the pass is watched, not by its module's hook."""
        return False

    @property
    def parameter(self) -> Tensor | None:
        """The whole parameter; None where it is computed from other tensors."""
        return self.owner._parameters.get(self.weight)

    @property
    def address(self) -> int | None:
        """Where its weight begins in memory."""
        whole = self.parameter
        return None if whole is None or whole.is_meta else self.own(whole).data_ptr()

    @property
    def part(self) -> int | None:
        """Which of the equal parts of a packed parameter is this layer's; None where all is."""
        first, end = self.rows
        return None if first is None or end is None else first // (end - first)

    @property
    def layout(self) -> str:
        """How the weight lies in memory, where not as its shape says."""
        return ""

    @property
    def geometry(self) -> hashsolve.Geometry:
        """Of the layer."""
        m: Any = self.module
        if not hasattr(m, "kernel_size"):
            return hashsolve.Geometry()
        return hashsolve.Geometry.conv(
            m.kernel_size, m.stride, m.padding, m.dilation, m.groups, m.padding_mode
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the layer's weight, which is not touched: a parametrized one would be computed."""
        m: Any = self.module
        if not hasattr(m, "kernel_size"):
            return m.out_features, m.in_features
        return m.out_channels, m.in_channels // m.groups, *m.kernel_size

    def own(self, parameter: Tensor) -> Tensor:
        """What of the whole parameter is this layer's, as it lies there."""
        return parameter[slice(*self.rows)]

    def read(self, parameter: Tensor) -> Tensor:
        """The layer's weight, from the whole parameter."""
        return self.own(parameter)

    def fill(self, parameter: Tensor, weight: Tensor) -> None:
        """Put the layer's weight into the whole parameter."""
        self.own(parameter).copy_(weight)

    def inputs(self, args: tuple, kwargs: dict) -> np.ndarray:
        """A copy of the input of one call of the module, with a sample axis."""
        return as_array(self.with_samples(args[0] if args else kwargs["input"]))

    def with_samples(self, value: Tensor) -> Tensor:
        """Maps with a sample axis, also of one sample that came without."""
        kernel: Any = getattr(self.module, "kernel_size", None)
        return value[None] if kernel is not None and value.dim() == len(kernel) + 1 else value


class Transposed(Place):
    """A transposed convolution: one of stride 1 over its input with zeros between and around.

    Its filters are the output channels, and its kernels are turned round.
    """

    @property
    def layout(self) -> str:
        """Input channels come first."""
        return "transposed"

    @property
    def geometry(self) -> hashsolve.Geometry:
        """Over maps that `inputs` has spread and padded."""
        m: Any = self.module
        return hashsolve.Geometry.conv(m.kernel_size, 1, 0, m.dilation, m.groups)

    def _turned(self, weight: Tensor, channels: int, share: int) -> Tensor:
        """Swap channels and filters within each group, and turn the kernels round."""
        m: Any = self.module
        kernel = m.kernel_size
        parts = weight.reshape(m.groups, channels, share, *kernel).transpose(1, 2)
        spatial = tuple(range(2, 2 + len(kernel)))
        return parts.reshape(-1, channels, *kernel).flip(spatial)

    def read(self, parameter: Tensor) -> Tensor:
        """(channels, filters / groups, *kernel) as (filters, channels / groups, *kernel)."""
        m: Any = self.module
        return self._turned(parameter, m.in_channels // m.groups, m.out_channels // m.groups)

    def fill(self, parameter: Tensor, weight: Tensor) -> None:
        """The way back."""
        m: Any = self.module
        turned = self._turned(weight, m.out_channels // m.groups, m.in_channels // m.groups)
        parameter.copy_(turned)

    def inputs(self, args: tuple, kwargs: dict) -> np.ndarray:
        """Zeros between, as the stride asks for, and around, so that the output has its size."""
        maps = super().inputs(args, kwargs)
        sizes = args[1] if len(args) > 1 else kwargs.get("output_size")
        m: Any = self.module
        spatial = maps.shape[2:]
        target: list[Any] = [...]
        source: list[Any] = [...]
        shape: list[int] = []
        for axis, size in enumerate(spatial):
            reach = m.dilation[axis] * (m.kernel_size[axis] - 1)
            before = reach - m.padding[axis]
            extra = m.output_padding[axis]
            if sizes is not None:
                least = (size - 1) * m.stride[axis] - 2 * m.padding[axis] + reach + 1
                extra = list(sizes)[axis - len(spatial)] - least
            length = (size - 1) * m.stride[axis] + 1 + 2 * before + extra
            # padding that is negative cuts values off
            kept = [i for i in range(size) if 0 <= before + i * m.stride[axis] < length]
            source.append(slice(kept[0], kept[-1] + 1) if kept else slice(0))
            first = before + kept[0] * m.stride[axis] if kept else 0
            target.append(slice(first, first + len(kept) * m.stride[axis], m.stride[axis]))
            shape.append(length)
        spread = np.zeros((*maps.shape[:2], *shape), dtype=maps.dtype)
        spread[tuple(target)] = maps[tuple(source)]
        return spread


class Projection(Place):
    """One projection of a `nn.MultiheadAttention`, perhaps part of its packed weight."""

    @property
    def watched(self) -> bool:
        """Projections are made inside one function."""
        return True

    @property
    def geometry(self) -> hashsolve.Geometry:
        """Linear."""
        return hashsolve.Geometry()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its part of the weight."""
        m: Any = self.module
        width = {"k_proj_weight": m.kdim, "v_proj_weight": m.vdim}.get(self.weight, m.embed_dim)
        return m.embed_dim, width

    def inputs(self, args: tuple, kwargs: dict) -> np.ndarray:
        """As `torch_glue.watch` sees them, (positions, samples, features), samples first."""
        (value,) = args
        return as_array(samples_first(value))


def samples_first(value: Tensor) -> Tensor:
    """Of (positions, samples, features), samples first; of one sample's, as it is."""
    return value.transpose(0, 1) if value.dim() == 3 else value


def places_of(model: nn.Module) -> dict[str, Place]:
    """Every layer that can be binarised, by name."""
    places: dict[str, Place] = {}
    inside = set()
    for name, module in model.named_modules():
        dot = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            size = module.embed_dim
            for n, part in enumerate(PROJECTIONS):
                own, packed = (n * size, (n + 1) * size), module._qkv_same_embed_dim
                places[dot + part] = Projection(
                    module,
                    module,
                    "in_proj_weight" if packed else f"{part}_weight",
                    "in_proj_bias",
                    own if packed else (None, None),
                    own,
                )
            if isinstance(getattr(module, "out_proj", None), nn.Linear):
                inside.add(module.out_proj)
                places[f"{dot}out_proj"] = Projection(module, module.out_proj)
        elif isinstance(module, TRANSPOSED):
            places[name] = Transposed(module, module)
        elif isinstance(module, PLAIN) and module not in inside:
            places[name] = Place(module, module)
    return places


def dotted(name: str, key: str) -> str:
    """What a tensor of the module of this name is called; that of the model itself is ""."""
    return f"{name}.{key}".lstrip(".")


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, but for what is None."""
    tensors = {**module._parameters, **module._buffers}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def state_name(name: str, place: Place) -> str:
    """What the weight of a layer of this name is called in the model's state dict."""
    if isinstance(place, Projection) and place.owner is place.module:
        name = name.rpartition(".")[0]
    return dotted(name, place.weight)


@contextmanager
def writable(tensor: Tensor) -> Iterator[None]:
    """Within, a tensor's values may be written, also of one that inference mode made; what autocast
    has kept of it is forgotten."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        yield
    torch.clear_autocast_cache()


def fill(tensor: Tensor, value: Tensor) -> None:
    """Write a tensor's values."""
    with writable(tensor):
        tensor.copy_(value)


def as_array(value: Tensor) -> np.ndarray:
    """A copy in a type that NumPy knows."""
    dtype = torch.float32 if value.dtype == torch.bfloat16 else value.dtype
    return value.detach().to("cpu", dtype, copy=True).numpy()


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in arguments or results, however nested."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]
