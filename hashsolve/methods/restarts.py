"""Descent from perturbed starts, for effort "thorough"; the better columns of two outcomes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.methods.outcome import STOPPED, Outcome
from hashsolve.solution import OPTIMAL_TOLERANCE
from hashsolve.state import State

RESTARTS = 8
PERTURBED = 0.1
"""Share of the bits that a perturbed start flips."""


def restarted(
    run: Callable[..., Outcome], instance: Instance, start: np.ndarray, control: Control
) -> Outcome:
    """Run a method from its start and, if thorough, from perturbed best codes; the best columns."""
    best = run(instance, start, control)
    if control.effort != "thorough":
        return best
    random = np.random.default_rng(control.seed)
    for _ in range(RESTARTS):
        if best.status in STOPPED:
            break
        # one mask for all columns: the answer does not depend on the order of columns
        flip = np.where(random.random(start.shape[1]) < PERTURBED, -1, 1).astype(np.int8)
        best = better(instance, best, run(instance, best.codes * flip, control), control)
    return best


def better(instance: Instance, a: Outcome, b: Outcome, control: Control) -> Outcome:
    """Column by column the one with the smaller loss; ``b`` where they are equal.

    Where codes all but cancel, and rounding would decide, in twice the precision.
    """
    states = [State(instance, o.codes, control) for o in (a, b)]

    def losses() -> list[np.ndarray]:
        return [state.loss(o.scales) for state, o in zip(states, (a, b), strict=True)]

    loss_a, loss_b = losses()
    noise = states[0].noise(a.scales) + states[1].noise(b.scales)
    doubtful = (np.abs(loss_a - loss_b) <= noise) & (noise > OPTIMAL_TOLERANCE * instance.energy)
    doubtful &= (a.codes != b.codes).any(axis=1)
    for state in states:
        state.refine(np.flatnonzero(doubtful))
    loss_a, loss_b = losses()
    keep = loss_a < loss_b
    codes = np.where(keep[:, None], a.codes, b.codes)
    return b._replace(codes=codes, scales=np.where(keep, a.scales, b.scales))
