"""auto: the heuristics together, and proof where it is cheap."""

from __future__ import annotations

import numpy as np

from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.methods.exact import ENUMERATED, enumerate_codes, prove
from hashsolve.methods.improve import improve
from hashsolve.methods.outcome import STOPPED, Outcome
from hashsolve.solution import Status

PROVABLE = (64, 100, 160)
"""Inputs, by effort, up to which a proof is tried."""
NODES = (1_000_000, 5_000_000, 15_000_000)
"""Nodes of that try a column, by effort; fewer where more are seen to be needed."""


def auto(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """Enumerate small problems; else `improve`, then try to prove what is not too large.

    Never worse in any column than `dcc`, `one_flip`, `babai`, `beam` or `tabu` from the same start.
    """
    inputs = instance.gram.shape[0]
    if inputs <= ENUMERATED:
        return enumerate_codes(instance, start, control)
    found = improve(instance, start, control)
    if found.status in STOPPED or inputs > control.budget(*PROVABLE) or not control.bounded:
        return found
    proven = prove(instance, found, control, control.budget(*NODES), attempt=True)
    if proven.status in (Status.NODE_LIMIT, Status.UNPROVABLE):  # the proof was only a try
        return proven._replace(status=found.status)
    return proven
