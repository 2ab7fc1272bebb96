"""CIFAR-10, all of it: binary networks before and after fine-tuning, one command a row.

    python tests/benchmarks/cifar10.py --network resnet20 --start auto --epochs 10

Rows differ in where they start (``--start``: a solver's method, or ``weights`` for the weights in
full precision) and in what is trained (``--setting``: the scales of BWNH and hashsolve, or a rival,
all of them settings of the same parametrization). Everything else, the budget included, is the
same. Images are padded by 4, cropped at random and flipped; the last state is measured, not the
best, on all 10,000 test images and on the 4,000 of cifar10.h5, as fine-tuning goes along.

VGG-9 is trained here first (``--folder`` keeps it). Everything is resumable: the same command goes
on where it was killed, and prints the row again when it is done. Prints one line of JSON.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch
from resnet20 import MEAN, STD, load_model
from torch import Tensor, nn

import torch_glue
from hashsolve.files import atomic, digest, write_json

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import shared_data

SETTINGS = {
    "trained": {"scales": "trained"},
    "fixed": {"scales": "fixed"},
    "bwn": {"scales": "mean"},
    "sq-bwn": {"scales": "mean", "shares": (0.5, 0.75, 0.875, 1.0)},
    "binaryconnect": {"scales": "none", "clip": 1.0},
    "binaryconnect-stochastic": {"scales": "none", "clip": 1.0, "stochastic": True},
}
SKIP = {"resnet20": ("conv1", "linear"), "vgg9": ("conv1", "fc9")}
VGG_EPOCHS = 15


class VGG9(nn.Sequential):
    """2×64C3–MP–2×128C3–MP–2×256C3–MP–FC512–FC512–10, BatchNorm and ReLU after all but the last."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for number, filters in enumerate((64, 64, 128, 128, 256, 256), 1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, filters, 3, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(filters))
            self.add_module(f"relu{number}", nn.ReLU())
            if number % 2 == 0:
                self.add_module(f"pool{number}", nn.MaxPool2d(2))
            channels = filters
        self.add_module("flatten", nn.Flatten())
        for number, features in ((7, 4096), (8, 512)):
            self.add_module(f"fc{number}", nn.Linear(features, 512, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm1d(512))
            self.add_module(f"relu{number}", nn.ReLU())
        self.add_module("fc9", nn.Linear(512, 10))


class Images:
    """All images, normalised when they are asked for; training batches are augmented.

    Going through it gives augmented batches, drawn from torch's random state.
    """

    def __init__(self, path: Path, batch: int, limit: int | None):
        with h5py.File(path, "r") as file:
            pixels, labels = file["train_images"][:limit], file["train_labels"][:limit]
            self.test, self.test_labels = file["test_images"][()], file["test_labels"][()]
        self.padded = torch.from_numpy(np.pad(pixels, ((0, 0), (4, 4), (4, 4), (0, 0))))
        self.labels, self.batch = torch.from_numpy(labels.astype(np.int64)), batch
        with h5py.File(shared_data("cifar10.h5"), "r") as file:
            few = {image.tobytes() for image in file["test_images"][()]}
            self.calibration = torch.from_numpy(file["train_images"][()])
        self.few = torch.tensor([image.tobytes() in few for image in self.test])
        assert self.few.sum() == len(few)  # all of them, and none twice

    def __len__(self) -> int:
        return len(self.labels) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        across = torch.arange(32)
        for index in torch.randperm(len(self.labels)).split(self.batch)[: len(self)]:
            down = torch.randint(9, (len(index), 1)) + across
            right = torch.randint(9, (len(index), 1)) + across
            flip = torch.rand(len(index), 1) < 0.5
            right = torch.where(flip, right.flip(1), right)
            pixels = self.padded[index[:, None, None], down[:, :, None], right[:, None, :]]
            yield normalised(pixels), self.labels[index]

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Top-1, per cent: on the 4,000 test images of cifar10.h5 and on all 10,000."""
        with torch.no_grad():
            parts = [
                model(normalised(torch.from_numpy(part))).argmax(1)
                for part in np.array_split(self.test, 40)
            ]
        hits = torch.cat(parts) == torch.from_numpy(self.test_labels.astype(np.int64))
        return {
            "top1_4000": 100 * float(hits[self.few].double().mean()),
            "top1_10000": 100 * float(hits.double().mean()),
        }


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (n, 32, 32, 3) as the network takes it, channels last in memory."""
    values = (pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.permute(0, 3, 1, 2)


def full_precision(network: str, images: Images, folder: Path, say: Any) -> nn.Module:
    """The trained network; VGG-9 is trained by SGD with a one-cycle step, resumable by epoch."""
    if network == "resnet20":
        return load_model().to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    model = VGG9().to(memory_format=torch.channels_last)
    steps = VGG_EPOCHS * len(images)
    stepper = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(stepper, 0.1, total_steps=steps)
    path, done = folder / "vgg9.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        done = state["epoch"]
        if done < VGG_EPOCHS:
            stepper.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
    for epoch in range(done + 1, VGG_EPOCHS + 1):
        torch.manual_seed(epoch)
        model.train()
        for step, (inputs, labels) in enumerate(images, 1):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            schedule.step()
            say(epoch, step, len(images), loss.item())
        state = {"epoch": epoch, "model": model.state_dict()}
        state |= {"optimizer": stepper.state_dict(), "schedule": schedule.state_dict()}
        with atomic(path) as part:
            torch.save(state, part)
        print("vgg9", epoch, images.measure(model.eval()), file=sys.stderr, flush=True)
    return model.eval()


def start_from(
    full: nn.Module, row: dict[str, Any], images: Images, folder: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy with its layers attached, and what binarising it took."""
    model, made = copy.deepcopy(full), {}
    skip, setting = row["skip"], SETTINGS[row["setting"]]
    options = {name: value for name, value in setting.items() if name != "shares"}
    if row["start"] == "weights":
        kinds = (nn.Conv2d, nn.Linear)
        layers = [n for n, m in model.named_modules() if isinstance(m, kinds) and n not in skip]
    else:
        names = ("start", "propagation", "effort", "calibration", "seed")
        label = "-".join([row["network"], *(str(row[name]) for name in names), digest(skip)[:6]])
        begun = time.perf_counter()
        layers = torch_glue.binarize(
            model,
            normalised(images.calibration[: row["calibration"]]).contiguous(),
            folder / f"run-{label}",
            skip=skip,
            method=row["start"],
            effort=row["effort"],
            propagation=row["propagation"],
            seed=row["seed"],
        )
        made = {
            "binarize_seconds": round(time.perf_counter() - begun, 1),
            "mean_relative_error": layers.report.summary["mean_relative_error"],
            "codes_sha256": layers.codes_sha256,
        }
    torch_glue.attach(model, layers, **options)
    return model, made


class Log:
    """Progress on standard error, every ``every`` steps."""

    def __init__(self, every: int = 50):
        self.every, self.begun, self.total = every, time.perf_counter(), 0.0

    def __call__(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """One step."""
        self.total += loss
        if step % self.every == 0:
            now = time.perf_counter()
            seconds, mean = (now - self.begun) / self.every, self.total / self.every
            print(
                f"epoch {epoch} step {step}/{steps} loss {mean:.4f} {seconds:.3f} s/step",
                file=sys.stderr,
                flush=True,
            )
            self.begun, self.total = now, 0.0


@click.command()
@click.option("--network", type=click.Choice(list(SKIP)), default="resnet20")
@click.option("--start", default="auto", help="A method, 'weights', or 'full' for no codes at all.")
@click.option("--setting", type=click.Choice(list(SETTINGS)), default="trained")
@click.option("--propagation", default="asym")
@click.option("--effort", default="default")
@click.option("--calibration", default=2048, help="Images.")
@click.option("--skip", multiple=True, help="Layers in full precision, instead of first and last.")
@click.option("--epochs", default=10)
@click.option("--lr", default=1e-3)
@click.option("--scale-lr", default=1e-4)
@click.option("--other-lr", default=1e-3)
@click.option("--warmup", default=0.05)
@click.option("--distillation", default=0.5)
@click.option("--temperature", default=1.0)
@click.option("--freeze-batchnorm", is_flag=True)
@click.option("--batch", default=128)
@click.option("--train-images", type=int, help="Only so many, for a trial.")
@click.option("--seed", default=0)
@click.option("--data", type=click.Path(path_type=Path), help="cifar10_full.h5.")
@click.option("--folder", type=click.Path(path_type=Path), default="cifar10")
@click.pass_context
def main(context: click.Context, data: Path | None, folder: Path, **row: Any) -> None:
    """Make one row."""
    begun = time.perf_counter()
    chosen = {  # what differs from the defaults names the row, so that new options rename none
        key: value
        for key, value in row.items()
        if context.get_parameter_source(key) != click.core.ParameterSource.DEFAULT
    }
    row["skip"] = list(row["skip"]) or list(SKIP[row["network"]])
    if row["start"] == "full":
        row["setting"], row["epochs"] = "full", 0
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{row['network']}-{row['start']}-{row['setting']}-{row['epochs']}-s{row['seed']}"
    name = f"{name}-{digest(chosen)[:8]}"
    done = folder / f"{name}.json"
    if done.exists():
        print(json.dumps(json.loads(done.read_text())))
        return
    images = Images(data or shared_data("cifar10_full.h5"), row["batch"], row["train_images"])
    full = full_precision(row["network"], images, folder, Log())
    result = {**row, "full_precision": images.measure(full), "threads": torch.get_num_threads()}
    if row["start"] != "full":
        model, made = start_from(full, row, images, folder)
        names = ("epochs", "lr", "scale_lr", "other_lr", "warmup", "distillation", "temperature")
        tuned = torch_glue.finetune(
            model,
            images,
            **{key: row[key] for key in (*names, "freeze_batchnorm", "seed")},
            teacher=full if row["distillation"] else None,
            shares=SETTINGS[row["setting"]].get("shares", (1.0,)),
            evaluate=partial(_measure, images),
            keep="last",
            checkpoint=folder / f"{name}.ckpt",
            progress=Log(),
        )
        result |= made | {"before": tuned.measures, "seconds": round(tuned.seconds)}
        result["after"] = [
            {"epoch": n, "loss": e.loss, **e.measures, "seconds": round(e.seconds, 1)}
            for n, e in enumerate(tuned.epochs, 1)
        ]
        torch_glue.detach(model)
        result["detached"] = images.measure(model.eval())
        with atomic(folder / f"{name}.pt") as part:
            torch.save(model.state_dict(), part)
    result["total_seconds"] = round(time.perf_counter() - begun)
    write_json(done, result)
    print(json.dumps(result))


def _measure(images: Images, model: nn.Module) -> dict[str, float]:
    found = images.measure(model)
    print(found, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
