"""Public Boolean quadratic programmes: the known optimum reached, and whether it was proven.

    python tests/benchmarks/biqmac.py

xᵀQx over x in {0, 1}^n, by x = (1 + b) / 2. Data as tests/data.py finds them.
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


def read(name: str) -> tuple[hs.Problem, float]:
    """The programme in b, and the constant that it leaves out."""
    first, *entries = (shared_data("biqmac") / f"{name}.sparse").read_text().split("\n")
    size = int(first.split()[0])
    q = np.zeros((size, size))
    for i, j, weight in (entry.split() for entry in entries if entry.strip()):
        q[int(i) - 1, int(j) - 1] = q[int(j) - 1, int(i) - 1] = float(weight)
    return hs.Problem.from_quadratic(q / 4, -q.sum(axis=1) / 4, name=name), q.sum() / 4


@click.command()
@click.option("--exact-up-to", default=100, help="Largest n for which a proof is tried.")
def main(exact_up_to: int) -> None:
    """Solve all instances."""
    optima = json.loads((shared_data("biqmac") / "optima.json").read_text())
    hs.solve(hs.Problem.from_quadratic(np.diag(np.ones(30), 1)[:30, :30]), "exact", "fast")  # JIT
    reached = proven = 0
    print(f"{'instance':<12}{'n':>5}{'found':>9}{'known':>9}{'seconds':>9}  proof")
    for name, optimum in sorted(optima.items()):
        problem, constant = read(name)
        begun = time.perf_counter()
        value = round(float(hs.solve(problem).loss[0] + constant))
        seconds = time.perf_counter() - begun
        proof = ""
        if problem.inputs <= exact_up_to:
            begun = time.perf_counter()
            s = hs.solve(problem, "exact")
            # the data are integers: nothing lies between the optimum and a bound less than 1 below
            done = s.lower_bound[0] + constant > round(float(s.loss[0] + constant)) - 1
            proven += done
            proof = f"{'proven' if done else 'open'}, {time.perf_counter() - begun:.2f} s"
        reached += value == optimum
        print(f"{name:<12}{problem.inputs:>5}{value:>9}{optimum:>9}{seconds:>9.2f}  {proof}")
    print(f"{reached} of {len(optima)} reached at default effort; {proven} proven")


if __name__ == "__main__":
    main()
