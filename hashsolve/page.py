"""The report of a run, or of two side by side, as one HTML page that needs nothing else."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hashsolve import checks
from hashsolve.files import atomic, open_h5
from hashsolve.methods import METHODS
from hashsolve.problem import Problem
from hashsolve.report import Report
from hashsolve.runfolder import RunFolder
from hashsolve.solution import Solution
from hashsolve.solver import solve

INK = "#010203"  # what Matplotlib draws with; the page makes it the colour of its own text
PALETTE = ("#8a8f98", "#d98c2b", "#2b7bd9", "#3d9a5f")  # read on white and on black
WORST, DRAWN = 3, 24


@dataclass(frozen=True)
class Shown:
    """A run as the page shows it: its report, its solutions, and the other method's errors."""

    name: str
    report: Report
    solutions: dict[str, Solution]
    against: dict[str, float]

    @property
    def worst(self) -> list[dict[str, Any]]:
        """The rows with the largest relative errors."""
        return sorted(self.report.rows, key=lambda row: -row["relative_error"])[:WORST]

    @property
    def ratio(self) -> float:
        """How many times smaller the binarised layers have become."""
        return self.report.summary["bits_before"] / self.report.summary["bits_after"]

    @property
    def largest(self) -> float:
        """The largest error of all that are drawn."""
        rows = self.report.rows
        own = [row[name] for row in rows for name in ("relative_error_sign", "relative_error")]
        return max([*own, *self.against.values()])

    def gap(self, row: dict[str, Any]) -> float:
        """(error − bound) / error of a row, 0 where both are."""
        error = row["relative_error"]
        return (error - row["lower_bound"]) / error if error else 0.0


def write_page(
    path: str | PathLike,
    *run_dirs: str | PathLike,
    against: str | None = "dcc",
    progress: Callable[[str, int, int, str], Any] | None = None,
) -> None:
    """Write the page of one finished run, or of two side by side.

    Needs ``hashsolve[report]`` (jinja2, matplotlib).

    Parameters
    ----------
    path : path
        The page; it appears whole or not at all.
    *run_dirs : path
        One run folder or two.
    against : str or None
        A method whose errors are shown beside the run's; the saved problems are solved by it,
        unless the run itself was. None for none.
    progress : callable, optional
        Called with (layer, index, count, what is being done).

    Raises
    ------
    ValueError
        For a folder without a finished run, damaged files, an unknown method, or any number of
        folders but one or two.
    """
    if len(run_dirs) not in (1, 2):
        raise ValueError(f"run_dirs: one run folder or two, got {len(run_dirs)}")
    if against is not None:
        checks.choice(against, "against", METHODS)
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ValueError(f"a page: {error}; pip install 'hashsolve[report]'") from None
    say = progress or (lambda *_: None)
    runs = [_shown(Path(run_dir), against, say) for run_dir in run_dirs]
    say("", 0, 0, "drawing")
    loader = jinja2.PackageLoader("hashsolve")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": _bytes, "times": lambda shape: "×".join(map(str, shape))}
    largest = max(run.largest for run in runs)  # bars side by side are of one scale
    pictures = [_pictures(run, against, largest) for run in runs]
    page = environment.get_template("report.html").render(
        runs=runs, pictures=pictures, against=against, pairs=_pairs(runs)
    )
    with atomic(path) as part:
        part.write_text(page, encoding="utf-8")


def _shown(folder: Path, against: str | None, say: Callable[..., Any]) -> Shown:
    """Read a run folder; solve its problems by the other method, where there is one."""
    if not (folder / "report.json").exists():
        raise ValueError(f"{folder}: {_why_no_run(folder)}")
    try:
        saved = json.loads((folder / "report.json").read_text())
        report = Report(saved["layers"], saved["summary"])
        names = [row["layer"] for row in report.rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: no finished run: report.json cannot be read ({error}); the command or call "
            "that began the run writes it anew"
        ) from None
    places = RunFolder(folder)
    solutions, others = {}, {}
    for index, (name, row) in enumerate(zip(names, report.rows, strict=True)):
        solutions[name] = Solution.load(places.solution_path(name))
        if against == report.summary["method"]:
            others[name] = row["relative_error"]
        elif against is not None:
            say(name, index, len(names), f"solving by {against}")
            others[name] = _error(places.problem_path(name), solutions[name], against)
    return Shown(folder.name or str(folder), report, solutions, others)


def _why_no_run(folder: Path) -> str:
    """What a path without report.json is, and what to do about it."""
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "a file; name a run folder"
    if (folder / "manifest.json").exists():
        return "no finished run; the command or call that began it finishes it"
    inner = sorted(path.parent.name for path in folder.glob("*/report.json"))
    return f"no run folder; in it are {', '.join(inner)}" if inner else "no run folder"


def _error(path: Path, solution: Solution, method: str) -> float:
    """The relative error of a layer by another method; groups without data keep their loss."""
    with open_h5(path) as file:
        groups = [name for name in file if isinstance(file[name], h5py.Group)]
    loss = solution.loss.copy()
    for group in groups or ["/"]:
        problem = Problem.load(path, group)
        first = int(group.removeprefix("group")) * problem.columns if groups else 0
        loss[first : first + problem.columns] = solve(problem, method).loss
    return float(loss.sum()) / float(solution.energy.sum())


def _pairs(runs: Sequence[Shown]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows of layers that both runs have."""
    if len(runs) < 2:
        return []
    other = {row["layer"]: row for row in runs[1].report.rows}
    return [(row, other[row["layer"]]) for row in runs[0].report.rows if row["layer"] in other]


def _bytes(bits: float) -> str:
    from rich.filesize import decimal

    return decimal(round(bits / 8))


def _pictures(run: Shown, against: str | None, largest: float) -> dict[str, str]:
    """Every picture of a run, as SVG."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ValueError(f"a page: {error}; pip install 'hashsolve[report]'") from None
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(colours, INK),
        "svg.fonttype": "none",
        "text.parse_math": False,
        "svg.hashsalt": "hashsolve",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        return {
            "errors": _errors(run, against, largest),
            "sweeps": _sweeps(run),
            "scales": _scales(run),
        }


def _errors(run: Shown, against: str | None, largest: float) -> str:
    """Bars of each layer's error: sign(W), the other method, this one; the bound as a mark."""
    rows = run.report.rows
    figure, axes = _figure(7.5, 1.1 + 0.34 * len(rows))
    bars = {"sign(W), mean|W|": [row["relative_error_sign"] for row in rows]}
    if against is not None and against != run.report.summary["method"]:
        bars[against] = [run.against[row["layer"]] for row in rows]
    bars[run.report.summary["method"]] = [row["relative_error"] for row in rows]
    places, height = np.arange(len(rows)), 0.8 / len(bars)
    colours = (PALETTE[0], *PALETTE[3 - len(bars) + 1 : 3])
    for number, ((name, values), colour) in enumerate(zip(bars.items(), colours, strict=True)):
        where = places + (number - (len(bars) - 1) / 2) * height
        axes.barh(where, values, height, label=name, color=colour)
    bounds = [row["lower_bound"] for row in rows]
    axes.plot(bounds, where, "|", color=INK, markersize=9, label="proven lower bound")
    axes.set_yticks(places, [row["layer"] for row in rows])
    axes.set_xlim(0, max(1e-12, largest) * 1.05)
    axes.invert_yaxis()
    axes.set_xlabel("relative error, Σloss / Σenergy")
    figure.legend(loc="outside upper left", ncols=4)
    return _svg(figure)


def _sweeps(run: Shown) -> str:
    """Loss against sweeps or columns, relative to where each layer began."""
    figure, axes = _figure(7.5, 3.2)
    for name, solution in run.solutions.items():
        losses = np.array([step.loss for step in solution.history])
        if len(losses) > 1 and losses[0] > 0:
            axes.plot(np.linspace(0, 1, len(losses)), losses / losses[0], lw=1, label=name)
    axes.set_xlabel("share of the layer's sweeps (or columns, where searched one by one)")
    axes.set_ylabel("loss / loss at the start")
    axes.set_ylim(bottom=0)
    if 0 < len(axes.lines) <= 10:
        axes.legend(fontsize=7, ncols=2)
    return _svg(figure)


def _scales(run: Shown) -> str:
    """A histogram of scales for each layer."""
    names = list(run.solutions)[:DRAWN]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, grid = _figure(7.5, 1.25 * lines + 0.3, lines, columns)
    for axes, name in zip(np.ravel(grid), names, strict=False):
        axes.hist(np.ravel(run.solutions[name].scales), bins=20, color=PALETTE[2])
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=3)
    for axes in np.ravel(grid)[len(names) :]:
        axes.set_axis_off()
    return _svg(figure)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Without pyplot, which would keep it and choose a backend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def _svg(figure: Any) -> str:
    """The picture in the page's own colours, as wide as there is room."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=2)
