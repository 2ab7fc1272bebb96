"""A row of a table of binary networks: where it starts, what is trained, what comes of it.

What rows of all data sets share: settings of rivals, the command's options, and how a row is made,
once, resumable. Each script brings its network, its batches and its measure. A row says digests of
its data and of the weights in full precision, and is not taken for one of others.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import torch
from resnet20 import BLACK
from torch import Tensor, nn

import torch_glue
from hashsolve.files import digest, write_json
from hashsolve.plan import make_plan
from torch_glue import resuming
from torch_glue.network import TorchNetwork
from torch_glue.passes import batches_of

SETTINGS = {
    "trained": {"scales": "trained"},
    "fixed": {"scales": "fixed"},
    "bwn": {"scales": "mean"},
    "sq-bwn": {"scales": "mean", "shares": (0.5, 0.75, 0.875, 1.0)},
    "binaryconnect": {"scales": "none", "clip": 1.0},
    "binaryconnect-stochastic": {"scales": "none", "clip": 1.0, "stochastic": True},
}


def known_device(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """The name of a device that this torch has."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        message = str(error).partition("\n")[0]
        raise click.BadParameter(f"{name}: this torch has no such device ({message})") from error
    return name


OPTIONS = [
    click.option("--start", default="auto", help="A method, 'weights', or 'full' for no codes."),
    click.option("--setting", type=click.Choice(list(SETTINGS)), default="trained"),
    click.option("--propagation", default="asym"),
    click.option("--effort", default="default"),
    click.option("--residual", is_flag=True, help="Make up for the shortcuts' errors."),
    click.option("--calibration", default=2048, help="Images."),
    click.option("--skip", multiple=True, help="In full precision, instead of first and last."),
    click.option("--epochs", default=10),
    click.option("--lr", default=1e-3),
    click.option("--scale-lr", default=1e-4),
    click.option("--other-lr", default=1e-3),
    click.option("--warmup", default=0.05),
    click.option(
        "--hardening",
        type=click.FloatRange(0, 1),
        default=0.0,
        help="Share of steps with codes of tanh.",
    ),
    click.option("--distillation", default=0.5),
    click.option("--temperature", default=1.0),
    click.option(
        "--mirrored-teacher", is_flag=True, help="Its mean over an image and the mirror image."
    ),
    click.option(
        "--shifted-teacher",
        is_flag=True,
        help="Its mean over four shifts by a pixel, two of them of the mirror image.",
    ),
    click.option(
        "--mixed", is_flag=True, help="Train in bfloat16 where autocast says so, measure without."
    ),
    click.option("--freeze-batchnorm", is_flag=True),
    click.option("--recalibrate", default=0, help="Images for BatchNorm, after each epoch."),
    click.option("--batch", default=128),
    click.option("--compile", is_flag=True, help="torch.compile network and teacher: needs g++."),
    click.option(
        "--device", default="cpu", callback=known_device, help="What torch computes on: cuda."
    ),
    click.option("--seed", default=0),
]


class Mirrored(nn.Module):
    """A network whose outputs are the mean of those for an image and for its mirror image."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Outputs for images whose last axis is their width."""
        return (self.network(images) + self.network(images.flip(-1))) / 2


class Shifted(nn.Module):
    """A network whose outputs are the mean over an image and its mirror image, each moved by a
    pixel into two corners, and black where it was."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Outputs for images of three colours, normalised."""
        black = BLACK.to(images.device)
        padded = nn.functional.pad(images - black, (1, 1, 1, 1)) + black
        mirrored = padded.flip(-1)
        high, low = slice(0, -2), slice(2, None)
        views = (padded[..., high, high], padded[..., low, low])
        views += (mirrored[..., high, low], mirrored[..., low, high])
        return sum(self.network(view) for view in views) / len(views)


class Mixed(nn.Module):
    """A network that computes in bfloat16 where torch's autocast says so; outputs are float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Outputs for images; weights, and gradients for them, stay float32."""
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.network(images).float()


def row_options(command: Callable) -> Callable:
    """The options that describe a row."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def state_digest(model: nn.Module) -> str:
    """A digest of a model's parameters and buffers."""
    return resuming.state_digest(model.state_dict())[:16]


def rivals_layers(model: nn.Module, images: Any, skip: Iterable[str]) -> list[str]:
    """The layers that `torch_glue.binarize` would binarise, in its order."""
    plan = make_plan(TorchNetwork(model), list(batches_of(images)), skip=skip)
    return [layer.name for layer in plan.layers]


class Row:
    """One row: its options, and its files in a folder.

    Parameters
    ----------
    context : click.Context
        Of the command, which tells what of ``row`` was given.
    folder : path
    skip : iterable of str
        Layers in full precision, where ``row`` names none.
    row : dict
        Options.
    sources : dict of str
        Digests of what the row is made of, as its JSON says them.
    usual : dict of str
        Those that its name leaves out.
    """

    def __init__(
        self,
        context: click.Context,
        folder: Path,
        skip: Iterable[str],
        row: dict,
        sources: dict[str, str],
        usual: dict[str, str],
    ):
        if row["mirrored_teacher"] and row["shifted_teacher"]:
            raise click.UsageError("--mirrored-teacher, --shifted-teacher: give one of them")
        chosen = {  # what differs from the defaults names the row, so that new options rename none
            key: value
            for key, value in row.items()
            if context.get_parameter_source(key) != click.core.ParameterSource.DEFAULT
        }
        self.sources = {key: value for key, value in sources.items() if value != usual.get(key)}
        self.options = row | sources | {"skip": list(row["skip"]) or list(skip)}
        if row["start"] == "full":
            self.options |= {"setting": "full", "epochs": 0}
        names = ("network", "start", "setting", "epochs")
        parts = [str(self.options[name]).replace("/", "_") for name in names]
        self.name = "-".join([*parts, f"s{row['seed']}", digest(chosen | self.sources)[:8]])
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def print_if_done(self) -> bool:
        """Print the row if it has been made."""
        path = self.folder / f"{self.name}.json"
        if path.exists():
            print(json.dumps(json.loads(path.read_text())))
        return path.exists()

    def make(
        self,
        full: nn.Module,
        loader: Iterable[Any],
        calibration: Callable[[int], Tensor],
        measure: Callable[[nn.Module], dict[str, float]],
    ) -> None:
        """Binarise, fine-tune, measure, pack, and print a line of JSON."""
        row, begun = self.options, time.perf_counter()

        def say(model: nn.Module) -> dict[str, float]:
            found = measure(model)
            print(found, file=sys.stderr, flush=True)
            return found

        result = {**row, "weights": state_digest(full)}
        result["full_precision"] = say(full.to(row["device"]).eval())
        result["threads"] = torch.get_num_threads()
        if row["start"] != "full":
            model, made = self._start(full, calibration)
            teacher = full
            if row["mirrored_teacher"] or row["shifted_teacher"]:
                teacher = (Shifted if row["shifted_teacher"] else Mirrored)(full)
            if teacher is not full:
                result["teacher"] = say(teacher.eval())
            if row["compile"]:
                model.compile()
                teacher.compile()
            trained = Mixed(model) if row["mixed"] else model
            if row["mixed"]:
                teacher = Mixed(teacher)
            names = ("epochs", "lr", "scale_lr", "other_lr", "warmup", "hardening", "distillation")
            names += ("temperature", "freeze_batchnorm", "seed")
            tuned = torch_glue.finetune(
                trained,
                loader,
                **{key: row[key] for key in names},
                teacher=teacher if row["distillation"] else None,
                shares=SETTINGS[row["setting"]].get("shares", (1.0,)),
                recalibrate=calibration(row["recalibrate"]) if row["recalibrate"] else None,
                evaluate=lambda _: say(model),
                keep="last",
                checkpoint=self.folder / f"{self.name}.ckpt",
                progress=Log(),
            )
            result |= made | {"before": tuned.measures, "seconds": round(tuned.seconds)}
            result["after"] = [
                {"epoch": n, "loss": e.loss, **e.measures, "seconds": round(e.seconds, 1)}
                for n, e in enumerate(tuned.epochs, 1)
            ]
            path = self.folder / f"{self.name}.safetensors"
            sizes = torch_glue.save_packed(model, path)
            result["packed"] = {k: v for k, v in vars(sizes).items() if k != "layers"}
            reloaded = copy.deepcopy(full)
            torch_glue.load_packed(reloaded, path)
            result["reloaded"] = say(reloaded.eval())
        result["total_seconds"] = round(time.perf_counter() - begun)
        write_json(self.folder / f"{self.name}.json", result)
        print(json.dumps(result))

    def _start(
        self, full: nn.Module, calibration: Callable[[int], Tensor]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """A copy with its layers attached, and what binarising it took."""
        row, model, made = self.options, copy.deepcopy(full), {}
        skip, setting = row["skip"], SETTINGS[row["setting"]]
        options = {name: value for name, value in setting.items() if name != "shares"}
        if row["start"] == "weights":
            layers = rivals_layers(model, calibration(2), skip)
        else:
            names = ("network", "start", "propagation", "effort", "calibration", "residual", "seed")
            parts = [str(row[name]).replace("/", "_") for name in names]
            begun = time.perf_counter()
            layers = torch_glue.binarize(
                model,
                calibration(row["calibration"]),
                self.folder / "-".join(["run", *parts, digest(skip, *self.sources.values())[:6]]),
                skip=skip,
                method=row["start"],
                effort=row["effort"],
                propagation=row["propagation"],
                residual="auto" if row["residual"] else False,
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
