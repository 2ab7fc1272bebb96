"""bench: how fast this installation is, mostly as ratios that do not depend on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hashsolve import reference
from hashsolve.control import Control
from hashsolve.kernels.dcc import dcc_sweep
from hashsolve.kernels.products import correlations, products
from hashsolve.kernels.rows import ROWS
from hashsolve.methods import METHODS
from hashsolve.problem import Problem
from hashsolve.solver import solve
from hashsolve.sweeps import BLOCKED_ABOVE, in_blocks

LIMITS = {
    "sweep": {"first_to_gemm": 2.0, "late_to_gemm": 2.0},
    "startup": {"import": 0.5, "help": 0.3, "first_use": 15.0, "from_cache": 1.0},
}
"""What the ratios (and seconds, of startup) are meant to stay below."""
LATE = 0.01
"""A sweep that flips less than this share of the bits is a late one."""
_FIRST_USE = """
import json, time
times = [time.perf_counter()]
import hashsolve
times.append(time.perf_counter())
hashsolve.solve
times.append(time.perf_counter())
from numba.core import event
compiled = []
class Listener(event.Listener):
    def on_start(self, event): pass
    def on_end(self, event): compiled.append(event.data["dispatcher"].py_func)
import numpy as np
rng = np.random.default_rng(0)
problem = hashsolve.Problem.from_arrays(rng.normal(size=(70, 400)), rng.normal(size=(70, 2)))
begun = time.perf_counter()
with event.install_listener("numba:compile", Listener()):
    hashsolve.solve(problem, {method!r}, "fast")
ours = sorted({{f.__name__ for f in compiled if f.__module__.startswith("hashsolve")}})
print(json.dumps([times[1] - times[0], times[2] - times[1], time.perf_counter() - begun, ours]))
"""


@dataclass(frozen=True)
class Layer:
    """A problem as sweeps see it, of correlated inputs like those of a real layer."""

    gram: np.ndarray
    cross: np.ndarray
    start: np.ndarray

    @classmethod
    def random(cls, inputs: int, columns: int) -> Layer:
        """Rectified features of low rank, and noise; the start is sign(W)."""
        rng = np.random.default_rng(0)
        features = rng.normal(size=(inputs, 48)) @ rng.normal(size=(48, 512))
        x = np.maximum(features, 0.0)
        gram = x @ x.T
        gram[np.diag_indices(inputs)] += 0.1 * gram.trace() / inputs
        gram /= gram.diagonal().max()
        weights = rng.normal(size=(columns, inputs))
        return cls(gram, weights @ gram, np.where(weights < 0, -1, 1).astype(np.int8))

    @property
    def problem(self) -> Problem:
        """The same as a `Problem` whose target the inputs explain to the last bit."""
        energy = (np.linalg.solve(self.gram, self.cross.T) * self.cross.T).sum(axis=0)
        return Problem(gram=self.gram, cross=self.cross.T, energy=energy, weights=self.start.T)


class Sweeps:
    """Sweeps of one kind after the other over a `Layer`, each at the best scales."""

    def __init__(self, layer: Layer, control: Control):
        self.layer, self.control = layer, control
        self.codes = layer.start.copy()
        self.h = np.empty(layer.cross.shape)
        control.columns(correlations, (layer.gram,), (self.codes, self.h))

    def timed(self, kernel: Callable, columns: int | None = None) -> tuple[float, tuple]:
        """Seconds of one sweep over the first columns, and what it leaves: codes, h, flips."""
        cut = slice(columns)
        cross, codes, h = self.layer.cross[cut], self.codes[cut].copy(), self.h[cut].copy()
        p, q = np.empty((2, len(codes)))
        products(cross, codes, h, p, q)
        flips, active = np.zeros(len(codes), np.int64), np.ones(len(codes), np.bool_)
        rows = (cross, codes, h, p / q, active, flips)
        begun = time.perf_counter()
        self.control.columns(kernel, (self.layer.gram,), rows)
        return time.perf_counter() - begun, (codes, h, flips)

    def twin_seconds(self) -> float:
        """Seconds that the NumPy twin takes for one column more."""
        few = min(4, len(self.codes) - 1)
        one, more = (
            min(self.timed(reference.dcc_sweep, columns)[0] for _ in range(3))
            for columns in (1, 1 + few)
        )
        return (more - one) / few

    def step(self, kernel: Callable) -> float:
        """Make a sweep; the share of the bits that it flipped."""
        _, (self.codes, self.h, flips) = self.timed(kernel)
        return float(flips.sum() / self.codes.size)


def time_sweeps(inputs: int, columns: int, repeats: int = 3) -> dict[str, Any]:
    """A sweep of DCC as `solve` makes it, against one GEMM; the plain kernel and its NumPy twin
    against the sweep by blocks.

    ``first`` starts from sign(W), ``late`` is the first sweep that flips less than `LATE`.
    Least of ``repeats`` times, taken in turns.
    """
    layer = Layer.random(inputs, columns)
    blocked, plain = partial(in_blocks, dcc_sweep, ROWS, 1), dcc_sweep
    found: dict[str, Any] = {"inputs": inputs, "columns": columns}
    with Control() as control:
        sweeps = Sweeps(layer, control)
        dense = layer.start.astype(float)
        for when in ("first", "late"):
            seconds = {"gemm": np.inf, "blocked": np.inf, "plain": np.inf}
            for _ in range(repeats):
                begun = time.perf_counter()
                np.matmul(dense, layer.gram)
                seconds["gemm"] = min(seconds["gemm"], time.perf_counter() - begun)
                for name, kernel in (("blocked", blocked), ("plain", plain)):
                    seconds[name] = min(seconds[name], sweeps.timed(kernel)[0])
            used = seconds["blocked" if inputs > BLOCKED_ABOVE else "plain"]
            found[f"{when}_seconds"] = used
            found[f"{when}_to_gemm"] = used / seconds["gemm"]
            found[f"{when}_plain_to_blocked"] = seconds["plain"] / seconds["blocked"]
            if when == "first":
                twin = columns * sweeps.twin_seconds()
                found["first_twin_to_blocked"] = twin / seconds["blocked"]
                found["first_flips"] = share = sweeps.step(blocked)
                for _ in range(30):
                    if share < LATE:
                        break
                    share = sweeps.step(blocked)
            else:
                found["late_flips"] = sweeps.step(blocked)
    return found


def time_methods(methods: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """Seconds of each method on a problem of 54 inputs and 16 columns, compiled, default effort."""
    problem = Layer.random(54, 16).problem
    found: dict[str, Any] = {}
    for method in methods:
        solutions = [solve(problem, method) for _ in range(2)]  # the first compiles
        seconds = min(solution.wall_time for solution in solutions)
        found[method] = {"seconds": seconds, "loss": float(solutions[0].loss.sum())}
    best = min(row["loss"] for row in found.values())
    for row in found.values():
        row["to_best"] = row.pop("loss") / best
    return found


def first_use(method: str) -> dict[str, Any]:
    """Import and solve in new processes, with an empty cache of compiled kernels, then a full one.

    ``import`` are the seconds of ``import hashsolve``, ``solver`` those until ``hashsolve.solve``
    is there too (numba, scipy), ``first_use`` and ``from_cache`` those of the first solve, of a
    small problem; ``kernels`` were compiled for it.
    """
    with tempfile.TemporaryDirectory() as cache:
        code = _FIRST_USE.format(method=method)
        runs = [json.loads(_python("-c", code, NUMBA_CACHE_DIR=cache)) for _ in range(2)]
    (_, _, first, kernels), (imported, solver, cached, again) = runs
    if again:
        raise RuntimeError(f"compiled although in the cache: {', '.join(again)}")
    return {
        "method": method,
        "import": imported,
        "solver": solver,
        "first_use": first,
        "from_cache": cached,
        "kernels": kernels,
    }


def help_seconds() -> float:
    """What `hashsolve --help` takes, the start of Python included; least of three."""
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        _python("-m", "hashsolve.cli", "--help")
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _python(*arguments: str, **environment: str) -> str:
    """The output of a new Python that imports what this one does."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def measure(
    inputs: int = 4608,
    columns: int = 512,
    show: Callable[[str, int, int, str], None] = lambda *_: None,
) -> dict[str, Any]:
    """All of it; 4608 × 512 is the largest layer of ResNet-18."""
    show("", 0, 3, f"sweeps over {inputs} inputs, {columns} columns")
    sweep = time_sweeps(inputs, columns)
    show("", 1, 3, "methods")
    solved = time_methods()
    show("", 2, 3, "first use in new processes")
    startup = {"help": help_seconds(), **first_use("auto")}
    return {"sweep": sweep, "solve": solved, "startup": startup, "limits": LIMITS}


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured as rows of a table: what, how much, the limit."""
    sweep, startup = found["sweep"], found["startup"]
    size = f"{sweep['inputs']} × {sweep['columns']}"
    table = [("DCC sweep, " + size, "", "")]
    for when in ("first", "late"):
        flips = f"{when} sweep ({sweep[f'{when}_flips']:.1%} of bits flip)"
        limit = f"≤ {LIMITS['sweep'][f'{when}_to_gemm']:g}"
        table += [
            (f"  {flips} / one GEMM", f"{sweep[f'{when}_to_gemm']:.2f}", limit),
            ("  plain kernel / by blocks", f"{sweep[f'{when}_plain_to_blocked']:.2f}", ""),
        ]
    table.append(("  NumPy twin / by blocks", f"{sweep['first_twin_to_blocked']:.0f}", ""))
    table.append(("solve, 54 × 16: seconds (loss / best)", "", ""))
    for method, row in found["solve"].items():
        table.append((f"  {method}", f"{row['seconds']:.3f} ({row['to_best']:.3f})", ""))
    table.append((f"a new process, method {startup['method']}: seconds", "", ""))
    for key, what in (
        ("help", "hashsolve --help"),
        ("import", "import hashsolve"),
        ("solver", "hashsolve.solve on top"),
        ("first_use", f"first solve, {len(startup['kernels'])} kernels compiled"),
        ("from_cache", "first solve, kernels from the cache"),
    ):
        most = LIMITS["startup"].get(key)
        table.append((f"  {what}", f"{startup[key]:.2f}", f"≤ {most:g}" if most else ""))
    return table
