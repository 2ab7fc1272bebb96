"""Packed checkpoints: networks at one bit a binarised weight, read without any framework.

A packed checkpoint is a safetensors file. Each tensor of the network is either there under its own
name, as it was, or, where it is ±α in each filter (or in each group of a filter's inputs), as

``NAME::codes``
    uint8 (ceil(T·S / 8),): its signs, +1 as 1, filter after filter, inputs in the order of the
    weight's own axes, least significant bit first, the last byte filled up with 0.
``NAME::scales``
    (T, G) in the weight's dtype: α of each filter and each of its G groups of S / G consecutive
    inputs. A code of −1 negates α, also where that is 0, so that not a bit is lost.

Metadata: ``format`` is "hashsolve.packed", ``version`` "1"; ``layers`` is JSON, NAME to
``[shape, groups]``: groups is 0, except for a transposed convolution: filters are then not the
first axis of its weight (in, out / groups, *kernel), but the second, within each group of the
first. ``aliases`` is JSON, NAME to the name of another tensor that it shares all its memory with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from hashsolve.packing import unpack

FORMAT, VERSION = "hashsolve.packed", "1"
CODES, SCALES = "::codes", "::scales"
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
    "C64": "<c8",
}


@dataclass(frozen=True)
class PackedWeight:
    """How one packed weight lies in the file.

    Attributes
    ----------
    shape : tuple of int
        Of the weight.
    groups : int
        Of a transposed convolution, else 0.
    scales : tuple of int
        (T, G).
    """

    shape: tuple[int, ...]
    groups: int
    scales: tuple[int, int]

    @property
    def rows(self) -> tuple[int, int]:
        """(T, S)."""
        return self.scales[0], math.prod(self.shape) // self.scales[0]


@dataclass(frozen=True)
class Layout:
    """What a packed checkpoint holds: packed weights, plain tensors, aliases."""

    packed: dict[str, PackedWeight]
    plain: list[str]
    aliases: dict[str, str]

    @property
    def names(self) -> set[str]:
        """Of all the network's tensors."""
        return {*self.packed, *self.plain, *self.aliases}


def read_layout(
    path: str | PathLike, metadata: Mapping[str, str] | None, shapes: Mapping[str, tuple[int, ...]]
) -> Layout:
    """Check what a file claims against the shapes of the tensors that it holds.

    Raises
    ------
    ValueError
        Where it is no packed checkpoint of this version, or its parts do not fit.
    """
    metadata = metadata or {}
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not a packed checkpoint: write it with torch_glue.save_packed")
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path}: of version {metadata.get('version')!r}, this hashsolve reads {VERSION!r}"
        )
    layers, aliases = (_json(path, metadata, key) for key in ("layers", "aliases"))
    rest = dict(shapes)
    packed = {}
    for name, entry in layers.items():
        match entry:
            case [[*sizes], int(groups)] if all(type(n) is int and n > 0 for n in sizes):
                shape = tuple(sizes)
            case _:
                raise ValueError(f"{path}: {name}: damaged: its shape reads {entry!r}")
        codes, scales = rest.pop(name + CODES, None), rest.pop(name + SCALES, None)
        size = math.prod(shape)
        filters = _filters(shape, groups)
        if (
            codes != ((size + 7) // 8,)
            or scales is None
            or len(scales) != 2
            or scales[0] != filters
            or scales[1] < 1
            or (size // filters) % scales[1]
        ):
            raise ValueError(
                f"{path}: {name}: damaged: {codes} bytes of codes and scales of shape {scales} for "
                f"a weight of shape {shape}"
            )
        packed[name] = PackedWeight(shape, groups, (scales[0], scales[1]))
    for name, target in aliases.items():
        if target not in packed.keys() | rest.keys() or name in packed.keys() | rest.keys():
            raise ValueError(f"{path}: {name}: damaged: it shares the memory of {target!r}")
    if both := packed.keys() & rest.keys():
        raise ValueError(f"{path}: {min(both)}: damaged: it is there both packed and plain")
    return Layout(packed, list(rest), dict(aliases))


def _json(path: str | PathLike, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        found = json.loads(metadata.get(key, ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: its {key} are not JSON ({error})") from error
    if not isinstance(found, dict) or (
        key == "aliases" and not all(isinstance(name, str) for name in found.values())
    ):
        raise ValueError(f"{path}: damaged: its {key} are no table of names")
    return found


def _filters(shape: tuple[int, ...], groups: int) -> int:
    """T, or 0 where there can be none."""
    if not groups:
        return shape[0] if shape else 0
    return shape[1] * groups if groups > 0 and len(shape) > 1 and shape[0] % groups == 0 else 0


def read_packed_checkpoint(path: str | PathLike) -> dict[str, np.ndarray]:
    """All tensors of a packed checkpoint, by name, as NumPy arrays.

    It needs no framework, only ``pip install 'hashsolve[packed]'``.

    Parameters
    ----------
    path : path
        What `torch_glue.save_packed` wrote.

    Returns
    -------
    dict of arrays
        Binarised weights in full, each exactly ±α; bfloat16, which NumPy lacks, as float32.

    Raises
    ------
    ValueError
        Where the file is missing, damaged or something else.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from safetensors.numpy import save_file
    >>> tensors = {"w::codes": np.array([5], np.uint8), "w::scales": np.array([[2.0]])}
    >>> metadata = {"format": FORMAT, "version": VERSION, "layers": '{"w": [[1, 3], 0]}'}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "layer.safetensors")
    ...     save_file(tensors, path, metadata | {"aliases": "{}"})
    ...     read_packed_checkpoint(path)["w"]
    array([[ 2., -2.,  2.]])
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:  # the header is checked here
            metadata = file.metadata()
        parts = dict(safetensors.deserialize(Path(path).read_bytes()))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from error
    layout = read_layout(path, metadata, {name: tuple(p["shape"]) for name, p in parts.items()})
    found = {}
    for name in layout.plain:
        found[name] = _array(path, name, parts[name])
    for name, weight in layout.packed.items():
        bits = _array(path, name + CODES, parts[name + CODES])
        scales = _array(path, name + SCALES, parts[name + SCALES])
        if bits.dtype != np.uint8 or scales.dtype.kind != "f":
            raise ValueError(f"{path}: {name}: damaged: codes of {bits.dtype}, {scales.dtype}")
        found[name] = weight_of(bits, scales, weight)
    return found | {name: found[target] for name, target in layout.aliases.items()}


def weight_of(bits: np.ndarray, scales: np.ndarray, weight: PackedWeight) -> np.ndarray:
    """The weight in full, in the dtype of its scales.

    Parameters
    ----------
    bits : uint8 array
    scales : array (T, G)
    weight : PackedWeight

    Examples
    --------
    >>> weight_of(np.array([5], np.uint8), np.array([[2.0]]), PackedWeight((1, 3), 0, (1, 1)))
    array([[ 2., -2.,  2.]])
    """
    filters, inputs = weight.rows
    positive = unpack(bits, (inputs, filters)).T > 0
    size = np.repeat(scales, inputs // scales.shape[1], axis=1)
    rows = np.where(positive, size, -size)
    if not weight.groups:
        return rows.reshape(weight.shape)
    inner = (weight.groups, weight.shape[1], -1, *weight.shape[2:])
    return np.ascontiguousarray(rows.reshape(inner).swapaxes(1, 2).reshape(weight.shape))


def _array(path: str | PathLike, name: str, part: Mapping[str, Any]) -> np.ndarray:
    if part["dtype"] not in _DTYPES:
        raise ValueError(f"{path}: {name}: NumPy has no type for {part['dtype']}")
    array = np.frombuffer(part["data"], _DTYPES[part["dtype"]]).reshape(part["shape"])
    if part["dtype"] == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.copy()
