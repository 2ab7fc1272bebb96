"""Files that appear whole or not at all, digests, and HDF5 errors that name the file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from pathlib import Path
from typing import Any

import h5py
import numpy as np


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on leaving without error it becomes ``path``."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; make it first")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself must survive a power cut
        finally:
            os.close(folder)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def write_h5(path: str | os.PathLike) -> Iterator[h5py.File]:
    """An HDF5 file to write, which appears whole or not at all; Ctrl-C waits until it is."""
    with undisturbed(), atomic(path) as part, h5py.File(part, "w", locking=False) as file:
        yield file


def check_h5_target(path: str | os.PathLike) -> None:
    """Refuse a path at which no HDF5 file can appear, or none is looked for.

    Raises
    ------
    ValueError
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name a file in it")
    if target.suffix.lower() in (".npy", ".npz", ".safetensors"):
        raise ValueError(f"{target}: what is written is HDF5: name it {target.stem}.h5")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within, signals to end wait: raised amid h5py's own code, KeyboardInterrupt may be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread
        return
    waiting: list[int] = []
    kept = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not None:  # one that Python can put back
            kept[number] = signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for late in waiting:
            signal.raise_signal(late)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic(path) as part:
        part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextmanager
def open_h5(path: str | os.PathLike) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises
    ------
    ValueError
        Where the file is missing, truncated or damaged (failed checksums included).
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        # "best-effort" is HDF5's default: another value cannot share a file this process has open
        with h5py.File(path, "r", locking="best-effort", rdcc_nbytes=128 * 2**20) as file:
            _refuse_tricks(file, path)
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if "lock file" in str(error):  # not "sblock", which truncated files are told by
            raise ValueError(f"{path}: open for writing elsewhere ({error})") from error
        raise ValueError(f"{path}: {_why_not_h5(Path(path), error)}") from error


def _why_not_h5(path: Path, error: Exception) -> str:
    """What is wrong with a file that could not be read, and how to mend it."""
    if path.suffix in (".h5", ".hdf5") or h5py.is_hdf5(path):
        return f"damaged or not an HDF5 file ({error}); make it anew"
    if path.suffix in (".npy", ".npz"):
        return "not an HDF5 file, but NumPy's, which holds none of what is wanted here"
    if path.suffix in (".csv", ".tsv", ".txt", ".dat"):
        comma = ", delimiter=','" if path.suffix == ".csv" else ""
        return (
            "not an HDF5 file, nor an .npy or .npz; of text make one: "
            f"numpy.save({str(path.with_suffix('.npy'))!r}, numpy.loadtxt({str(path)!r}{comma}))"
        )
    return "damaged or not an HDF5 file, nor an .npy or .npz: no other kinds are read"


_LONGEST_ATTRIBUTE = 2**16
MAX_COMPRESSION = 1100
"""Bytes that a byte of a compressed file can stand for (deflate: 1,032)."""


def _is_no_chunk(stored: Any) -> bool | None:
    """Whether a stored chunk is too short for its checksum, at which HDF5 crashes."""
    return True if stored.size <= 4 else None


def _refuse_tricks(file: h5py.File, path: str | os.PathLike) -> None:
    """Refuse data that lie in other files, or that claim more than the file can hold."""
    most = MAX_COMPRESSION * os.path.getsize(path)
    groups, seen = [file], set()
    while groups:
        group = groups.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise ValueError(
                    f"{path}: {name!r} is a link to another file, which is not followed"
                )
            if not isinstance(link, h5py.HardLink):
                continue  # it leads to something that is visited anyway
            node = group[name]
            address = h5py.h5o.get_info(node.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(node, h5py.Group):
                groups.append(node)
            elif isinstance(node, h5py.Dataset):
                if node.is_virtual or node.external:
                    raise ValueError(f"{path}: {name!r} lies in other files, which are not read")
                chunk = math.prod(node.chunks or ()) * node.dtype.itemsize
                if max(node.nbytes, chunk) > most:
                    raise ValueError(
                        f"{path}: {name!r} claims shape {node.shape}, more than this file can hold"
                    )
                if node.fletcher32 and node.id.chunk_iter(_is_no_chunk):
                    raise ValueError(f"{path}: damaged: {name!r} has a part without data")


def write_attributes(node: h5py.HLObject, values: Mapping[str, Any]) -> None:
    """Numbers, short arrays and text as attributes; text of fixed length, see `attribute`."""
    for name, value in values.items():
        if isinstance(value, str):
            value = value.encode()
            dtype = h5py.string_dtype("utf-8", max(1, len(value)))
            node.attrs.create(name, value, dtype=dtype)
        else:
            node.attrs[name] = value


def attribute(node: h5py.HLObject, name: str) -> Any:
    """An attribute that `write_attributes` wrote: text as str, the rest as NumPy gives it.

    Text of variable length is refused: where that is damaged, HDF5 may never return.
    """
    if name not in node.attrs:
        raise KeyError(f"no attribute {name!r}")
    found = h5py.h5a.open(node.id, name.encode())
    if found.dtype.kind == "O" or found.get_storage_size() > _LONGEST_ATTRIBUTE:
        raise KeyError(f"attribute {name!r} is of a kind that is not read")
    value = node.attrs[name]
    return value.decode() if isinstance(value, bytes) else value


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*values: Any) -> str:
    """A SHA-256 of arrays, containers, text and numbers, as a fingerprint.

    >>> digest([1, "a"]) == digest((1, "a")), digest(1) == digest(2)
    (True, False)
    """
    state = hashlib.sha256()
    for value in values:
        update(value, state)
    return state.hexdigest()


@singledispatch
def update(value: Any, state: Any) -> None:
    """Feed one value into a hash; adapters register their own array types here."""
    array = np.ascontiguousarray(value)
    if array.dtype.hasobject:
        raise TypeError(f"cannot fingerprint a {type(value).__name__}")
    state.update(f"{array.dtype.str}{np.shape(value)}".encode())
    state.update(array.reshape(-1).view(np.uint8).data)


@update.register
def _(value: str, state: Any) -> None:
    state.update(b"s%d:" % len(value) + value.encode())


@update.register(type(None))
def _(value: None, state: Any) -> None:
    state.update(b"none")


@update.register(Mapping)
def _(value: Mapping, state: Any) -> None:
    state.update(b"m%d:" % len(value))
    for key in sorted(value):
        update(key, state)
        update(value[key], state)


@update.register(list)
@update.register(tuple)
def _(value: list | tuple, state: Any) -> None:
    state.update(b"l%d:" % len(value))
    for item in value:
        update(item, state)
