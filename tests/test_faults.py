"""Faults from outside: kills, full disks, folders in use, hostile files; nothing is lost."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import environment
from small_network import SKIPPED, calibration, network

import hashsolve as hs
from hashsolve import cli
from hashsolve.activations import open_activations
from hashsolve.files import open_h5
from hashsolve.readers import open_array, read_problem

HERE = Path(__file__).parent
KILLS = 50
RUN = """
import signal, sys, time
sys.path.insert(0, {here!r})
import hashsolve as hs
from small_network import SKIPPED, calibration, network
print("begun", flush=True)
run = hs.binarize(network(), calibration(), sys.argv[1], skip=SKIPPED)
print(run.codes_sha256, flush=True)
"""


def start(folder, **options):
    """A process that binarises the small network into a folder."""
    code = RUN.format(here=str(HERE))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, **options
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The SHA-256 of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return hs.binarize(network(), calibration(), folder, skip=SKIPPED).codes_sha256


def kill_and_resume(folder, delay, whole):
    """Kill a run some time after it begins; resume it; how many layers it had finished."""
    process = start(folder)
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(list(folder.glob("layers/*.solution.h5")))
    run = hs.binarize(network(), calibration(), folder, skip=SKIPPED)
    assert run.codes_sha256 == whole
    assert not list(folder.glob("**/.*.part"))
    return done


def test_killed_and_resumed(whole, tmp_path):
    kill_and_resume(tmp_path / "run", 0.1, whole)


@pytest.mark.slow
def test_killed_at_random_moments(whole, tmp_path):
    """kill -9 at 50 moments, spread over the time that a run takes."""
    process = start(tmp_path / "timed")
    process.stdout.readline()
    begun = time.monotonic()
    assert process.communicate()[0].strip() == whole
    seconds = time.monotonic() - begun
    moments = random.Random(0)
    done = [
        kill_and_resume(tmp_path / str(i), moments.uniform(0, seconds), whole) for i in range(KILLS)
    ]
    assert len(set(done)) > 1  # they were spread indeed


@pytest.mark.parametrize("limit", [1_000, 4_000, 9_000, 15_000])
def test_a_full_disk(limit, whole, tmp_path):
    """No file may grow beyond a limit: one clear error, nothing half written, resumed later."""

    def bounded():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    folder = tmp_path / "run"
    process = start(folder, preexec_fn=bounded, stderr=subprocess.PIPE)
    _, error = process.communicate()
    assert process.returncode != 0
    assert "File too large" in error or "errno = 27" in error, error
    for path in folder.glob("**/*.h5"):
        with h5py.File(path) as file:
            assert len(file)
    assert hs.binarize(network(), calibration(), folder, skip=SKIPPED).codes_sha256 == whole


HOLD = """
import sys, time
from hashsolve.runfolder import RunFolder
with RunFolder(sys.argv[1]) as folder:
    folder.begin({"weights": "other"}, {}, resume=True)
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_in_use_by_another_process(whole, tmp_path):
    """It is refused as long as the other lives; a lock dies with its holder."""
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use by another run"):
            hs.binarize(network(), calibration(), folder, skip=SKIPPED)
    finally:
        holder.kill()
        holder.communicate()
    assert hs.binarize(network(), calibration(), folder, skip=SKIPPED).codes_sha256 == whole


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    net = network()
    with pytest.raises(ValueError, match="file is not a folder"):
        hs.binarize(net, calibration(), tmp_path / "file" / "run")
    for name, weight in net.original.items():
        np.testing.assert_array_equal(net.products[name].weight, weight)


# Ctrl-C

HELD = """
import importlib, sys, time
from pathlib import Path
from hashsolve.cli import main
module, name = {place!r}.split(":")
def held(*_, **__):
    Path("waiting").touch()
    time.sleep(600)
importlib.import_module(module)
module = sys.modules[module]  # a command's file, not the command of that name
getattr(module, name)
setattr(module, name, held)
sys.exit(main(sys.argv[1:]))
"""
WORK = {  # the command, and the work of its that is held up
    "solve": ("solve p.h5 -o s.h5", "hashsolve.solver:_solve"),
    "verify": ("verify p.h5 p.h5", "hashsolve.readers:read_codes"),
    "binarize": (
        "binarize --network small_network:network --calibration x.npy --run-dir run",
        "hashsolve.layer_run:solve",
    ),
    "report": ("report run", "hashsolve.page:write_page"),
    "inspect": ("inspect p.h5", "hashsolve.inspection:inspect"),
    "demo": ("demo --run-dir run", "torch_glue.demo:run_demo"),
    "bench": ("bench", "hashsolve.bench:time_sweeps"),
    "completion": ("completion bash", "hashsolve.cli.completion:get_completion_class"),
}


@pytest.mark.parametrize("command", list(cli.cli.commands))
def test_ctrl_c(command, tmp_path):
    """One line, code 130, nothing half written; in all that the command has."""
    arguments, place = WORK[command]
    if command == "demo":
        pytest.importorskip("torch")
        pytest.importorskip("sklearn")
    hs.Problem(np.eye(2), np.ones((2, 1)), [4.0]).save(tmp_path / "p.h5")
    np.save(tmp_path / "x.npy", calibration()[0])
    process = subprocess.Popen(
        [sys.executable, "-c", HELD.format(place=place), *arguments.split()],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), error
    assert error.startswith("hashsolve: interrupted; ") and error.count("\n") == 1
    assert not (tmp_path / "s.h5").exists() and not list(tmp_path.rglob(".*.part"))


# files that mean harm


def external_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["gram"] = np.eye(2)
    file["gram"] = h5py.ExternalLink("other.h5", "gram")


def external_storage(file, folder):
    (folder / "raw").write_bytes(np.eye(2).tobytes())
    file.create_dataset("gram", (2, 2), "f8", external=[(str(folder / "raw"), 0, 32)])


def virtual(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["gram"] = np.eye(2)
    layout = h5py.VirtualLayout((2, 2), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "gram", (2, 2))
    file.create_virtual_dataset("gram", layout)


def nothing_but_a_claim(file, folder):
    file.create_dataset("gram", (2**20, 2**20), "f8", chunks=(2**10, 2**10))


def nested(file, folder):
    external_link(file.create_group("a/b"), folder)
    file["gram"] = np.eye(2)


@pytest.mark.parametrize(
    ("trick", "message"),
    [
        (external_link, "'gram' is a link to another file"),
        (external_storage, "'gram' lies in other files"),
        (virtual, "'gram' lies in other files"),
        (nothing_but_a_claim, r"'gram' claims shape \(1048576, 1048576\)"),
        (nested, "'gram' is a link to another file"),
    ],
)
def test_hdf5_that_means_harm(trick, message, tmp_path):
    path = tmp_path / "problem.h5"
    with h5py.File(path, "w") as file:
        trick(file, tmp_path)
        file["cross"], file["energy"] = np.ones((2, 1)), [4.0]
    for reader in (hs.Problem.load, lambda p: read_problem(str(p)), hs.Solution.load):
        with pytest.raises(ValueError, match=f"problem.h5: {message}"):
            reader(path)
    with pytest.raises(ValueError, match=message), open_activations(path):
        pass


def test_loops_of_links_end(tmp_path):
    with h5py.File(tmp_path / "loop.h5", "w") as file:
        group = file.create_group("a")
        group["again"] = group  # a hard link to itself
        group["up"] = h5py.SoftLink("/")
        file["x"] = np.ones(3)
    with open_h5(tmp_path / "loop.h5") as file:
        assert sorted(file) == ["a", "x"]


def test_names_of_variable_length_are_not_read(tmp_path):
    """Others write them, and damaged ones can hold HDF5 up for ever."""
    problem = hs.Problem(np.eye(2), np.ones((2, 1)), [4.0])
    problem.save(tmp_path / "p.h5")
    with h5py.File(tmp_path / "p.h5", "a") as file:
        file.attrs["name"] = "theirs"
    assert hs.Problem.load(tmp_path / "p.h5").name == "problem"


@pytest.mark.parametrize("shape", ["(1000000000, 1000)", "(2, 9)", "(1,)"])
def test_npz_that_claims_another_size(shape, tmp_path):
    np.savez(tmp_path / "a.npz", X=np.ones((2, 8)))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        data = archive.read("X.npy")
    header = data[10 : 10 + int.from_bytes(data[8:10], "little")]
    claim = header.replace(b"(2, 8)", shape.encode()).rstrip()
    claim = claim.ljust(len(header) - 1) + b"\n"
    assert len(claim) == len(header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("X.npy", data[:10] + claim + data[10 + len(header) :])
    with (
        pytest.raises(ValueError, match=r"array 'X' cannot be read \(claims shape"),
        open_array(str(tmp_path / "a.npz")),
    ):
        pass


def test_fuzz(tmp_path):
    """A few of the inputs of tests/benchmarks/fuzz.py; the README names the whole run."""
    script = HERE / "benchmarks" / "fuzz.py"
    command = [sys.executable, str(script), "--inputs", "600", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
