"""What a move of tabu's costs, against a bare pass over as many random rows of the Gram matrix.

    python tests/benchmarks/tabu_moves.py

The bare pass adds rows to a vector, as a move's update must; its bytes a second are those that this
access gets from the cache or memory that the matrix is in. All times are of one thread's own clock.
"""

from __future__ import annotations

import json
import time

import numpy as np
from numba import njit

from hashsolve.kernels.tabu import tabu_walk


@njit(cache=True)
def bare(gram, order, total):
    """Add the rows in that order."""
    for i in order:
        row = gram[i]
        for j in range(len(total)):
            total[j] += row[j]


def clocked(job, repeats: int = 5) -> float:
    """Least seconds of some runs."""
    least = np.inf
    for _ in range(repeats):
        begun = time.thread_time()
        job()
        least = min(least, time.thread_time() - begun)
    return least


def main() -> None:
    """Measure and print, a line a size."""
    rng = np.random.default_rng(0)
    for size in (144, 288, 576, 1152, 2304, 4608):
        x = rng.normal(size=(size, 64))
        gram = x @ x.T + np.eye(size)
        cross = gram @ rng.normal(size=size)
        start = np.sign(cross).astype(np.int8)
        moves = 20_000_000 // size

        def walk(moves=moves, gram=gram, cross=cross, start=start):
            state = np.zeros(1, np.uint64)
            tabu_walk(gram, cross, 1e9, start.copy(), True, moves, moves, 7, state)

        order = rng.integers(0, size, moves)

        def add(order=order, gram=gram):
            bare(gram, order, np.zeros(len(gram)))

        walk(1), add(np.zeros(1, int))  # compile
        move, update = clocked(walk) / moves, clocked(add) / moves
        print(
            json.dumps(
                {
                    "inputs": size,
                    "move_microseconds": round(move * 1e6, 3),
                    "update_microseconds": round(update * 1e6, 3),
                    "update_gigabytes_a_second": round(size * 8e-9 / update, 1),
                    "share": round(update / move, 2),
                }
            )
        )


if __name__ == "__main__":
    main()
