"""An explicit random generator (splitmix64), so that NumPy can reproduce every draw."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def random_below(state, n):
    """Draw an integer of 0 … n − 1; `state` is one uint64 in an array, advanced in place."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return int(float(z >> np.uint64(11)) * 2.0**-53 * n)
