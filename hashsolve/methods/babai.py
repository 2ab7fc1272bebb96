"""babai: successive cancellation on the triangular form, over several scales."""

from __future__ import annotations

import numpy as np

from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.methods.beam import lattice_search
from hashsolve.methods.outcome import Outcome


def babai(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """Decide bit after bit, each the better one given those before: a beam of one state.

    At one bit a weight this is GPTQ's and LDLQ's rounding; the best of several ranges of scales is
    finished by `one_flip`.
    """
    return lattice_search(instance, start, control, widths=(1,))
