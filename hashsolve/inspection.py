"""What a file or run folder of ours holds, for ``hashsolve inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hashsolve.activations import BINARIZED, FULL
from hashsolve.files import attribute, open_h5
from hashsolve.problem import Problem
from hashsolve.readers import describe_arrays, problem_groups, split
from hashsolve.report import Report
from hashsolve.solution import Solution


def inspect(path: Path) -> dict[str, Any]:
    """A description of a problem, solution, activation cache, checkpoint or run folder, for JSON.

    An .npy or .npz is described by its arrays.

    Raises
    ------
    ValueError
        Where it is damaged or nothing of ours.
    """
    if path.is_dir():
        return _run_folder(path)
    if path.name in ("manifest.json", "report.json") and (path.parent / "manifest.json").exists():
        return _run_folder(path.parent)
    split(str(path))  # a ValueError where it is not there
    if path.suffix in (".npy", ".npz"):
        return {"kind": "arrays", **describe_arrays(path)}
    with open_h5(path) as file:
        names = sorted(file)
        if "problem" in file.attrs and all("open_bound" in node for node in file.values()):
            return _checkpoint(file)
        groups = problem_groups(file)
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
    if "/" in problems:
        return {"kind": "problem", **problems["/"]}
    return {"kind": "problems", **problems}


def _checkpoint(file: Any) -> dict[str, Any]:
    """An exact search's: losses and bounds are of the problem as its solver normalises it."""
    columns = {}
    for name in sorted(file, key=int):
        state, left = file[name], file[name]["open_bound"][()]
        columns[f"column {name}"] = {
            "loss": float(state["loss"][()]),
            "least_open_bound": float(left.min()) if np.isfinite(left).any() else None,
            "open_subproblems": len(left),
            "nodes": int(state["nodes"][()]),
        }
    open_columns = sum(bool(column["open_subproblems"]) for column in columns.values())
    found = {"kind": "checkpoint", "columns": len(columns), "open_columns": open_columns}
    return {**found, "problem": attribute(file, "problem"), **columns}


def _problem(problem: Problem) -> dict[str, Any]:
    diagonal = problem.gram.diagonal()
    return {
        "inputs": problem.inputs,
        "dead_inputs": int((diagonal == 0).sum()),
        "columns": problem.columns,
        "rows": problem.rows,
        "scales": "free" if problem.free_scale else "fixed",
        "scale_group": problem.scale_group,
        "bases": problem.bases,
        "intercept": problem.intercept,
        "weights": problem.weights is not None,
        "energy": float(problem.energy.sum()),
    }


def _solution(path: Path) -> dict[str, Any]:
    solution = Solution.load(path)
    error = solution.relative_error
    return {
        "kind": "solution",
        "inputs": solution.codes.shape[-2],
        "columns": solution.codes.shape[-1],
        "bases": solution.codes.shape[0] if solution.codes.ndim == 3 else 1,
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
