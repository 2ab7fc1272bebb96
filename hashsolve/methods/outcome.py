"""What every method returns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hashsolve.solution import Status


class Outcome(NamedTuple):
    """Codes (T, S) and scales (T,) in the instance's units, and how the method ended."""

    codes: np.ndarray
    scales: np.ndarray
    status: Status
