"""Control: what a method is given besides the instance: budget, threads, ways to stop."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from os import PathLike
from typing import Any

import numpy as np

from hashsolve.instance import Instance
from hashsolve.solution import Status, Sweep
from hashsolve.threads import cores, one_blas_thread

EFFORTS = ("fast", "default", "thorough")
_INLINE_WORK = 20_000  # bits below which a thread costs more than it saves


class Control:
    """Effort, seed, threads, history, and the two ways to be stopped (time limit, callback).

    A method calls `columns` to run a kernel over all columns, `each` to run a job for each, and
    `record` after each step; where that returns a status, or `stop` is one, it returns what it has.
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
        self.threads = threads or cores()
        self.history: list[Sweep] = []
        self.bounded = True  # whether a method that proves no bounds is to be given some
        self.shares: np.ndarray | None = None  # `hashsolve.bounds.common_shares` to begin with
        self._halted = threading.Event()  # shared with the controls of solves within this one
        self._pool: ThreadPoolExecutor | None = None

    def again(self, threads: int | None = None, effort: str | None = None) -> Control:
        """A control for a solve within this one: its own history, the same limits."""
        inner = copy.copy(self)
        inner.history = []
        inner.effort = effort or self.effort
        inner.threads = threads or self.threads
        return inner

    def beside(self, loss: float) -> None:
        """From now on the callback is told losses that have this one, of other columns, added."""
        whole = self.callback
        if whole is not None:
            self.callback = lambda step: whole(Sweep(step.loss + loss, step.flips))

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

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

    def each(
        self, job: Callable[[int], Any], count: int, done: Callable[[int, Any], Any] | None = None
    ) -> None:
        """Run ``job(t)`` for every t below ``count`` on the threads, BLAS on one thread in each.

        A job may write only what is its own, so the result does not depend on the threads.
        ``done(t, result)`` is called for one job after the other, in order, by the caller's thread.
        Once there is a reason to stop, jobs that have not begun are left out.
        """

        def run(t: int) -> tuple[Any, ...]:
            return () if self.stop else (job(t),)

        def finish(t: int, result: tuple[Any, ...]) -> None:
            if result and done is not None:
                done(t, *result)

        with one_blas_thread():
            if self.threads == 1 or count == 1:
                for t in range(count):
                    finish(t, run(t))
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads)
            futures = [self._pool.submit(run, t) for t in range(count)]
            try:
                for t, future in enumerate(futures):
                    finish(t, future.result())
            except BaseException:  # Ctrl-C too: jobs that are running end at their next look
                self._halted.set()
                wait(futures)
                raise

    @property
    def stop(self) -> Status | None:
        """Why to stop now, if there is a reason."""
        if self._halted.is_set():
            return Status.STOPPED
        if self.deadline is not None and time.monotonic() > self.deadline:
            return Status.TIME_LIMIT
        return None

    def record(self, instance: Instance, loss: np.ndarray, flips: int) -> Status | None:
        """Note a step (``loss`` (T,) in the instance's units); say whether to stop, and why."""
        if instance.free:
            loss = np.maximum(loss, 0.0)  # below it is rounding
        return self.note(float((loss * instance.loss_unit * instance.loss_unit).sum()), flips)

    def note(self, loss: float, flips: int) -> Status | None:
        """Note a step whose Σloss is in the problem's units; say whether to stop, and why."""
        self.history.append(Sweep(loss, int(flips)))
        if self.callback is not None and self.callback(self.history[-1]):
            self._halted.set()
        return self.stop
