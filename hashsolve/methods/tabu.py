"""tabu: one-flip tabu walks from a pool of codes that breed; strong where H is well conditioned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hashsolve.bounds import dual_bounds, dual_diagonals, dual_name
from hashsolve.control import EFFORTS, Control
from hashsolve.instance import Instance
from hashsolve.kernels.tabu import evolve
from hashsolve.methods.beam import best_of
from hashsolve.methods.each_column import search_columns
from hashsolve.methods.one_flip import one_flip
from hashsolve.methods.outcome import STOPPED, Outcome

MEMBERS = 16
"""Of a pool."""
TENURE = 7
"""Moves that a flipped bit rests, at least; at most twice that."""
PATIENCE = 1
"""Moves per input that a walk goes on without a new best."""
KICK = 4
"""Random flips of a child, at most."""
STALE = 1_000
"""Children in a row that may fail before a search is over."""
MOVES = (2_000_000, 10_000_000, 150_000_000)
"""Moves of one column times S, by effort: a move costs O(S). Each makes the lesser's too."""


def tabu(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """Evolve a pool of the descended start and random codes near it, then `one_flip`."""
    first = one_flip(instance, start, control)
    if first.status in STOPPED:
        return first

    def search(t: int) -> np.ndarray:
        codes = first.codes[t]
        moves = MOVES[: EFFORTS.index(control.effort) + 1]
        for better in tabu_steps(instance, t, codes, moves, control.seed):
            codes = better
            if control.stop:
                break
        return codes

    last = search_columns(instance, first, np.arange(len(start)), search, control)
    if not control.bounded:
        return last._replace(status=control.stop or last.status)
    bound = dual_bounds(instance, control, dual_diagonals(instance, control))
    status = control.stop or last.status
    return last._replace(status=status, bound=bound, bound_name=dual_name(instance))


def tabu_steps(
    instance: Instance, t: int, codes: np.ndarray, moves: tuple[int, ...], seed: int
) -> Iterator[np.ndarray]:
    """Column t's best codes after each of so many ``moves`` / S, in turn, of one pool."""
    random = np.random.default_rng(seed)
    # the same turns in every column: the answer does not depend on the order of columns
    turns = np.where(random.random((MEMBERS, len(codes))) < 0.2, -1, 1).astype(np.int8)
    turns[0] = 1
    pool = codes * turns
    for more in moves:
        evolve_pool(instance, t, pool, more, seed)
        yield best_of(instance, t, pool)


def evolve_pool(instance: Instance, t: int, pool: np.ndarray, moves: int, seed: int) -> None:
    """Improve column t's pool (E, S) in place by ``moves`` / S moves; its best is never lost."""
    inputs = pool.shape[1]
    evolve(
        instance.gram,
        instance.cross[t],
        instance.energy[t],
        pool,
        instance.free,
        moves // inputs,
        PATIENCE * inputs,
        TENURE,
        KICK,
        STALE,
        seed,
    )
