"""ImageNet-style data, a folder a class: the rows of cifar10.py for any network.

    python tests/benchmarks/image_folder.py --data imagenet --network resnet18 --weights r18.pt
    python tests/benchmarks/image_folder.py --data photos --network mymodels:make --size 160

``--data`` holds train/CLASS/… and val/CLASS/…, classes in the order of their names. ``--network``
is resnet18, alexnet (AlexNet-BN), or MODULE:FUNCTION that gives any model; ``--weights`` a state
dict, in safetensors or by torch.save. Training images are cropped at random (8 to 100 % of the
area, aspect 3/4 to 4/3) and flipped, the others resized to 8/7 of the size and cropped in the
middle. Prints one line of JSON, and is resumable as cifar10.py is; a row is of its weights, and of
the names and sizes of all files of images and the contents of up to a thousand of each part.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from imagenet_networks import AlexNet, ResNet18
from PIL import Image
from resnet20 import MEAN, STD
from rows import Row, row_options, state_digest
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from hashsolve.files import digest, sha256
from torch_glue.network import TorchNetwork
from torch_glue.passes import to_device

NETWORKS = {"resnet18": ResNet18, "alexnet": AlexNet}
SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}


class Images(Dataset):
    """The images of a folder, a folder a class; augmented by torch's random numbers if asked."""

    def __init__(self, folder: Path, size: int, augmented: bool):
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self.folder, self.size, self.augmented, self.classes = folder, size, augmented, classes
        self.files = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if not self.files:
            raise click.UsageError(f"{folder}: no images in folders, one a class")

    def __len__(self) -> int:
        return len(self.files)

    def spread(self, count: int) -> np.ndarray:
        """Indices of so many images, spread evenly over all."""
        return np.linspace(0, len(self) - 1, min(count, len(self)), dtype=int)

    def digest(self) -> str:
        """Of names and sizes of all files, and of the contents of up to a thousand."""
        paths = [path for path, _ in self.files]
        found = [[str(path.relative_to(self.folder)), path.stat().st_size] for path in paths]
        return digest(found, [sha256(paths[n]) for n in self.spread(1000)])[:16]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        box = random_box(*image.size) if self.augmented else middle_box(*image.size)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        values = torch.from_numpy(np.array(image)) / 255
        if self.augmented and torch.rand(()) < 0.5:
            values = values.flip(1)
        return ((values - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1), label


def middle_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The square in the middle whose side is 7/8 of the shorter one."""
    side = min(width, height) * 7 / 8
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int) -> tuple[float, float, float, float]:
    """A random part of an image (Szegedy et al.), or the middle where none of ten tries fits."""
    for _ in range(10):
        share, aspect, x, y = torch.rand(4).tolist()
        area = width * height * (0.08 + 0.92 * share)
        ratio = math.exp((2 * aspect - 1) * math.log(4 / 3))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = x * (width - w), y * (height - h)
            return left, top, min(left + w, width), min(top + h, height)
    return middle_box(width, height)


def load_network(name: str, weights: Path | None, classes: int) -> nn.Module:
    """A network by name or import path, with weights from a file."""
    if name in NETWORKS:
        if weights is None:
            raise click.UsageError(f"{name} needs --weights, a state dict of the trained network")
        model = NETWORKS[name](classes)
    else:
        module, _, function = name.partition(":")
        sys.path.insert(0, os.getcwd())
        try:
            model = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError, ValueError) as error:
            raise click.UsageError(
                f"--network {name}: expected MODULE:FUNCTION ({error})"
            ) from error
    if weights is not None:
        whole = weights.suffix == ".safetensors"
        state = (
            load_file(weights)
            if whole
            else torch.load(weights, map_location="cpu", weights_only=True)
        )
        model.load_state_dict(state)
    return model.eval()


def measure(model: nn.Module, loader: DataLoader) -> dict[str, float]:
    """Top-1 and top-5, per cent."""
    first = five = count = 0
    with torch.no_grad():
        for images, labels in loader:
            outputs = model(to_device(images, model)).cpu()
            hits = outputs.topk(min(5, len(loader.dataset.classes)), 1).indices == labels[:, None]
            first, five = first + int(hits[:, 0].sum()), five + int(hits.any(1).sum())
            count += len(labels)
    return {"top1": 100 * first / count, "top5": 100 * five / count}


@click.command()
@click.option("--network", required=True, help="resnet18, alexnet or MODULE:FUNCTION.")
@click.option("--weights", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--size", default=224)
@click.option("--workers", default=0, help="Processes that read images.")
@row_options
@click.option("--folder", type=click.Path(path_type=Path), default="image_folder")
@click.pass_context
def main(
    context: click.Context,
    data: Path,
    weights: Path | None,
    workers: int,
    folder: Path,
    **options: Any,
) -> None:
    """Make one row."""
    train = Images(data / "train", options["size"], augmented=True)
    plain = Images(data / "train", options["size"], augmented=False)
    test = Images(data / "val", options["size"], augmented=False)
    if test.classes != train.classes:
        raise click.UsageError(f"{data}: train and val have other classes")
    full = load_network(options["network"], weights, len(train.classes))
    image, _ = plain[0]
    layers = [layer.name for layer in TorchNetwork(full).layers(image[None]) if layer.calls]
    sources = {"data": digest(train.digest(), test.digest())[:16], "weights": state_digest(full)}
    row = Row(context, folder, (layers[0], layers[-1]), options, sources, {})
    if row.print_if_done():
        return

    def calibration(count: int) -> Subset:
        """So many images, spread evenly over all."""
        return Subset(plain, plain.spread(count))

    loaded = {"batch_size": options["batch"], "num_workers": workers}
    loader = DataLoader(train, shuffle=True, drop_last=len(train) > options["batch"], **loaded)
    row.make(full, loader, calibration, lambda model: measure(model, DataLoader(test, **loaded)))


if __name__ == "__main__":
    main()
