# ruff: noqa: E402
"""The script for ImageNet-style folders, on a small folder of images that a small net can tell."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
try:
    import elsewhere  # before the first backward pass, which counts devices
except ImportError:
    elsewhere = None
Image = pytest.importorskip("PIL.Image")
from click.testing import CliRunner
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import image_folder
import rows
from imagenet_networks import AlexNet, ResNet18


def small():
    """What --network names by its import path: it tells the red from the blue."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 7 * 7, 2),
    )


class Kinds(nn.Module):
    """Layers of several kinds; the last that a pass reaches is not the last that is made."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.patches = nn.Linear(16, 2), nn.Conv2d(3, 16, 8, 8)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mix, self.wider = nn.Conv1d(16, 16, 3), nn.ConvTranspose1d(16, 16, 2, 2)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return self.head(self.wider(self.mix(tokens.transpose(1, 2)).relu()).mean(2))


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 10)):
        for label, name in enumerate(("blue", "red")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (40, 50 + number, 3), dtype=np.uint8)
                pixels[..., 2 - 2 * label] += 100
                Image.fromarray(pixels).save(folder / f"{number}.png")
            (folder / "notes.txt").write_text("not an image")
    return tmp_path


def run(data, *arguments):
    return CliRunner().invoke(
        image_folder.main,
        ["--data", str(data), "--size", "32", "--folder", str(data / "out"), *arguments],
    )


def test_a_row_of_a_network_by_import_path(data, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    options = ["--network", "test_torch_image_folder:small", "--batch", "16", "--epochs", "4"]
    options += ["--calibration", "20", "--lr", "0.01", "--other-lr", "0.01", "--distillation", "0"]
    done = run(data, *options, "--start", "dcc")
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert row["skip"] == ["0", "6"] and row["packed"]["binarized_before"] == 8 * 72 * 4
    assert row["after"][-1]["top1"] >= 90 and row["full_precision"]["top1"] < 90
    assert row["reloaded"]["top1"] == row["after"][-1]["top1"] and row["reloaded"]["top5"] == 100
    assert json.loads(run(data, *options, "--start", "dcc").stdout) == row


@pytest.mark.skipif(elsewhere is None, reason="this torch makes no device of Python")
def test_a_row_of_another_device_is_the_same(data, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    options = ["--network", "test_torch_image_folder:small", "--batch", "16", "--epochs", "1"]
    options += ["--calibration", "20", "--start", "dcc"]
    with elsewhere.Elsewhere():
        there = run(data, *options, "--device", str(elsewhere.DEVICE))
    here = run(data, *options)
    assert there.exit_code == here.exit_code == 0, (there.output, here.output)
    here, there = json.loads(here.stdout), json.loads(there.stdout)
    assert (here["device"], there["device"]) == ("cpu", "elsewhere:0")
    for name in ("codes_sha256", "before", "packed", "reloaded"):
        assert here[name] == there[name]
    assert here["after"][0]["loss"] == there["after"][0]["loss"]


def test_a_row_is_of_its_data_and_weights(data, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent)

    def row(*options):
        options = "--network", "test_torch_image_folder:small", "--start", "full", *options
        done = run(data, *options)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    first = row()
    assert row() == first and len(first["data"]) == len(first["weights"]) == 16
    state = small().state_dict()
    torch.save(state, tmp_path / "weights.pt")
    assert row("--weights", str(tmp_path / "weights.pt")) == first
    state["0.weight"][0, 0, 0, 0] += 1
    torch.save(state, tmp_path / "weights.pt")
    other = row("--weights", str(tmp_path / "weights.pt"))
    assert other["data"] == first["data"] and other["weights"] != first["weights"]
    Image.new("RGB", (40, 40)).save(data / "train" / "red" / "3.png")
    other = row()
    assert other["data"] != first["data"] and other["weights"] == first["weights"]


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), ["patches", "head"]),
        (("[hp]*", "attention.?_proj"), ["[hp]*", "attention.?_proj"]),
    ],
)
def test_rivals_binarise_the_layers_that_methods_do(data, monkeypatch, skip, left):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    seen, attach = [], rows.torch_glue.attach

    def attached(model, layers, **options):
        seen.append([getattr(layer, "name", layer) for layer in getattr(layers, "layers", layers)])
        return attach(model, layers, **options)

    monkeypatch.setattr(rows.torch_glue, "attach", attached)
    options = ["--network", "test_torch_image_folder:Kinds", "--epochs", "1", "--calibration", "20"]
    options += ["--distillation", "0", *(f"--skip={name}" for name in skip)]
    done = [run(data, *options, "--start", start) for start in ("dcc", "weights")]
    found = [json.loads(one.stdout) for one in done]
    parts = [] if skip else [f"attention.{part}_proj" for part in "qkv"]
    assert seen == 2 * [[*parts, "attention.out_proj", "mix", "wider"]]
    assert [row["skip"] for row in found] == 2 * [left]
    assert found[0]["packed"] == found[1]["packed"]


def test_images_are_read_as_described(data):
    images = image_folder.Images(data / "val", 32, augmented=False)
    assert len(images) == 20 and images.classes == ["blue", "red"]
    values, label = images[12]
    assert values.shape == (3, 32, 32) and label == 1
    assert torch.equal(values, images[12][0]) and values[0].mean() > values[2].mean() + 1
    augmented = image_folder.Images(data / "val", 32, augmented=True)
    assert not torch.equal(augmented[12][0], augmented[12][0])
    torch.manual_seed(0)
    boxes = np.array([image_folder.random_box(60, 40) for _ in range(300)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [60, 40]).all()
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    area = width * height / 2400
    assert 0.079 < area.min() < 0.12 and 0.85 < area.max() <= 1
    assert (width / height).min() >= 0.749 and (width / height).max() <= 1.501
    assert image_folder.middle_box(60, 40) == (12.5, 2.5, 47.5, 37.5)


def test_what_cannot_be_used(data, tmp_path):
    assert "needs --weights" in run(data, "--network", "resnet18").output
    assert "expected MODULE:FUNCTION" in run(data, "--network", "nowhere:net").output
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert "no images" in run(tmp_path / "empty", "--network", "resnet18").output


@pytest.mark.parametrize(("network", "parameters"), [(ResNet18, 11_689_512), (AlexNet, 62_387_912)])
def test_the_networks_of_the_paper(network, parameters):
    with torch.device("meta"):
        model = network()
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    # ResNet-18's is what torchvision counts; AlexNet's by hand: 3,745,824 + 58,622,952 + 19,136
    assert sum(p.numel() for p in model.parameters()) == parameters
