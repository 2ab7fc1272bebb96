"""Every real layer problem, by every method asked for: loss against the stored references.

    python tests/benchmarks/layer_problems.py --method dcc --method one_flip

Prints Σloss over columns relative to Σenergy, and its ratio to loss_dcc and loss_reference (the
alternation's loss and the best of the prototypes, stored with the problems), with seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
import h5py

import hashsolve as hs

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import shared_data


def problems() -> list[str]:
    """Names of the groups that hold a problem."""
    with h5py.File(shared_data("layer_problems.h5"), "r") as file:
        return [f"{layer}/{kind}" for layer in file for kind in file[layer]]


@click.command()
@click.option("--method", "methods", multiple=True, default=("dcc", "one_flip", "auto"))
@click.option("--effort", default="default")
@click.option("--json", "as_json", is_flag=True)
def main(methods: tuple[str, ...], effort: str, as_json: bool) -> None:
    """Solve and compare."""
    path = shared_data("layer_problems.h5")
    warm_up = hs.Problem.load(path, "conv1/symmetric")
    for method in methods:
        hs.solve(warm_up, method, effort)
    rows = []
    for name in problems():
        problem = hs.Problem.load(path, name)
        with h5py.File(path, "r") as file:
            dcc = file[name]["loss_dcc"][()].sum()
            reference = file[name]["loss_reference"][()].sum()
        for method in methods:
            begun = time.perf_counter()
            solution = hs.solve(problem, method, effort)
            rows.append(
                {
                    "problem": name,
                    "shape": f"{problem.inputs}x{problem.columns}",
                    "method": method,
                    "relative_error": solution.relative_error,
                    "bound": solution.lower_bound.sum() / solution.energy.sum(),
                    "mean_gap": float(solution.gap.mean()),
                    "to_dcc": solution.loss.sum() / dcc,
                    "to_reference": solution.loss.sum() / reference,
                    "seconds": time.perf_counter() - begun,
                }
            )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'problem':<28}{'shape':>8} {'method':<9}{'error':>8}{'bound':>8}{'gap':>7}", end="")
    print(f"{'/ dcc':>9}{'/ best':>9}{'seconds':>9}")
    for row in rows:
        print(
            f"{row['problem']:<28}{row['shape']:>8} {row['method']:<9}"
            f"{row['relative_error']:>8.4f}{row['bound']:>8.4f}{row['mean_gap']:>7.3f}{row['to_dcc']:>9.4f}"
            f"{row['to_reference']:>9.4f}{row['seconds']:>9.2f}"
        )


if __name__ == "__main__":
    main()
