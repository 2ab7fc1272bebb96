"""A small network and its calibration, for the tests of the driver.

Run as a script, it binarises that network once for every folder named on the command line, and
is killed each time (as `kill -9` kills) at another moment: the n-th time that a file is flushed.
"""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
from numpy_network import NumpyNetwork, Product, ScaleShift, pool, relu

import hashsolve as hs

DEAD = 3
"""The channel of "depth" whose inputs are all zero."""


SKIPPED = ("block.point", "fc")
"""What the killed runs leave out, to be quick."""


def network(seed: int = 0, stride: int = 2, padding_mode: str = "zeros") -> NumpyNetwork:
    """conv → scale/shift → ReLU → grouped conv → … → depthwise → pointwise → … → linear."""
    rng = np.random.default_rng(seed)

    def conv(*shape, **geometry):
        return Product(rng.normal(size=shape), hs.Geometry.conv(shape[2:], **geometry))

    shift = rng.normal(size=8)
    scale = rng.uniform(0.1, 0.2, size=8)
    scale[DEAD], shift[DEAD] = 0, -1
    return NumpyNetwork(
        [
            ("stem.conv", conv(6, 3, 3, 3, padding=1)),
            ("stem.norm", ScaleShift(rng.uniform(0.1, 0.2, size=6), rng.normal(size=6))),
            ("stem.relu", relu),
            (
                "block.grouped",
                conv(8, 3, 3, 3, stride=stride, padding=1, groups=2, padding_mode=padding_mode),
            ),
            ("block.norm", ScaleShift(scale, shift)),
            ("block.relu", relu),
            ("block.depth", conv(8, 1, 3, 3, padding=1, groups=8)),
            ("block.relu2", relu),
            ("block.point", conv(6, 8, 1, 1)),
            ("block.relu3", relu),
            ("pool", pool),
            ("fc", Product(rng.normal(size=(5, 6)), hs.Geometry())),
        ]
    )


def calibration(seed: int = 1) -> list[np.ndarray]:
    """Three batches of different sizes."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(count, 3, 6, 6)).astype(np.float32) for count in (4, 1, 3)]


def binarize_and_die(folder: str, moment: int) -> None:
    """Binarise, and be killed instead of flushing a file for the ``moment``-th time."""
    flush, seen = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal seen
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    os.fsync = fsync
    hs.binarize(network(), calibration(), folder, skip=SKIPPED)


if __name__ == "__main__":
    hs.solve(hs.Problem(np.eye(2), np.ones((2, 1)), [4.0]))  # compile once, for all
    for moment, folder in enumerate(sys.argv[1:], start=1):
        child = os.fork()
        if child == 0:
            binarize_and_die(folder, moment)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
