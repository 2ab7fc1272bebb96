"""A training loop's parts: groups, schedule, batches, losses, an epoch, scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_glue.binary_weight import attached
from torch_glue.filters import NORMS
from torch_glue.passes import evaluating, run_batch, run_model, to_device

HARDNESS = (2.0, 60.0)  # of codes that harden: of a mean latent 0.96 at first; nearly all 1 then


def parameter_groups(
    model: nn.Module, rates: dict[str, float], weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups of an attached model for any optimiser: latents, scales, the others.

    Parameters
    ----------
    model : torch.nn.Module
    rates : dict
        The step of "latents", "scales" and "other"; a group of step 0 is left out.
    weight_decay : float
        Of the others.

    Examples
    --------
    >>> import torch, torch_glue
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 1))
    >>> _ = torch_glue.attach(model, ["0"])
    >>> groups = parameter_groups(model, {"latents": 1e-3, "scales": 1e-4, "other": 1e-4})
    >>> [(group["name"], len(group["params"])) for group in groups]
    [('latents', 1), ('scales', 1), ('other', 1)]
    """
    layers = attached(model).values()
    # layers may share a parameter, and with it their scales
    latents = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    scales = list({id(p): p for layer in layers for p in layer.binary.parameters()}.values())
    known = {id(p) for p in (*latents, *scales)}
    others = [p for p in model.parameters() if id(p) not in known]
    groups = []
    for name, parameters in (("latents", latents), ("scales", scales), ("other", others)):
        parameters = [p for p in parameters if p.requires_grad]
        if parameters and rates[name]:
            decay = weight_decay if name == "other" else 0.0
            groups.append(
                {"params": parameters, "lr": rates[name], "weight_decay": decay, "name": name}
            )
    return groups


def cross_entropy(outputs: Any, batch: Any) -> Tensor:
    """Of outputs with the labels of (inputs, labels)."""
    if not isinstance(outputs, Tensor) or not isinstance(batch, (list, tuple)) or len(batch) < 2:
        raise ValueError(
            "loss: by default it is of batches (inputs, labels) and outputs that are one tensor, "
            f"got {type(batch).__name__} and {type(outputs).__name__}: give one of your own"
        )
    try:
        return nn.functional.cross_entropy(outputs, batch[1])
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if "memory" in str(error):  # which is no matter of labels
            raise
        labels = batch[1]
        kind = type(labels).__name__
        if isinstance(labels, Tensor):
            kind = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(
            f"loss: by default cross-entropy of outputs of shape {tuple(outputs.shape)} with the "
            f"labels {kind}, which it does not take ({error}): give classes from 0 on, as int64, "
            "or a loss of your own"
        ) from error


def loss_of(criterion: Callable[[Any, Any], Tensor], outputs: Any, batch: Any) -> Tensor:
    """What the criterion gives, if it is one number."""
    try:
        value = criterion(outputs, batch)
    except (TypeError, AttributeError) as error:
        torchs = ("torch.nn.modules.loss", "torch.nn.functional")
        if getattr(criterion, "__module__", None) not in torchs:
            error.add_note(
                "finetune calls loss(outputs, batch) with all that the model gives and the whole "
                "batch, such as (inputs, labels)"
            )
            raise
        raise ValueError(
            f"loss: is called with all that the model gives, here a {type(outputs).__name__}, and "
            f"the whole batch, a {type(batch).__name__} ({error}): wrap torch's, such as lambda "
            "outputs, batch: F.cross_entropy(outputs, batch[1])"
        ) from error
    if not isinstance(value, Tensor):
        kind = type(value).__name__
    else:
        kind = f"{value.dtype} of shape {tuple(value.shape)}"
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        raise ValueError(f"loss: must give one number, as a tensor, got {kind}")
    return value.reshape(())


def run_teacher(teacher: nn.Module, batch: Any) -> Tensor:
    """The teacher's outputs, in eval mode, without gradients."""
    with evaluating(teacher):
        return run_model(run_batch, teacher, batch, "teacher: it")


def distance(outputs: Any, wanted: Any, temperature: float, class_axis: int | None) -> Tensor:
    """KL(teacher ‖ student) of softmax outputs at a temperature, times its square; mean over all
    but the axis of classes, which may be None where there are two axes."""
    if not isinstance(outputs, Tensor) or not isinstance(wanted, Tensor):
        kind = type(outputs if isinstance(wanted, Tensor) else wanted).__name__
        raise ValueError(f"distillation: needs outputs that are one tensor, got {kind}")
    if outputs.dim() < 2:
        raise ValueError(
            f"distillation: needs outputs with an axis of classes, got {tuple(outputs.shape)}"
        )
    if outputs.shape != wanted.shape:
        raise ValueError(
            f"teacher: its outputs have shape {tuple(wanted.shape)}, the model's "
            f"{tuple(outputs.shape)}: distillation needs the same"
        )
    if class_axis is None and outputs.dim() > 2:
        raise ValueError(
            f"class_axis: outputs have shape {tuple(outputs.shape)}: say which axis the classes "
            "lie on, or distillation=0 where they are none"
        )
    classes = 1 if class_axis is None else class_axis
    if not -outputs.dim() <= classes < outputs.dim():
        raise ValueError(f"class_axis: {classes}: outputs have shape {tuple(outputs.shape)}")
    student, target = (
        (values.movedim(classes, -1) / temperature).log_softmax(-1).flatten(0, -2)
        for values in (outputs, wanted)
    )
    divergence = nn.functional.kl_div(student, target, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def train_mode(model: nn.Module, freeze_batchnorm: bool) -> None:
    """Train mode, but for BatchNorm where that is frozen."""
    model.train()
    if freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, NORMS):
                module.eval()


@dataclass(frozen=True)
class Schedule:
    """What changes from step to step.

    Attributes
    ----------
    per_epoch, steps : int
        Steps of an epoch, and of all of them.
    warmup : float
        Share of all steps in which learning rates grow.
    shares : list of float
        Of filters binarised, in stages of equal length.
    hardening : float
        Share of all steps in which codes are soft.
    """

    per_epoch: int
    steps: int
    warmup: float
    shares: list[float]
    hardening: float

    def set_step(self, stepper: torch.optim.Optimizer, model: nn.Module, done: int) -> None:
        """The learning rates, share and hardness of the step that comes after ``done`` of them."""
        done = min(done, self.steps - 1)
        rise = self.warmup * self.steps
        if done < rise:
            factor = min(1.0, (done + 1) / rise)
        else:
            past = (done - rise) / max(1.0, self.steps - rise)
            factor = 0.5 * (1 + math.cos(math.pi * past))
        for group in stepper.param_groups:
            group["lr"] = group["peak"] * factor
        soft, (low, high) = self.hardening * self.steps, HARDNESS
        hardness = low * (high / low) ** (done / soft) if done < soft else None
        set_codes(model, self.shares[done * len(self.shares) // self.steps], hardness)


def train_epoch(
    model: nn.Module,
    batches: Iterable[Any],
    step_loss: Callable[[Any], Tensor],
    stepper: torch.optim.Optimizer,
    schedule: Schedule,
    epoch: int,
    progress: Callable[[int, int, int, float], Any] | None = None,
) -> float:
    """One epoch, from 1 on, in the model's present mode; the mean loss.

    Raises
    ------
    FloatingPointError
        Where the loss is no longer finite.
    ValueError
        For another number of batches than the schedule's.
    """
    layers, total, count = attached(model).values(), 0.0, 0
    for batch in batches:
        schedule.set_step(stepper, model, (epoch - 1) * schedule.per_epoch + count)
        count += 1
        value = step_loss(to_device(batch, model))
        if not value.requires_grad:
            raise ValueError("loss: has no gradient: compute it from the model's outputs")
        if not value.isfinite():
            raise FloatingPointError(
                f"epoch {epoch}, step {count}: the loss is {value.item()}: use a smaller lr, if "
                "all data are finite"
            )
        stepper.zero_grad()
        value.backward()
        stepper.step()
        torch.clear_autocast_cache()  # of what was there before the step
        for layer in layers:
            if layer.parameter.requires_grad:
                layer.binary.clip_(layer.latent)
        total += value.item()
        if progress is not None:
            progress(epoch, count, schedule.per_epoch, value.item())
    if count != schedule.per_epoch:
        raise ValueError(f"loader: {count} batches in epoch {epoch}, {schedule.per_epoch} at first")
    return total / schedule.per_epoch


def set_codes(model: nn.Module, share: float = 1.0, hardness: float | None = None) -> None:
    """The share of filters that training passes binarise, and how hard; None for their sign."""
    for layer in attached(model).values():
        binary = layer.binary
        binary.share = share
        if hardness is None:
            binary.hardness = None
        elif binary.hardness is None:
            binary.hardness = layer.latent.new_full((), hardness)
        else:  # in place, so that a compiled model is not compiled again
            binary.hardness.fill_(hardness)


def seeded_batches(loader: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """The batches of an epoch, the same each time: whatever draws is seeded by the epoch."""
    start = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed)).item())
    start = (start + epoch) % 2**63
    torch.manual_seed(start)
    parts = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    for holder in (loader, *parts):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(start)
        if set_epoch := getattr(holder, "set_epoch", None):  # DistributedSampler and its like
            set_epoch(epoch)
    return iter(loader)


def epoch_length(loader: Any) -> int:
    """Batches in an epoch."""
    try:
        length = len(loader)
    except TypeError:
        length = sum(1 for _ in loader)
    if not length:
        raise ValueError("loader: it holds no batches")
    return length


def mean_loss(
    model: nn.Module, criterion: Callable[[Any, Any], Tensor], batches: list[Any]
) -> float:
    """Over whole batches, in the model's present mode."""
    parts = [to_device(batch, model) for batch in batches]
    losses = [
        loss_of(criterion, run_model(run_batch, model, part, "loader: the model"), part)
        for part in parts
    ]
    return float(torch.stack(losses).double().mean())


def evaluated(found: float | dict[str, float]) -> tuple[float, dict[str, float]]:
    """The score, and all that an evaluation said."""
    found = found if isinstance(found, dict) else {"score": found}
    if not found:
        raise ValueError("evaluate: it gave an empty dict; the first number is the score")
    measures = {}
    for name, value in found.items():
        try:
            measures[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"evaluate: must give a number, or a dict of numbers, got {value!r} as {name!r}"
            ) from None
    return next(iter(measures.values())), measures
