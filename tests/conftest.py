"""Hypothesis profiles, kernels compiled before a test is timed or counted, and the command."""

from __future__ import annotations

import os
import sys

import h5py
import numpy as np
import pytest
from commands import NETWORKS
from hypothesis import HealthCheck, settings
from small_network import calibration

import hashsolve as hs
from hashsolve import cli

settings.register_profile(
    "local", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels():
    """Compile each kernel once, outside any test."""
    free = hs.Problem(gram=np.eye(2), cross=np.ones((2, 1)), energy=[4.0])
    fixed = hs.Problem.from_quadratic(np.eye(2))
    for problem in (free, fixed):
        hs.solve(problem, "auto", "fast")


@pytest.fixture
def rng():
    """A generator of its own for each test, always the same."""
    return np.random.default_rng(20180202)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder of a problem in every form that the command reads."""
    path, rng = tmp_path_factory.mktemp("cli"), np.random.default_rng(5)
    x, w = rng.normal(size=(6, 80)), rng.normal(size=(6, 3))
    y = x.T @ w
    problem = hs.Problem.from_arrays(x, w)
    sums = {"gram": problem.gram, "cross": problem.cross, "energy": problem.energy}
    for name, array in {"X": x, "W": w, "Y": y, "X_hat": x + 0.1, "line": x[0]}.items():
        np.save(path / f"{name}.npy", array)
    np.save(path / "number.npy", np.array(1.0))
    np.savez(path / "arrays.npz", X=x, W=w)
    np.savez(path / "target.npz", X=x, Y=y)
    np.savez(path / "sums.npz", **sums, weights=w, rows=80)
    np.savez(path / "pickled.npz", X=np.array([{}], dtype=object), W=w)
    np.save(path / "pickled.npy", np.array([{}], dtype=object))
    problem.save(path / "problem.h5")
    with h5py.File(path / "groups.h5", "w") as file:
        problem.write(file.create_group("a"))
        problem.write(file.create_group("more/b"))
        file["X"], file["W"] = x, w
    (path / "cut.npz").write_bytes((path / "arrays.npz").read_bytes()[:900])
    (path / "cut.h5").write_bytes((path / "problem.h5").read_bytes()[:900])
    with h5py.File(path / "arrays.h5", "w") as file:
        file["X"], file["W"], file["more/X"] = x, w, x
    (path / "text.txt").write_text("no array")
    (path / "text.npy").write_text("no array")
    images = np.concatenate(calibration())
    np.save(path / "calibration.npy", images)
    with h5py.File(path / "images.h5", "w") as file:
        file["train"], file["labels"] = images, np.arange(len(images))
    (path / "nets.py").write_text(NETWORKS)
    assert cli.main(["solve", str(path / "problem.h5"), "-o", str(path / "solution.h5")]) == 0
    return path


@pytest.fixture
def here(folder, monkeypatch):
    """That folder, as the current one."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder


@pytest.fixture
def run(here, capsys):
    """Run the command; its exit code, what it printed, what it complained of."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def refused(run, here):
    """Run a command that must fail in one line, leaving the folder as it was; that line."""

    def command(*arguments: object) -> str:
        before = sorted(here.rglob("[!_]*"))
        code, out, error = run(*arguments)
        assert (code, out) == (2, "")
        assert error.startswith("hashsolve: ") and error.count("\n") == 1
        assert "Traceback" not in error
        left = [p for p in sorted(here.rglob("[!_]*")) if p not in before]
        assert not [p for p in left if p.name != "__pycache__" and p.suffix != ".pyc"]
        return error

    return command
