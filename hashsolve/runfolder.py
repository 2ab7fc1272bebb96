"""RunFolder: what a binarisation keeps on disk, and what it takes up again."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from os import PathLike
from pathlib import Path
from typing import Any

import h5py

from hashsolve.files import attribute, digest, sha256, write_attributes, write_h5, write_json
from hashsolve.problem import Problem
from hashsolve.solution import Solution

FORMAT = 1
logger = logging.getLogger("hashsolve")


class RunFolder:
    """A run's folder.

    ``manifest.json`` holds the fingerprints of weights, calibration, geometry and settings;
    ``layers/NAME.problem.h5`` a layer's sums (one HDF5 group a convolution group, where there
    are several); ``layers/NAME.solution.h5`` its codes and scales; ``report.json`` and
    ``report.csv`` the report, and ``report.html`` its page, where one was made. Every file appears
    whole or not at all, the solution last.

    From `begin` to the end of a with statement the folder is locked, by an advisory lock that
    goes with the process, however that ends.
    """

    def __init__(self, path: str | PathLike):
        self.path = Path(path)
        self.layers = self.path / "layers"
        self.activations = self.path / "activations"
        self._lock: int | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{self.path}: in use by another run; wait for its end, or name another run_dir"
            ) from None
        except OSError as error:
            logger.warning("%s: cannot be locked (%s): let no other run use it", self.path, error)

    def begin(self, fingerprints: dict[str, str], settings: dict[str, Any], resume: bool) -> None:
        """Make the folder, or check that it holds the same run.

        Raises
        ------
        ValueError
            Where the folder holds something else, or a run with other fingerprints; it says
            which differ.
        """
        manifest = self.path / "manifest.json"
        self._refuse_place()
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.check(fingerprints, settings, resume):
            self._clear()
        for stale in self.path.glob("**/.*.part"):  # what a killed writer left
            stale.unlink()
        if not manifest.exists():
            write_json(
                manifest, {"format": FORMAT, "fingerprints": fingerprints, "settings": settings}
            )
        # only now: a folder that holds anything is known for a run by its manifest
        for folder in (self.layers, self.activations):
            folder.mkdir(exist_ok=True)

    def check(self, fingerprints: dict[str, str], settings: dict[str, Any], resume: bool) -> bool:
        """Refuse what `begin` refuses, and write nothing; whether what is there is kept."""
        self._refuse_place()
        if not self.path.exists():
            return True
        if self._lock is None:
            self._take_lock()
        manifest = self.path / "manifest.json"
        if not manifest.exists():
            if all(path.match(".manifest.json.*.part") for path in self.path.iterdir()):
                return True
            raise ValueError(f"{self.path}: neither empty nor a run folder; name another run_dir")
        found = self._read(manifest)  # nothing is removed from a folder that is not a run's
        kept = resume and any(self.layers.glob("*.solution.h5"))
        if kept:
            self._compare(found, fingerprints, settings)
        return kept

    def _refuse_place(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path}: not a folder")
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not there.is_dir():
            raise ValueError(f"{self.path}: {there} is not a folder")
        if not os.access(there, os.W_OK):
            raise ValueError(f"{self.path}: {there} cannot be written to; name another run_dir")

    def _clear(self) -> None:
        """Remove a run's own files, by their names, and nothing else."""
        for pattern in ("layers/*.problem.h5", "layers/*.solution.h5", "activations/*.h5"):
            for old in self.path.glob(pattern):
                old.unlink()
        for name in ("report.json", "report.csv", "report.html", "manifest.json"):
            (self.path / name).unlink(missing_ok=True)

    def _read(self, manifest: Path) -> dict[str, Any]:
        try:
            found = json.loads(manifest.read_text())
            if found["format"] == FORMAT and isinstance(found["fingerprints"], dict):
                return found
            why = f"of format {found['format']}, this version reads {FORMAT}"
        except (ValueError, KeyError, TypeError) as error:
            why = f"damaged, or not a run's ({type(error).__name__}: {error})"
        raise ValueError(
            f"{manifest}: {why}; name another run_dir, or remove the folder if it is a run's"
        )

    def _compare(
        self, found: dict[str, Any], fingerprints: dict[str, str], settings: dict[str, Any]
    ) -> None:
        differ = [k for k, v in fingerprints.items() if found["fingerprints"].get(k) != v]
        before = found.get("settings")
        if "settings" in differ and isinstance(before, dict):
            others = ", ".join(k for k, v in settings.items() if before.get(k) != v)
            differ[differ.index("settings")] += f" ({others})"
        if "geometry" in differ:  # weights are those of the layers that are binarised
            differ = [name for name in differ if name not in ("geometry", "weights")]
            differ.insert(0, "layers (skip, or their geometry)")
        if differ:
            hint = "; weights are others once a run was written into them"
            raise ValueError(
                f"{self.path}: holds a run with other {' and '.join(differ)}; use another run_dir, "
                "or resume=False (--no-resume) to start over"
                f"{hint if 'weights' in differ else ''}"
            )

    def problem_path(self, layer: str) -> Path:
        """Where a layer's sums are."""
        return self.layers / f"{_safe(layer)}.problem.h5"

    def solution_path(self, layer: str) -> Path:
        """Where a layer's codes and scales are."""
        return self.layers / f"{_safe(layer)}.solution.h5"

    def activations_path(self, layer: str) -> Path:
        """Where a layer's cached activations are, while they are."""
        return self.activations / f"{_safe(layer)}.h5"

    def save_problems(self, layer: str, problems: list[Problem | None]) -> list[str]:
        """Write a layer's problems, one a group; where each that there is can be read."""
        path = self.problem_path(layer).absolute()
        places = []
        with write_h5(path) as file:
            for group, problem in enumerate(problems):
                if problem is not None:
                    inside = "" if len(problems) == 1 else f"group{group}"
                    problem.write(file.create_group(inside) if inside else file)
                    places.append(f"{path}:/{inside}" if inside else str(path))
        return places

    def save_solution(self, layer: str, solution: Solution, extra: dict[str, Any]) -> None:
        """Write the solution of a layer whose problems are written; that makes it count."""
        path = self.solution_path(layer)
        with write_h5(path) as file:
            solution.write(file)
            text = json.dumps(extra)
            sums = sha256(self.problem_path(layer))
            attributes = {"problem_sha256": sums, "layer": text, "layer_sha256": digest(text)}
            write_attributes(file, attributes)

    def load_layer(self, layer: str, prefix: str) -> tuple[Solution, dict[str, Any]] | str:
        """A finished layer whose earlier layers had the codes ``prefix``; else why there is none.

        An empty answer means that the layer has not been done; other text says what is damaged.
        """
        path, problem = self.solution_path(layer), self.problem_path(layer)
        if not path.exists():
            return ""
        try:
            solution = Solution.load(path)
            with h5py.File(path, "r", locking="best-effort") as file:
                recorded, text = attribute(file, "problem_sha256"), attribute(file, "layer")
                if digest(text) != attribute(file, "layer_sha256"):
                    return f"{path}: damaged: its report does not match its SHA-256"
                extra = json.loads(text)
        except Exception as error:  # damaged HDF5 raises nearly anything
            return str(error) if str(path) in str(error) else f"{path}: damaged ({error!r})"
        if not problem.exists() or sha256(problem) != recorded:
            return f"{problem}: missing or damaged"
        if extra["prefix"] != prefix:
            return f"{path}: earlier layers have been done anew since"
        return solution, extra


def _safe(layer: str) -> str:
    """A layer's name as a file name that cannot leave the folder."""
    return layer.replace("/", "%2F").lstrip(".") or "layer"
