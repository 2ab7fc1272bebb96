"""The same sums and solves on many machines, through a dask.distributed Client.

Work is cut as one process would cut it, and put together in the same order, so the results are
bit-identical to those of one process; a worker that dies has its work done again by another.
Workers open files themselves: paths must mean the same to all. Needs ``hashsolve[cluster]``.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hashsolve.activations import add_in_order, layer_streams, pieces, shard_sums
from hashsolve.bounds import COLUMNS
from hashsolve.geometry import Geometry
from hashsolve.instance import LARGE
from hashsolve.problem import Problem
from hashsolve.readers import read_problem, split
from hashsolve.solution import Solution
from hashsolve.solver import solve as solve_here
from hashsolve.sums import Sums

if TYPE_CHECKING:
    from distributed import Client

RETRIES = 5
"""Times that a piece of work may be lost with its worker before the whole is given up."""
PIECES = 4
"""Pieces of a problem for each thread of the workers, to even out."""
INPUTS_PER_COLUMN = 16
"""At most: each piece reads, copies and factors H, which fewer columns would not be worth."""
APART = ("sign", "dcc", "one_flip")
"""Methods whose columns share nothing, however many inputs there are."""


def connect(address: str, timeout: str = "10s") -> Client:
    """A client of a scheduler.

    Parameters
    ----------
    address : str
        Such as "tcp://10.0.0.1:8786".
    timeout : str
        How long to wait for an answer.

    Returns
    -------
    distributed.Client

    Raises
    ------
    ValueError
        Where dask.distributed is not installed, or nothing answers there.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ValueError(f"--scheduler: {error}; pip install 'hashsolve[cluster]'") from None
    try:
        return Client(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"--scheduler {address}: no scheduler answers there ({error})") from error


def sum_problems(client: Client, sources: Sequence[dict[str, str]], **variant: Any) -> Problem:
    """The problem over the rows of many files, each summed by the worker that opens it.

    Parameters
    ----------
    client : distributed.Client
    sources : sequence of dict
        Each the arguments of `hashsolve.readers.read_problem`: ``source``, and ``weights``,
        ``target``, ``reference``, ``precision`` where that is an array, such as
        ``{"source": "part0.h5:/X", "weights": "W.npy"}``.
    **variant
        ``fixed_scales``, ``scale_group``, ``bases``, ``intercept``, as in `Problem`.

    Returns
    -------
    Problem
        Equal in every bit to ``read_problem(**sources[0]) + read_problem(**sources[1]) + …``.

    Raises
    ------
    ValueError
        Where there are no sources, or one cannot be read; it names the file.
    """
    if not sources:
        raise ValueError("sources: give at least one file")
    total = functools.reduce(operator.add, in_order(client, _read, [(s,) for s in sources]))
    return replace(total, **variant)


def layer_sums(
    client: Client,
    path: str | PathLike,
    weights: np.ndarray,
    geometry: Geometry | Sequence[Geometry],
    name: str = "layer",
    precision: str = "double",
) -> list[Sums]:
    """The sums of one layer over a cache file, cut into shards of samples, on the workers.

    Parameters
    ----------
    client : distributed.Client
    path : path
        A file of `hashsolve.activations.write_activations`, which the workers open.
    weights, precision
        As in `hashsolve.activations.layer_sums`.
    geometry : Geometry, or one a call
    name : str
        The layer, for error messages.

    Returns
    -------
    list of Sums
        One a group; equal in every bit to `hashsolve.activations.layer_sums` on that file.

    Raises
    ------
    ValueError
        As that; and where a worker cannot open the file.
    """
    geometries = [geometry] if isinstance(geometry, Geometry) else geometry
    with layer_streams(path) as calls:
        cut = pieces(calls)
    place = str(Path(path).absolute())
    work = [
        (place, call, weights, geometries[call], name, samples, precision) for call, samples in cut
    ]
    parts = in_order(client, _sum_shard, work)
    return functools.reduce(add_in_order, parts)


def solve(
    client: Client,
    problems: Iterable[Problem | str | PathLike],
    method: str = "auto",
    effort: str = "default",
    seed: int = 0,
) -> list[Solution]:
    """Solve many problems, cut into columns, on the workers.

    Parameters
    ----------
    client : distributed.Client
    problems : iterable of Problem or path
        Paths are opened by the workers, as ``FILE.h5`` or ``FILE.h5:/group``. Problems are sent,
        once for every few columns: where S is large, save them and give the paths.
    method, effort, seed
        As in `hashsolve.solve`.

    Returns
    -------
    list of Solution
        One a problem; codes, scales, losses and bounds are those of `hashsolve.solve` to the last
        bit. The history is not kept.

    Raises
    ------
    ValueError
        As `hashsolve.solve`.

    Examples
    --------
    >>> import hashsolve as hs
    >>> from hashsolve import cluster
    >>> p = hs.Problem([[2.0, 1.0], [1.0, 2.0]], [[3.0], [1.0]], [9.0])
    >>> from distributed import Client
    >>> with Client(processes=False, dashboard_address=None) as client:
    ...     (s,) = cluster.solve(client, [p], "exact")
    >>> s
    Solution(exact, S=2, T=1, relative error 0.7037, 1 of 1 proven optimal, OPTIMAL)
    """
    problems = list(problems)
    sizes = list(in_order(client, _size, [(problem,) for problem in problems]))
    threads = sum(client.nthreads().values())
    parts = [cuts(inputs, columns, method, threads) for inputs, columns in sizes]
    work = [
        (problem, columns, method, effort, seed)
        for problem, each in zip(problems, parts, strict=True)
        for columns in each
    ]
    solved = in_order(client, _solve_columns, work)
    return [Solution.join([next(solved) for _ in each]) for each in parts]


def cuts(inputs: int, columns: int, method: str, threads: int) -> list[slice]:
    """Columns that are solved apart; where all share a bound's diagonal, they stay together."""
    if inputs > LARGE and method not in APART:
        return [slice(0, columns)]
    least, even = inputs / INPUTS_PER_COLUMN, columns / (PIECES * max(threads, 1))
    step = COLUMNS * max(1, round(max(least, even) / COLUMNS))
    return [slice(start, min(start + step, columns)) for start in range(0, columns, step)]


def in_order(client: Client, job: Any, arguments: Sequence[tuple]) -> Any:
    """``job(*a)`` for each, on the workers; results in order, none kept longer than needed."""
    futures = [client.submit(job, *a, pure=False, retries=RETRIES) for a in arguments]
    try:
        while futures:
            yield futures.pop(0).result()
    finally:
        client.cancel(futures)


def _sum_shard(
    path: str, call: int, weights: np.ndarray, geometry: Geometry, *options: Any
) -> list[Sums]:
    with layer_streams(path) as calls:
        return shard_sums(calls[call], weights, geometry, *options)


def _read(source: dict[str, str]) -> Problem:
    return read_problem(**source)


def _open(problem: Problem | str | PathLike) -> Problem:
    if isinstance(problem, Problem):
        return problem
    found = os.stat(split(str(problem))[0])
    return _read_once(str(problem), (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _read_once(source: str, version: tuple[int, ...]) -> Problem:
    """A problem file, kept until another is read: a worker solves many pieces of one."""
    return read_problem(source)


def _size(problem: Problem | str | PathLike) -> tuple[int, int]:
    opened = _open(problem)
    return opened.inputs, opened.columns


def _solve_columns(
    problem: Problem | str | PathLike, columns: slice, method: str, effort: str, seed: int
) -> Solution:
    opened = _open(problem)
    numbers = np.arange(opened.columns)[columns]
    company = numbers[:0]
    if opened.free_scale and not opened.energy[numbers].any():  # alone, they would be no problem
        company = np.flatnonzero(opened.energy)[:1]
    part = opened.select(np.concatenate([numbers, company]))
    return solve_here(part, method, effort, seed, threads=1).select(slice(len(numbers)))
