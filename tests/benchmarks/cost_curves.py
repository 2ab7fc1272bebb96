"""Time against inputs S, columns T and rows N, over two decades each, with fitted exponents.

    python tests/benchmarks/cost_curves.py --output docs/cost.svg

Needs matplotlib. Whole calls, after warm-up, the least of a few: `Problem.from_arrays` and `solve`
of rectified low-rank features with noise. Processor seconds of one thread, which a shared machine
disturbs least. Exponents are fitted over the upper decade.
"""

from __future__ import annotations

import datetime
import json
import time

import click
import numpy as np
from threadpoolctl import threadpool_limits

import hashsolve as hs

POINTS = 7
INPUTS = np.geomspace(32, 3200, POINTS).astype(int)
COLUMNS = np.geomspace(8, 800, POINTS).astype(int)
ROWS = np.geomspace(1_000, 100_000, POINTS).astype(int)
SIZE = {"S": 144, "T": 32, "N": 4_000}
"""Where the other two are held."""
CURVES = [("sums", axis) for axis in "STN"]
CURVES += [(method, axis) for method in ("dcc", "one_flip") for axis in "ST"] + [("auto fast", "T")]


def arrays(inputs: int, columns: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """X and W."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(inputs, 48)) @ rng.normal(size=(48, rows)), 0)
    return x + 0.3 * rng.normal(size=x.shape), rng.normal(size=(inputs, columns))


def seconds(what: str, size: dict[str, int]) -> float:
    """Least of as many runs as a second holds, at least one, at most five."""
    x, w = arrays(size["S"], size["T"], size["N"])
    if what == "sums":
        job = lambda: hs.Problem.from_arrays(x, w)  # noqa: E731
    else:
        problem = hs.Problem.from_arrays(x, w)
        job = lambda: hs.solve(problem, *what.split(), threads=1)  # noqa: E731
    runs: list[float] = []
    while len(runs) < 5 and sum(runs) < 1:
        begun = time.thread_time()
        job()
        runs.append(time.thread_time() - begun)
    return min(runs)


@click.command()
@click.option("--output", default="cost.svg")
def main(output: str) -> None:
    """Measure and draw."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    for what in dict(CURVES):
        seconds(what, {"S": 80, "T": 4, "N": 200})  # JIT
    threadpool_limits(1)  # of every BLAS, now that scipy has loaded its own
    ranges = {"S": INPUTS, "T": COLUMNS, "N": ROWS}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    panels = dict(zip("STN", axes, strict=True))
    found = []
    for what, axis in CURVES:
        sizes = ranges[axis]
        times = [seconds(what, {**SIZE, axis: int(size)}) for size in sizes]
        upper = sizes >= sizes[-1] / 10.001
        exponent = np.polyfit(np.log(sizes[upper]), np.log(np.array(times)[upper]), 1)[0]
        found.append(
            {
                "what": what,
                "against": axis,
                "sizes": sizes.tolist(),
                "seconds": [round(t, 5) for t in times],
                "exponent": round(float(exponent), 2),
            }
        )
        label = f"{what}: {axis}$^{{{exponent:.1f}}}$"
        panels[axis].plot(sizes, times, "o-", markersize=4, label=label)
    names = {"S": "inputs S", "T": "columns T", "N": "rows N"}
    for axis, panel in panels.items():
        others = ", ".join(f"{k} = {v:,}" for k, v in SIZE.items() if k != axis)
        panel.set(xscale="log", yscale="log", xlabel=names[axis], title=others)
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    axes[0].set_ylabel("processor seconds")
    figure.savefig(output)
    result = {
        "command": "python tests/benchmarks/cost_curves.py --output docs/cost.svg",
        "date": str(datetime.date.today()),
        "versions": {"hashsolve": hs.__version__, "numpy": np.__version__},
        "held": SIZE,
        "curves": found,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
