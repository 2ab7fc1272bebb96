"""What every method returns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hashsolve.solution import Status

STOPPED = (Status.TIME_LIMIT, Status.STOPPED)


class Outcome(NamedTuple):
    """What a method found, in the instance's units, and how it ended.

    Attributes
    ----------
    codes : int8 array (T, S)
    scales : array (T,)
    status : Status
    bound : array (T,) or None
        Lower bounds, where the method proved any.
    bound_name : str
    """

    codes: np.ndarray
    scales: np.ndarray
    status: Status
    bound: np.ndarray | None = None
    bound_name: str = ""
