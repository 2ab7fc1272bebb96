"""Work spread over the cores, in which no bit depends on how many there are.

BLAS cuts a product otherwise for every number of threads, and sums in another order. Here products
are cut into tiles that depend on their shape alone; BLAS computes each on one thread, and the
tiles are spread over the cores.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401  its BLAS has to be loaded before `_blas` looks for it
from threadpoolctl import ThreadpoolController

_STRIP = 512
_SINGLE_EDGE = 384  # of a tile in float32, which is multiplied twice as fast as it is packed
_SINGLE_WHOLE = 768  # rows below which tiles in float32 are too few, or too small: columns are cut
_SINGLE_COLUMNS = 2048
_INLINE_WORK = 2_000_000  # multiplications below which threads cost more than they save


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def spread(job: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``[job(item) for item in items]``, on all cores; a job must not itself call this."""
    items = list(items)
    if cores() == 1 or len(items) == 1:
        return [job(item) for item in items]
    return list(_pool(os.getpid(), cores()).map(job, items))


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="hashsolve")


@cache
def _blas() -> list[Any]:
    """What sets the threads of BLAS; found once, as looking for libraries takes milliseconds."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _set_blas_threads(counts: Iterable[int]) -> None:
    for library, count in zip(_blas(), counts, strict=True):
        # from version 3.7 on, `set_num_threads` does nothing while another thread holds a limit
        getattr(library, "_real_set_num_threads", library.set_num_threads)(count)


class _Limit:
    """How many hold BLAS at one thread, and what to restore after the last of them."""

    lock = threading.Lock()
    holders = 0
    before: Sequence[int] = ()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within this, BLAS computes on the thread that calls it, in the whole process.

    May be nested, and entered from several threads: the last one out restores what was before.
    """
    with _Limit.lock:
        if _Limit.holders == 0:
            _Limit.before = [library.get_num_threads() for library in _blas()]
            _set_blas_threads([1] * len(_Limit.before))
        _Limit.holders += 1
    try:
        yield
    finally:
        with _Limit.lock:
            _Limit.holders -= 1
            if _Limit.holders == 0:
                _set_blas_threads(_Limit.before)


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a @ b for matrices, the same bits for any number of threads; infinite where it overflows."""
    if out is None:
        out = np.empty((a.shape[0], b.shape[1]), np.result_type(a, b))
    tiles = itertools.product(_cuts(a.shape[0]), _cuts(b.shape[1]))
    _tiled(lambda i, j: np.matmul(a[i], b[:, j], out=out[i, j]), tiles, out.size * a.shape[1])
    return out


def magnitudes_times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a| @ b, without a copy of all of a."""
    result = np.empty((len(a), b.shape[1]))
    for rows in strips(len(a)):
        product(np.abs(a[rows]), b, out=result[rows])
    return result


def strips(rows: int, step: int = _STRIP) -> list[slice]:
    """Rows of a large matrix: a fixed cut, for work that would need a copy of it, or to spread."""
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def mirror(matrix: np.ndarray) -> None:
    """Copy the upper triangle to the lower one, in place and by tiles."""
    for i, j in itertools.combinations_with_replacement(strips(len(matrix)), 2):
        tile = matrix[i, j]
        matrix[j, i] = tile.T if i != j else np.triu(tile) + np.triu(tile, 1).T


def add_gram(total: np.ndarray, x: np.ndarray) -> None:
    """Add the upper triangle of x @ x.T to that of ``total`` (and something below it).

    ``total`` is float64; where ``x`` is float32, so are the products, until they are added.
    """
    if x.dtype == np.float32 and len(x) <= _SINGLE_WHOLE:
        _add_gram_by_columns(total, x)
        return

    def add(i: slice, j: slice) -> None:
        total[i, j] += x[i] @ x[j].T

    edge = _SINGLE_EDGE if x.dtype == np.float32 else None
    tiles = itertools.combinations_with_replacement(_cuts(len(x), edge), 2)
    _tiled(add, tiles, total.size // 2 * x.shape[1])


def _add_gram_by_columns(total: np.ndarray, x: np.ndarray) -> None:
    """All of x @ x.T, from products of some columns at a time, added in their order."""
    cuts = [(cut,) for cut in strips(x.shape[1], _SINGLE_COLUMNS)]
    for part in _tiled(lambda cut: x[:, cut] @ x[:, cut].T, cuts, x.size * len(x)):
        total += part


def ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, each made by another thread while the one before is used."""
    made, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="hashsolve-read") as pool:
        coming = pool.submit(next, made, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, made, end)
            yield item


def _cuts(size: int, edge: int | None = None) -> Sequence[slice]:
    """An axis cut into equal parts, small enough to occupy many cores, large enough for BLAS."""
    edge = edge or (96 if size <= 1024 else 192)
    count = max(1, -(-size // edge))
    return [slice(size * i // count, size * (i + 1) // count) for i in range(count)]


def _tiled(job: Callable[..., Any], tiles: Iterable[tuple], work: int) -> list[Any]:
    """A job's results for every tile, with BLAS on one thread and its overflows left to the
    caller."""

    def quietly(tile: tuple) -> Any:
        with np.errstate(all="ignore"):  # each thread has its own
            return job(*tile)

    with one_blas_thread():
        if work < _INLINE_WORK:
            return [quietly(tile) for tile in tiles]
        return spread(quietly, tiles)
