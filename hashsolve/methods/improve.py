"""The heuristics together: descent, beams, evolution by tabu walks, and the dual bound."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hashsolve.bounds import dual_bounds, dual_diagonals, dual_name
from hashsolve.control import EFFORTS, Control
from hashsolve.instance import Instance
from hashsolve.lattice import Lattice
from hashsolve.methods.beam import WIDTHS, beam_pool, beam_steps, best_of
from hashsolve.methods.dcc import dcc
from hashsolve.methods.each_column import search_columns
from hashsolve.methods.one_flip import one_flip
from hashsolve.methods.outcome import STOPPED, Outcome
from hashsolve.methods.restarts import restarted
from hashsolve.methods.tabu import MEMBERS, MOVES, evolve_pool, tabu_steps
from hashsolve.solution import proven
from hashsolve.state import State


class Stage(NamedTuple):
    """A budget of counted work for one column."""

    windows: int  # beams, each over a range of scales
    width: int  # of each beam, times S: a state costs O(S) a bit
    moves: int  # of tabu walks, times S: a move costs O(S)


STAGES = (
    Stage(2, 15_000, 8_000_000),
    Stage(2, 80_000, 20_000_000),
    Stage(4, 400_000, 350_000_000),
)
"""One an effort. Each effort does all that the lesser ones do and goes on from their best, so that
more effort never ends worse."""


def improve(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """Never worse than `dcc`, `one_flip`, `babai`, `beam` or `tabu` in any column; mostly better.

    Each column is descended from its start, and gets what those methods find. From the best of it,
    beams on its triangular form and tabu walks improve a pool of codes. Columns whose gap to the
    dual bound is largest come first, those that it already proves optimal are left alone.
    """
    first = dcc(instance, start, control)
    if first.status in STOPPED:
        return first
    first = one_flip(instance, first.codes, control)
    if first.status in STOPPED:
        return first
    apart = control.again()
    apart.callback = None  # the history is that of the best codes
    plain = one_flip(instance, start, apart)  # which the other methods begin with
    descents = [restarted(run, instance, start, apart).codes for run in (dcc, one_flip)]
    diagonals = dual_diagonals(instance, control)
    bound = dual_bounds(instance, control, diagonals)
    order = open_columns(instance, first, bound, control)
    lattice = Lattice(instance, diagonals)

    def finish(t: int, codes: np.ndarray) -> np.ndarray:
        """As the methods do."""
        return one_flip(instance.column(t), codes[None], apart.again(threads=1)).codes[0]

    def search(t: int) -> np.ndarray:
        form = lattice.triangle(t)
        (babai,) = beam_steps(instance, t, form, plain.codes[t], (1,))
        beams = beam_steps(instance, t, form, plain.codes[t], WIDTHS)
        walks = tabu_steps(instance, t, plain.codes[t], MOVES, control.seed)
        found = [first.codes[t], finish(t, babai), *(codes[t] for codes in descents)]
        for stage in STAGES[: EFFORTS.index(control.effort) + 1]:
            found += [finish(t, next(beams)), finish(t, next(walks))]
            codes = best_of(instance, t, np.stack(found))
            if control.stop:
                break
            leaves = MEMBERS // stage.windows
            pool = beam_pool(instance, t, form, codes, stage.width, stage.windows, leaves)
            pool = np.ascontiguousarray(pool[:MEMBERS])
            evolve_pool(instance, t, pool, stage.moves, control.seed)
            codes = best_of(instance, t, pool)
            found = [codes]
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
