"""dcc: discrete cyclic coordinate descent, the method of BWNH (AAAI 2018, algorithm 1)."""

from __future__ import annotations

import numpy as np

from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.kernels.dcc import dcc_sweep
from hashsolve.methods.outcome import Outcome
from hashsolve.solution import Status
from hashsolve.state import State
from hashsolve.sweeps import sweep


def dcc(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """Sweep each column at its scale until no bit changes, set the scale anew, and so on.

    A column is settled when a sweep changes no bit and the scale step does not change the scale.
    When all are settled, h is computed afresh and one more sweep over all columns confirms it.
    """
    state = State(instance, start, control)
    scales = state.scales
    flips = np.zeros(len(start), dtype=np.int64)
    active = np.ones(len(start), dtype=np.bool_)
    status = control.record(instance, state.loss(scales), 0)
    confirming = True
    for _ in range(control.budget(100, 1_000, 10_000)):
        if status:
            break
        rows = (instance.cross, state.codes, state.h, scales, active, flips)
        sweep(control, dcc_sweep, (instance.gram,), rows)
        state.products()
        status = control.record(instance, state.loss(scales), int(flips.sum()))
        if confirming and not flips.any():
            return Outcome(state.codes, scales, status or Status.FIXPOINT)
        still = flips == 0
        best = state.scales
        active = active & ~(still & (best == scales))
        scales = np.where(still, best, scales)
        confirming = not active.any()
        if confirming:
            state.refresh()
            scales = state.scales
            active[:] = True
    state.refresh()
    return Outcome(state.codes, state.scales, status or Status.SWEEP_LIMIT)
