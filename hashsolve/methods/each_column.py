"""What searches of one column after the other share: the order, the steps' record, the finish."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hashsolve.branch import column_loss
from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.methods.one_flip import one_flip
from hashsolve.methods.outcome import Outcome
from hashsolve.state import State


def search_columns(
    instance: Instance,
    first: Outcome,
    order: np.ndarray,
    search: Callable[[int], np.ndarray],
    control: Control,
) -> Outcome:
    """Improve columns in this order by ``search(t)``, which returns codes (S,); then `one_flip`.

    Each column is a step of the history.
    """
    codes = first.codes.copy()
    loss = State(instance, codes, control).loss(first.scales)

    def finished(i: int, found: np.ndarray) -> None:
        t = order[i]
        flips = int((found != codes[t]).sum())
        codes[t] = found
        reached = column_loss(
            instance.gram, instance.cross[t], instance.energy[t], found, instance.free
        )
        loss[t] = min(loss[t], reached)
        control.record(instance, loss, flips)

    control.each(lambda i: search(order[i]), len(order), finished)
    return one_flip(instance, codes, control)
