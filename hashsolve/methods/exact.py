"""exact: proven optimal codes, by enumeration or by branch and bound."""

from __future__ import annotations

import numpy as np

from hashsolve.bounds import least_bounds, start_diagonals
from hashsolve.branch import Search, column_loss, out_of_reach, search_column, start_search
from hashsolve.checkpoint import Checkpoint
from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.kernels.gray import gray
from hashsolve.methods.improve import improve, open_columns
from hashsolve.methods.one_flip import one_flip
from hashsolve.methods.outcome import STOPPED, Outcome
from hashsolve.solution import Status, proven
from hashsolve.state import State

ENUMERATED = 18
"""At most so many inputs are enumerated: 2^17 codes, a millisecond."""
LAST_RESORT = 24
"""At most so many are where nothing limits the scale, so that branch and bound proves nothing."""
SLICE = 1 << 14
"""Codes that are enumerated before the next look at whether to stop."""
NODES = (20_000_000, 2_000_000_000, 1_000_000_000_000)
"""Nodes a column, by effort; a core visits some 3·10⁷ a second."""
_FIRST = 20_000_000  # nodes of a column's first try, all columns side by side


def exact(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """The optimum of every column, or the best codes and the search tree's proven bound.

    With at most `ENUMERATED` inputs all codes are enumerated in Gray-code order. Else the
    heuristics find an incumbent, and a branch and bound over the semidefinite dual with sphere
    decoding below (`hashsolve.branch`) closes the gap, within a budget of nodes that effort sets.
    """
    if instance.gram.shape[0] <= ENUMERATED:
        return enumerate_codes(instance, start, control)
    found = improve(instance, start, control)
    if found.status in STOPPED:
        return found
    return prove(instance, found, control, control.budget(*NODES))


def enumerate_codes(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """Try all codes of each column; the start is kept where nothing is better."""
    begin = State(instance, start, control)
    stopped = control.record(instance, begin.loss(begin.scales), 0)
    if stopped:
        return Outcome(begin.codes, begin.scales, stopped)
    codes = begin.codes.copy()
    bound = least_bounds(instance)

    def search(t: int) -> None:
        codes[t] = 1
        bound[t] = max(bound[t], enumerated(instance, t, codes[t], control)[1])

    control.each(search, len(codes))
    best = State(instance, codes, control)  # its losses are computed afresh
    keep = begin.loss(begin.scales) <= best.loss(best.scales)
    last = one_flip(instance, np.where(keep[:, None], begin.codes, best.codes), control)
    bound = np.maximum(bound, 0.0) if instance.free else bound
    if not instance.free:
        # a programme's loss may be zero, and then has no size of its own to measure rounding by
        loss = State(instance, last.codes, control).fixed_loss(np.arange(len(codes)))
        size = 2 * np.abs(instance.cross).sum(axis=1) + np.abs(instance.gram).sum()
        rounding = 4e-15 * np.abs(loss) + 4e-26 * (np.abs(instance.energy) + size)
        bound = np.where(loss - bound <= rounding, loss, bound)
    left = open_columns(instance, last, bound, control)
    # at a fixed scale rounding alone can hide the proof: `solve` says DONE where it does
    rest = Status.UNPROVABLE if instance.free else Status.OPTIMAL
    status = control.stop or rest if len(left) else Status.OPTIMAL
    return last._replace(status=status, bound=bound, bound_name="enumeration")


def enumerated(
    instance: Instance, t: int, codes: np.ndarray, control: Control, work: float = np.inf
) -> tuple[float, float]:
    """Write the best codes of column t over ``codes`` (S,); return their loss and a lower bound.

    Where it is stopped, or took more than the ``work`` of so many nodes to sum again what all but
    cancels, the codes are the best so far, and the bound is −inf.
    """
    column = instance.gram, instance.cross[t], float(instance.energy[t]), instance.free
    best = lowest = np.inf
    steps = 1 << (len(codes) - 1 if instance.free else len(codes))
    for begin in range(0, steps, SLICE):
        end = min(begin + SLICE, steps)
        best, lowest, again = gray(*column, begin, end, best, lowest, codes)
        work -= 8 * again * len(codes)  # two-sums, S² a code
        if end < steps and (control.stop or work < 0):
            return best, -np.inf
    return best, lowest


def prove(
    instance: Instance, found: Outcome, control: Control, nodes: int, attempt: bool = False
) -> Outcome:
    """Search the columns that are not proven yet, within so many nodes each; as an ``attempt``, a
    column is given up once it is estimated to need more.

    The first 2·10⁷ nodes of all columns run side by side, one thread each; what is left then is
    searched column after column on all threads. Neither changes the answer.
    """
    assert found.bound is not None
    codes, bound = found.codes.copy(), found.bound.copy()
    loss = State(instance, codes, control).loss(found.scales)
    columns = open_columns(instance, found, bound, control)
    starts = start_diagonals(instance)
    checkpoint = Checkpoint.of(control.checkpoint, instance)
    complete = np.zeros(len(codes), dtype=np.bool_)
    unlimited = np.zeros(len(codes), dtype=np.bool_)  # columns whose scale is

    def search(t: int, budget: int, threads: int) -> tuple[np.ndarray, float, float, bool]:
        """Column t's codes, loss, bound, and whether nothing is left to search."""
        column = (instance.gram, instance.cross[t], float(instance.energy[t]))
        state = checkpoint.load(int(t))
        if state is None:
            state = start_search(*column, found.codes[t], starts[t], instance.free)
        reached = column_loss(*column, found.codes[t], instance.free)
        if reached < state.loss:  # a checkpoint of a run whose heuristics found less
            state = state._replace(codes=found.codes[t].copy(), loss=reached)

        if not np.isfinite(state.squared_scale):
            if instance.gram.shape[0] > LAST_RESORT:
                unlimited[t] = True
                return state.codes, state.loss, -np.inf, False
            met = np.ones_like(state.codes)
            work = budget if attempt else np.inf
            reached, lowest = enumerated(instance, t, met, control, work)
            best = (met, reached) if reached < state.loss else (state.codes, state.loss)
            both = np.array([best[1]]), np.array([max(lowest, 0.0)])
            unlimited[t] = not proven(*both, instance.energy[t : t + 1])[0]
            return *best, lowest, not unlimited[t]

        def keep(now: Search) -> bool:
            nonlocal state
            state = now
            checkpoint.save(int(t), state)
            return control.stop is not None or (attempt and out_of_reach(now, budget))

        try:
            state = search_column(*column, state, instance.free, budget, threads, keep)
        finally:  # after Ctrl-C too
            checkpoint.save(int(t), state, now=True)
        return state.codes, state.loss, state.lower_bound(), not len(state.open_bound)

    def finish(t: int, result: tuple[np.ndarray, float, float, bool]) -> None:
        flips = int((result[0] != codes[t]).sum())
        codes[t], complete[t] = result[0], result[3]
        loss[t], bound[t] = min(loss[t], result[1]), max(bound[t], result[2])
        control.record(instance, loss, flips)

    def alone(t: int) -> None:
        control.each(lambda _: search(t, nodes, control.threads), 1, lambda _, r: finish(t, r))

    first = min(nodes, _FIRST)
    control.each(
        lambda i: search(columns[i], first, 1), len(columns), lambda i, r: finish(columns[i], r)
    )
    for t in columns:
        if not complete[t] and not unlimited[t] and nodes > first:
            alone(t)
    last = one_flip(instance, codes, control)
    left = ~complete[columns] & ~unlimited[columns]
    unfinished = control.stop or (Status.NODE_LIMIT if left.any() else Status.UNPROVABLE)
    status = Status.OPTIMAL if complete[columns].all() else unfinished
    bound = np.maximum(bound, 0.0) if instance.free else bound
    name = "branch and bound" if complete.any() else found.bound_name
    return last._replace(status=status, bound=bound, bound_name=name)
