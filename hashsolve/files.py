"""Files that appear whole or not at all, digests, and HDF5 errors that name the file."""

from __future__ import annotations

import hashlib
import json
import os
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
            yield file
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        if "lock file" in str(error):  # not "sblock", which truncated files are told by
            raise ValueError(f"{path}: open for writing elsewhere ({error})") from error
        raise ValueError(f"{path}: damaged or not an HDF5 file ({error}); make it anew") from error


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
