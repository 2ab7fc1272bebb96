"""The demo: a small CNN on real digits, trained, then binarised in four ways."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import torch_glue
from hashsolve.files import write_json

TRAIN = 1200
EPOCHS = 12
WAYS = {
    "sign(W), mean|W| (BWN)": ("sign", "symfp"),
    "dcc, symfp (BWNH)": ("dcc", "symfp"),
    "dcc, asym (BWNH)": ("dcc", "asym"),
    "auto, asym": ("auto", "asym"),
}
SKIP = ("conv1", "linear")


@dataclass(frozen=True)
class Row:
    """One way of binarising, measured."""

    way: str
    method: str
    propagation: str
    top1: float
    relative_error: float
    bytes: float
    seconds: float
    run_dir: str


@dataclass(frozen=True)
class DemoResult:
    """The table of the demo."""

    top1_full_precision: float
    bytes_full_precision: float
    train_seconds: float
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"A CNN on scikit-learn's digits: {TRAIN} images to train and calibrate, "
            f"{len(load_digits().target) - TRAIN} to test; trained in {self.train_seconds:.1f} s",
            "Binarised: all convolutions but the first; the linear classifier is kept.",
            "",
            f"{'codes':<26}{'top-1 %':>9}{'layer error':>13}{'size kB':>9}{'seconds':>9}  folder",
            f"{'full precision':<26}{self.top1_full_precision:>9.1f}{'':>13}"
            f"{self.bytes_full_precision / 1e3:>9.1f}",
        ]
        lines += [
            f"{row.way:<26}{row.top1:>9.1f}{row.relative_error:>13.3f}{row.bytes / 1e3:>9.1f}"
            f"{row.seconds:>9.2f}  {row.run_dir}"
            for row in self.rows
        ]
        return "\n".join(lines)


def make_model() -> nn.Module:
    """Four batch-normalised 3×3 convolutions of 16 to 64 filters, and a linear classifier."""

    model = nn.Sequential()
    for number, (channels, filters) in enumerate([(1, 16), (16, 32), (32, 64), (64, 64)], 1):
        conv = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        model.add_module(f"conv{number}", conv)
        model.add_module(f"bn{number}", nn.BatchNorm2d(filters))
        model.add_module(f"relu{number}", nn.ReLU())
        if number == 2:
            model.add_module("pool", nn.MaxPool2d(2))
    model.add_module("average", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("linear", nn.Linear(64, 10))
    return model


def load_data() -> tuple[Tensor, Tensor]:
    """All 1,797 images (n, 1, 8, 8), in 0 … 1, and labels."""
    digits = load_digits()
    return torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(
        digits.target
    )


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Adam with a one-cycle step, small random shifts as augmentation."""
    steps = EPOCHS * -(-len(images) // 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images)).split(64):
            shift = [int(s) for s in torch.randint(-1, 2, (2,))]
            loss = nn.functional.cross_entropy(
                model(images[index].roll(shift, (2, 3))), labels[index]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1, per cent."""
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).float().mean())


def run_demo(run_dir: Path, seed: int, progress: Callable[[str, int, int, str], Any]) -> DemoResult:
    """Train, binarise in four ways, measure; leave a run folder each and demo.json.

    Parameters
    ----------
    run_dir : path
        Its runs are made anew.
    seed : int
        Of the network's start and of training.
    progress : callable
        As in `hashsolve.binarize`.

    Returns
    -------
    DemoResult
    """
    begun = time.perf_counter()
    images, labels = load_data()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        progress("", 0, 0, "training")
        full = make_model()
        train(full, images[:TRAIN], labels[:TRAIN])
    trained = time.perf_counter() - begun
    top1 = accuracy(full, images[TRAIN:], labels[TRAIN:])
    size = 4 * sum(p.numel() for p in full.parameters())
    rows = []
    for way, (method, propagation) in WAYS.items():
        folder = run_dir / f"{method}-{propagation}"
        model = copy.deepcopy(full)
        run = torch_glue.binarize(
            model,
            images[:TRAIN],
            folder,
            skip=SKIP,
            method=method,
            propagation=propagation,
            resume=False,
            progress=progress,
        )
        summary = run.report.summary
        reached = accuracy(model, images[TRAIN:], labels[TRAIN:])
        summary["accuracy"] = {"top-1 %": reached, "top-1 %, full precision": top1}
        run.report.save(folder)
        rows.append(
            Row(
                way,
                method,
                propagation,
                reached,
                summary["mean_relative_error"],
                size - (summary["bits_before"] - summary["bits_after"]) / 8,
                summary["seconds"],
                str(folder),
            )
        )
    result = DemoResult(top1, size, trained, rows)
    write_json(run_dir / "demo.json", result.to_dict())
    return result
