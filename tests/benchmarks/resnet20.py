"""ResNet-20 on CIFAR-10, binarised after training: accuracy, layer errors, time and memory.

    python tests/benchmarks/resnet20.py --method dcc --propagation asym

The network and images are those of HASHSOLVE_DATA (see tests/data.py). The first convolution and
the classifier stay in full precision; calibration takes the first training images, without
labels; nothing is trained and BatchNorm is left as it is, but for intercepts that it takes up and
unless asked for. Prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch
from torch import nn

import torch_glue

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import shared_data

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLACK = (-torch.tensor(MEAN) / torch.tensor(STD))[:, None, None]  # normalised
HELD_OUT = 3072
"""Training images from here on are never for calibration."""


class Block(nn.Module):
    """Two 3×3 convolutions and a parameter-free shortcut (option A of He et al.)."""

    def __init__(self, channels: int, filters: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.stride, self.pad = stride, (filters - channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Residual."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(out + shortcut)


class ResNet20(nn.Module):
    """He et al.'s CIFAR ResNet of three stages of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load_model() -> ResNet20:
    """The pretrained network."""
    model = ResNet20()
    with np.load(shared_data("resnet20_cifar10.npz")) as file:
        state = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(k.endswith("num_batches_tracked") for k in missing)
    return model.eval()


def load_images(name: str, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images and labels: "train" or "test"."""
    with h5py.File(shared_data("cifar10.h5"), "r") as file:
        pixels = torch.from_numpy(file[f"{name}_images"][:count]).permute(0, 3, 1, 2) / 255
        labels = torch.from_numpy(file[f"{name}_labels"][:count].astype(np.int64))
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], labels


def shifted(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """Normalised images, each shifted by up to so many pixels at random, black where it was."""
    padded = nn.functional.pad(images - BLACK, (pixels,) * 4) + BLACK
    corners = torch.randint(
        2 * pixels + 1, (len(images), 2), generator=torch.Generator().manual_seed(0)
    )
    height, width = images.shape[-2:]
    return torch.stack(
        [
            image[:, down : down + height, right : right + width]
            for image, (down, right) in zip(padded, corners.tolist(), strict=True)
        ]
    )


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1, per cent."""
    with torch.no_grad():
        hits = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return 100 * hits / len(labels)


def agreement(model: nn.Module, full: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """With the full-precision network's outputs, no labels: per cent of equal first classes, and
    the mean Kullback-Leibler divergence of its class shares from the model's, in nats."""
    with torch.no_grad():
        wanted, found = (
            torch.cat([m(x) for x in images.split(500)]).log_softmax(1) for m in (full, model)
        )
    same = (wanted.argmax(1) == found.argmax(1)).double().mean()
    divergence = nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
    return {"agreement": 100 * float(same), "divergence": float(divergence)}


@click.command()
@click.option("--method", default="dcc")
@click.option("--effort", default="default")
@click.option("--propagation", default="asym")
@click.option("--images", default=512, help="Calibration images.")
@click.option("--residual/--no-residual", default=False, help="Make up for the shortcuts' errors.")
@click.option("--intercept/--no-intercept", default=False, help="A constant a filter too.")
@click.option("--fixed-scales", type=float, help="Instead of scales that are found.")
@click.option("--refit", is_flag=True, help="Fit the classifier to what it is given then.")
@click.option("--recalibrate", is_flag=True, help="Estimate BatchNorm anew afterwards.")
@click.option("--shift", default=0, help="Pixels by which images for BatchNorm are shifted.")
@click.option("--all-layers", is_flag=True, help="The first convolution and the classifier too.")
@click.option("--seed", default=0)
@click.option("--held-out", is_flag=True, help="Measure on training images, without labels.")
@click.option("--run-dir", help="Keep the run folder, and resume from it.")
def main(
    images: int,
    residual: bool,
    intercept: bool,
    refit: bool,
    recalibrate: bool,
    shift: int,
    all_layers: bool,
    held_out: bool,
    run_dir: str | None,
    **options: Any,
) -> None:
    """Binarise and measure.

    Settings are chosen by --held-out, the agreement with the full-precision network on the last
    1,024 training images, which no calibration sees; test images only judge.
    """
    model, full = load_model(), load_model()
    calibration, _ = load_images("train", images)
    if shift and not recalibrate:
        raise click.UsageError("--shift: is for --recalibrate")
    if held_out and images > HELD_OUT:
        raise click.UsageError(f"--held-out: calibrate with at most {HELD_OUT} images")
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        run = torch_glue.binarize(
            model,
            calibration,
            run_dir or scratch,
            skip=() if all_layers else ("conv1", "linear"),
            residual="auto" if residual else False,
            intercept="auto" if intercept else False,
            **options,
        )
        if refit:
            torch_glue.refit(model, full, calibration, ["linear"])
        if recalibrate:
            torch_glue.recalibrate_batchnorm(model, shifted(calibration, shift).split(256))
        seconds = time.perf_counter() - begun
    print(run.report, file=sys.stderr)
    result = options | {
        "calibration_images": images,
        "residual": residual,
        "intercept": intercept,
        "refit": refit,
        "recalibrate": recalibrate,
        "shift": shift,
        "all_layers": all_layers,
        "mean_relative_error": run.report.summary["mean_relative_error"],
        "seconds": round(seconds, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "codes_sha256": run.codes_sha256,
    }
    if held_out:
        result |= agreement(model, full, load_images("train")[0][HELD_OUT:])
    else:
        test, labels = load_images("test")
        result["top1"] = accuracy(model, test, labels)
        result["top1_full_precision"] = accuracy(full, test, labels)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
