"""auto: the methods there are, one after the other, each from the best so far."""

from __future__ import annotations

import numpy as np

from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.methods.dcc import dcc
from hashsolve.methods.one_flip import one_flip
from hashsolve.methods.outcome import Outcome
from hashsolve.solution import Status


def auto(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """`dcc` from the start, then `one_flip` from there: never worse than `dcc` in any column."""
    first = dcc(instance, start, control)
    if first.status in (Status.TIME_LIMIT, Status.STOPPED):
        return first
    return one_flip(instance, first.codes, control)
