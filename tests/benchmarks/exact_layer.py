"""Prove a whole convolution layer optimal, column by column.

    python tests/benchmarks/exact_layer.py layer1.0.conv1/symmetric --checkpoint proof.h5
    python tests/benchmarks/exact_layer.py layer2.1.conv1/symmetric --leading 64

Can be interrupted: the same command goes on from its checkpoint. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
import numpy as np

import hashsolve as hs

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import shared_data


@click.command()
@click.argument("name", default="layer1.0.conv1/symmetric")
@click.option("--checkpoint", help="Keep the search here, and go on from it.")
@click.option("--effort", default="thorough")
@click.option("--leading", type=int, help="The block of so many live inputs, as its own problem.")
def main(name: str, checkpoint: str | None, effort: str, leading: int | None) -> None:
    """Solve with method "exact" and print what was proven."""
    problem = hs.Problem.load(shared_data("layer_problems.h5"), name)
    if leading is not None:
        kept = np.flatnonzero(problem.gram.any(axis=1))[:leading]
        gram, w = problem.gram[np.ix_(kept, kept)], problem.weights[kept]
        problem = hs.Problem(gram, gram @ w, (w * (gram @ w)).sum(axis=0), weights=w)
    hs.solve(hs.Problem.load(shared_data("layer_problems.h5"), "conv1/symmetric"), "exact")  # JIT
    begun = time.perf_counter()
    s = hs.solve(problem, "exact", effort, checkpoint=checkpoint)
    result = {
        "problem": name,
        "shape": [problem.inputs, problem.columns],
        "live_inputs": int(problem.gram.any(axis=1).sum()),
        "proven": int(s.optimal.sum()),
        "relative_error": s.relative_error,
        "bound": float(s.lower_bound.sum() / s.energy.sum()),
        "losses": (s.loss / s.energy).round(7).tolist(),
        "seconds": round(time.perf_counter() - begun, 1),
        "codes_sha256": s.codes_sha256,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
