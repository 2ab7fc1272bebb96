"""One sweep of DCC by blocks against a GEMM, the plain kernel, the NumPy twin and PyTorch.

    python tests/benchmarks/sweeps.py --inputs 4608 --columns 512

4608 × 512 is the largest layer of ResNet-18. Needs torch for the last comparison: a bit after the
other, for all columns at once, as one would write it; from the same start, to the same bits.
"""

from __future__ import annotations

import json
import time
from functools import partial

import click
import numpy as np

from hashsolve import bench
from hashsolve.control import Control
from hashsolve.kernels.dcc import dcc_sweep
from hashsolve.kernels.one_flip import one_flip_sweep
from hashsolve.kernels.products import products
from hashsolve.kernels.rows import ROWS
from hashsolve.methods.one_flip import TOLERANCE
from hashsolve.problem import cancelling
from hashsolve.sweeps import in_blocks


def torch_sweep(gram, cross, codes, h, scales, active, flips) -> None:
    """A sweep over all columns in PyTorch; h is not used, but computed anew for every bit."""
    import torch

    gram, cross, scales = torch.from_numpy(gram), torch.from_numpy(cross), torch.from_numpy(scales)
    b = torch.from_numpy(codes.astype(float).T.copy())
    for j in range(len(gram)):
        pull = cross[:, j] - scales * (gram[j] @ b - gram[j, j] * b[j])
        b[j] = torch.where(pull == 0, b[j], torch.sign(pull))
    after = b.T.numpy().astype(np.int8)
    flips[:] = (after != codes).sum(axis=1)
    codes[:] = after


def one_flip(run, gram, cross, codes, h, scales, active, flips) -> None:
    """A sweep of one_flip, which needs p and q and no scales, called as one of DCC is."""
    p, q = np.empty((2, len(codes)))
    products(cross, codes, h, p, q)
    run(gram, True, TOLERANCE, cancelling(gram), cross, codes, h, p, q, active, flips)


@click.command()
@click.option("--inputs", default=4608)
@click.option("--columns", default=512)
@click.option("--repeats", default=5)
@click.option("--torch/--no-torch", "with_torch", default=True)
def main(inputs: int, columns: int, repeats: int, with_torch: bool) -> None:
    """Measure."""
    found = bench.time_sweeps(inputs, columns, repeats)
    with Control() as control:
        sweeps = bench.Sweeps(bench.Layer.random(inputs, columns), control)
        kinds = {"plain": one_flip_sweep, "blocked": partial(in_blocks, one_flip_sweep, ROWS, 4)}
        seconds = {kind: [] for kind in kinds}
        for _ in range(repeats):
            for kind, run in kinds.items():
                seconds[kind].append(sweeps.timed(partial(one_flip, run))[0])
        gemm = found["first_seconds"] / found["first_to_gemm"]
        found["one_flip_to_gemm"] = min(seconds["blocked"]) / gemm
        found["one_flip_plain_to_blocked"] = min(seconds["plain"]) / min(seconds["blocked"])
    if with_torch:
        with Control() as control:
            sweeps = bench.Sweeps(bench.Layer.random(inputs, columns), control)
            blocked = partial(in_blocks, dcc_sweep, ROWS, 1)
            control.threads, threads = 1, control.threads  # PyTorch has threads of its own
            begun = time.perf_counter()
            _, (codes, *_) = sweeps.timed(torch_sweep)
            seconds = time.perf_counter() - begun
            control.threads = threads
            ours, (wanted, *_) = min(
                (sweeps.timed(blocked) for _ in range(repeats)), key=lambda run: run[0]
            )
            found["first_torch_to_blocked"] = seconds / ours
            found["bits_unlike_torch"] = int((codes != wanted).sum())
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
