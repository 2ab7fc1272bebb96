"""The command in a process of its own, and the networks that its tests binarise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

NETWORKS = '''
import os, pathlib, time
from small_network import network

class Slow:
    """The network, which stops in the last layer until it is told to go on."""
    def __init__(self): self.whole = network()
    def __getattr__(self, name): return getattr(self.whole, name)
    def layers(self, batch): return self.whole.layers(batch)
    def weight(self, name): return self.whole.weight(name)
    def write(self, name, weight): self.whole.write(name, weight)
    def state(self): return self.whole.state()
    def layer_input(self, name, batch, *, binarized):
        if name == "fc" and not os.path.exists("go"):
            pathlib.Path("waiting").touch()
            time.sleep(60)
        return self.whole.layer_input(name, batch, binarized=binarized)

def fails():
    raise KeyError("weights.pt")

def wants(path):
    return network()

def other():
    return {"a": 1}

def missing():
    import no_such_module
'''
BINARIZE = ("binarize", "--network", "nets:network", "--calibration", "calibration.npy")


def environment(**more: str) -> dict[str, str]:
    """The environment of a subprocess that finds the networks of these tests."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **more}


def spawn(folder: Path, *arguments: str) -> subprocess.Popen:
    """The command in a process of its own, its output piped."""
    return subprocess.Popen(
        [sys.executable, "-m", "hashsolve.cli", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
