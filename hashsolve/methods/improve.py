"""The heuristics together: descent, beams, evolution by tabu walks, and the dual bound."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hashsolve.bounds import dual_bounds, dual_diagonals, dual_name
from hashsolve.control import EFFORTS, Control
from hashsolve.instance import Instance
from hashsolve.lattice import Lattice
from hashsolve.methods.beam import beam_pool, best_of
from hashsolve.methods.dcc import dcc
from hashsolve.methods.each_column import search_columns
from hashsolve.methods.one_flip import one_flip
from hashsolve.methods.outcome import STOPPED, Outcome
from hashsolve.methods.tabu import MEMBERS, evolve_pool
from hashsolve.solution import proven
from hashsolve.state import State


class Stage(NamedTuple):
    """A budget of counted work for one column."""

    windows: int  # beams, each over a range of scales
    width: int  # of each beam, times S: a state costs O(S) a bit
    moves: int  # of tabu walks, times S: a move costs O(S)


STAGES = (
    Stage(2, 15_000, 10_000_000),
    Stage(3, 100_000, 30_000_000),
    Stage(4, 600_000, 500_000_000),
)
"""One an effort. Each effort does all that the lesser ones do and goes on from their best, so that
more effort never ends worse."""


def improve(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """Never worse than `dcc` or `one_flip` in any column, and mostly far better.

    Each column is descended from its start; beams on its triangular form and tabu walks improve a
    pool of codes, of which the best is kept. Columns whose gap to the dual bound is largest come
    first, those that it already proves optimal are left alone.
    """
    first = dcc(instance, start, control)
    if first.status in STOPPED:
        return first
    first = one_flip(instance, first.codes, control)
    if first.status in STOPPED:
        return first
    diagonals = dual_diagonals(instance, control)
    bound = dual_bounds(instance, control, diagonals)
    order = open_columns(instance, first, bound, control)
    lattice = Lattice(instance, diagonals)

    def search(t: int) -> np.ndarray:
        form = lattice.triangle(t)
        codes = first.codes[t]
        for stage in STAGES[: EFFORTS.index(control.effort) + 1]:
            if control.stop:
                break
            leaves = MEMBERS // stage.windows
            pool = beam_pool(instance, t, form, codes, stage.width, stage.windows, leaves)
            pool = np.ascontiguousarray(pool[:MEMBERS])
            evolve_pool(instance, t, pool, stage.moves, control.seed)
            codes = best_of(instance, t, pool)
        return codes

    last = search_columns(instance, first, order, search, control)
    return last._replace(
        status=control.stop or last.status, bound=bound, bound_name=dual_name(instance)
    )


def open_columns(
    instance: Instance, found: Outcome, bound: np.ndarray, control: Control
) -> np.ndarray:
    """The columns that the bound does not prove optimal, the largest gap first."""
    loss = State(instance, found.codes, control).loss(found.scales)
    order = np.argsort(bound - loss, kind="stable")
    return order[~proven(loss, bound, instance.energy)[order]]
