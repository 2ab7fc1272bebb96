"""one_flip: descent by single flips on the loss with the scale profiled out."""

from __future__ import annotations

import numpy as np

from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.kernels.one_flip import one_flip_sweep
from hashsolve.methods.outcome import Outcome
from hashsolve.problem import cancelling
from hashsolve.solution import Status
from hashsolve.state import State
from hashsolve.sweeps import sweep

TOLERANCE = 1e-12
"""Share of its value by which a flip must improve a column, so that rounding cannot cycle."""


def one_flip(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """Sweep, making every flip that lowers e − (cᵀb)²/bᵀHb, until a whole sweep makes none.

    That leaves the fixpoints of `dcc` that a joint change of one bit and the scale improves.
    """
    state = State(instance, start, control)
    flips = np.zeros(len(start), dtype=np.int64)
    active = np.ones(len(start), dtype=np.bool_)
    status = control.record(instance, state.loss(state.scales), 0)
    confirming = True
    shared = instance.gram, instance.free, TOLERANCE, cancelling(instance.gram)
    for _ in range(control.budget(100, 1_000, 10_000)):
        if status:
            break
        rows = (instance.cross, state.codes, state.h, state.p, state.q, active, flips)
        sweep(control, one_flip_sweep, shared, rows)
        status = control.record(instance, state.loss(state.scales), int(flips.sum()))
        if confirming and not flips.any():
            return Outcome(state.codes, state.scales, status or Status.FIXPOINT)
        active = flips > 0
        confirming = not active.any()
        if confirming:
            state.refresh()
            active[:] = True
    state.refresh()
    return Outcome(state.codes, state.scales, status or Status.SWEEP_LIMIT)
