"""sign: binary weights as BWN takes them (XNOR-Net, Rastegari et al., ECCV 2016, eq. 6)."""

from __future__ import annotations

import numpy as np

from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.methods.outcome import Outcome
from hashsolve.solution import Status
from hashsolve.state import State


def sign(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """B = sign(W), α = mean |W|, whatever the inputs; the start is W's sign or the caller's."""
    state = State(instance, start, control, turn=False)
    scales = instance.mean_magnitude if instance.free else state.scales
    status = control.record(instance, state.loss(scales), 0)
    return Outcome(state.codes, scales, status or Status.DONE)
