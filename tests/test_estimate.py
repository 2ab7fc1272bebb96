"""What a run is said to need, against what it then took."""

from __future__ import annotations

import inspect

import h5py
import numpy as np
import pytest
from small_network import calibration, network

import hashsolve as hs
from hashsolve.estimate import LARGE, Speed, estimate
from hashsolve.plan import make_plan


@pytest.mark.parametrize("propagation", ["asym", "symfp", "symqt"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_estimate_is_what_a_run_takes(propagation, dtype, tmp_path):
    options = {"propagation": propagation, "dtype": dtype, "keep_activations": True}
    said = estimate(network(), calibration(), **options)
    run = hs.binarize(network(), calibration(), tmp_path, "dcc", **options)
    assert [row["layer"] for row in said.rows] == [result.name for result in run.layers]
    for row, result in zip(said.rows, run.layers, strict=True):
        assert row["rows"] == result.row["rows"] and row["shape"] == result.row["shape"]
        with h5py.File(tmp_path / "activations" / f"{result.name}.h5") as file:
            assert row["activations"] == sum(stream.nbytes for stream in file.values())
        path = tmp_path / "layers" / f"{result.name}.problem.h5"
        live, held, count = stored(path)
        inputs, columns = row["inputs"], row["columns"]
        # energies and the two sums are not counted; a group without data is not written
        assert held == live * (row["sums"] // row["groups"] + 8 * (inputs + 2 * columns))
        # what HDF5 keeps beside the numbers: the index of each data set's chunks, of some kB
        assert path.stat().st_size <= held + 4_000 * count


def stored(path):
    """Of a problem file: its groups, the bytes of its data sets, and how many there are."""
    sizes = {}

    def visit(name, node):
        if isinstance(node, h5py.Dataset):
            sizes[name] = node.nbytes

    with h5py.File(path) as file:
        file.visititems(visit)
    return sum(name.endswith("gram") for name in sizes), sum(sizes.values()), len(sizes)


def test_without_keeping_only_the_largest_is_on_disk():
    least, most = (
        estimate(network(), calibration(), keep_activations=kept) for kept in (False, True)
    )
    activations = [row["activations"] for row in least.rows]
    assert most.disk - least.disk == sum(activations) - max(activations)


@pytest.mark.parametrize("wrap", [lambda b: {"images": b}, lambda b: (b, np.arange(len(b)))])
def test_batches_of_other_kinds_are_counted(wrap):
    net = network()

    class Unwrapping:
        def __getattr__(self, name):
            return getattr(net, name)

        def unwrap(self, batch):
            return batch["images"] if isinstance(batch, dict) else batch[0]

        def layers(self, batch):
            return net.layers(self.unwrap(batch))

        def layer_input(self, name, batch, *, binarized):
            return net.layer_input(name, self.unwrap(batch), binarized=binarized)

    found = estimate(Unwrapping(), [wrap(b) for b in calibration()])
    assert found == estimate(net, calibration())


def test_no_batches():
    with pytest.raises(ValueError, match="calibration: it holds no batches"):
        estimate(network(), [])


def test_defaults_are_those_of_a_run():
    """A dry run plans with the defaults of `make_plan`, a run with those of `binarize`."""
    planned, run = (inspect.signature(f).parameters for f in (make_plan, hs.binarize))
    assert {name: run[name].default for name in planned} == {
        name: parameter.default for name, parameter in planned.items()
    }


def test_seconds_go_through_what_was_measured():
    """Small problems cost little more than smaller ones, large ones grow at least with inputs."""
    speed = Speed(product=0.0, column=0.1, exponent=0.5)
    row = {"rows": 1000, "groups": 2, "columns": 3}
    for inputs, each in ((LARGE, 0.1), (LARGE // 4, 0.05), (4 * LARGE, 0.4)):
        assert speed.seconds(row | {"inputs": inputs}, 1.0, True) == pytest.approx(1 + 6 * each)
