"""save_packed, load_packed: checkpoints at one bit a binarised weight, in safetensors.

The format is described in `hashsolve.packed_checkpoint`, which also reads it without torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hashsolve.files import atomic
from hashsolve.packed_checkpoint import (
    CODES,
    FORMAT,
    SCALES,
    VERSION,
    Layout,
    PackedWeight,
    read_layout,
)
from hashsolve.packing import pack, unpack
from torch_glue.binary_weight import attached
from torch_glue.checks import check_model, check_target
from torch_glue.filters import as_rows, binary_scales, from_rows, group_length, transposed_groups
from torch_glue.parametrize import attachable
from torch_glue.passes import inner_name, outer_name, unwrapped
from torch_glue.places import places_of, state_name

logger = logging.getLogger("torch_glue")


@dataclass(frozen=True)
class PackedSizes:
    """Bytes of a packed checkpoint.

    Attributes
    ----------
    layers : list of str
        The tensors that are packed.
    binarized_before, binarized_after : int
        Bytes of these tensors, and of their codes and scales.
    total_before, total_after : int
        Bytes of all tensors, and of the whole file.
    """

    layers: list[str]
    binarized_before: int
    binarized_after: int
    total_before: int
    total_after: int

    @property
    def binarized_ratio(self) -> float:
        """How much smaller binarised weights are; 1 where there are none."""
        return self.binarized_before / self.binarized_after if self.layers else 1.0

    @property
    def total_ratio(self) -> float:
        """How much smaller the file is than its tensors."""
        return self.total_before / self.total_after

    def __str__(self) -> str:
        return (
            f"{len(self.layers)} binarised weights: {self.binarized_before:,} bytes as "
            f"{self.binarized_after:,} ({self.binarized_ratio:.1f} x smaller); in all "
            f"{self.total_before:,} as {self.total_after:,} ({self.total_ratio:.1f} x)"
        )


def save_packed(
    model: nn.Module, path: str | PathLike, *, layers: str | Iterable[str] = ()
) -> PackedSizes:
    """Write a model's state: one bit a binarised weight, its scales, all else as it is.

    A weight is packed where it is exactly ±α in each filter, or in each group of a filter's
    consecutive inputs, and smaller for it; one that holds projections of an attention, where
    all of them are. NaN and signs of zeros are kept, so that what is loaded is the same bit for
    bit. Attached layers are written as `detach` would leave them.

    Parameters
    ----------
    model : torch.nn.Module
        Of one that is wrapped (data parallelism, torch.compile, AveragedModel), what is within.
    path : path
        The file appears whole or not at all; one model gives the same bytes each time.
    layers : str or iterable of str, optional
        Names of layers whose weight must be binary.

    Returns
    -------
    PackedSizes

    Raises
    ------
    ValueError
        Where one of ``layers`` is not binary or not there, the state holds what is no tensor, or
        the path's folder is not there.

    Examples
    --------
    >>> import torch, torch_glue, tempfile, pathlib
    >>> model = torch.nn.Sequential(torch.nn.Linear(576, 64), torch.nn.Linear(64, 2))
    >>> _ = torch_glue.attach(model, ["0"])  # sign(W), mean |W|
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.safetensors")
    ...     sizes = torch_glue.save_packed(model, path)
    ...     _ = torch_glue.detach(model)
    ...     other = torch.nn.Sequential(torch.nn.Linear(576, 64), torch.nn.Linear(64, 2))
    ...     torch_glue.load_packed(other, path)
    ['0']
    >>> round(sizes.binarized_ratio, 1), torch.equal(model[0].weight, other[0].weight)
    (30.3, True)
    """
    check_model(model)
    check_target(path, "path")
    model, prefix = unwrapped(model)
    layers = [layers] if isinstance(layers, str) else layers
    layers = [inner_name(name, prefix) for name in layers]
    state = _plain_state(model)
    transposed = {
        f"{name}.weight".lstrip("."): transposed_groups(module)
        for name, module in model.named_modules()
    }
    known = {name: tensor for tensor, names in _names(model).items() for name in names}
    required = {known.get(name, f"{name}.weight".lstrip(".")) for name in layers}
    if missing := required - state.keys():
        raise ValueError(f"layers: the model has no tensor {min(missing)!r}")
    tensors: dict[str, Tensor] = {}
    packed: dict[str, list] = {}
    aliases: dict[str, str] = {}
    owners: dict[tuple, str] = {}
    before = after = total = 0
    for name, value in state.items():
        value = value.detach()
        if value.numel():
            owner = owners.setdefault(_place(value), name)
            if owner != name:
                aliases[name] = owner
                continue
        groups = transposed.get(name, 0)
        parts = _packed(value, groups)
        size = value.numel() * value.element_size()
        total += size
        if parts is None:
            # a copy of its own: safetensors takes no two tensors on overlapping memory
            tensors[name] = value.cpu().clone(memory_format=torch.contiguous_format)
            continue
        tensors[name + CODES], tensors[name + SCALES] = parts
        packed[name] = [list(value.shape), groups]
        before += size
        after += sum(part.numel() * part.element_size() for part in parts)
    for name in sorted(required):
        if aliases.get(name, name) not in packed:
            groups = transposed.get(name, 0)
            binary = state[name].dim() > 1 and binary_scales(as_rows(state[name], groups))
            raise ValueError(
                f"{name}: it has too few inputs a filter to be smaller packed"
                if isinstance(binary, Tensor)
                else f"{name}: it is not exactly ±α in each filter"
            )
    if not packed:
        logger.warning("%s: no weight is exactly ±α in each filter: none is packed", path)
    if len(tensors) != len(state) - len(aliases) + len(packed):
        raise ValueError(f"a tensor's name ends in {CODES} or {SCALES}, as packed ones do")
    metadata = {"format": FORMAT, "version": VERSION}
    metadata |= {"layers": json.dumps(packed), "aliases": json.dumps(aliases)}
    with atomic(path) as part:
        save_file(tensors, part, metadata)
        _sort_metadata(part)
    return PackedSizes(list(packed), before, after, total, Path(path).stat().st_size)


def load_packed(model: nn.Module, path: str | PathLike) -> list[str]:
    """Load what `save_packed` wrote, bit for bit.

    Parameters
    ----------
    model : torch.nn.Module
        Of the same shape and dtypes, without attached layers; of one that is wrapped, what is
        within.
    path : path

    Returns
    -------
    list of str
        The layers whose weights are binary and which `attach` takes, to train them further: not
        embeddings, nor what shares its weight with one; of layers that share one, the first. The
        model itself is "".

    Raises
    ------
    ValueError
        Where the file is missing, damaged, or of another model, or where it has two values for
        what is one tensor in the model; the model is then as it was.
    """
    check_model(model)
    model, prefix = unwrapped(model)
    if attached(model):
        raise ValueError("the model has attached layers: detach(model) first")
    state, layout = _read(path)
    own = model.state_dict()
    for what, names in (("lacks", own.keys() - state.keys()), ("has", state.keys() - own.keys())):
        if names:
            raise ValueError(
                f"{path}: {what} {min(names)!r}, and {len(names) - 1} more, unlike this model: "
                "it is of another one"
            )
    for name, wanted in own.items():
        value = state[name]
        if is_lazy(wanted):
            raise ValueError(f"{name}: has no shape yet: run the model on a batch before loading")
        if isinstance(wanted, Tensor) and wanted.is_meta:
            raise ValueError(f"{name}: is on the meta device: model.to_empty(device='cpu') first")
        if not isinstance(wanted, Tensor) or wanted.shape != value.shape:
            raise ValueError(
                f"{path}: {name} is of shape {tuple(value.shape)}, the model's of "
                f"{tuple(getattr(wanted, 'shape', ()))}"
            )
        if wanted.dtype != value.dtype:
            raise ValueError(
                f"{path}: {name} is {value.dtype}, the model's {wanted.dtype}: bring the model to "
                f"that type first, by model.to({value.dtype})"
            )
    _check_tied(path, own, state)
    # what was made in inference mode can be written to in it alone
    with torch.inference_mode(any(value.is_inference() for value in own.values())):
        model.load_state_dict(state)
    torch.clear_autocast_cache()  # of what was there before
    named = _names(model)
    layers = (name for tensor in layout.packed for name in named.get(tensor, ()))
    return [outer_name(name, prefix) for name in layers if _is_attachable(model, name)]


def _check_tied(path: str | PathLike, own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """What is one tensor in the model must be one in the file, bit for bit."""
    owners: dict[tuple, str] = {}
    for name, value in own.items():
        owner = owners.setdefault(_place(value), name) if value.numel() else name
        bits = (state[key].contiguous().reshape(-1).view(torch.uint8) for key in (owner, name))
        if owner != name and not torch.equal(*bits):
            raise ValueError(
                f"{path}: {owner} and {name} differ, but are one tensor in this model: give each "
                "its own before loading"
            )


def _names(model: nn.Module) -> dict[str, list[str]]:
    """Of each weight in the state dict, the layers that `attach` knows it by."""
    names: dict[str, list[str]] = {}
    for name, place in places_of(model).items():
        names.setdefault(state_name(name, place), []).append(name)
    return names


def _is_attachable(model: nn.Module, name: str) -> bool:
    try:
        return bool(attachable(model, [name]))
    except ValueError:
        return False


def _sort_metadata(path: Path) -> None:
    """Put safetensors' metadata, which it writes in random order, into one order."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > size:
            raise RuntimeError(f"{path}: its header cannot be written anew in {size} bytes")
        file.seek(8)
        file.write(text.ljust(size))


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as it is once layers are detached."""
    state = dict(model.state_dict())
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(f"{name}.".lstrip("."))
    weights: dict[tuple[int, ...], Tensor] = {}  # one for all that share it
    for layer in attached(model).values():
        if layer.computed_by not in weights:
            weights[layer.computed_by] = layer.whole
        for start in names[layer.module]:
            inside = f"{start}parametrizations.{layer.tensor}."
            state = {key: value for key, value in state.items() if not key.startswith(inside)}
            state[start + layer.tensor] = weights[layer.computed_by]
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{key}: is not a plain tensor, which is all that can be written")
    return state


def _place(value: Tensor) -> tuple:
    """Equal for two tensors that are one and the same memory."""
    return value.data_ptr(), value.device, value.dtype, value.shape, value.stride()


def _packed(value: Tensor, groups: int) -> tuple[Tensor, Tensor] | None:
    """Codes and scales of a weight, where it is exactly ±α and smaller for it."""
    if value.dim() < 2 or not value.is_floating_point() or not value.numel():
        return None
    rows = as_rows(value.cpu(), groups)
    scales = rows.abs()[:, :: group_length(rows)].contiguous()  # NaN is never packed
    codes = torch.where(rows.signbit(), -1, 1).to(torch.int8).numpy()
    bits = torch.from_numpy(pack(codes.T))
    after = bits.numel() + scales.numel() * scales.element_size()
    return (bits, scales) if after < value.numel() * value.element_size() else None


def _read(path: str | PathLike) -> tuple[dict[str, Tensor], Layout]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from error
    layout = read_layout(path, metadata, {name: tuple(p.shape) for name, p in parts.items()})
    state = {name: parts[name] for name in layout.plain}
    for name, weight in layout.packed.items():
        codes, scales = parts[name + CODES], parts[name + SCALES]
        if codes.dtype != torch.uint8 or not scales.is_floating_point():
            raise ValueError(f"{path}: {name}: damaged: codes of {codes.dtype}, {scales.dtype}")
        state[name] = _unpacked(codes.numpy(), scales, weight)
    return state | {name: state[target] for name, target in layout.aliases.items()}, layout


def _unpacked(codes: np.ndarray, scales: Tensor, weight: PackedWeight) -> Tensor:
    filters, inputs = weight.rows
    positive = torch.from_numpy(unpack(codes, (inputs, filters)).T.copy()) > 0
    size = scales.repeat_interleave(inputs // scales.shape[1], 1)
    return from_rows(torch.where(positive, size, -size), torch.Size(weight.shape), weight.groups)
