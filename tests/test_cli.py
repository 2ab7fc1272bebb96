"""The command: what it reads and writes, its exit codes, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from commands import BINARIZE, environment, spawn

import hashsolve as hs
from hashsolve import cli, options
from hashsolve.activations import DTYPES
from hashsolve.cluster import connect
from hashsolve.control import EFFORTS
from hashsolve.levels import LEVELS
from hashsolve.methods import METHODS
from hashsolve.plan import PROPAGATIONS
from hashsolve.readers import write_solution
from hashsolve.runfolder import RunFolder

STARTUP = {"import": 0.1, "solver": 0.2, "first_use": 0.4, "from_cache": 0.3}
STARTUP["kernels"] = ["dcc_sweep"]


def interrupt_when(process: subprocess.Popen, marker: Path) -> tuple[int, str, str]:
    """Send Ctrl-C once a file has appeared."""
    while not marker.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


# help


def test_help_names_everything(run):
    for command in ("solve", "verify", "binarize", "inspect", "demo"):
        code, out, error = run(command, "--help")
        assert (code, error) == (0, "") and f"hashsolve {command}" in out
        assert command in run("--help")[1]
    assert run()[:2] == run("-h")[:2]
    assert hs.__version__ in run("--version")[1]
    for names, command in ((METHODS, "solve"), (EFFORTS, "solve"), (LEVELS, "verify")):
        told = run(command, "--help")[1]
        assert all(re.search(rf"\b{name}\b", told) for name in names)


def test_the_names_are_those_of_the_library():
    assert options.METHOD.names == tuple(METHODS)
    assert options.EFFORT.names == EFFORTS
    assert options.LEVEL.names == LEVELS
    assert options.PROPAGATION.names == PROPAGATIONS
    assert sorted(options.DTYPE.names) == sorted(DTYPES)


def test_help_loads_neither_numba_nor_torch():
    program = (
        "import sys; from hashsolve.cli import main; codes = [main(['--help']),"
        " main(['solve', '--help']), main(['binarize', '--help'])];"
        "sys.exit(any(codes) or any(m in sys.modules for m in ('numba', 'torch', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


# solve


SOURCES = [
    ("problem.h5",),
    ("groups.h5:/a",),
    ("groups.h5:/more/b",),
    ("sums.npz",),
    ("arrays.npz",),
    ("target.npz",),
    ("X.npy", "--weights", "W.npy"),
    ("X.npy", "--target", "Y.npy"),
    ("X.npy", "--weights", "W.npy", "--reference", "X.npy"),
    ("groups.h5:/X", "--weights", "groups.h5:/W"),
    ("arrays.npz:X", "--weights", "arrays.npz:W"),
]


@pytest.mark.parametrize("source", SOURCES, ids=" ".join)
def test_solve_reads_all_forms(run, source):
    code, out, error = run("solve", *source, "--json")
    found = json.loads(out)
    assert (code, error) == (0, "")
    expected = hs.solve(hs.Problem.load("problem.h5"))
    np.testing.assert_allclose(found["loss"], expected.loss, rtol=1e-9)
    assert (found["inputs"], found["columns"], found["optimal"]) == (6, 3, 3)
    assert found["codes_sha256"] == expected.codes_sha256


def test_reference_is_the_target_of_other_inputs(run):
    code, out, _ = run("solve", "X_hat.npy", "--weights", "W.npy", "--reference", "X.npy", "--json")
    x, w, x_hat = (np.load(f"{name}.npy") for name in ("X", "W", "X_hat"))
    expected = hs.solve(hs.Problem.from_arrays(x_hat, w, reference=x))
    assert code == 0 and json.loads(out)["loss"] == pytest.approx(expected.loss.tolist())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_what_solve_writes_passes_verify(run, tmp_path, method, suffix):
    solution, sums = tmp_path / f"solution{suffix}", tmp_path / "sums.h5"
    options = ("--method", method, "--effort", "fast", "--seed", 1, "--threads", 1)
    code, out, error = run("solve", "X.npy", "--weights", "W.npy", *options, "-o", solution)
    assert (code, error) == (0, "") and f"wrote {solution}" in out and method in out
    assert run("solve", "arrays.npz", *options, "--save-problem", sums)[0] == 0
    code, out, error = run("verify", sums, solution)
    assert (code, error) == (0, "")
    assert f"PASSED at level {METHODS[method].promise!r}" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([solution.name, sums.name])


def test_a_time_limit_is_told(run):
    code, out, _ = run("solve", "problem.h5", "--method", "tabu", "--time-limit", 1e-9)
    assert code == 0 and "TIME_LIMIT" in out and "nothing written" in out


@pytest.mark.parametrize("name", ["s.h5", "s.npz"])
def test_what_was_stopped_is_not_held_to_what_its_method_promises(run, tmp_path, name):
    solution = tmp_path / name
    s = hs.solve(hs.Problem.from_arrays(np.load("X.npy"), np.load("W.npy")), "sign")
    for status, passes in (("TIME_LIMIT", True), ("FIXPOINT", False)):
        write_solution(replace(s, method="one_flip", status=hs.Status[status]), str(solution))
        code, out, _ = run("verify", "arrays.npz", solution)
        assert (code == 0) == passes and ("PASSED at level 'valid'" in out) == passes
    assert run("verify", "arrays.npz", solution, "--require", "one_flip")[0] == 1


def test_variants_survive_npz(run, tmp_path):
    x, w = np.load("X.npy"), np.load("W.npy")
    p = hs.Problem.from_arrays(x + 1, w, intercept=True)
    fields = ("gram", "cross", "energy", "input_sum", "target_sum", "rows", "intercept")
    np.savez(tmp_path / "p.npz", **{name: getattr(p, name) for name in fields})
    code, out, _ = run("solve", tmp_path / "p.npz", "-o", tmp_path / "s.npz", "--json")
    assert code == 0 and json.loads(out)["loss"] == pytest.approx(hs.solve(p).loss.tolist())
    assert np.load(tmp_path / "s.npz")["intercept"].shape == (3,)


# verify


def test_verify_fails_with_1_and_says_where(run, tmp_path):
    s = hs.Solution.load("solution.h5")
    codes = s.codes.copy()
    codes[2, 1] *= -1
    np.savez(tmp_path / "wrong.npz", codes=codes, scales=s.scales)
    code, out, error = run("verify", "problem.h5", tmp_path / "wrong.npz")
    assert (code, error) == (1, "") and "FAILED" in out and "column 1: " in out
    code, out, _ = run("verify", "problem.h5", tmp_path / "wrong.npz", "--json")
    found = json.loads(out)
    assert code == 1 and found["ok"] is False and len(found["violations"]) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_verify_at_every_level(run, level):
    code, out, _ = run("verify", "X.npy", "--weights", "W.npy", "solution.h5", "--require", level)
    assert code == 0 and f"PASSED at level {level!r}" in out


# inspect


def test_inspect_problems_and_solutions(run):
    for path, kind in (("problem.h5", "problem"), ("solution.h5", "solution")):
        code, out, _ = run("inspect", path)
        assert code == 0 and f"kind: {kind}" in out and "inputs: 6" in out and "columns: 3" in out
        assert json.loads(run("inspect", path, "--json")[1])["kind"] == kind
    found = json.loads(run("inspect", "groups.h5", "--json")[1])
    assert found["kind"] == "problems" and found["more/b"]["inputs"] == found["a"]["inputs"] == 6
    assert "more/b: inputs 6" in run("inspect", "groups.h5")[1]
    assert "X: (6, 80) float64" in run("inspect", "arrays.npz")[1]
    assert "array: (6, 3) float64" in run("inspect", "W.npy")[1]
    assert "more/X: (6, 80) float64" in run("inspect", "arrays.h5")[1]


def test_inspect_a_run_and_what_is_in_it(run, tmp_path):
    options = ("--run-dir", tmp_path / "run", "--keep-activations", "--method", "dcc")
    _, report, _ = run(*BINARIZE, *options, "--json")
    code, out, _ = run("inspect", tmp_path / "run")
    assert code == 0 and "finished: yes" in out and "block.grouped" in out
    found = json.loads(run("inspect", tmp_path / "run", "--json")[1])
    assert found["codes_sha256"] == json.loads(report)["summary"]["codes_sha256"]
    layer = tmp_path / "run/layers/block.grouped"
    assert "group1: inputs 27" in run("inspect", f"{layer}.problem.h5")[1]
    assert "method: dcc" in run("inspect", f"{layer}.solution.h5")[1]
    found = json.loads(run("inspect", tmp_path / "run/activations/fc.h5", "--json")[1])
    assert found["kind"] == "activations"
    assert found["streams"]["binarized"] == [[8, 6], "float32"]


def hard_problem(path: Path, columns: int) -> None:
    """One that is searched, not enumerated."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(30, 45)), rng.normal(size=(30, columns))
    hs.Problem.from_arrays(x, w).save(path)


def test_inspect_and_take_up_a_checkpoint(run, refused, tmp_path):
    hard_problem(tmp_path / "p.h5", 1)
    search = ("solve", tmp_path / "p.h5", "--method", "exact", "--checkpoint", tmp_path / "search")
    first = json.loads(run(*search, "--json")[1])
    found = json.loads(run("inspect", tmp_path / "search", "--json")[1])
    assert (found["kind"], found["columns"], found["open_columns"]) == ("checkpoint", 1, 0)
    assert found["column 0"]["nodes"] > 0
    assert "column 0: loss " in run("inspect", tmp_path / "search")[1]
    again = json.loads(run(*search, "--json")[1])
    assert again["codes_sha256"] == first["codes_sha256"] and again["status"] == "OPTIMAL"
    hard_problem(tmp_path / "other.h5", 2)
    search = ("solve", tmp_path / "other.h5", *search[2:])
    assert "checkpoint of another problem" in refused(*search)
    assert "not the checkpoint of a search" in refused(*search[:-1], tmp_path / "p.h5")


# binarize


def test_binarize_skips_resumes_and_starts_over(run, refused, tmp_path):
    options = ("--run-dir", tmp_path / "run", "--skip", "block.*", "--batch-size", 3, "--json")
    code, out, error = run(*BINARIZE, *options, "--method", "dcc")
    first = json.loads(out)
    assert (code, error) == (0, "")
    assert [row["layer"] for row in first["layers"]] == ["stem.conv", "fc"]
    again = json.loads(run(*BINARIZE, *options, "--method", "dcc")[1])
    assert again["layers"] == first["layers"]  # seconds too: nothing was done again
    message = refused(*BINARIZE, *options, "--method", "sign")
    assert "other settings" in message and "--no-resume" in message
    code, out, _ = run(*BINARIZE, *options, "--method", "sign", "--no-resume")
    assert code == 0
    summary = json.loads(out)["summary"]
    assert summary["method"] == "sign"
    assert summary["codes_sha256"] != first["summary"]["codes_sha256"]


@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_binarize_is_that_of_the_library(run, tmp_path, propagation):
    from small_network import network

    options = (
        "--propagation",
        propagation,
        "--method",
        "dcc",
        "--samples",
        5,
        "--dtype",
        "float16",
    )
    code, out, error = run(*BINARIZE, "--run-dir", tmp_path / "a", *options)
    assert (code, error) == (0, "") and "mean relative error" in out and "report.csv" in out
    batches = [np.load("calibration.npy")[:5]]
    expected = hs.binarize(
        network(), batches, tmp_path / "b", "dcc", propagation=propagation, dtype="float16"
    )
    found = json.loads((tmp_path / "a/report.json").read_text())["summary"]["codes_sha256"]
    assert found == expected.codes_sha256


def test_a_failed_first_layer_does_not_claim_the_folder(run, tmp_path):
    wrong = (*BINARIZE[:3], "--calibration", "images.h5:/labels", "--run-dir", tmp_path / "run")
    code, _, error = run(*wrong)
    assert code == 2 and "got shape" in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.h5")) and not list(tmp_path.rglob(".*.part"))
    right = (*BINARIZE[:3], "--calibration", "images.h5:/train", "--run-dir", tmp_path / "run")
    assert run(*right, "--method", "sign")[0] == 0


# mistakes


RUN_MISTAKES = {
    "--run-dir .": "neither empty nor a run folder",
    "--run-dir X.npy": "not a folder",
    "--run-dir X.npy/run": "X.npy is not a folder",
    "--run-dir other": "holds a run with other settings",
    "--run-dir r --skip fcc": "did you mean 'fc'?",
    "--run-dir r --skip blok.*": "did you mean 'block.*'?",
    "--run-dir r --skip *": "every layer is skipped",
    "--run-dir r --samples 0": "must be >= 1",
    "--run-dir r --seed -1": "seed: must be a whole number >= 0",
    "--run-dir r --scale-group 4": "4 does not divide the 27 inputs of layer stem.conv",
    "--run-dir r --scale-group 0": "scale_group: must be a whole number >= 1",
    "--run-dir r --calibration images.h5:/trian": "did you mean 'train'?",
    "--run-dir r --scheduler tcp://127.0.0.1:9": "no scheduler answers there",
}
"""What a run refuses before its first layer, and a dry run too, in the same words."""
MISTAKES = {
    "slove problem.h5": "no command 'slove'; did you mean 'solve'?",
    "completion zch": "SHELL: 'zch' is not one of 'bash', 'zsh', 'fish'; did you mean 'zsh'?",
    "solve": "Missing argument 'PROBLEM'",
    "solve problem.h5 --efort fast": "--effort",
    "solve problem.h5 --method tabuu": "did you mean 'tabu'?",
    "solve problem.h5 --effort throough": "did you mean 'thorough'?",
    "solve problem.h5 --seed x": "--seed",
    "solve problem.h5 --time-limit 0": "must be > 0",
    "solve problem.h5 --threads 0": "must be a whole number >= 1",
    "solve nope.h5": "nope.h5: no such file",
    "solve problm.h5": "problm.h5: no such file; did you mean 'problem.h5'?",
    "solve groups.h5:/moree/b": "did you mean 'more'?",
    "solve arrays.npz:x --weights W.npy": "no array 'x'; it holds X, W",
    "solve .": "a folder; name a file",
    "solve X.npy": "give --weights or --target",
    "solve X.npy --weights nope.npy": "nope.npy: no such file",
    "solve X.npy --weights Y.npy": "must be (S, T) with S = 6",
    "solve line.npy --weights W.npy": "expected 2 dimensions",
    "solve arrays.npz:V --weights W.npy": "no array 'V'; it holds X, W",
    "solve arrays.npz --target Y.npy": "name an array, as in arrays.npz:X",
    "solve groups.h5": "name one, as in groups.h5:/a",
    "solve groups.h5:/c": "no group 'c'",
    "solve images.h5": "is no problem",
    "solve solution.h5": "a solution, not a problem",
    "solve pickled.npz": "pickled.npz: array 'X' cannot be read",
    "solve pickled.npy --weights W.npy": "pickled.npy: not a readable NumPy file",
    "solve cut.npz": "cut.npz: not an .npz file, or one cut short",
    "solve cut.h5": "cut.h5: damaged or not an HDF5 file",
    "solve text.txt": "numpy.save('text.npy', numpy.loadtxt('text.txt'))",
    "solve nets.py": "nets.py: damaged or not an HDF5 file, nor an .npy or .npz",
    "solve text.npy --weights W.npy": "it does not begin like one",
    "solve pickled.npy --weights Y.npy": "save array.astype(float)",
    "solve arrays.h5": "give arrays.h5:/X --weights arrays.h5:/W",
    "solve arrays.h5:/x --weights W.npy": "did you mean 'X'?",
    "solve arrays.h5:/more --weights W.npy": "as in arrays.h5:/more/NAME; it holds X",
    "solve problem.h5 --weights W.npy": "the sums of a problem, not an array; give it alone",
    "solve X_hat.npy --target X.npy": "transpose Y",
    "solve X.npy --weights line.npy": "a single column is array[:, None]",
    "solve problem.h5 --method DCC": "did you mean 'dcc'? (see hashsolve solve --help)",
    "solve problem.h5 --seed 99999999999999999999": "from 0 to 9223372036854775807",
    "solve problem.h5 -o nodir/s.h5": "its folder does not exist",
    "solve problem.h5 -o .": "a folder; name a file in it",
    "solve problem.h5 -o s.txt": "ends in .h5, .hdf5 or .npz",
    "solve problem.h5 -o problem.h5": "would replace problem.h5",
    "solve groups.h5:/a --save-problem groups.h5": "would replace groups.h5:/a",
    "solve problem.h5 --method dcc --checkpoint c": "method 'dcc' keeps none; use 'exact'",
    "solve problem.h5 --method exact --checkpoint text.txt -o text.txt": "ends in .h5",
    "verify problem.h5": "Missing argument 'SOLUTION'",
    "verify problem.h5 problem.h5": "not a solution file",
    "verify solution.h5 problem.h5": "a solution, not a problem",
    "verify problem.h5 arrays.npz": "no array 'codes'; it holds X, W",
    "verify problem.h5 solution.h5 --require optimial": "did you mean 'optimal'?",
    "verify problem.h5 W.npy": "an array alone is no solution",
    "inspect nope": "nope: no such file",
    "inspect text.txt": "not an HDF5 file",
    "inspect groups.h5:/a": "files are inspected whole; name groups.h5",
    "report nope": "nope: no such folder",
    "report X.npy": "a file; name a run folder",
    "report .": "no run folder",
    "report a b c": "one run folder or two, got 3",
    "inspect .": "no run folder",
    "binarize --network nets:network --run-dir r": "Missing option '--calibration'",
    "{} --run-dir r --method dc": "did you mean 'dcc'?",
    "{} --run-dir r --propagation assym": "did you mean 'asym'?",
    "{} --run-dir r --dtype float63": "did you mean 'float64'?",
    "{} --run-dir r --batch-size -1": "must be >= 1",
    "{} --run-dir r --calibration nope.npy": "nope.npy: no such file",
    "{} --run-dir r --calibration images.h5": "it holds labels, train",
    "{} --run-dir r --calibration images.h5:/trian": "labels, train; did you mean 'train'?",
    "{} --run-dir r --network nets": "write PACKAGE.MODULE:NAME, as in nets:NAME",
    "{} --run-dir r --network ./nets.py:network": "as in nets:network",
    "{} --run-dir r --network nets:netwrok": "did you mean 'network'?",
    "{} --run-dir r --network nonets:network": "No module named 'nonets' in this folder",
    "{} --run-dir r --calibration number.npy": "a single number",
    "{} --run-dir r --network nets:fails": "KeyError: 'weights.pt' (",
    "{} --run-dir r --network nets:wants": "missing 1 required positional argument",
    "{} --run-dir r --network nets:other": "a dict is no hashsolve.Network: it lacks layers",
    "{} --run-dir r --network nets:missing": "No module named 'no_such_module'",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(refused, mistake):
    message = refused(*mistake.format(" ".join(BINARIZE)).split())
    assert MISTAKES[mistake] in message


@pytest.mark.parametrize("mistake", RUN_MISTAKES)
def test_a_dry_run_refuses_what_a_run_refuses(run, refused, here, mistake, monkeypatch):
    monkeypatch.setattr(connect, "__defaults__", ("1s",))  # seconds to wait for a scheduler
    if "other" in mistake:
        assert run(*BINARIZE, "--run-dir", "other", "--method", "sign")[0] == 0
    said = {refused(*BINARIZE, *mistake.split(), *more) for more in ((), ("--dry-run",))}
    assert len(said) == 1 and RUN_MISTAKES[mistake] in said.pop()
    shutil.rmtree(here / "other", ignore_errors=True)


def test_a_dry_run_refuses_a_folder_that_cannot_be_written_to(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for more in ((), ("--dry-run",)):
        message = refused(*BINARIZE, "--run-dir", tmp_path / "a/b", *more)
        assert f"{tmp_path}/a/b: {tmp_path} cannot be written to" in message


def test_a_dry_run_refuses_a_folder_in_use(refused, run, tmp_path):
    assert run(*BINARIZE, "--run-dir", tmp_path, "--method", "sign")[0] == 0
    with RunFolder(tmp_path) as folder:
        folder._take_lock()
        message = refused(*BINARIZE, "--run-dir", tmp_path, "--method", "sign", "--dry-run")
    assert "in use by another run" in message


def test_an_unexpected_error_is_one_line_too(refused, monkeypatch):
    def defect(*_):
        raise IndexError("a defect")

    monkeypatch.setattr(hs.Problem, "load", defect)
    message = refused("solve", "problem.h5")
    assert "IndexError: a defect" in message and "HASHSOLVE_TRACEBACK=1" in message
    monkeypatch.setenv("HASHSOLVE_TRACEBACK", "1")
    with pytest.raises(IndexError):
        cli.main(["solve", "problem.h5"])


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a folder that none can write to")
@pytest.mark.parametrize("name", ["s.h5", "s.npz"])
def test_a_folder_that_cannot_be_written_to(refused, name):
    assert re.search(
        "[Pp]ermission denied|read-only", refused("solve", "problem.h5", "-o", "/sys/" + name)
    )


FULL_DISK = """
import resource, sys
from hashsolve.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
sys.exit(main())
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("solve", "problem.h5", "-o", "{}/s.h5"),
        ("solve", "problem.h5", "-o", "{}/s.npz"),
        (*BINARIZE, "--run-dir", "{}/run", "--method", "sign"),
    ],
    ids=["h5", "npz", "run"],
)
def test_a_full_disk(here, tmp_path, arguments):
    """No file may grow beyond 1,000 bytes."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *(a.format(tmp_path) for a in arguments)],
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "too large" in done.stderr and done.stderr.count("\n") == 1
    left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert left in ([], ["manifest.json"])


def test_bench(run, monkeypatch):
    from hashsolve import bench

    monkeypatch.setattr(bench, "first_use", lambda method: dict(STARTUP, method=method))
    monkeypatch.setattr(bench, "time_methods", partial(bench.time_methods, ("sign", "dcc")))
    code, out, error = run("bench", "--inputs", 300, "--columns", 4)
    assert (code, error) == (0, "")
    for row in ("first sweep (", "plain kernel", "NumPy twin", "dcc", "hashsolve --help", "≤ 2"):
        assert row in out
    code, out, _ = run("bench", "--inputs", 300, "--columns", 4, "--json")
    found = json.loads(out)
    assert found["sweep"]["inputs"] == 300 and set(found["solve"]) == {"sign", "dcc"}
    assert 0 < found["sweep"]["late_flips"] < found["sweep"]["first_flips"] < 1
    assert found["solve"]["dcc"]["to_best"] == 1 < found["solve"]["sign"]["to_best"]
    assert found["startup"]["kernels"] == ["dcc_sweep"]


def test_bench_says_what_was_compiled():
    """In a process of its own; a method compiles its own kernels, and nothing a second time."""
    from hashsolve import bench

    found = bench.first_use("sign")
    assert found["kernels"] == ["add_rows", "correlations", "products"]


# a process of its own


def test_piped_output_has_no_progress(here, tmp_path):
    process = spawn(here, *BINARIZE, "--run-dir", str(tmp_path / "run"), "--method", "sign")
    out, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    assert out.startswith("layer ") and "\x1b" not in out and "\r" not in out


def test_a_module_that_exits_is_told_in_one_line(here, tmp_path):
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit('no GPU here')\n")
    arguments = ["binarize", "--network", "leaving:net", "--calibration", "x.npy", "--run-dir", "r"]
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    process = spawn(tmp_path, *arguments)
    out, error = process.communicate()
    assert (process.returncode, out) == (2, "") and "SystemExit: no GPU here" in error


def test_what_cannot_be_read_twice_is_told(here):
    process = spawn(here, "inspect", os.devnull)
    _, error = process.communicate()
    assert process.returncode == 2 and "a pipe or a device; it is read more than once" in error


def test_exit_codes_reach_the_shell(here):
    for arguments, code in ((("inspect", "problem.h5"), 0), (("inspect", "nope"), 2)):
        process = spawn(here, *arguments)
        process.communicate()
        assert process.returncode == code


def test_a_reader_that_has_gone_is_no_failed_certificate(here):
    """`hashsolve verify … | true` under pipefail."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "hashsolve.cli", "inspect", "problem.h5"]
    pipes = {"stdout": writer, "stderr": subprocess.PIPE}
    done = subprocess.run(command, cwd=here, env=environment(), timeout=120, **pipes)
    os.close(writer)
    assert done.returncode == 141, done.stderr


def test_ctrl_c_in_binarize(run, here, tmp_path):
    for path in ("calibration.npy", "nets.py"):
        (tmp_path / path).write_bytes((here / path).read_bytes())
    arguments = ["--method", "dcc", "--run-dir", "run"]
    slow = [*BINARIZE, *arguments, "--network", "nets:Slow"]
    code, out, error = interrupt_when(spawn(tmp_path, *slow), tmp_path / "waiting")
    assert (code, out) == (130, "") and error.count("\n") == 1
    assert "the same command goes on after the layers finished in run" in error
    assert not list(tmp_path.rglob(".*.part"))
    done = json.loads(run("inspect", tmp_path / "run", "--json")[1])
    assert len(done["layers_done"]) == 4 and not done["finished"]
    (tmp_path / "go").touch()
    process = spawn(tmp_path, *slow, "--json")
    out, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    whole = run(*BINARIZE, *arguments[:2], "--run-dir", tmp_path / "whole", "--json")[1]
    assert [json.loads(text)["summary"]["codes_sha256"] for text in (out, whole)] == [
        json.loads(whole)["summary"]["codes_sha256"]
    ] * 2


def test_ctrl_c_in_solve(run, tmp_path):
    hard_problem(tmp_path / "p.h5", 12)
    exact = ("solve", "p.h5", "--method", "exact", "--json")
    options = (*exact, "--threads", "1", "--checkpoint", "search", "-o", "s.h5")
    code, out, error = interrupt_when(spawn(tmp_path, *options), tmp_path / "search")
    assert (code, out) == (130, "") and error.count("\n") == 1
    assert "the same command goes on from search" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.h5", "search"]
    code, out, error = run("inspect", tmp_path / "search", "--json")
    assert code == 0, error
    assert json.loads(out)["columns"] < 12
    process = spawn(tmp_path, *options)
    resumed, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    whole = run("solve", tmp_path / "p.h5", *exact[2:])[1]
    assert json.loads(resumed)["codes_sha256"] == json.loads(whole)["codes_sha256"]


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize("method", ["sign", "dcc", "auto"])
@pytest.mark.parametrize(
    "fields",
    [{"bases": 2}, {"scale_group": 3}, {"intercept": True}, {"fixed_scales": 0.5}],
    ids=str,
)
def test_variants_are_verified_as_their_method_promises(
    fields, method, suffix, run, here, tmp_path
):
    x, w = np.load(here / "X.npy"), np.load(here / "W.npy")
    hs.Problem.from_arrays(x, w, **fields).save(tmp_path / "p.h5")
    problem, solution = tmp_path / "p.h5", tmp_path / f"s{suffix}"
    assert run("solve", problem, "--method", method, "-o", solution)[0] == 0
    code, out, error = run("verify", problem, solution)
    assert code == 0, out + error
    if suffix == ".h5":
        found = json.loads(run("inspect", solution, "--json")[1])
        shape = [found[key] for key in ("bases", "inputs", "columns")]
        assert shape == [fields.get("bases", 1), 6, 3]


def test_dry_run(run, here, tmp_path):
    dry = (*BINARIZE, "--run-dir", tmp_path / "r", "--dry-run", "--method")
    code, out, error = run(*dry, "dcc", "--skip", "fc")
    assert (code, error) == (0, "") and "nothing was written" in out and "block.depth" in out
    assert "fc" not in out and not (tmp_path / "r").exists()
    assert re.search(r"block\.grouped +8x3x3x3 +72 .* ~[\d.]+ s\n", out)
    found = json.loads(run(*dry, "dcc", "--json")[1])
    assert [row["layer"] for row in found["layers"]][-1] == "fc" and found["disk"] > 0
    assert found["seconds"] > 0
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["layers"]))
    assert "time: unknown" in run(*dry, "exact")[1]


def test_a_solution_that_claims_too_much_fails(run, tmp_path):
    rng = np.random.default_rng(1)
    p = hs.Problem.from_arrays(rng.normal(size=(20, 60)), rng.normal(size=(20, 2)))
    s = hs.solve(p, "dcc")
    p.save(tmp_path / "p.h5")
    lie = {"method": "exact", "status": hs.Status.OPTIMAL, "lower_bound": s.loss.copy()}
    replace(s, **lie).save(tmp_path / "lie.h5")
    code, out, error = run("verify", tmp_path / "p.h5", tmp_path / "lie.h5")
    assert (code, error) == (1, "") and "claims that nothing loses less" in out


def test_inspect_of_a_runs_json(run, here, tmp_path):
    assert run(*BINARIZE, "--run-dir", tmp_path / "r", "--method", "sign")[0] == 0
    texts = {
        run("inspect", tmp_path / "r" / name)[1] for name in (".", "manifest.json", "report.json")
    }
    assert len(texts) == 1 and "finished: yes" in texts.pop()


def test_inspect_shows_variants(run, tmp_path):
    hs.Problem(np.eye(4), np.ones((4, 2)), [4.0, 4.0], scale_group=2).save(tmp_path / "p.h5")
    assert "scale_group: 2" in run("inspect", tmp_path / "p.h5")[1]


@pytest.mark.parametrize("option", ["--weights", "--target"])
def test_inputs_are_not_their_own_weights(refused, option):
    np.save("X.npy", np.ones((3, 50)))
    assert f"{option}: X.npy is X, the inputs" in refused("solve", "X.npy", option, "X.npy")
