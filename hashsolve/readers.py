"""Problems and arrays from the files that users have: .npy, .npz, .h5 and FILE.h5:/inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hashsolve.files import open_h5
from hashsolve.problem import Problem
from hashsolve.solution import Solution

SUMS = ("gram", "cross", "energy")
_OPTIONAL = ("weights", "fixed_scales", "input_sum", "target_sum", "rows")


@contextmanager
def open_array(source: str) -> Iterator[Any]:
    """An array: FILE.npy (mapped), FILE.npz:NAME, or FILE.h5:/NAME (an open data set).

    Raises
    ------
    ValueError
        Naming the source, where it cannot be read. Nothing is ever unpickled.
    """
    path, inside = split(source)
    with ExitStack() as stack:
        if path.suffix == ".npy":
            yield _numpy(path, mmap_mode="r")
        elif path.suffix == ".npz":
            arrays = stack.enter_context(_numpy(path))
            yield _member(arrays, inside, source)
        else:
            file = stack.enter_context(open_h5(path))
            node = file.get(inside or "/")
            if isinstance(node, h5py.Group) and not inside and len(node) == 1:
                node = next(iter(node.values()))  # a file that holds one array needs no name
            if not isinstance(node, h5py.Dataset):
                names = ", ".join(sorted(file))
                raise ValueError(f"{source}: name a data set, as in {path}:/NAME; it holds {names}")
            yield node


def read_problem(
    source: str,
    weights: str | None = None,
    target: str | None = None,
    reference: str | None = None,
) -> Problem:
    """A problem: saved sums, or arrays X with W or Y.

    Parameters
    ----------
    source : str
        FILE.h5 or FILE.h5:/group with data sets gram, cross, energy; FILE.npz with those, or with
        X and W (or Y, and X_reference); or any array X, beside ``weights`` or ``target``.
    weights, target, reference : str, optional
        Arrays W (S, T), Y (N, T), X (S, N).

    Raises
    ------
    ValueError
        Naming what is missing.
    """
    path, inside = split(source)
    if weights or target or reference:
        with ExitStack() as stack:
            x, w, y, r = (
                None if item is None else stack.enter_context(open_array(item))
                for item in (source, weights, target, reference)
            )
            return Problem.from_arrays(x, w, target=y, reference=r, name=path.stem)
    if path.suffix == ".npz":
        with _numpy(path) as arrays:
            if all(name in arrays for name in SUMS):
                known = {name: arrays[name] for name in (*SUMS, *_OPTIONAL) if name in arrays}
                return Problem(**known, name=path.stem)
            if "X" in arrays and ("W" in arrays or "Y" in arrays):
                w, y, r = (arrays.get(name) for name in ("W", "Y", "X_reference"))
                return Problem.from_arrays(arrays["X"], w, target=y, reference=r, name=path.stem)
            raise ValueError(
                f"{source}: needs arrays gram, cross and energy, or X with W or Y; it holds "
                f"{', '.join(arrays.files)}"
            )
    if path.suffix == ".npy":
        raise ValueError(f"{source}: an array alone is no problem; give --weights or --target")
    return Problem.load(path, inside or "/")


def read_codes(source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, str]:
    """Codes, scales, the loss they claim and the method that made them, where known.

    Parameters
    ----------
    source : str
        A solution file of ours (.h5), or FILE.npz with arrays codes and scales.
    """
    path, _ = split(source)
    if path.suffix == ".npz":
        with _numpy(path) as arrays:
            loss = arrays.get("loss")
            return _member(arrays, "codes", source), _member(arrays, "scales", source), loss, ""
    solution = Solution.load(path)
    return solution.codes, solution.scales, solution.loss, solution.method


def write_solution(solution: Solution, target: str) -> None:
    """Write a solution as .h5 (packed), or as .npz with codes, scales, loss, lower_bound."""
    if Path(target).suffix == ".npz":
        from hashsolve.files import atomic

        names = ("codes", "scales", "loss", "lower_bound", "energy")
        with atomic(target) as part, open(part, "wb") as file:
            np.savez(file, **{name: getattr(solution, name) for name in names})
    else:
        solution.save(target)


def split(source: str) -> tuple[Path, str]:
    """FILE:/inside as (path of FILE, "inside"); a ValueError where FILE is not there."""
    path, _, inside = source.rpartition(":")
    if not path or Path(source).exists():
        path, inside = source, ""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return Path(path), inside.strip("/")


def _numpy(path: Path, **options: Any) -> Any:
    try:
        return np.load(path, allow_pickle=False, **options)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{path}: not a readable NumPy file ({error})") from error


def _member(arrays: Any, name: str, source: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"{source}: no array {name!r}; it holds {', '.join(arrays.files)}")
    return arrays[name]
