"""Damaged and hostile files against every reader: no crash, no hang, no blow-up of memory.

    python tests/benchmarks/fuzz.py --inputs 100000

Each input is a valid file of ours with bytes flipped, cut, doubled or replaced by extreme numbers.
A reader must return, or raise ValueError; whatever else it does is told, with the input kept.
The readers run in a child process with 2 GB of address space more than it starts with, and 10 s of
work for each file; a child that dies is told too, and the next one goes on.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save_file

import hashsolve as hs
from hashsolve.activations import open_activations, write_activations
from hashsolve.checkpoint import Checkpoint
from hashsolve.chunks import Room
from hashsolve.inspection import inspect
from hashsolve.instance import Instance
from hashsolve.packed_checkpoint import read_packed_checkpoint
from hashsolve.readers import open_array, read_codes, read_problem
from hashsolve.runfolder import RunFolder

MEMORY = 2 * 2**30
SECONDS = 10


def read_array(path: Path) -> None:
    with open_array(str(path)) as array:
        np.asarray(array[...])


def read_activations(path: Path) -> None:
    with open_activations(path) as streams:
        for stream in streams.values():
            Room().read(stream, slice(0, len(stream)))


def read_manifest(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(path.read_bytes())
        with RunFolder(folder) as run:
            run.begin({"weights": "a"}, {}, resume=True)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "problem.h5": ("problem.h5", lambda path: read_problem(str(path))),
    "problem.npz": ("problem.npz", lambda path: read_problem(str(path))),
    "array.npy": ("array.npy", read_array),
    "array.npz": ("array.npz", read_array),
    "solution.h5": ("solution.h5", lambda path: read_codes(str(path))),
    "solution.npz": ("solution.npz", lambda path: read_codes(str(path))),
    "activations.h5": ("activations.h5", read_activations),
    "checkpoint.h5": ("checkpoint.h5", lambda path: Checkpoint.of(path, Instance.of(PROBLEM))),
    "inspect": ("solution.h5", inspect),
    "manifest.json": ("manifest.json", read_manifest),
    "packed.safetensors": ("packed.safetensors", read_packed_checkpoint),
    "index.h5": ("index.h5", hs.InnerProductIndex.load),
}
RNG = np.random.default_rng(0)
PROBLEM = hs.Problem.from_arrays(RNG.normal(size=(20, 40)), RNG.normal(size=(20, 2)))


def samples(folder: Path) -> dict[str, bytes]:
    """A valid file of every kind."""
    PROBLEM.save(folder / "problem.h5")
    sums = {"gram": PROBLEM.gram, "cross": PROBLEM.cross, "energy": PROBLEM.energy}
    np.savez(folder / "problem.npz", **sums, rows=40)
    np.save(folder / "array.npy", RNG.normal(size=(5, 7)))
    np.savez_compressed(folder / "array.npz", X=RNG.normal(size=(5, 7)))
    checkpoint = folder / "checkpoint.h5"
    solution = hs.solve(PROBLEM, "exact", checkpoint=checkpoint)
    solution.save(folder / "solution.h5")
    np.savez(folder / "solution.npz", codes=solution.codes, scales=solution.scales)
    maps = [{"full_precision": RNG.normal(size=(4, 3, 5, 5))}]
    write_activations(folder / "activations.h5", maps, hs.Geometry.conv((3, 3)))
    index = hs.InnerProductIndex()
    index.fit(RNG.normal(size=(60, 8)))
    index.add(RNG.normal(size=(60, 8)))
    index.save(folder / "index.h5")
    with RunFolder(folder / "run") as run:
        run.begin({"weights": "a"}, {"method": "dcc"}, resume=True)
    (folder / "run" / "manifest.json").rename(folder / "manifest.json")
    tensors = {"w::codes": np.arange(5, dtype=np.uint8), "w::scales": np.ones((4, 2))}
    metadata = {"layers": '{"w": [[4, 10], 0]}', "aliases": '{"v": "w"}'}
    metadata |= {"format": "hashsolve.packed", "version": "1"}
    save_file(tensors | {"b": np.zeros(4)}, folder / "packed.safetensors", metadata)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


EXTREMES = [
    b"\x00" * 8,
    b"\xff" * 8,
    (2**62).to_bytes(8, "little"),
    (2**31 - 1).to_bytes(4, "little"),
]


def damaged(data: bytes, random_: random.Random) -> bytes:
    """The file with one to four wounds."""
    new = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(max(len(new), 1))
        kind = random_.randrange(6)
        if kind == 0 and new:
            new[at % len(new)] ^= 1 << random_.randrange(8)
        elif kind == 1:
            new[at : at + 1] = bytes([random_.randrange(256)])
        elif kind == 2:
            extreme = random_.choice(EXTREMES)
            new[at : at + len(extreme)] = extreme
        elif kind == 3:
            del new[at:]
        elif kind == 4:
            new[at:at] = new[at : at + random_.randint(1, 64)]
        else:
            other = random_.randrange(max(len(new), 1))
            new[at : at + 8] = new[other : other + 8]
    return bytes(new)


def child(folder: Path, begin: int, end: int, seed: int, pipe) -> None:
    """Try inputs begin … end; tell of each before it is read, and what came of it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    files = {
        path.name: path.read_bytes() for path in (folder / "valid").iterdir() if path.is_file()
    }
    names = list(READERS)
    for i in range(begin, end):
        name = names[i % len(names)]
        file, reader = READERS[name]
        path = folder / f"input{Path(file).suffix}"
        path.write_bytes(damaged(files[file], random.Random(f"{seed}/{i}")))
        pipe.send((i, name, "begun"))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of work: machines may stall
        try:
            reader(path)
            outcome = "read"
        except ValueError as error:
            outcome = "refused" if "\n" not in str(error).strip() else "refused, in several lines"
        except BaseException as error:
            outcome = "".join(traceback.format_exception_only(error)).strip()[:300]
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send((i, name, outcome))
    pipe.close()


@click.command()
@click.option("--inputs", default=100_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", default="fuzz-failures", show_default=True, help="Folder for bad inputs.")
def main(inputs: int, seed: int, keep: str) -> None:
    """Run them all; exit with 1 where a reader did anything but read or refuse."""
    outcomes: Counter = Counter()
    bad: list[tuple[int, str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "valid").mkdir()
        files = samples(folder / "valid")
        context, done = get_context("fork"), 0
        while done < inputs:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(folder, done, inputs, seed, theirs))
            process.start()
            theirs.close()
            last = None
            try:
                while True:
                    i, name, outcome = ours.recv()
                    last = None if outcome != "begun" else (i, name)
                    if outcome == "begun":
                        continue
                    outcomes[name, outcome if outcome in ("read", "refused") else "BAD"] += 1
                    if outcome not in ("read", "refused"):
                        bad.append((i, name, outcome))
                    done = i + 1
            except EOFError:
                process.join()
            if last is not None:  # it died of this one
                bad.append((*last, f"the process ended with {process.exitcode}"))
                outcomes[last[1], "BAD"] += 1
                done = last[0] + 1
        for i, name, _ in bad:
            file = READERS[name][0]
            Path(keep).mkdir(exist_ok=True)
            (Path(keep) / f"{i}-{file}").write_bytes(
                damaged(files[file], random.Random(f"{seed}/{i}"))
            )
    table = {
        name: {kind: outcomes[name, kind] for kind in ("read", "refused", "BAD")}
        for name in READERS
    }
    print(
        json.dumps(
            {"inputs": inputs, "bad": len(bad), "readers": table, "kept": bad[:20]}, indent=1
        )
    )
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
