"""The figures of the mathematics, as SVG beside this file: `python docs/figures/figures.py`.

Needs matplotlib. The same versions give the same bytes.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import hashsolve as hs

FOLDER = Path(__file__).parent
INK, BLUE, ORANGE, GREEN = "#7d7d7d", "#2b7bd9", "#d9822b", "#2f9e62"
STYLE = {
    "svg.hashsalt": "hashsolve",
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.transparent": True,  # for light and dark pages
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}


def layer(inputs: int, columns: int, rows: int, seed: int) -> hs.Problem:
    """Inputs as a ReLU leaves them, in correlated directions of falling size."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(inputs, inputs)) * np.geomspace(0.1, 1, inputs)
    x = np.maximum(mix @ rng.normal(size=(inputs, rows)), 0)
    return hs.Problem.from_arrays(x, rng.normal(size=(inputs, columns)))


def save(figure: plt.Figure, name: str) -> None:
    """Write one figure."""
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def scales() -> None:
    """Every code's loss against the scale, their envelope, and where methods end on it."""
    problem = layer(9, 1, 400, seed=43)
    codes = np.array(list(itertools.product((-1, 1), repeat=problem.inputs)), dtype=float).T
    p = codes.T @ problem.cross[:, 0]
    q = np.einsum("sn,sn->n", codes, problem.gram @ codes)
    energy = problem.energy[0]
    alpha = np.linspace(0, 1.9, 600)
    losses = (energy - 2 * np.outer(p, alpha) + np.outer(q, alpha**2)) / energy
    envelope = losses.min(axis=0)

    figure, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    for index in np.unique(losses.argmin(axis=0)):
        axes.plot(alpha, losses[index], color=INK, linewidth=0.6, alpha=0.7)
    axes.plot(alpha, envelope, color=BLUE, linewidth=2.5, label="the best code for each scale")
    ends = (("dcc", ORANGE, "dcc's code, and where it ends"), ("exact", GREEN, "the optimum"))
    for method, colour, name in ends:
        found = hs.solve(problem, method)
        own = (codes == found.codes).all(axis=0)
        axes.plot(alpha, losses[own][0], color=colour, linewidth=1.2)
        place = (found.scales[0], found.loss[0] / energy)
        axes.plot(*place, "o", color=colour, markersize=8, label=name)
    axes.set(xlabel="scale α", ylabel="loss / energy", ylim=(0, 0.8), xlim=(0, 1.9))
    figure.legend(loc="outside lower center", ncols=3)
    save(figure, "scales")


def diagonals() -> None:
    """Two inputs: the quadratic as it is, and with the best free diagonal."""
    gram = np.array([[1.0, 0.55], [0.55, 2.2]])
    wanted = np.array([1.5, 0.35])
    cross = gram @ wanted
    energy = wanted @ cross
    shifts = np.linspace(-0.9, 0.9, 1801)
    bounds = []
    for shift in shifts:
        matrix = gram + np.diag([shift, -shift])
        definite = np.linalg.eigvalsh(matrix)[0] > 1e-9
        bounds.append(energy - cross @ np.linalg.solve(matrix, cross) if definite else -np.inf)
    best = float(shifts[np.argmax(bounds)])

    u = np.linspace(-0.6, 2.4, 61)
    first, second = np.meshgrid(u, u)
    figure, panels = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained", sharey=True)
    for axes, shift in zip(panels, (0.0, best), strict=True):
        matrix = gram + np.diag([shift, -shift])
        quadratic = matrix[0, 0] * first**2 + matrix[1, 1] * second**2
        quadratic += 2 * matrix[0, 1] * first * second
        loss = energy - 2 * (cross[0] * first + cross[1] * second) + quadratic
        least = np.linalg.solve(matrix, cross)
        bound = energy - cross @ least
        levels = bound + np.array([0.04, 0.15, 0.35, 0.65, 1.05, 1.6, 2.3])
        axes.contour(u, u, loss, levels=levels, colors=INK, linewidths=0.8)
        axes.plot(u, u, color=BLUE, linewidth=1.6)
        axes.plot(u, -u, color=BLUE, linewidth=1.6, label="what codes can be: |u₁| = |u₂|")
        codes = min(
            (np.array(c) for c in itertools.product((-1.0, 1.0), repeat=2)),
            key=lambda c: -((c @ cross) ** 2) / (c @ gram @ c),
        )
        place = codes * (codes @ cross) / (codes @ gram @ codes)
        optimum = energy - (codes @ cross) ** 2 / (codes @ gram @ codes)
        axes.plot(*place, "o", color=GREEN, markersize=8, label=f"the best code: {optimum:.3f}")
        axes.plot(
            *least, "x", color=ORANGE, markersize=9, mew=2.5, label="least squares: the bound"
        )
        name = "H as it is" if shift == 0 else "H + diag(λ), Σλ = 0"
        axes.set_title(f"{name}: bound {max(bound, 0.0):.3f}", fontsize=10)
        axes.set(xlim=(-0.6, 2.4), ylim=(-0.6, 2.0), xlabel="u₁", aspect="equal")
    panels[0].set_ylabel("u₂")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    save(figure, "diagonals")


def gaps() -> None:
    """What each method finds on one layer, and what is proven."""
    problem = layer(64, 16, 4000, seed=1)
    names = ("sign", "dcc", "one_flip", "babai", "beam", "tabu", "auto")
    found = {name: hs.solve(problem, name) for name in names}
    errors = [s.relative_error for s in found.values()]
    total = problem.energy.sum()
    bound = found["beam"].lower_bound.sum() / total
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    bars = axes.barh(names, errors, color=[INK] + [BLUE] * 5 + [GREEN], height=0.65)
    axes.bar_label(bars, fmt="%.4f", padding=3, color=INK)
    axes.axvline(bound, color=ORANGE, linestyle="--", label=f"proven lower bound: {bound:.4f}")
    axes.set(xlabel="loss / energy", xlim=(0, max(errors) * 1.15))
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    save(figure, "gaps")


def propagation() -> None:
    """Which network the inputs and the targets of a layer come from."""
    figure, panels = plt.subplots(1, 3, figsize=(7.2, 1.7), layout="constrained")
    sources = {"symfp": (1, 1), "symqt": (0, 0), "asym": (0, 1)}
    for axes, (name, (inputs, target)) in zip(panels, sources.items(), strict=True):
        axes.set(xlim=(0, 10), ylim=(0.1, 3.6))
        axes.set_title(name, fontsize=10, loc="left")
        axes.axis("off")
        for row, text, colour in ((1, "full precision", INK), (0, "binarised so far", BLUE)):
            y = 0.9 + 1.9 * row
            box = FancyBboxPatch((0.2, y - 0.55), 4.6, 1.1, boxstyle="round,pad=0.1")
            box.set(facecolor="none", edgecolor=colour)
            axes.add_patch(box)
            axes.text(2.5, y, text, ha="center", va="center", fontsize=9)
        for row, y, text, colour in (
            (inputs, 0.9, "inputs X̂", BLUE),
            (target, 2.8, "target Y", GREEN),
        ):
            arrow = FancyArrowPatch((5.0, 0.9 + 1.9 * row), (6.4, y), arrowstyle="-|>")
            arrow.set(mutation_scale=12, color=colour)
            axes.add_patch(arrow)
            axes.text(6.5, y, text, va="center", fontsize=9, color=colour)
    save(figure, "propagation")


if __name__ == "__main__":
    matplotlib.use("svg")
    with matplotlib.rc_context(STYLE):
        for draw in (scales, diagonals, gaps, propagation):
            draw()
