"""Loss against time of every method and effort, as a table (JSON) and a plot (SVG).

    python tests/benchmarks/methods_plot.py --output methods.svg

Needs matplotlib. Each point is a geometric mean over the real layer problems of up to --largest
inputs: Σloss relative to the stored reference, and seconds on all cores, after warm-up.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
import numpy as np
from layer_problems import problems

import hashsolve as hs

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import shared_data

RUNS = [("sign", "default"), ("dcc", "default"), ("dcc", "thorough"), ("one_flip", "default")]
RUNS += [("one_flip", "thorough"), ("babai", "default"), ("tabu", "fast"), ("tabu", "default")]
RUNS += [("beam", "fast"), ("beam", "default"), ("auto", "fast"), ("auto", "default")]


@click.command()
@click.option("--output", default="methods.svg")
@click.option("--largest", default=288, help="Leave out problems of more inputs.")
@click.option("--thorough", is_flag=True, help="auto with thorough effort too: minutes.")
def main(output: str, largest: int, thorough: bool) -> None:
    """Measure and draw."""
    import h5py
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    path = shared_data("layer_problems.h5")
    runs = RUNS + [("auto", "thorough")] * thorough
    for method in dict(runs):
        hs.solve(hs.Problem.load(path, "conv1/symmetric"), method, "fast")  # JIT
    points = {}
    for method, effort in runs:
        ratios, seconds = [], []
        for name in problems():
            problem = hs.Problem.load(path, name)
            if problem.inputs > largest:
                continue
            with h5py.File(path, "r") as file:
                reference = file[name]["loss_reference"][()].sum()
            begun = time.perf_counter()
            ratios.append(hs.solve(problem, method, effort).loss.sum() / reference)
            seconds.append(time.perf_counter() - begun)
        points[f"{method} {effort}"] = [
            float(np.exp(np.mean(np.log(values)))) for values in (ratios, seconds)
        ]
    print(json.dumps({k: [round(r, 4), round(s, 4)] for k, (r, s) in points.items()}, indent=1))
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for method in dict.fromkeys(method for method, _ in runs):
        mine = [points[f"{m} {e}"] for m, e in runs if m == method]
        axes.plot([s for _, s in mine], [r for r, _ in mine], "o-", label=method)
    axes.set(xscale="log", yscale="log", xlabel="seconds a layer", ylabel="loss / reference")
    axes.set_yticks([1, 1.5, 2, 3], ["1", "1.5", "2", "3"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(output)


if __name__ == "__main__":
    main()
