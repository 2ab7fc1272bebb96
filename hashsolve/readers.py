"""Problems and arrays from the files that users have: .npy, .npz, .h5 and FILE.h5:/inside."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hashsolve import checks
from hashsolve.files import MAX_COMPRESSION, open_h5
from hashsolve.problem import Problem
from hashsolve.solution import Solution
from hashsolve.suggest import did_you_mean
from hashsolve.sums import PRECISIONS

SUMS = ("gram", "cross", "energy")
_OPTIONAL = ("weights", "fixed_scales", "input_sum", "target_sum")
_NUMBERS = ("rows", "row_weight", "intercept", "scale_group", "bases")


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
            arrays = stack.enter_context(_npz(path))
            if not inside and len(arrays.files) == 1:
                inside = arrays.files[0]
            yield _member(arrays, inside, source)
        else:
            file = stack.enter_context(open_h5(path))
            if not inside and all(name in file for name in SUMS):
                raise ValueError(f"{source}: the sums of a problem, not an array; give it alone")
            node = file.get(inside or "/")
            if isinstance(node, h5py.Group) and not inside and len(node) == 1:
                node = next(iter(node.values()))  # a file that holds one array needs no name
            if not isinstance(node, h5py.Dataset):
                group, hint = ("/", did_you_mean(inside, file)) if node is None else (node.name, "")
                raise ValueError(
                    f"{source}: name a data set, as in {path}:{group.rstrip('/')}/NAME; it holds "
                    f"{', '.join(sorted(file[group]))}{hint}"
                )
            yield node


def read_problem(
    source: str,
    weights: str | None = None,
    target: str | None = None,
    reference: str | None = None,
    precision: str = "double",
) -> Problem:
    """A problem: saved sums, or arrays X with W or Y.

    Parameters
    ----------
    source : str
        FILE.h5 or FILE.h5:/group with data sets gram, cross, energy; FILE.npz with those, or with
        X and W (or Y, and X_reference); or any array X, beside ``weights`` or ``target``.
    weights, target, reference : str, optional
        Arrays W (S, T), Y (N, T), X (S, N).
    precision : {"double", "single"}
        Of the sums over arrays, as in `Problem.from_arrays`.

    Raises
    ------
    ValueError
        Naming what is missing.
    """
    path, inside = split(source)
    if weights or target or reference:
        for option, given in (("--weights", weights), ("--target", target)):
            if given == source:
                raise ValueError(f"{option}: {given} is X, the inputs; name another array")
        with ExitStack() as stack:
            x, w, y, r = (
                None if item is None else stack.enter_context(open_array(item))
                for item in (source, weights, target, reference)
            )
            return Problem.from_arrays(
                x, w, target=y, reference=r, name=path.stem, precision=precision
            )
    if path.suffix == ".npz":
        with _npz(path) as arrays:
            names = (*SUMS, *_OPTIONAL, *_NUMBERS, "X", "W", "Y", "X_reference")
            known = {name: _member(arrays, name, source) for name in names if name in arrays}
            if all(name in known for name in SUMS):
                _summed(source, precision)
                fields: dict[str, Any] = {
                    **{name: known[name] for name in (*SUMS, *_OPTIONAL) if name in known},
                    **{name: known[name].item() for name in _NUMBERS if name in known},
                }
                return Problem(**fields, name=path.stem)
            if "X" in known and ("W" in known or "Y" in known):
                w, y, r = (known.get(name) for name in ("W", "Y", "X_reference"))
                return Problem.from_arrays(
                    known["X"], w, target=y, reference=r, name=path.stem, precision=precision
                )
            raise ValueError(
                f"{source}: needs arrays gram, cross and energy, or X with W or Y; it holds "
                f"{', '.join(arrays.files)}"
            )
    if path.suffix == ".npy":
        raise ValueError(f"{source}: an array alone is no problem; give --weights or --target")
    with open_h5(path) as file:
        if "codes" in file and not inside:
            raise ValueError(f"{source}: a solution, not a problem")
        groups = problem_groups(file)
        if not inside and not groups and "X" in file and ("W" in file or "Y" in file):
            other = "--weights {path}:/W" if "W" in file else "--target {path}:/Y"
            raise ValueError(
                f"{source}: holds arrays, not sums; give {path}:/X {other.format(path=path)}"
            )
    if not inside and groups and groups != ["/"]:
        if len(groups) > 1:
            raise ValueError(
                f"{source}: holds several problems; name one, as in {path}:/{groups[0]}; it holds "
                f"{', '.join(groups)}"
            )
        inside = groups[0]  # a file that holds one problem needs no name
    _summed(source, precision)
    return Problem.load(path, inside or "/")


def _summed(source: str, precision: str) -> None:
    if checks.choice(precision, "precision", PRECISIONS) != PRECISIONS[0]:
        raise ValueError(f"{source}: precision: its sums are made already; leave it out")


def problem_groups(file: h5py.File) -> list[str]:
    """The groups that hold sums, by name."""
    if all(name in file for name in SUMS):
        return ["/"]
    found: list[str] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Group) and all(part in node for part in SUMS):
            found.append(name)

    file.visititems(visit)
    return sorted(found)


class Claims(NamedTuple):
    """Codes and scales, and what is claimed of them, as far as it is."""

    codes: np.ndarray
    scales: np.ndarray
    loss: np.ndarray | None = None
    lower_bound: np.ndarray | None = None
    intercept: np.ndarray | None = None
    method: str = ""
    status: str = ""


def read_codes(source: str) -> Claims:
    """A solution, whoever made it.

    Parameters
    ----------
    source : str
        A solution file of ours (.h5), or FILE.npz with arrays codes and scales.
    """
    path, _ = split(source)
    if path.suffix == ".npy":
        raise ValueError(f"{source}: an array alone is no solution; save an .npz, codes and scales")
    if path.suffix == ".npz":
        with _npz(path) as arrays:
            wanted = ("codes", "scales")
            known = [name for name in Claims._fields if name in arrays or name in wanted]
            fields: dict[str, Any] = {name: _member(arrays, name, source) for name in known}
            texts = {name: str(fields.get(name, "")) for name in ("method", "status")}
            return Claims(**fields | texts)
    solution = Solution.load(path)
    held = {name: getattr(solution, name) for name in Claims._fields}
    return Claims(**held | {"status": solution.status.name})


def write_solution(solution: Solution, target: str) -> None:
    """Write a solution as .h5 (packed), or as .npz with codes, scales, loss, lower_bound, …"""
    if Path(target).suffix == ".npz":
        from hashsolve.files import atomic

        names = ("codes", "scales", "loss", "lower_bound", "energy", "method", "intercept")
        values = {name: getattr(solution, name) for name in names}
        values["status"] = solution.status.name
        with atomic(target) as part, open(part, "wb") as file:
            np.savez(file, **{name: v for name, v in values.items() if v is not None})
    else:
        solution.save(target)


def check_output(
    option: str, path: str | None, sources: Iterable[str | None], suffixes: tuple[str, ...] = ()
) -> None:
    """Refuse, before any work, an output that could not be written or would replace an input."""
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{option} {path}: a folder; name a file in it")
    if suffixes and target.suffix not in suffixes:
        *most, last = suffixes
        ends = f"{', '.join(most)} or {last}" if most else last
        raise ValueError(f"{option} {path}: name a file that ends in {ends}")
    if not target.parent.is_dir():
        raise ValueError(f"{option} {path}: its folder does not exist; make it first")
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"{option} {path}: its folder is read-only; name another")
    for source in filter(None, sources):
        inside = Path(source) if Path(source).exists() else Path(source.rpartition(":")[0])
        if target.resolve() in (Path(source).resolve(), inside.resolve()):
            raise ValueError(f"{option} {path}: would replace {source}; name another file")


def split(source: str) -> tuple[Path, str]:
    """FILE:/inside as (path of FILE, "inside"); a ValueError where FILE is not there."""
    path, _, inside = source.rpartition(":")
    if not path or Path(source).exists():
        path, inside = source, ""
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder; name a file")
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path}: a pipe or a device; it is read more than once: save it first")
    if not Path(path).is_file():
        parent = Path(path).parent
        beside = [str(parent / name) for name in os.listdir(parent)] if parent.is_dir() else []
        raise ValueError(f"{path}: no such file{did_you_mean(path, beside)}")
    return Path(path), inside.strip("/")


def describe_arrays(path: Path) -> dict[str, str]:
    """Shape and dtype of what an .npy or .npz holds."""
    if path.suffix == ".npy":
        array = _numpy(path, mmap_mode="r")
        return {"array": f"{array.shape} {array.dtype}"}
    with _npz(path) as loaded:
        arrays = {name: _member(loaded, name, str(path)) for name in loaded.files}
        return {name: f"{array.shape} {array.dtype}" for name, array in arrays.items()}


def describe_data_sets(file: h5py.File) -> dict[str, str]:
    """Shape and dtype of every data set, by its path."""
    found: dict[str, str] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = f"{node.shape} {node.dtype}"

    file.visititems(visit)
    return found


def _numpy(path: Path, **options: Any) -> Any:
    try:  # damaged files make NumPy and zipfile raise nearly anything
        return np.load(path, allow_pickle=False, **options)
    except Exception as error:
        why = str(error)
        if "pickle" in why or "Python objects" in why:
            # NumPy takes all that it does not know for a pickle, too
            with open(path, "rb") as file:
                known = file.read(6) == np.lib.format.MAGIC_PREFIX
            why = (
                "it holds Python objects, which are never unpickled: save array.astype(float)"
                if known
                else "it does not begin like one"
            )
        raise ValueError(f"{path}: not a readable NumPy file of plain numbers ({why})") from error


def _npz(path: Path) -> Any:
    if not zipfile.is_zipfile(path):  # told before np.load, which would leave it open
        raise ValueError(f"{path}: not an .npz file, or one cut short; save it again")
    return _numpy(path)


def _member(arrays: Any, name: str, source: str) -> np.ndarray:
    held = ", ".join(name if name.isprintable() else repr(name) for name in arrays.files)
    if not arrays.files:
        raise ValueError(f"{source}: holds no arrays")
    if not name:
        raise ValueError(f"{source}: name an array, as in {source}:{arrays.files[0]}; holds {held}")
    if name not in arrays:
        hint = did_you_mean(name, arrays.files)
        raise ValueError(f"{source}: no array {name!r}; it holds {held}{hint}")
    try:
        _refuse_claims(arrays.zip, name)
        return arrays[name]
    except Exception as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{source}: array {name!r} cannot be read ({why})") from error


def _refuse_claims(archive: zipfile.ZipFile, name: str) -> None:
    """Refuse an array whose header claims another size than it has, before memory is taken."""
    inside = name if name in archive.namelist() else f"{name}.npy"
    info = archive.getinfo(inside)
    held = os.path.getsize(archive.filename) if archive.filename else archive.start_dir
    if info.file_size > MAX_COMPRESSION * held:
        raise ValueError(f"claims {info.file_size} bytes, more than this file can hold")
    with archive.open(inside) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(
                "it holds Python objects, which are never unpickled: save array.astype(float)"
            )
        if math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
            raise ValueError(f"claims shape {shape}, but has {info.file_size - file.tell()} bytes")
