"""Control: what a method is given besides the instance: budget, threads, ways to stop."""

from __future__ import annotations

import copy
import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from os import PathLike
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from hashsolve.instance import Instance
from hashsolve.solution import Status, Sweep

EFFORTS = ("fast", "default", "thorough")
_INLINE_WORK = 20_000  # bits below which a thread costs more than it saves


@cache
def blas() -> ThreadpoolController:
    """What sets the threads of BLAS; found once, as looking for libraries takes milliseconds."""
    return ThreadpoolController()


class Control:
    """Effort, seed, threads, history, and the two ways to be stopped (time limit, callback).

    A method calls `columns` to run a kernel over all columns, and `record` after each sweep;
    where that returns a status, it stops and returns what it has.
    """

    def __init__(
        self,
        effort: str = "default",
        seed: int = 0,
        time_limit: float | None = None,
        callback: Callable[[Sweep], Any] | None = None,
        threads: int | None = None,
        checkpoint: str | PathLike | None = None,
    ):
        self.effort = effort
        self.seed = seed
        self.callback = callback
        self.checkpoint = checkpoint
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.threads = threads or len(os.sched_getaffinity(0))
        self.history: list[Sweep] = []
        self._pool: ThreadPoolExecutor | None = None

    def again(self) -> Control:
        """A control for a solve within this one: its own history, the same limits."""
        inner = copy.copy(self)
        inner.history = []
        return inner

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)  # after an error, or Ctrl-C

    def budget(self, fast: float, default: float, thorough: float) -> Any:
        """The one of three budgets (or tolerances) that the effort names."""
        return (fast, default, thorough)[EFFORTS.index(self.effort)]

    def columns(self, kernel: Callable, shared: tuple, rows: tuple) -> None:
        """Run ``kernel(*shared, *rows)`` with the rows (one a problem column) cut over threads.

        The kernels release the GIL and treat each column by itself, so the result does not
        depend on the cut.
        """
        count = len(rows[0])
        pieces = min(self.threads, count) if rows[0].size > _INLINE_WORK else 1
        if pieces == 1:
            kernel(*shared, *rows)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads)
        edges = [count * i // pieces for i in range(pieces + 1)]
        jobs = [
            self._pool.submit(kernel, *shared, *(row[a:b] for row in rows))
            for a, b in itertools.pairwise(edges)
        ]
        for job in jobs:
            job.result()

    def each(self, job: Callable[[int], Any], count: int) -> None:
        """Run ``job(t)`` for every t below ``count`` on the threads, BLAS on one thread in each.

        A job may write only what is its own, so the result does not depend on the threads.
        """
        with blas().limit(limits=1, user_api="blas"):
            if self.threads == 1 or count == 1:
                for t in range(count):
                    job(t)
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads)
            for done in [self._pool.submit(job, t) for t in range(count)]:
                done.result()

    @property
    def out_of_time(self) -> bool:
        """Whether the time limit has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def record(self, instance: Instance, loss: np.ndarray, flips: int) -> Status | None:
        """Note a sweep (``loss`` (T,) in the instance's units); say whether to stop, and why."""
        total = float((loss * instance.loss_unit * instance.loss_unit).sum())
        self.history.append(Sweep(total, int(flips)))
        if self.callback is not None and self.callback(self.history[-1]):
            return Status.STOPPED
        if self.out_of_time:
            return Status.TIME_LIMIT
        return None
