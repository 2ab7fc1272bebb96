"""What a file or run folder of ours holds, for ``hashsolve inspect``."""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hashsolve.activations import BINARIZED, FULL
from hashsolve.files import attribute, open_h5
from hashsolve.packed_checkpoint import read_layout
from hashsolve.problem import Problem
from hashsolve.readers import describe_arrays, describe_data_sets, problem_groups, split
from hashsolve.report import Report
from hashsolve.solution import Solution

RUN_FILES = ("manifest.json", "report.json", "report.csv", "report.html")
"""What lies in a run folder beside its layers."""


def inspect(path: Path) -> dict[str, Any]:
    """A description, for JSON, of a file or folder that hashsolve or torch_glue writes.

    Other .npy, .npz and .h5 files are described by their arrays. Nothing is ever unpickled.

    Raises
    ------
    ValueError
        Where it is damaged or nothing of ours.
    """
    if path.is_dir():
        demo = path / "demo.json"
        return _demo(demo) if demo.exists() else _run_folder(path)
    if path.name in RUN_FILES and (path.parent / "manifest.json").exists():
        return _run_folder(path.parent)
    whole, inside = split(str(path))  # a ValueError where it is not there
    if inside:
        raise ValueError(f"{path}: files are inspected whole; name {whole}")
    if path.suffix in (".npy", ".npz"):
        return {"kind": "arrays", **describe_arrays(path)}
    if path.name == "demo.json":
        return _demo(path)
    if path.suffix == ".safetensors":
        return _packed(path)
    if path.suffix == ".onnx":
        return _onnx(path)
    if _is_pickle(path):
        raise ValueError(
            f"{path}: pickled, as torch.save writes checkpoints: not opened, for that can run any "
            "code; torch_glue.finetune(..., checkpoint=...) takes up its own"
        )
    with open_h5(path) as file:
        names = sorted(file)
        arrays = describe_data_sets(file)
        if "codec" in file and "words" in file:
            return _index(path)
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
    if not groups and arrays:
        return {"kind": "arrays", **arrays}
    if not groups:
        raise ValueError(f"{path}: holds no arrays, and is nothing that hashsolve writes")
    problems = {group: _problem(Problem.load(path, group)) for group in groups}
    if "/" in problems:
        return {"kind": "problem", **problems["/"]}
    return {"kind": "problems", **problems}


def _is_pickle(path: Path) -> bool:
    """Whether it is a pickle, or an archive of torch's that holds one."""
    with open(path, "rb") as file:
        begin = file.read(2)
    if begin == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("data.pkl") for name in archive.namelist())
        except (zipfile.BadZipFile, OSError, NotImplementedError):
            return False
    return len(begin) == 2 and begin[0] == 0x80 and begin[1] <= pickle.HIGHEST_PROTOCOL


def _packed(path: Path) -> dict[str, Any]:
    """What `torch_glue.save_packed` wrote: layers of one bit a weight, and the rest."""
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: {error}; pip install 'hashsolve[packed]'") from None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from error
    layout = read_layout(path, metadata, shapes)
    weights = sum(math.prod(weight.shape) for weight in layout.packed.values())
    return {
        "kind": "packed checkpoint",
        "bytes": path.stat().st_size,
        "binary_weights": weights,
        "layers": {
            name: {"shape": list(weight.shape), "scales": list(weight.scales)}
            for name, weight in layout.packed.items()
        },
        "other_tensors": len(layout.plain),
        "aliases": layout.aliases,
    }


def _index(path: Path) -> dict[str, Any]:
    from hashsolve.retrieval import InnerProductIndex

    index = InnerProductIndex.load(path)
    return {
        "kind": "index",
        "metric": index.metric,
        "bits": index.bits,
        "dimensions": index.dimensions,
        "vectors": len(index),
        "bytes_per_vector": index.bytes_per_vector,
        "effort": index.effort,
        "bytes": path.stat().st_size,
        "text": str(index.report),
    }


def _onnx(path: Path) -> dict[str, Any]:
    """What `torch_glue.export_onnx` wrote, or any other network in that format."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: {error}; pip install 'hashsolve[onnx]'") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # what protobuf raises is none of Python's own
        raise ValueError(f"{path}: damaged, or not an ONNX file ({error})") from error
    graph = model.graph
    return {
        "kind": "ONNX network",
        "inputs": [value.name for value in graph.input],
        "outputs": [value.name for value in graph.output],
        "operators": dict(Counter(node.op_type for node in graph.node)),
        "weights": sum(math.prod(tensor.dims) for tensor in graph.initializer),
        "bytes": path.stat().st_size,
    }


def _demo(path: Path) -> dict[str, Any]:
    """The table that the demo left."""
    try:
        found = json.loads(path.read_text())
        rows = {
            row["way"]: {"top1": row["top1"], "run_dir": row["run_dir"]} for row in found["rows"]
        }
        return {"kind": "demo", "top1_full_precision": found["top1_full_precision"], **rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or not the demo's ({error})") from None


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
