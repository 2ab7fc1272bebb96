"""Other solvers on the same columns, in one run: loss and CPU seconds of each.

    pip install dwave-samplers pyscipopt
    python tests/benchmarks/peers.py heuristics     # dwave-samplers: tabu, annealing, descent
    python tests/benchmarks/peers.py exact          # SCIP, on sub-problems of 27 and 54 inputs

The samplers are given each column's best known scale, as quadratic programmes have none to find;
their codes are then judged at the best scale of their own. Ours is method "auto" on one thread. A
sampler gets ten times our time a column where S <= 288, else the same time. SCIP solves the convex
mixed-integer form u_j = ±α with α continuous, and stops after --limit seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
import h5py
import numpy as np

import hashsolve as hs

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import shared_data


@click.group()
def main() -> None:
    """Compare."""


def timed(solve) -> tuple[object, float]:
    """A result, and the seconds it took."""
    begun = time.perf_counter()
    return solve(), time.perf_counter() - begun


def samplers(problem: hs.Problem, scale: float, seconds: float) -> dict[str, np.ndarray]:
    """Codes (S, 1) of each dwave sampler within so many seconds."""
    import dimod
    from dwave.samplers import SimulatedAnnealingSampler, SteepestDescentSampler, TabuSampler

    gram, pull = problem.gram * scale**2, problem.cross[:, 0] * scale
    size = np.abs(gram).max()
    bqm = dimod.BinaryQuadraticModel.from_ising(
        dict(enumerate(-2 * pull / size)),
        {(i, j): 2 * gram[i, j] / size for i in range(len(gram)) for j in range(i)},
    )

    def repeat(sampler, **options) -> np.ndarray:
        best, begun, seed = None, time.perf_counter(), 0
        while best is None or time.perf_counter() - begun < seconds:
            found = sampler.sample(bqm, seed=seed, **options).first
            best = found if best is None or found.energy < best.energy else best
            seed += 1
        return np.array([[best.sample[i]] for i in range(len(gram))])

    return {
        "dwave tabu": repeat(TabuSampler(), timeout=1000 * seconds),
        "dwave annealing": repeat(SimulatedAnnealingSampler(), num_reads=1, num_sweeps=1000),
        "dwave descent": repeat(SteepestDescentSampler(), num_reads=10),
    }


@main.command()
@click.option("--columns", default=4, help="Columns of each problem.")
def heuristics(columns: int) -> None:
    """Ours against dwave-samplers."""
    path = shared_data("layer_problems.h5")
    with h5py.File(path, "r") as file:
        names = [f"{layer}/{kind}" for layer in file for kind in file[layer]]
    hs.solve(hs.Problem.load(path, names[0]))  # JIT
    for name in names:
        problem = hs.Problem.load(path, name).select(range(columns))
        live = problem.gram.any(axis=1)
        problem = hs.Problem(
            gram=problem.gram[np.ix_(live, live)],
            cross=problem.cross[live],
            energy=problem.energy,
            weights=problem.weights[live],
        )
        ours, seconds = timed(lambda p=problem: hs.solve(p, threads=1))
        share = seconds / columns * (10 if problem.inputs <= 288 else 1)
        total = {"hashsolve auto": float(ours.loss.sum())}
        for t in range(columns):
            column = problem.select([t])
            for peer, codes in samplers(column, ours.scales[t], share).items():
                total[peer] = total.get(peer, 0.0) + float(column.loss(codes)[0])
        row = {k: round(v / problem.energy.sum(), 5) for k, v in total.items()}
        limits = {
            "seconds a column": round(seconds / columns, 3),
            "peers' seconds": round(share, 3),
        }
        print(json.dumps({"problem": name, "live inputs": problem.inputs, **row, **limits}))


def scip(problem: hs.Problem, limit: float) -> tuple[float, bool]:
    """SCIP's loss of a one-column problem, and whether it is proven."""
    import pyscipopt

    gram, pull, size = problem.gram, problem.cross[:, 0], problem.inputs
    unit = problem.energy[0]
    most = 4 * hs.solve(problem).scales[0]
    model = pyscipopt.Model()
    model.hideOutput()
    model.setParam("limits/time", limit)
    alpha = model.addVar(lb=0, ub=most)
    bound = model.addVar(lb=None)
    u = []
    for _ in range(size):
        x, v = model.addVar(vtype="B"), model.addVar(lb=0, ub=most)  # v = α where x = 1, else 0
        model.addCons(v <= most * x)
        model.addCons(v <= alpha)
        model.addCons(v >= alpha - most * (1 - x))
        u.append(2 * v - alpha)
    w = [model.addVar(lb=None) for _ in range(size)]
    for j in range(size):
        model.addCons(w[j] == u[j])
    root = np.linalg.cholesky(gram / unit + 1e-12 * np.trace(gram / unit) * np.eye(size))
    quadratic = 0
    for k in range(size):
        row = model.addVar(lb=None)
        model.addCons(row == pyscipopt.quicksum(root[j, k] * w[j] for j in range(size)))
        quadratic += row * row
    linear = pyscipopt.quicksum(2 * pull[j] / unit * w[j] for j in range(size))
    model.addCons(quadratic - linear + 1 <= bound)
    model.setObjective(bound)
    model.optimize()
    return model.getObjVal() * unit, model.getStatus() == "optimal"


@main.command()
@click.option("--columns", default=3, help="Columns of each sub-problem.")
@click.option("--limit", default=60.0, help="Seconds for SCIP.")
def exact(columns: int, limit: float) -> None:
    """Ours against SCIP, on leading principal blocks re-solved as their own problem."""
    path = shared_data("layer_problems.h5")
    for name, size in (("conv1/symmetric", 27), ("layer1.0.conv1/symmetric", 54)):
        whole = hs.Problem.load(path, name)
        kept = np.flatnonzero(whole.gram.any(axis=1))[:size]
        gram, w = whole.gram[np.ix_(kept, kept)], whole.weights[kept]
        cross = gram @ w
        problem = hs.Problem(gram, cross, (w * cross).sum(axis=0), weights=w)
        hs.solve(problem, "exact")  # JIT
        for t in range(columns):
            column = problem.select([t])
            ours, seconds = timed(lambda p=column: hs.solve(p, "exact", threads=1))
            (loss, proven), other = timed(lambda p=column: scip(p, limit))
            row = {
                "problem": name,
                "inputs": size,
                "column": t,
                "hashsolve": round(float(ours.loss[0] / problem.energy[t]), 6),
                "proven": bool(ours.optimal[0]),
                "seconds": round(seconds, 3),
                "SCIP": round(loss / problem.energy[t], 6),
                "SCIP proven": proven,
                "SCIP seconds": round(other, 2),
                "ratio": round(other / seconds, 1),
            }
            print(json.dumps(row))


if __name__ == "__main__":
    main()
