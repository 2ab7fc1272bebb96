"""Where files are to be written: checked before the work whose result they hold."""

from __future__ import annotations

from os import PathLike
from pathlib import Path


def check_target(path: str | PathLike, name: str) -> None:
    """Refuse a path at which no file can appear.

    Raises
    ------
    ValueError
        Where it is a folder, or its folder is not there; ``name`` is the argument's.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{name}: {target} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise ValueError(f"{name}: the folder {target.parent} is not there; make it first")
