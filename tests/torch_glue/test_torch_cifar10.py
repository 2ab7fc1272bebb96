# ruff: noqa: E402
"""The CIFAR-10 script on a few random images: a row, made once, resumed where it was killed."""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

torch = pytest.importorskip("torch")
try:
    import elsewhere  # before the first backward pass, which counts devices
except ImportError:
    elsewhere = None
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import cifar10
import rows
from resnet20 import ResNet20


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Twelve test images, five of them in the smaller file."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    train = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    test = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for name, chosen in (("cifar10_full.h5", slice(None)), ("cifar10.h5", slice(3, 8))):
        with h5py.File(folder / name, "w") as file:
            file["train_images"], file["train_labels"] = train, np.arange(40, dtype=np.uint8) % 10
            file["test_images"] = test[chosen]
            file["test_labels"] = np.arange(12, dtype=np.uint8)[chosen] % 10
    monkeypatch.setenv("HASHSOLVE_DATA", str(folder))
    monkeypatch.setattr(cifar10, "VGG_EPOCHS", 1)
    return folder


def test_batches_are_crops_and_mirrors_of_the_images(data):
    images = cifar10.Images(data / "cifar10_full.h5", 8, None)
    assert len(images) == 5 and images.few.tolist() == [3 <= n < 8 for n in range(12)]
    torch.manual_seed(1)
    seen = []
    for batch, labels in images:
        for image, label in zip(batch, labels, strict=True):
            twins = torch.nonzero(images.labels == label)[:, 0]
            crops = [
                (down, right, flip, int(twin))
                for twin in twins
                for down in range(9)
                for right in range(9)
                for flip in (False, True)
                if torch.equal(image, crop(images.padded[twin], down, right, flip))
            ]
            assert len(crops) == 1
            seen.append(crops[0])
    assert sorted(twin for *_, twin in seen) == list(range(40))
    assert len({crop[:2] for crop in seen}) > 20 and len({crop[2] for crop in seen}) == 2


def test_images_are_mirrored_in_every_second_epoch(data):
    images = cifar10.Images(data / "cifar10_full.h5", 40, None, 0, True)
    assert images.padded.shape == (40, 32, 32, 3)

    def mirrored(epoch):
        images.set_epoch(epoch)
        ((batch, labels),) = images
        found = {}
        for image, label in zip(batch, labels, strict=True):
            for twin in torch.nonzero(images.labels == label)[:, 0].tolist():
                for flip in (False, True):
                    if torch.equal(image, crop(images.padded[twin], 0, 0, flip)):
                        found[twin] = flip
        assert len(found) == 40
        return [found[twin] for twin in range(40)]

    first, second = mirrored(1), mirrored(2)
    assert 10 < sum(first) < 30 and second == [not flip for flip in first]
    assert mirrored(3) == first


def test_mixed_images_are_mostly_the_image_of_their_label(data):
    torch.manual_seed(3)
    plain = cifar10.Images(data / "cifar10_full.h5", 40, None, 0, True)
    images = cifar10.Images(data / "cifar10_full.h5", 40, None, 0, True, 0.5)
    torch.manual_seed(3)
    ((whole, labels),) = plain
    torch.manual_seed(3)
    ((batch, again),) = images
    assert torch.equal(labels, again)
    kept = 0
    for place in range(40):
        other = whole[place - 1]
        away = other - whole[place]
        share = ((batch[place] - whole[place]) * away).sum() / away.square().sum()
        torch.testing.assert_close(batch[place], whole[place] + share * away)
        assert -1e-6 <= share <= 0.5
        kept += int(share < 1e-6)
    assert 10 < kept < 30


def test_a_mirrored_teacher_says_the_same_of_an_image_and_of_its_mirror_image():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 3))
    images = torch.randn(5, 2, 3, 4)
    mirrored = torch.from_numpy(images.numpy()[..., ::-1].copy())
    outputs = rows.Mirrored(network)(images)
    torch.testing.assert_close(outputs, (network(images) + network(mirrored)) / 2)
    torch.testing.assert_close(outputs, rows.Mirrored(network)(mirrored))
    assert not torch.allclose(outputs, network(images))


def test_a_shifted_teacher_says_the_mean_of_four_views():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 20, 3))
    pixels = torch.randint(256, (2, 4, 5, 3), dtype=torch.uint8)
    views = []
    for rows_, columns, mirrored in ((1, 1, 0), (-1, -1, 0), (1, -1, 1), (-1, 1, 1)):
        view = torch.zeros_like(pixels)
        for i in range(4):
            for j in range(5):
                if 0 <= i - rows_ < 4 and 0 <= j - columns < 5:
                    source = pixels[:, i - rows_]
                    source = source.flip(1) if mirrored else source
                    view[:, i, j] = source[:, j - columns]
        views.append(network(cifar10.normalised(view)))
    outputs = rows.Shifted(network)(cifar10.normalised(pixels))
    torch.testing.assert_close(outputs, sum(views) / 4)


def test_mixed_precision_keeps_weights_gradients_and_outputs_in_float32():
    network = torch.nn.Sequential(torch.nn.Linear(24, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    hidden = []
    network[0].register_forward_hook(lambda module, inputs, output: hidden.append(output.dtype))
    inputs = torch.randn(5, 24)
    outputs = rows.Mixed(network)(inputs)
    outputs.sum().backward()
    assert hidden == [torch.bfloat16] and outputs.dtype == torch.float32
    assert {(p.dtype, p.grad.dtype) for p in network.parameters()} == {(torch.float32,) * 2}
    torch.testing.assert_close(outputs, network(inputs), rtol=0.05, atol=0.05)


def test_vgg9_is_compiled_whole():
    network, graphs = cifar10.VGG9().eval(), []
    network.compile(backend=lambda graph, examples: graphs.append(graph) or graph)
    try:
        network(torch.zeros(2, 3, 32, 32))
    except RuntimeError as error:  # a Python that torch does not compile for yet
        if "not supported" not in str(error):
            raise
        pytest.skip(str(error))
    assert len(graphs) == 1


def crop(padded, down, right, flip):
    pixels = padded[down : down + 32, right : right + 32]
    return cifar10.normalised((pixels.flip(1) if flip else pixels)[None])[0]


def test_a_row_is_made_once_and_resumed(data, tmp_path, monkeypatch):
    def run(*more):
        arguments = ["--network", "vgg9", "--start", "weights", "--setting", "sq-bwn"]
        arguments += [
            "--epochs",
            "2",
            "--batch",
            "10",
            "--train-images",
            "20",
            "--folder",
            str(tmp_path / "out"),
            *more,
        ]
        return CliRunner().invoke(cifar10.main, arguments)

    calls = []
    log = rows.Log.__call__

    def dying(self, epoch, step, steps, loss):
        calls.append((epoch, step))
        if len(calls) == 4:  # a step of training VGG-9, an epoch, then a step of the second
            raise KeyboardInterrupt
        log(self, epoch, step, steps, loss)

    monkeypatch.setattr(rows.Log, "__call__", dying)
    assert run().exit_code != 0
    done = run()
    assert done.exit_code == 0, done.output
    assert calls == [(1, 1), (1, 1), (1, 2), (2, 1), (2, 1), (2, 2)]
    row = json.loads(done.stdout)
    assert [epoch["epoch"] for epoch in row["after"]] == [1, 2]
    assert row["reloaded"] == {key: row["after"][1][key] for key in ("top1_4000", "top1_10000")}
    assert json.loads(run().stdout) == row and len(calls) == 6
    full = json.loads(run("--start", "full").stdout)
    assert full["full_precision"] == row["full_precision"] and "after" not in full
    other = json.loads(run("--shift", "2", "--alternate", "--mix", "1", "--hardening", "1").stdout)
    assert other["full_precision"] == row["full_precision"] and other["after"] != row["after"]
    assert other["mix"] == 1
    seen = []
    finetune = rows.torch_glue.finetune
    monkeypatch.setattr(
        rows.torch_glue,
        "finetune",
        lambda *args, teacher, **more: seen.append(teacher) or finetune(*args, **more),
    )
    assert run("--epochs", "1", "--mirrored-teacher").exit_code == 0
    assert run("--epochs", "1", "--shifted-teacher").exit_code == 0
    assert run("--mirrored-teacher", "--shifted-teacher").exit_code == 2
    assert run("--epochs", "1", "--seed", "1").exit_code == 0
    assert run("--epochs", "1", "--mixed").exit_code == 0
    assert [type(teacher) for teacher in seen] == [
        rows.Mirrored,
        rows.Shifted,
        cifar10.VGG9,
        rows.Mixed,
    ]


@pytest.mark.skipif(elsewhere is None, reason="this torch makes no device of Python")
def test_a_row_of_another_device_is_the_same(data, tmp_path, monkeypatch):
    network = torch.nn.Sequential()
    network.add_module("conv1", torch.nn.Conv2d(3, 8, 3, 2))
    network.add_module("conv2", torch.nn.Conv2d(8, 8, 3, 2))
    network.add_module("norm", torch.nn.BatchNorm2d(8))
    network.add_module("flat", torch.nn.Flatten())
    network.add_module("linear", torch.nn.Linear(8 * 49, 10))
    monkeypatch.setattr(cifar10, "load_model", lambda: copy.deepcopy(network).eval())
    options = f"--setting fixed --start dcc --epochs 2 --batch 20 --folder {tmp_path} "
    options += "--calibration 40 --recalibrate 20 --shifted-teacher"

    def row(*more):
        done = CliRunner().invoke(cifar10.main, [*options.split(), *more])
        assert done.exit_code == 0, (done.output, done.exception)
        return untimed(json.loads(done.stdout))

    with elsewhere.Elsewhere():
        there = row("--device", str(elsewhere.DEVICE))
    here = row()
    assert (here.pop("device"), there.pop("device")) == ("cpu", "elsewhere:0")
    assert here == there and len(here["after"]) == 2
    assert "no such device" in CliRunner().invoke(cifar10.main, ["--device", "nowhere"]).output


def untimed(row):
    """What of a row no clock says."""
    if isinstance(row, list):
        return [untimed(value) for value in row]
    if isinstance(row, dict):
        return {key: untimed(value) for key, value in row.items() if "seconds" not in key}
    return row


def test_a_row_is_of_its_data_and_so_is_its_vgg9(data, tmp_path):
    def run(path):
        arguments = (
            f"--network vgg9 --start full --train-images 20 --data {path} --folder {tmp_path}"
        )
        done = CliRunner().invoke(cifar10.main, arguments.split())
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    other = data / "other.h5"
    other.write_bytes((data / "cifar10_full.h5").read_bytes())
    first, same = run(data / "cifar10_full.h5"), run(other)
    assert first == same and len(first["data"]) == len(first["weights"]) == 16
    with h5py.File(other, "a") as file:
        file["train_labels"][0] = 9
    second = run(other)
    assert second["data"] != first["data"] and second["weights"] != first["weights"]
    assert run(data / "cifar10_full.h5") == first
    assert len(list(tmp_path.glob("vgg9-20-*.pt"))) == 2


def test_rows_of_the_usual_data_and_weights_keep_their_names(monkeypatch, tmp_path):
    """So that what was checkpointed under them is taken up."""
    names, network = [], torch.nn.Linear(2, 3)
    images = SimpleNamespace(digest=cifar10.USUAL["data"])
    monkeypatch.setattr(cifar10, "Images", lambda *_: images)
    monkeypatch.setattr(cifar10, "load_model", lambda: network)
    monkeypatch.setitem(cifar10.USUAL, "weights", rows.state_digest(network))
    monkeypatch.setattr(rows.Row, "print_if_done", lambda row: names.append(row.name) or True)
    arguments = "--lr 3e-4 --other-lr 1e-3 --temperature 4 --mixed --compile --start weights "
    arguments += "--setting sq-bwn --epochs 10 --shift 2 --alternate --mirrored-teacher "
    arguments += f"--distillation 0.9 --seed 0 --data any.h5 --folder {tmp_path}"

    def run():
        assert CliRunner().invoke(cifar10.main, arguments.split()).exit_code == 0

    run()
    images.digest = "others"
    run()
    images.digest = cifar10.USUAL["data"]
    torch.nn.init.zeros_(network.bias)
    run()
    assert names[0] == "resnet20-weights-sq-bwn-10-s0-02d866f8" and len(set(names)) == 3


def test_the_usual_weights_are_those_of_the_network():
    try:
        model = cifar10.load_model()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert rows.state_digest(model) == cifar10.USUAL["weights"]


@pytest.mark.parametrize(("name", "network"), [("resnet20", ResNet20), ("vgg9", cifar10.VGG9)])
def test_rivals_binarise_all_but_the_first_and_last_layer(name, network):
    model, skip = network().eval(), cifar10.SKIP[name]
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    wanted = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    assert rows.rivals_layers(model, torch.zeros(2, 3, 32, 32), skip) == wanted[1:-1]
