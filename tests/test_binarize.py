"""binarize: propagations, groups, resuming after anything, and what the driver refuses."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
import small_network
from numpy_network import NumpyNetwork, Product, relu
from small_network import DEAD, SKIPPED, calibration, network

import hashsolve as hs
from hashsolve.activations import open_activations
from hashsolve.report import COLUMNS, Report
from hashsolve.runfolder import RunFolder

LINEAR = hs.Geometry()
LAYERS = ["stem.conv", "block.grouped", "block.depth", "block.point", "fc"]
PROPAGATIONS = ["asym", "symfp", "symqt"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run and the network that it rewrote."""
    net = network()
    return hs.binarize(net, calibration(), tmp_path_factory.mktemp("run")), net


def same_run(run: hs.Run, other: hs.Run) -> None:
    """The same codes and scales in every layer, and the same errors reported."""
    assert run.codes_sha256 == other.codes_sha256
    assert run.relative_errors == other.relative_errors
    for a, b in zip(run.layers, other.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)


def unchanged(net: NumpyNetwork) -> None:
    """The network is in full precision."""
    fresh = network()
    for name, step in net.products.items():
        np.testing.assert_array_equal(step.weight, fresh.products[name].weight)


def product(step: Product, weight: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """A layer by plain loops."""
    g = step.geometry
    if g.linear:
        return maps @ weight.T
    return naive.convolution(maps, weight, g.padding[0][0], g.stride[0], g.groups)


def inputs_of(net: NumpyNetwork, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The input of every layer on all the calibration data, by plain loops."""
    seen, maps = {}, np.concatenate(calibration()).astype(float)
    for name, step in net.steps:
        if isinstance(step, Product):
            seen[name] = maps
            maps = product(step, weights[name], maps)
        else:
            maps = step(maps)
    return seen


# what is computed


@pytest.mark.parametrize("method", ["auto", "sign"])
@pytest.mark.parametrize("propagation", PROPAGATIONS)
def test_loss_is_that_of_the_networks(propagation, method, tmp_path):
    """Σ‖Y − X̂ᵀBA‖² of each filter, from the outputs of the two networks themselves."""
    net = network()
    run = hs.binarize(
        net, calibration(), tmp_path / "run", method, propagation=propagation, dtype="float64"
    )
    binary = {result.name: result.weight for result in run.layers}
    full, partly = inputs_of(net, net.original), inputs_of(net, binary)
    assert [result.name for result in run.layers] == LAYERS
    for result in run.layers:
        step = net.products[result.name]
        np.testing.assert_array_equal(step.weight, result.weight)
        seen = (full if propagation == "symfp" else partly)[result.name]
        wanted = (partly if propagation == "symqt" else full)[result.name]
        target = product(step, net.original[result.name], wanted)
        axes = tuple(axis for axis in range(target.ndim) if axis != 1)
        loss = ((target - product(step, result.weight, seen)) ** 2).sum(axis=axes)
        energy = (target**2).sum(axis=axes)
        np.testing.assert_allclose(result.solution.energy, energy, rtol=1e-9)
        np.testing.assert_allclose(result.solution.loss, loss, rtol=1e-9, atol=1e-9 * energy.max())
        assert result.relative_error == pytest.approx(loss.sum() / energy.sum())


def test_the_first_layer_is_the_same_for_all_propagations(finished, tmp_path):
    runs = [finished[0]] + [
        hs.binarize(network(), calibration(), tmp_path / p, propagation=p) for p in PROPAGATIONS[1:]
    ]
    first = {run.layers[0].solution.codes_sha256 for run in runs}
    assert len(first) == 1
    assert len({run.codes_sha256 for run in runs}) == 3


def test_asym_is_better_than_symfp_where_it_counts(finished, tmp_path):
    """In the outputs of the binarised network, which symfp does not look at."""
    batch = np.concatenate(calibration())
    target = network()(batch)
    other = network()
    hs.binarize(other, calibration(), tmp_path / "run", propagation="symfp")
    error = [((net(batch) - target) ** 2).sum() for net in (finished[1], other)]
    assert error[0] < error[1]


def test_sign_is_bwn_exactly(tmp_path):
    net = network()
    hs.binarize(net, calibration(), tmp_path / "run", method="sign")
    for name, weight in net.original.items():
        mean = np.abs(weight).reshape(len(weight), -1).mean(axis=1)
        wanted = np.sign(weight) * mean.reshape(-1, *(1,) * (weight.ndim - 1))
        np.testing.assert_allclose(net.products[name].weight, wanted, rtol=1e-15)


def test_weights_are_codes_times_scales(finished):
    run, net = finished
    for result in run.layers:
        weight = net.products[result.name].weight.reshape(len(result.solution.scales), -1)
        assert weight.dtype == np.float64
        for filter_weight, scale in zip(weight, result.solution.scales, strict=True):
            np.testing.assert_array_equal(np.abs(filter_weight), scale)


def test_a_depthwise_channel_that_is_dead(finished):
    """The data say nothing of it: sign(W) and mean |W|, as for "sign"; the rest is solved."""
    run, net = finished
    (depth,) = (result for result in run.layers if result.name == "block.depth")
    full = net.original["block.depth"]
    mean = np.abs(full[DEAD]).mean()
    np.testing.assert_allclose(depth.weight[DEAD], np.sign(full[DEAD]) * mean, rtol=1e-15)
    assert depth.solution.energy[DEAD] == depth.solution.loss[DEAD] == 0
    live = np.delete(np.arange(8), DEAD)
    assert (depth.solution.energy[live] > 0).all()
    assert depth.row["groups"] == 8


def test_grouped_layer_is_its_groups_apart(finished, tmp_path):
    """Each half of the channels binarised by a network of its own."""
    whole = finished[0].layers[1]
    for group in range(2):
        channels, filters = slice(3 * group, 3 * group + 3), slice(4 * group, 4 * group + 4)
        stem = finished[1]  # its first layer is binarised: the inputs of the second
        maps = {
            binarized: [
                stem.layer_input("block.grouped", batch, binarized=binarized)[0][:, channels]
                for batch in calibration()
            ]
            for binarized in (False, True)
        }
        x, x_hat = (
            hs.Geometry.conv((3, 3), 2, 1).patches(
                np.concatenate(maps[binarized]).astype(np.float32)
            )
            for binarized in (False, True)
        )
        w = stem.original["block.grouped"][filters].reshape(4, -1).T
        alone = hs.solve(hs.Problem.from_arrays(x_hat, w, reference=x))
        np.testing.assert_array_equal(whole.solution.codes[:, filters], alone.codes)
        np.testing.assert_allclose(whole.solution.scales[filters], alone.scales, rtol=1e-9)


def test_batches_do_not_matter(finished, tmp_path):
    whole = [np.concatenate(calibration())]
    same_run(hs.binarize(network(), whole, tmp_path / "run"), finished[0])


def test_apply_writes_into_another_network(finished):
    other = network()
    finished[0].apply(other)
    batch = calibration()[0]
    np.testing.assert_array_equal(other(batch), finished[1](batch))


def test_activations_are_kept_if_asked(tmp_path):
    run = hs.binarize(network(), calibration(), tmp_path / "run", keep_activations=True)
    folder = RunFolder(run.run_dir)
    with open_activations(folder.activations_path("fc")) as streams:
        assert {name: data.shape for name, data in streams.items()} == {
            "full_precision": (8, 6),
            "binarized": (8, 6),
        }
    run = hs.binarize(network(), calibration(), tmp_path / "other")
    assert not list(RunFolder(run.run_dir).activations.iterdir())


def test_problems_are_kept(finished):
    """With a layer's problem and solution anyone can check the layer afterwards."""
    folder = RunFolder(finished[0].run_dir)
    for result in finished[0].layers:
        groups = result.layer.geometry.groups
        share = result.solution.codes.shape[1] // groups
        for group in range(groups):
            if (result.name, group) == ("block.depth", DEAD):
                continue  # no data, no problem
            path = folder.problem_path(result.name)
            p = hs.Problem.load(path, "/" if groups == 1 else f"group{group}")
            columns = slice(share * group, share * (group + 1))
            codes, scales = result.solution.codes[:, columns], result.solution.scales[columns]
            claimed = result.solution.loss[columns]
            assert hs.verify(p, codes, scales, claimed_loss=claimed).ok
        loaded = hs.Solution.load(folder.solution_path(result.name))
        assert loaded.codes_sha256 == result.solution.codes_sha256


# skipping


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["stem.conv", "fc"], LAYERS[1:4]),
        ("fc", LAYERS[:4]),
        (["block.*"], ["stem.conv", "fc"]),
        (["*.conv", "block.[gd]*"], ["block.point", "fc"]),
    ],
)
def test_skip(skip, left, tmp_path):
    net = network()
    run = hs.binarize(net, calibration(), tmp_path / "run", skip=skip)
    assert [result.name for result in run.layers] == left
    for name in set(LAYERS) - set(left):
        assert net.products[name].weight is net.original[name]


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (["block.piont"], r"skip: 'block.piont' matches no layer; did you mean 'block.point'\?"),
        (["conv"], r"skip: 'conv' matches no layer; did you mean 'stem.conv'\?|layers: "),
        ((0,), "skip: expected names of layers, got 0"),
        (["xyz*"], "skip: 'xyz\\*' matches no layer; layers: stem.conv, block.grouped"),
        (["stem.norm"], "skip: 'stem.norm' matches no layer"),
        (["*"], "no layer to binarise: every layer is skipped"),
    ],
)
def test_skip_that_cannot_be_meant(skip, message, tmp_path):
    net = network()
    with pytest.raises(ValueError, match=message):
        hs.binarize(net, calibration(), tmp_path / "run", skip=skip)
    assert not (tmp_path / "run").exists()
    unchanged(net)


# resuming


class Broken(Exception):
    """What interrupts a run."""


class BreakingNetwork(NumpyNetwork):
    """A network whose ``countdown``-th forward pass or write fails."""

    countdown = 10**9

    def count(self):
        self.countdown -= 1
        if self.countdown == 0:
            raise Broken

    def layer_input(self, name, batch, *, binarized):
        self.count()
        return super().layer_input(name, batch, binarized=binarized)

    def write(self, name, weight):
        self.count()
        super().write(name, weight)


@pytest.mark.parametrize("countdown", [1, 3, 4, 5, 8, 10, 11, 12, 18, 29, 31, 32])
def test_resuming_after_an_exception_anywhere(countdown, finished, tmp_path):
    net = BreakingNetwork(network().steps)
    net.countdown = countdown
    with pytest.raises(Broken):
        hs.binarize(net, calibration(), tmp_path / "run")
    unchanged(net)
    done = len(list((tmp_path / "run" / "layers").glob("*.solution.h5")))
    events = []
    run = hs.binarize(
        net, calibration(), tmp_path / "run", progress=lambda *event: events.append(event)
    )
    same_run(run, finished[0])
    assert [name for name, _, _, what in events if what == "resumed"] == LAYERS[:done]
    assert [event[:3] for event in events if event[3] == "solving"] == [
        (name, index, 5) for index, name in enumerate(LAYERS) if index >= done
    ]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["summary"]["codes_sha256"] == finished[0].codes_sha256


@pytest.mark.parametrize("what", ["extracting activations", "summing", "solving"])
@pytest.mark.parametrize("layer", [0, 1, 4])
def test_interrupting_between_steps(layer, what, finished, tmp_path):
    def interrupt(name, index, count, now):
        if (index, now) == (layer, what):
            raise KeyboardInterrupt

    net = network()
    with pytest.raises(KeyboardInterrupt):
        hs.binarize(net, calibration(), tmp_path / "run", progress=interrupt)
    unchanged(net)
    same_run(hs.binarize(net, calibration(), tmp_path / "run"), finished[0])


def test_a_finished_run_is_not_done_again(finished, tmp_path):
    net, events = network(), []
    hs.binarize(net, calibration(), tmp_path / "run")
    run = hs.binarize(net, calibration(), tmp_path / "run", progress=lambda *e: events.append(e[3]))
    same_run(run, finished[0])
    assert events == ["resumed"] * 5
    for result in run.layers:
        np.testing.assert_array_equal(net.products[result.name].weight, result.weight)


def test_kill_9_at_every_file(tmp_path):
    """Killed at each moment at which a file is being written; every run can be taken up."""
    moments = 1 + 2 * (1 + 3 * 3 + 2)  # manifest, three files a layer, two reports
    folders = [tmp_path / str(moment) for moment in range(moments)]
    script = Path(small_network.__file__)
    child = subprocess.run(
        [sys.executable, str(script), *map(str, folders)],
        cwd=script.parents[1],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.split() == ["-9"] * (moments - 1) + ["0"], child.stderr
    whole = hs.binarize(network(), calibration(), tmp_path / "whole", skip=SKIPPED)
    for folder in folders:
        same_run(hs.binarize(network(), calibration(), folder, skip=SKIPPED), whole)
        leftover = [path.name for path in folder.rglob("*") if path.name.endswith(".part")]
        assert leftover == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "removed"])
@pytest.mark.parametrize("kind", ["problem", "solution"])
def test_a_damaged_file_costs_one_layer(kind, damage, finished, tmp_path, caplog):
    hs.binarize(network(), calibration(), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    path = getattr(folder, f"{kind}_path")("block.grouped")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        stored = hs.Solution.load(folder.solution_path("block.grouped")).scales.tobytes()
        content[content.index(stored) if kind == "solution" else len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "removed":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else b"not HDF5 at all")
    events = []
    with caplog.at_level(logging.WARNING, logger="hashsolve"):
        run = hs.binarize(
            network(), calibration(), tmp_path / "run", progress=lambda *e: events.append(e)
        )
    same_run(run, finished[0])
    assert [e[0] for e in events if e[3] == "solving"] == ["block.grouped"]
    if (kind, damage) != ("solution", "removed"):
        (message,) = caplog.messages
        assert path.name in message and "block.grouped is done again" in message


def test_flipped_bits_of_a_solution_never_pass(tmp_path):
    """Wherever a bit is flipped: found, or without any effect; never an unexpected error."""
    hs.binarize(network(), calibration(), tmp_path / "run", method="dcc", skip=LAYERS[1:])
    folder = RunFolder(tmp_path / "run")
    solution, extra = folder.load_layer("stem.conv", "")
    path = folder.solution_path("stem.conv")
    whole = path.read_bytes()
    found = 0
    for where in range(0, len(whole), 101):
        content = bytearray(whole)
        content[where] ^= 1 << where % 8
        path.write_bytes(content)
        loaded = folder.load_layer("stem.conv", "")
        if isinstance(loaded, str):
            found += 1
        else:
            np.testing.assert_array_equal(loaded[0].codes, solution.codes)
            np.testing.assert_array_equal(loaded[0].scales, solution.scales)
            assert loaded[1] == extra
    assert found > 10


def test_a_layer_done_anew_makes_later_ones_be_done_anew(tmp_path, caplog):
    """Their inputs came from other codes."""
    hs.binarize(network(), calibration(), tmp_path / "run", method="sign")
    folder = RunFolder(tmp_path / "run")
    path = folder.solution_path("stem.conv")
    s, (_, extra) = hs.Solution.load(path), folder.load_layer("stem.conv", "")
    other = hs.Solution(-s.codes, s.scales, s.loss, s.energy, s.lower_bound, history=s.history)
    folder.save_solution("stem.conv", other, extra)
    with caplog.at_level(logging.WARNING, logger="hashsolve"):
        hs.binarize(network(), calibration(), tmp_path / "run", method="sign")
    assert len(caplog.messages) == 4
    assert "earlier layers have been done anew" in caplog.messages[0]


class Retuned(NumpyNetwork):
    """The same weights and geometry, but another constant elsewhere."""

    def __init__(self):
        super().__init__(network().steps)
        self.steps[1][1].shift[0] += 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": network(seed=5)}, "weights"),
        ({"network": Retuned()}, "weights"),
        ({"network": network(padding_mode="circular")}, r"layers \(skip, or their geometry\)"),
        ({"network": network(stride=1)}, r"layers \(skip, or their geometry\)"),
        ({"calibration": calibration(seed=2)}, "calibration data"),
        ({"calibration": calibration()[:2]}, "calibration data"),
        ({"method": "dcc"}, r"settings \(method\)"),
        ({"effort": "fast"}, r"settings \(effort\)"),
        ({"propagation": "symqt"}, r"settings \(propagation\)"),
        ({"seed": 1}, r"settings \(seed\)"),
        ({"dtype": "float64"}, r"settings \(dtype\)"),
        ({"precision": "single"}, r"settings \(precision\)"),
        ({"skip": ["fc"]}, r"layers \(skip, or their geometry\)"),
        ({"network": network(5), "seed": 1}, r"weights and settings \(seed\)"),
    ],
)
def test_another_run_is_not_resumed(change, named, finished):
    before = {path: path.read_bytes() for path in finished[0].run_dir.rglob("*.*")}
    arguments = {"network": network(), "calibration": calibration(), **change}
    with pytest.raises(ValueError, match=rf"holds a run with other {named}; use another run_dir"):
        hs.binarize(**arguments, run_dir=finished[0].run_dir)
    assert {path: path.read_bytes() for path in finished[0].run_dir.rglob("*.*")} == before


def test_resume_false_starts_over(finished, tmp_path):
    first = hs.binarize(network(), calibration(), tmp_path / "run", method="sign")
    events = []
    run = hs.binarize(
        network(),
        calibration(),
        tmp_path / "run",
        resume=False,
        progress=lambda *e: events.append(e[3]),
    )
    same_run(run, finished[0])
    assert "resumed" not in events
    assert first.codes_sha256 != run.codes_sha256


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_something_else_is_refused(resume, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"neither empty nor a run folder; name another run_dir"):
        hs.binarize(network(), calibration(), tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis\.tex: not a folder"):
        hs.binarize(network(), calibration(), tmp_path / "thesis.tex", resume=resume)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1, "fingerprints": 3}', "format|damaged"),
        ('{"format": 99, "fingerprints": {}}', "of format 99, this version reads 1"),
    ],
)
def test_a_damaged_manifest_is_named(text, why, tmp_path):
    """Starting over does not remove it either: nothing shows any more that it is a run's."""
    run = hs.binarize(network(), calibration(), tmp_path / "run", "dcc", skip=SKIPPED)
    (run.run_dir / "manifest.json").write_text(text)
    files = sorted(run.run_dir.rglob("*"))
    for resume in (True, False):
        with pytest.raises(ValueError, match=rf"manifest.json: .*({why}).*name another run_dir"):
            hs.binarize(network(), calibration(), run.run_dir, "dcc", skip=SKIPPED, resume=resume)
    assert sorted(run.run_dir.rglob("*")) == files


# calibration


def test_a_folder_in_use_is_refused(tmp_path):
    """By another run of this process or another, for as long as that runs."""
    messages = []

    def again(*_):
        with pytest.raises(ValueError, match="in use by another run") as caught:
            hs.binarize(network(), calibration(), tmp_path / "run", method="dcc")
        messages.append(str(caught.value))

    first = hs.binarize(network(), calibration(), tmp_path / "run", method="dcc", progress=again)
    assert messages and all("name another run_dir" in message for message in messages)
    second = hs.binarize(network(), calibration(), tmp_path / "run", method="dcc")
    assert second.codes_sha256 == first.codes_sha256


@pytest.mark.parametrize("batches", [None, 5])
def test_no_batches_at_all_are_refused(batches, tmp_path):
    with pytest.raises(ValueError, match="calibration: expected batches to go through, got"):
        hs.binarize(network(), batches, tmp_path / "run")


def test_a_generator_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"calibration: this iterator can be gone through only once"
    ):
        hs.binarize(network(), (batch for batch in calibration()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_batches(tmp_path):
    with pytest.raises(ValueError, match=r"calibration: it holds no batches"):
        hs.binarize(network(), [], tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Shuffled:
    """Other batches on every pass."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        images = np.concatenate(calibration())
        self.rng.shuffle(images)
        return iter([images[:4], images[4:]])


def test_shuffling_is_refused(tmp_path):
    net = network()
    with pytest.raises(
        ValueError, match=r"calibration: this pass gave other batches than the first"
    ):
        hs.binarize(net, Shuffled(), tmp_path / "run")
    unchanged(net)
    assert not list((tmp_path / "run").rglob("*.solution.h5"))


def test_nan_in_the_calibration(tmp_path):
    batches = calibration()
    batches[1][0, 0, 0, 0] = np.nan
    net = network()
    with pytest.raises(ValueError, match=r"stem.conv: full_precision inputs: nan at"):
        hs.binarize(net, batches, tmp_path / "run")
    unchanged(net)


def test_calibration_that_is_zero(tmp_path):
    with pytest.raises(ValueError, match=r"stem.conv: its inputs or its outputs are zero"):
        hs.binarize(network(), [np.zeros((2, 3, 6, 6))], tmp_path / "run")


# layers


def wide(rng):
    return Product(rng.normal(size=(4, 4)), hs.Geometry())


def layer_problem(net, run, names, batches):
    """The asymmetric problem over the inputs of these layers, one after the other, by hand, as
    the first of them found the network."""
    part = NumpyNetwork(
        [(n, Product(w, net.products[n].geometry)) for n, w in net.original.items()]
    )
    part.steps = [(n, part.products.get(n, s)) for n, s in net.steps]
    for result in run.layers:
        if result.name == names[0]:
            break
        result.write(part)
    batch = np.concatenate(batches)
    shown, full = (
        np.concatenate([x for n in names for x in part.layer_input(n, batch, binarized=b)]).T
        for b in (True, False)
    )
    return hs.Problem.from_arrays(shown, net.original[names[0]].T, reference=full)


def check_alike(net, run, names, batches, tmp_path):
    (result,) = (result for result in run.layers if result.name == names[0])
    wanted = hs.solve(layer_problem(net, run, names, batches), "dcc")
    np.testing.assert_array_equal(result.solution.codes, wanted.codes)
    np.testing.assert_allclose(result.solution.scales, wanted.scales, rtol=1e-12)
    np.testing.assert_allclose(result.solution.loss, wanted.loss, rtol=1e-9)
    for name in names:
        np.testing.assert_array_equal(net.products[name].weight, result.weight)
    again = hs.binarize(net, [np.concatenate(batches)], tmp_path / "again", "dcc", dtype="float64")
    same_run(again, run)


def test_a_layer_used_twice_is_solved_for_all_its_calls(tmp_path, rng):
    step = wide(rng)
    net = NumpyNetwork([("a", wide(rng)), ("twice", step), ("relu", relu), ("twice", step)])
    batches = [rng.normal(size=(count, 4)) for count in (9, 30, 2)]
    run = hs.binarize(net, batches, tmp_path / "run", "dcc", dtype="float64")
    assert list(run.relative_errors) == ["a", "twice"]
    assert [(r.row["calls"], r.row["rows"]) for r in run.layers] == [(1, 41), (2, 82)]
    check_alike(net, run, ["twice"], batches, tmp_path)


def test_layers_that_share_a_weight_are_solved_together(tmp_path, rng):
    step = wide(rng)
    steps = [("in", wide(rng)), ("a", step), ("relu", relu), ("mid", wide(rng))]
    net = NumpyNetwork([*steps, ("b", Product(step.weight, step.geometry))])
    batches = [rng.normal(size=(count, 4)) for count in (9, 30, 2)]
    run = hs.binarize(net, batches, tmp_path / "run", "dcc", dtype="float64")
    assert list(run.relative_errors) == ["in", "a", "mid"]
    assert run.layers[1].sharers == ("b",)
    check_alike(net, run, ["a", "b"], batches, tmp_path)
    other = NumpyNetwork([*steps, ("b", Product(step.weight, step.geometry))])
    with pytest.raises(ValueError, match=r"a list is no hashsolve.Network: it lacks layers"):
        run.apply([other])
    run.apply(other)
    np.testing.assert_array_equal(other(batches[0]), net(batches[0]))


def test_a_weight_shared_with_a_layer_that_is_skipped_is_refused(tmp_path, rng):
    step = wide(rng)
    net = NumpyNetwork([("a", step), ("relu", relu), ("b", Product(step.weight, step.geometry))])
    batches = [rng.normal(size=(9, 4))]
    for skip, left in ("ab", "ba"):
        with pytest.raises(
            ValueError, match=f"layer {left} shares its weight with {skip}, .*: add it to skip"
        ):
            hs.binarize(net, batches, tmp_path / "run", skip=[skip])


def test_a_batch_that_reaches_a_layer_more_often_than_the_first_is_refused(tmp_path, rng):
    class Looping(NumpyNetwork):
        def layer_input(self, name, batch, *, binarized):
            return super().layer_input(name, batch, binarized=binarized) * (1 + (len(batch) == 2))

    net = Looping([("a", wide(rng))])
    with pytest.raises(ValueError, match=r"layer a is reached 2 times by one batch and 1 .* skip"):
        hs.binarize(net, [rng.normal(size=(n, 4)) for n in (3, 2)], tmp_path / "run")


class Unreached(NumpyNetwork):
    """A network with a layer that its forward pass leaves out."""

    def layers(self, batch):
        return [*super().layers(batch), hs.Layer("spare", hs.Geometry(), (2, 3), calls=0)]


def test_a_layer_that_is_not_reached_is_refused(finished, tmp_path):
    net = Unreached(network().steps)
    with pytest.raises(ValueError, match=r"layer spare is not reached by the first batch"):
        hs.binarize(net, calibration(), tmp_path / "run")
    same_run(hs.binarize(net, calibration(), tmp_path / "run", skip=["spare"]), finished[0])


def test_a_network_without_layers(tmp_path):
    with pytest.raises(ValueError, match=r"the network has no convolution or linear"):
        hs.binarize(NumpyNetwork([("relu", relu)]), calibration(), tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dccc"}, "method: 'dccc' is not one of .*did you mean 'dcc'"),
        ({"effort": "slow"}, "effort: 'slow' is not one of"),
        ({"propagation": "asim"}, "propagation: 'asim' .*did you mean 'asym'"),
        ({"dtype": "int8"}, "dtype: 'int8' is not one of"),
    ],
)
def test_unusable_settings(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        hs.binarize(network(), calibration(), tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


class Changes(NumpyNetwork):
    """Forgets what full precision was."""

    def write(self, name, weight):
        super().write(name, weight)
        self.original[name] = np.asarray(weight)


MISTAKEN = {
    "a dict is no hashsolve.Network: it lacks layers, weight": lambda net: {},
    "the class NumpyNetwork itself": lambda net: NumpyNetwork,
    "layers: expected hashsolve.Layer, got 'fc'": {"layers": lambda batch: ["fc"]},
    "layers: 'fc' is there twice": {"layers": lambda batch: [hs.Layer("fc", LINEAR, (5, 6))] * 2},
    "layer fc: weight() has shape (5, 6), but": {
        "layers": lambda batch: [hs.Layer("fc", LINEAR, (6, 5))]
    },
    "state() returned None": {"state": lambda: None},
    "layer stem.conv: layer_input() gave no array": {
        "layer_input": lambda name, batch, *, binarized: None
    },
    "layer stem.conv: after write(), weight() is another": lambda net: Changes(net.steps),
}
"""What an adapter may do wrong, and what is said of it."""


@pytest.mark.parametrize("message", MISTAKEN)
def test_a_mistaken_adapter(message, tmp_path, monkeypatch):
    net, mistake = network(), MISTAKEN[message]
    if callable(mistake):
        net = mistake(net)
    else:
        for name, method in mistake.items():
            monkeypatch.setattr(net, name, method)
    with pytest.raises(ValueError, match=re.escape(message)):
        hs.binarize(net, calibration(), tmp_path / "run", "sign")


def test_a_write_without_effect_is_remarked(tmp_path, monkeypatch):
    said = hs.binarize(network(), calibration(), tmp_path / "a", "sign").report
    assert said.summary["remarks"] == []
    net = network()
    monkeypatch.setattr(net, "write", lambda *_, **__: None)
    said = hs.binarize(net, calibration(), tmp_path / "b", "sign", intercept="auto").report
    assert [remark[:20] for remark in said.summary["remarks"]] == [
        "intercept: no layer ",
        "fc: its inputs are t",
    ]
    assert str(said).endswith("write() has no effect")


def test_long_names_keep_columns_in_line(finished):
    run, _ = finished
    rows = [dict(row) for row in run.report.rows]
    rows[0]["layer"] = "encoder.layers.0.self_attention.out_projection"
    lines = str(Report(rows, run.report.summary)).splitlines()[: 1 + len(rows)]
    assert len({len(line) for line in lines}) == 1
    assert repr(run).count("\n") == 0 and len(repr(run.layers[0])) < 100


def test_the_adapter_is_a_network():
    assert isinstance(network(), hs.Network)


# report


def test_report(finished):
    run, net = finished
    report = json.loads((run.run_dir / "report.json").read_text())
    assert report == json.loads(json.dumps(run.report.to_dict()))
    for row, result in zip(report["layers"], run.layers, strict=True):
        assert tuple(row) == COLUMNS
        weight, solution = net.original[row["layer"]], result.solution
        assert row["shape"] == list(weight.shape)
        assert row["relative_error"] == pytest.approx(solution.loss.sum() / solution.energy.sum())
        assert row["lower_bound"] <= row["relative_error"] <= row["relative_error_sign"]
        assert row["flips"] == (np.sign(weight) != np.sign(result.weight)).sum() > 0
        assert row["bits_before"] == 32 * weight.size
        assert row["bits_after"] == weight.size + 32 * len(weight)
        assert row["codes_sha256"] == solution.codes_sha256
        assert row["status"] in ("FIXPOINT", "OPTIMAL")
    assert [row["rows"] for row in report["layers"]] == [8 * 36, 8 * 9, 8 * 9, 8 * 9, 8]
    summary = report["summary"]
    assert summary["layers"] == 5
    assert summary["mean_relative_error"] == pytest.approx(
        np.mean(list(run.relative_errors.values()))
    )
    assert (summary["method"], summary["effort"], summary["propagation"]) == (
        "auto",
        "default",
        "asym",
    )
    assert set(summary["fingerprints"]) == {"weights", "calibration data", "geometry", "settings"}
    with open(run.run_dir / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == LAYERS
    assert rows[1]["shape"] == "8x3x3x3"
    assert float(rows[1]["relative_error"]) == report["layers"][1]["relative_error"]
    text = str(run.report)
    assert all(name in text for name in LAYERS) and run.codes_sha256[:12] in text


def test_error_of_sign_in_the_report_is_that_of_sign(finished, tmp_path):
    sign = hs.binarize(network(), calibration(), tmp_path / "run", method="sign")
    first, other = sign.report.rows[0], finished[0].report.rows[0]
    assert first["relative_error"] == pytest.approx(first["relative_error_sign"])
    assert first["relative_error_sign"] == pytest.approx(other["relative_error_sign"])


@pytest.mark.parametrize("resume", [True, False])
def test_a_stranger_s_folder_loses_nothing(resume, tmp_path):
    """A manifest.json of somebody else makes no run folder; not a file is touched."""
    (tmp_path / "manifest.json").write_text('{"schemaVersion": 2}')
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "mine.txt").write_text("mine")
    (tmp_path / "report.csv").write_text("mine too")
    with pytest.raises(ValueError, match=r"manifest.json: damaged, or not a run's"):
        hs.binarize(network(), calibration(), tmp_path, "dcc", resume=resume)
    assert (tmp_path / "layers" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "report.csv").read_text() == "mine too"


def test_starting_over_removes_only_what_a_run_wrote(tmp_path):
    hs.binarize(network(), calibration(), tmp_path, "dcc", skip=SKIPPED)
    (tmp_path / "layers" / "mine.txt").write_text("mine")
    hs.binarize(network(), calibration(), tmp_path, "sign", skip=SKIPPED, resume=False)
    assert (tmp_path / "layers" / "mine.txt").read_text() == "mine"


def test_a_write_that_is_interrupted_is_undone(tmp_path):
    net, write = network(), NumpyNetwork.write
    before = {name: step.weight.copy() for name, step in net.products.items()}
    interrupted = []

    def interrupt(name, weight):
        write(net, name, weight)
        if name == "block.grouped" and not np.array_equal(weight, before[name]) and not interrupted:
            interrupted.append(name)
            raise KeyboardInterrupt

    net.write = interrupt
    with pytest.raises(KeyboardInterrupt):
        hs.binarize(net, calibration(), tmp_path, "dcc", skip=SKIPPED)
    assert interrupted
    for name, weight in before.items():
        np.testing.assert_array_equal(net.products[name].weight, weight)


def test_an_adapter_can_be_used_again(tmp_path):
    """What an earlier run has written is no part of the next one's network."""
    net = network()
    hs.binarize(net, calibration(), tmp_path / "a", "dcc", skip=SKIPPED)
    again = hs.binarize(net, calibration(), tmp_path / "b", "dcc", skip=["stem.*", *SKIPPED])
    fresh = hs.binarize(network(), calibration(), tmp_path / "c", "dcc", skip=["stem.*", *SKIPPED])
    assert again.codes_sha256 == fresh.codes_sha256
    np.testing.assert_array_equal(net.products["stem.conv"].weight, net.original["stem.conv"])


def test_a_report_that_cannot_be_written_undoes_the_run(tmp_path):
    net, run_dir = network(), tmp_path / "run"
    before = {name: weight.copy() for name, weight in net.original.items()}
    hs.binarize(net, calibration(), run_dir, method="dcc")
    (run_dir / "report.csv").unlink()
    (run_dir / "report.csv").mkdir()
    net = network()
    with pytest.raises(OSError):
        hs.binarize(net, calibration(), run_dir, method="dcc")
    for name, weight in before.items():
        np.testing.assert_array_equal(net.products[name].weight, weight)


def test_weights_that_are_not_finite_are_told_by_their_layer(tmp_path):
    broken = network()
    weight = broken.weight("fc").copy()
    weight[0, 0] = np.nan
    broken.weight = lambda name: weight if name == "fc" else type(broken).weight(broken, name)
    with pytest.raises(ValueError, match="layer fc: its weight holds what is not finite"):
        hs.binarize(broken, calibration(), run_dir=tmp_path)
