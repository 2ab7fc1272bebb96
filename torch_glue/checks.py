"""Checks of what public functions are given; each error names the argument and the mend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn


def check_model(model: Any, name: str = "model") -> None:
    """Refuse, by a ValueError, what is no module."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: must be a torch.nn.Module, got a {type(model).__name__}")


def check_batches(batches: Any, name: str) -> None:
    """Refuse, by a ValueError, what cannot be gone through."""
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise ValueError(f"{name}: must give batches, got a {type(batches).__name__}")


def check_again(batches: Any, name: str, each: str) -> None:
    """Refuse, by a ValueError, what can be gone through only once, where ``each`` needs a pass."""
    if isinstance(batches, Iterator):
        raise ValueError(
            f"{name}: this iterator can be gone through only once, but each {each} needs a "
            "pass: give a list"
        )


def check_target(path: str | PathLike, name: str) -> None:
    """Refuse a path at which no file can appear, before the work whose result it holds.

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
