"""The user's own code and data for `hashsolve binarize`: factories by name, arrays in batches."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np

from hashsolve.suggest import did_you_mean


class Batches:
    """An array cut along its first axis, as often as one likes."""

    def __init__(self, array: Any, size: int, samples: int | None = None):
        if size < 1 or (samples is not None and samples < 1):
            raise ValueError("--batch-size and --samples must be >= 1")
        if not np.shape(array):
            raise ValueError("--calibration: a single number; samples lie along the first axis")
        self.array, self.size = array, size
        self.count = min(len(array), samples or len(array))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.count, self.size):
            yield self.array[start : min(start + self.size, self.count)]


def load_object(spec: str) -> Any:
    """The object that PACKAGE.MODULE:NAME names, the current folder being on the path."""
    module, colon, name = spec.partition(":")
    if not colon or not name or "/" in module or module.endswith(".py"):
        meant = module.removeprefix("./").removesuffix(".py").replace("/", ".") or "PACKAGE.MODULE"
        raise ValueError(f"{spec}: write PACKAGE.MODULE:NAME, as in {meant}:{name or 'NAME'}")
    sys.path.insert(0, "")
    try:
        return getattr(call(lambda: importlib.import_module(module), spec), name)
    except AttributeError:
        hint = did_you_mean(name, dir(sys.modules[module]))
        raise ValueError(f"{spec}: module {module} has no {name!r}{hint}") from None
    finally:
        sys.path.remove("")


def call(made: Any, spec: str) -> Any:
    """What the user's own code returns; whatever it raises is told in one line, with its place."""
    try:
        return made() if callable(made) else made
    except ModuleNotFoundError as error:
        extra = {"torch": "torch", "sklearn": "demo"}.get(error.name or "")
        if extra and spec.startswith("torch_glue.demo"):
            extra = "demo"
        hint = f"; pip install 'hashsolve[{extra}]'" if extra else ""
        if error.name == spec.partition(":")[0].partition(".")[0]:
            hint += " in this folder, nor among what is installed"
        raise ValueError(f"{spec}: {error}{hint}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{spec}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """An error that is none of ours: its type, its text, the line that raised it."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({at.filename}, line {at.lineno})"
