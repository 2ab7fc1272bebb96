"""CIFAR-10, all of it: binary networks before and after fine-tuning, one command a row.

    python tests/benchmarks/cifar10.py --network resnet20 --start auto --epochs 10

Rows differ in where they start (``--start``: a solver's method, or ``weights`` for the weights in
full precision) and in what is trained (``--setting``: the scales of BWNH and hashsolve, or a rival,
all of them settings of the same parametrization). Everything else, the budget included, is the
same. Images are shifted by up to 4 pixels (``--shift``) and mirrored at random, or in every second
epoch (``--alternate``), and mixed with others where ``--mix`` says so; the last state is measured,
not the best, on all 10,000 test images and on the 4,000 of cifar10.h5, as fine-tuning goes along.

VGG-9 is trained here first (``--folder`` keeps it, one for each ``--data``). Everything is
resumable: the same command goes on where it was killed, and prints the row again when it is done.
Prints one line of JSON, with digests of all images and labels and of the weights in full precision;
files are named after them too where they are not CIFAR-10's and ResNet-20's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import torch
from resnet20 import MEAN, STD, load_model
from rows import Log, Mixed, Row, row_options, state_digest
from torch import Tensor, nn

from hashsolve.files import atomic, digest
from torch_glue.passes import to_device

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import shared_data

SKIP = {"resnet20": ("conv1", "linear"), "vgg9": ("conv1", "fc9")}
VGG_EPOCHS = 15
USUAL = {"data": "e8c7c7f6a49d7b21", "weights": "77f901c94dd53d0a"}
"""Digests of CIFAR-10 with cifar10.h5, and of ResNet-20: no file is named after these."""


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

    def forward(self, images: Tensor) -> Tensor:
        """Logits. A forward of its own, because Sequential's is one that torch.compile skips."""
        return super().forward(images)


class Images:
    """All images, normalised when they are asked for; training batches are augmented.

    Going through it gives augmented batches, drawn from torch's random state: shifted by up to
    ``shift`` pixels, and mirrored at random; or, ``alternate``, each in every second epoch, half of
    them in the odd ones (Jordan, arXiv:2404.00498, section 3.6). A share ``mix`` of them are the
    mean of two, of which the image whose label is kept weighs half at least (Zhang et al.,
    arXiv:1710.09412; to distil with, Beyer et al., arXiv:2106.05237).
    """

    def __init__(
        self,
        path: Path,
        batch: int,
        limit: int | None,
        shift: int = 4,
        alternate: bool = False,
        mix: float = 0.0,
    ):
        with h5py.File(path, "r") as file:
            pixels, labels = file["train_images"][()], file["train_labels"][()]
            self.test, self.test_labels = file["test_images"][()], file["test_labels"][()]
        with h5py.File(shared_data("cifar10.h5"), "r") as file:
            few, calibration = file["test_images"][()], file["train_images"][()]
        every = pixels, labels, self.test, self.test_labels, few, calibration
        self.digest = digest(*every)[:16]
        pixels, labels, edge = pixels[:limit], labels[:limit], (shift, shift)
        self.padded = torch.from_numpy(np.pad(pixels, ((0, 0), edge, edge, (0, 0))))
        self.labels, self.batch = torch.from_numpy(labels.astype(np.int64)), batch
        self.shifts, self.mix, self.epoch = 2 * shift + 1, mix, 0
        odd = torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < 0.5
        self.odd = odd if alternate else None
        self.calibration = torch.from_numpy(calibration)
        some = {image.tobytes() for image in few}
        self.few = torch.tensor([image.tobytes() in some for image in self.test])
        assert self.few.sum() == len(some)  # all of them, and none twice

    def __len__(self) -> int:
        return len(self.labels) // self.batch

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        across = torch.arange(32)
        for index in torch.randperm(len(self.labels)).split(self.batch)[: len(self)]:
            down = torch.randint(self.shifts, (len(index), 1)) + across
            right = torch.randint(self.shifts, (len(index), 1)) + across
            if self.odd is None:
                flip = torch.rand(len(index), 1) < 0.5
            else:
                flip = self.odd[index, None] == bool(self.epoch % 2)
            right = torch.where(flip, right.flip(1), right)
            pixels = self.padded[index[:, None, None], down[:, :, None], right[:, None, :]]
            images = normalised(pixels)
            if self.mix:
                share = torch.rand(len(index), 1, 1, 1)
                chosen = torch.rand(len(index), 1, 1, 1) < self.mix
                share = torch.where(chosen, 1 - share / 2, 1.0)
                images = share * images + (1 - share) * images.roll(1, 0)
            yield images, self.labels[index]

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Top-1, per cent: on the 4,000 test images of cifar10.h5 and on all 10,000."""
        with torch.no_grad():
            parts = [
                model(to_device(normalised(torch.from_numpy(part)), model)).argmax(1).cpu()
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


def trained_vgg9(data: Path, limit: int | None, folder: Path, device: str) -> nn.Module:
    """VGG-9, trained by SGD with a one-cycle step, resumable by epoch; the same for all rows of the
    same images.

    In mixed precision, four times as fast where the processor multiplies bfloat16 (AMX).
    """
    images, say = Images(data, min(128, limit or 128), limit), Log()
    torch.manual_seed(0)
    model = VGG9().to(device, memory_format=torch.channels_last)
    mixed, steps = Mixed(model), VGG_EPOCHS * len(images)
    stepper = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(stepper, 0.1, total_steps=steps)
    parts = ["vgg9"] if limit is None else ["vgg9", str(limit)]
    parts += [images.digest] if images.digest != USUAL["data"] else []
    path, done = folder / f"{'-'.join(parts)}.pt", 0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        done = state["epoch"]
        if done < VGG_EPOCHS:
            stepper.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
    for epoch in range(done + 1, VGG_EPOCHS + 1):
        torch.manual_seed(epoch)
        model.train()
        for step, batch in enumerate(images, 1):
            inputs, labels = to_device(batch, model)
            loss = nn.functional.cross_entropy(mixed(inputs), labels)
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


@click.command()
@click.option("--network", type=click.Choice(list(SKIP)), default="resnet20")
@row_options
@click.option("--shift", type=click.IntRange(0), default=4, help="Pixels.")
@click.option("--alternate", is_flag=True, help="Mirror in every second epoch, not at random.")
@click.option("--mix", type=click.FloatRange(0, 1), default=0.0, help="Share of mixed images.")
@click.option("--train-images", type=int, help="Only so many, for a trial.")
@click.option("--data", type=click.Path(path_type=Path), help="cifar10_full.h5.")
@click.option("--folder", type=click.Path(path_type=Path), default="cifar10")
@click.pass_context
def main(context: click.Context, data: Path | None, folder: Path, **options: Any) -> None:
    """Make one row."""
    path = data or shared_data("cifar10_full.h5")
    limit = options["train_images"]
    images = Images(
        path, options["batch"], limit, options["shift"], options["alternate"], options["mix"]
    )
    sources, full = {"data": images.digest}, None
    if options["network"] == "resnet20":
        full = load_model()
        sources["weights"] = state_digest(full)
    row = Row(context, folder, SKIP[options["network"]], options, sources, USUAL)
    if row.print_if_done():
        return
    full = full or trained_vgg9(path, limit, folder, options["device"])
    row.make(
        full.to(memory_format=torch.channels_last),
        images,
        lambda count: normalised(images.calibration[:count]).contiguous(),
        images.measure,
    )


if __name__ == "__main__":
    main()
