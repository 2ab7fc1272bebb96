"""An index in an HDF5 file: written whole or not at all, and not trusted when read."""

from __future__ import annotations

import json
from os import PathLike
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from hashsolve.files import attribute, digest, open_h5, write_attributes, write_h5
from hashsolve.retrieval.codec import Codec
from hashsolve.retrieval.contents import ROWS, Contents
from hashsolve.retrieval.encoder import Encoder
from hashsolve.retrieval.partition import Partition
from hashsolve.retrieval.training import Candidate, Report

if TYPE_CHECKING:
    from hashsolve.retrieval.index import InnerProductIndex

_KIND = "hashsolve index 3"
_OPTIONS = ("metric", "bits", "rotation", "shrinkage", "effort", "seed", "lists")
_MAPS = ("mean", "query_mean", "decoder", "weight")
_NUMBERS = ("start_scale", "pull", "unbiased", "moves", "query_length")
_ARRAYS = {**ROWS, "counts": np.int64, "centre": np.float64, "centroids": np.float64}


def save(index: InnerProductIndex, path: str | PathLike) -> None:
    """Write an index."""
    fitted, held = index._encoder, index._contents
    codec, partition = fitted.codec, fitted.partition
    arrays = {f"codec/{name}": getattr(codec, name) for name in _MAPS}
    arrays |= {name: getattr(held, name) for name in (*ROWS, "counts")}
    arrays |= {"centre": fitted.centre}
    arrays |= {"centroids": None if partition is None else partition.centroids}
    numbers = {name: getattr(codec, name) for name in _NUMBERS}
    options = {name: getattr(index, name) for name in _OPTIONS}
    options |= {"next": held.next, "codec": numbers}
    about = json.dumps(options)
    report = json.dumps(_as_json(index.report))
    with write_h5(path) as file:
        for name, values in arrays.items():
            if values is not None:
                check = values.size > 0  # there is nothing to check in an empty data set
                file.create_dataset(name, data=values, fletcher32=check, chunks=check or None)
        write_attributes(file, {"kind": _KIND, "options": about, "report": report})
        write_attributes(file, {"sha256": digest(_KIND, about, report, arrays)})


def load(cls: type[InnerProductIndex], path: str | PathLike) -> InnerProductIndex:
    """Read an index; a ValueError names the file where it is none."""
    with open_h5(path) as file:
        kind = attribute(file, "kind") if "kind" in file.attrs else None
        if kind != _KIND:
            what = "not an index that hashsolve saved"
            if str(kind).startswith(_KIND.rstrip("0123456789")):
                what = f"of another version ({kind}; this one reads {_KIND}); fit and add anew"
            raise ValueError(f"{path}: {what}")
        texts = [attribute(file, name) for name in ("options", "report")]
        names = [f"codec/{name}" for name in _MAPS] + [*_ARRAYS]
        arrays = {name: _read(file, name) for name in names}
        if attribute(file, "sha256") != digest(_KIND, *texts, arrays):
            raise ValueError(f"{path}: damaged: its contents do not match its SHA-256")
    try:
        options, report = (json.loads(text) for text in texts)
        numbers, count = options.pop("codec"), options.pop("next")
        index = cls(**options)
        _fill(index, arrays, numbers, count)
        index.report = _from_json(report)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {error}; save it again") from error
    return index


def _read(file: h5py.File, name: str) -> np.ndarray | None:
    node = file.get(name)
    if node is None:
        return None
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "fiu":
        raise KeyError(f"{name} is not an array of numbers")
    return node[()]


def _fill(
    index: InnerProductIndex, arrays: dict[str, Any], numbers: dict[str, Any], count: int
) -> None:
    """Check what belongs together; whoever wrote the file may have written anything."""
    maps = {name: arrays[f"codec/{name}"] for name in _MAPS}
    size, length = maps["decoder"].shape
    rows, lists = len(arrays["ids"]), index.lists or 1
    wanted = {
        "codec/mean": (size,),
        "codec/query_mean": (size,),
        "codec/decoder": (size, size * index.bits),
        "codec/weight": (size, size),
        "centre": (size,),
        "centroids": (lists, size),
        "counts": (lists,),
        "words": (rows, -(-length // 64)),
        "scales": (rows,),
        "offsets": (rows,),
        "ids": (rows,),
    }
    for name, shape in wanted.items():
        values = arrays[name]
        if values is None and (
            name == "codec/weight" or (name, index.lists) == ("centroids", None)
        ):
            continue
        kind = _ARRAYS.get(name, np.float64)
        if values is None or values.shape != shape or values.dtype != kind:
            raise ValueError(f"{name}: must be {np.dtype(kind)} of shape {shape}")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{name}: must be finite")
    ids = arrays["ids"]
    if rows and (ids.min() < 0 or ids.max() >= count or len(np.unique(ids)) < rows):
        raise ValueError("ids: each may occur once, from 0 on")
    counts = arrays["counts"]
    if counts.min() < 0 or counts.max() > rows or counts.sum() != rows:
        raise ValueError("counts: must be those of all vectors")
    spare = 64 * arrays["words"].shape[1] - length
    if rows and spare and (arrays["words"][:, -1] >> np.uint64(64 - spare)).any():
        raise ValueError("words: bits beyond the last")
    if sorted(numbers) != sorted(_NUMBERS):
        raise ValueError("codec: other numbers than it has")
    partition = None if index.lists is None else Partition(arrays["centroids"])
    index._fitted = Encoder(index.metric, arrays["centre"], Codec(**maps, **numbers), partition)
    index._contents = Contents(
        **{name: arrays[name] for name in (*ROWS, "counts")}, next=int(count)
    )


def _as_json(report: Report | None) -> Any:
    if report is None:
        return None
    values = {**vars(report), "chosen": report.candidates.index(report.chosen)}
    return {**values, "candidates": [list(vars(one).values()) for one in report.candidates]}


def _from_json(values: Any) -> Report | None:
    if values is None:
        return None
    candidates = tuple(Candidate(*one) for one in values["candidates"])
    return Report(**{**values, "candidates": candidates, "chosen": candidates[values["chosen"]]})
