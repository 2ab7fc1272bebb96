"""Checkpoints of long exact searches: one HDF5 file, a group a column."""

from __future__ import annotations

import threading
import time
from os import PathLike
from pathlib import Path

import h5py
import numpy as np

from hashsolve.branch import Search
from hashsolve.files import attribute, digest, open_h5, write_attributes, write_h5
from hashsolve.instance import Instance

_INTERVAL = 20.0  # seconds between writes


class Checkpoint:
    """Searches of an instance's columns, kept in a file that is written whole or not at all.

    Without a path they are kept in memory only. A file of another problem is refused.
    """

    def __init__(self, path: Path | None, fingerprint: str):
        self.path = path
        self.fingerprint = fingerprint
        self.states: dict[int, Search] = {}
        self._lock = threading.Lock()
        self._written = time.monotonic()

    @classmethod
    def of(cls, path: str | PathLike | None, instance: Instance) -> Checkpoint:
        """The checkpoint at ``path``, with what it holds.

        Raises
        ------
        ValueError
            Where the file is damaged, or of another problem.
        """
        if path is None:
            return cls(None, "")
        fingerprint = digest(instance.gram, instance.cross, instance.energy, int(instance.free))
        made = cls(Path(path), fingerprint)
        if Path(path).exists():
            with open_h5(path) as file:
                if "problem" not in file.attrs:
                    raise ValueError(f"{path}: not the checkpoint of a search; name another file")
                if attribute(file, "problem") != fingerprint:
                    raise ValueError(f"{path}: a checkpoint of another problem; name another file")
                for name, group in file.items():
                    if Search._fields[-1] not in group:
                        raise ValueError(f"{path}: of another version; remove it to start anew")
                    made.states[int(name)] = state = _read(group)
                    if attribute(group, "sha256") != digest(*state):
                        raise ValueError(f"{path}: damaged: column {name} is not as written")
        return made

    def load(self, column: int) -> Search | None:
        """A column's search, if one is kept."""
        return self.states.get(column)

    def save(self, column: int, state: Search, now: bool = False) -> None:
        """Keep a column's search; the file, if any, is written every 20 seconds, or now."""
        with self._lock:
            self.states[column] = state
            if self.path is None:
                return
            if now or time.monotonic() - self._written > _INTERVAL:
                with write_h5(self.path) as file:
                    write_attributes(file, {"problem": self.fingerprint})
                    for column, kept in self.states.items():
                        _write(file.create_group(str(column)), kept)
                self._written = time.monotonic()


def _write(group: h5py.Group, state: Search) -> None:
    for name, value in state._asdict().items():
        group.create_dataset(name, data=value)
    write_attributes(group, {"sha256": digest(*state)})


def _read(group: h5py.Group) -> Search:
    values = {name: group[name][()] for name in Search._fields}
    scalars = {name: v.item() for name, v in values.items() if np.ndim(v) == 0}
    return Search(**{**values, **scalars})
