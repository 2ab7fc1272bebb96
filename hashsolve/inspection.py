"""What a file or run folder of ours holds, for ``hashsolve inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hashsolve.activations import BINARIZED, FULL
from hashsolve.files import open_h5
from hashsolve.problem import Problem
from hashsolve.readers import SUMS
from hashsolve.report import Report
from hashsolve.solution import Solution


def inspect(path: Path) -> dict[str, Any]:
    """A description of a problem, solution, activation cache or run folder, for JSON.

    Raises
    ------
    ValueError
        Where it is damaged or nothing of ours.
    """
    if path.is_dir():
        return _run_folder(path)
    with open_h5(path) as file:
        names = sorted(file)
        groups = sorted(name for name in _problems(file))
        streams = {
            name: [list(file[name].shape), str(file[name].dtype)]
            for name in (FULL, BINARIZED)
            if name in file
        }
    if streams:
        return {"kind": "activations", "streams": streams, "bytes": path.stat().st_size}
    if "codes" in names:
        return _solution(path)
    if not groups:
        raise ValueError(f"{path}: no problem, solution or activations; it holds {names}")
    problems = {group: _problem(Problem.load(path, group)) for group in groups}
    return (
        {"kind": "problem", **problems["/"]}
        if "/" in problems
        else {
            "kind": "problems",
            **problems,
        }
    )


def _problems(file: Any) -> list[str]:
    """The groups that hold sums."""
    found: list[str] = []
    if all(name in file for name in SUMS):
        return ["/"]

    def visit(name: str, node: Any) -> None:
        if hasattr(node, "keys") and all(part in node for part in SUMS):
            found.append(name)

    file.visititems(visit)
    return found


def _problem(problem: Problem) -> dict[str, Any]:
    diagonal = problem.gram.diagonal()
    return {
        "inputs": problem.inputs,
        "dead_inputs": int((diagonal == 0).sum()),
        "columns": problem.columns,
        "rows": problem.rows,
        "scales": "free" if problem.free_scale else "fixed",
        "weights": problem.weights is not None,
        "energy": float(problem.energy.sum()),
    }


def _solution(path: Path) -> dict[str, Any]:
    solution = Solution.load(path)
    error = solution.relative_error
    return {
        "kind": "solution",
        "inputs": solution.codes.shape[0],
        "columns": solution.codes.shape[1],
        "method": solution.method,
        "status": solution.status.name,
        "relative_error": error if error == error else None,
        "loss": float(solution.loss.sum()),
        "lower_bound": float(solution.lower_bound.sum()),
        "proven_optimal": int(solution.optimal.sum()),
        "sweeps": solution.sweeps,
        "codes_sha256": solution.codes_sha256,
    }


def _run_folder(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        raise ValueError(f"{path}: no run folder: no readable manifest.json in it") from None
    done = sorted(p.name.removesuffix(".solution.h5") for p in path.glob("layers/*.solution.h5"))
    found = {"kind": "run", **manifest["settings"], "layers_done": done}
    report = path / "report.json"
    found["finished"] = report.exists()
    if report.exists():
        saved = json.loads(report.read_text())
        found["codes_sha256"] = saved["summary"]["codes_sha256"]
        found["text"] = str(Report(saved["layers"], saved["summary"]))
    return found
