"""Sweeps over all columns; large problems go by blocks of inputs that the cache can hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from hashsolve.control import Control
from hashsolve.kernels.rows import ROWS, add_rows

BLOCKED_ABOVE = 1536
"""Inputs up to which the Gram matrix stays in the cache, and a plain sweep is as fast."""


def sweep(control: Control, kernel: Callable, shared: tuple, rows: tuple) -> None:
    """Run a sweep kernel, ``kernel(gram, *options, cross, codes, h, *more, flips)``.

    ``shared`` are its arguments up to ``options``, ``rows`` the others, one row a column. What it
    changes is the same to the last bit whether it goes by blocks or not, and for any threads.
    """
    if len(shared[0]) > BLOCKED_ABOVE:
        kernel = partial(in_blocks, kernel, ROWS, len(shared))
    control.columns(kernel, shared, rows)


def in_blocks(kernel: Callable, size: int, options: int, *arguments: Any) -> None:
    """Sweep ``size`` inputs at a time; the first ``options`` arguments are the shared ones.

    Within a block the kernel itself runs, on the block's part of gram, cross, codes and h. What
    it flipped is then added to all of h, a row after the other, in the order in which the kernel
    would have: every entry of h is rounded as if the whole had been swept at once.
    """
    gram, *shared = arguments[:options]
    cross, codes, h, *more, flips = arguments[options:]
    total = np.zeros_like(flips)
    for start in range(0, len(gram), size):
        block = slice(start, start + size)
        after = codes[:, block].copy()
        near = cross[:, block].copy(), after, h[:, block].copy()
        kernel(gram[block, block].copy(), *shared, *near, *more, flips)
        if flips.any():
            add_rows(gram[block], after - codes[:, block], h)
            codes[:, block] = after
            total += flips
    flips[:] = total
