"""finetune: a short reference loop for attached models, for those who have none of their own."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parameter import is_lazy
from torch.utils import data

import torch_glue.network  # noqa: F401  registers how tensors are digested
from hashsolve import checks
from hashsolve.files import digest
from torch_glue.batchnorm import recalibrate_batchnorm, running_norms
from torch_glue.binary_weight import attached
from torch_glue.checks import check_again, check_batches, check_model, check_target
from torch_glue.passes import (
    batches_of,
    evaluating,
    random_state_kept,
    run_batch,
    run_model,
    unwrapped,
)
from torch_glue.resuming import (
    copied_state,
    load_state,
    optimizer_settings,
    save_state,
    state_digest,
)
from torch_glue.training import (
    Schedule,
    cross_entropy,
    distance,
    epoch_length,
    evaluated,
    loss_of,
    mean_loss,
    parameter_groups,
    run_teacher,
    seeded_batches,
    set_codes,
    train_epoch,
    train_mode,
)

PROBE = 8  # batches that judge the network where no evaluation is given


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes
    ----------
    loss : float
        The mean training loss.
    score : float
        The evaluation's, after it.
    measures : dict
        All that the evaluation said, where it said more.
    seconds : float
    """

    loss: float
    score: float
    measures: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning did; scores are the evaluation's, larger being better.

    Attributes
    ----------
    began, ended : float
        Scores of the network as it was given, and as it is left.
    measures : dict
        All that the evaluation said of the network as it was given, where it said more.
    epochs : list of Epoch
    left : str
        Which state the network is left in: "start", "epoch N" or "epoch N, BatchNorm anew".
    seconds : float
    """

    began: float
    ended: float
    measures: dict[str, float]
    epochs: list[Epoch]
    left: str
    seconds: float

    @property
    def worse(self) -> bool:
        """Whether the network is left worse than it was."""
        return not self.ended >= self.began

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        says = ", WORSE than it began" if self.worse else ""
        return (
            f"{self.began:.4g} before, {self.ended:.4g} after {len(self.epochs)} epochs "
            f"({self.left}){says}; {self.seconds:.0f} s"
        )


def finetune(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    scale_lr: float | None = None,
    other_lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = torch.optim.Adam,
    loss: Callable[[Any, Any], Tensor] | None = None,
    teacher: nn.Module | None = None,
    distillation: float = 0.5,
    temperature: float = 1.0,
    class_axis: int | None = None,
    freeze_batchnorm: bool = False,
    recalibrate: Tensor | Iterable[Any] | None = None,
    shares: Sequence[float] = (1.0,),
    hardening: float = 0.0,
    evaluate: Callable[[nn.Module], float | dict[str, float]] | None = None,
    keep: str = "best",
    checkpoint: str | PathLike | None = None,
    seed: int = 0,
    progress: Callable[[int, int, int, float], Any] | None = None,
) -> FineTuned:
    """Train an attached model: warm-up, then a cosine to zero, the same factor for all groups.

    Parameters
    ----------
    model : torch.nn.Module
        As `attach` leaves it; trained in place. Its modes are left as found.
    loader : iterable of batches
        Gone through once an epoch; (images, labels), or whatever ``loss`` takes. Its own
        generator and sampler are seeded anew each epoch, torch's random state too; ``set_epoch``
        of it or of its samplers is told the epoch, from 1 on (0 for batches that judge).
    epochs : int
    lr, scale_lr, other_lr : float
        Peak steps of the latents (and of what is packed into one parameter with them), of trained
        scales (default lr / 10) and of all other parameters that ask for gradients (default
        lr / 10; 0 leaves them).
    weight_decay : float
        Of the other parameters only: latents and scales need none.
    warmup : float
        Share of all steps in which the step grows linearly from 0.
    optimizer : callable
        Makes an optimiser of parameter groups: torch.optim.Adam, or a partial of any other.
    loss : callable, optional
        ``loss(outputs, batch)``; cross-entropy with ``batch[1]`` by default.
    teacher : torch.nn.Module, optional
        The network in full precision, which is only run; or any module of its outputs' shape,
        such as one that averages them over views of an image.
    distillation : float
        Share of the loss that is KL(teacher ‖ student) of the softmax outputs, times
        temperature² (Hinton et al., arXiv:1503.02531), where there is a teacher.
    temperature : float
    class_axis : int, optional
        Of the outputs, which distillation compares along it: 1 by default, as cross-entropy takes
        them. To be said with a ``loss`` of your own and outputs of more than two axes.
    freeze_batchnorm : bool
        Normalise by running statistics, which stay.
    recalibrate : tensor or batches, optional
        Re-estimate BatchNorm from these after each epoch; kept where the score is then better.
        Running statistics lag behind weights whose signs change at each step, by several per cent
        of accuracy while steps are large; training itself does not use them. It is gone through
        once an epoch, so that an iterator will not do.
    shares : sequence of float
        Of filters binarised while training, in stages of equal length: (0.5, 0.75, 0.875, 1) is
        SQ-BWN's schedule within the same budget.
    hardening : float
        Share of all steps in which training passes have a tanh that hardens into the sign
        (`BinaryWeight`), so that codes change gradually; 0.8 leaves the last fifth to signs. In
        the epochs before, scores are mostly low: those of signs behind BatchNorm's running
        statistics of soft codes.
    evaluate : callable, optional
        ``evaluate(model)`` gives the score, larger being better, or a dict of numbers of which
        the first is the score. It is called in eval mode, without gradients. By default minus
        the loss over the first 8 batches. Where several processes train one model
        (DistributedDataParallel), it must give all of them the same.
    keep : {"best", "last"}
        Leave the network in the best state seen, the first included, or in the last. The best is
        left after an error and Ctrl-C too.
    checkpoint : path, optional
        Written whole after each epoch; where it is there, training goes on from it, to the same
        bits as if never stopped (as far as the machine's kernels repeat themselves). Call it as
        before, with the model built as before, or with the best state, which it was left in. The
        data, and what ``loss`` and ``evaluate`` compute, are not compared. Of several processes,
        each needs a file of its own.
    seed : int
    progress : callable, optional
        Called with (epoch, step, steps, training loss) after each step.

    Returns
    -------
    FineTuned

    Raises
    ------
    ValueError
        For settings that cannot be used, a model that has no attached layer, a checkpoint of
        other settings, of another start, or damaged.
    FloatingPointError
        Where the loss is no longer finite.

    Warns
    -----
    UserWarning
        Where the network is left worse than it was, by ``evaluate``.

    Examples
    --------
    >>> import torch, torch_glue
    >>> _ = torch.manual_seed(0)
    >>> images = torch.randn(64, 8)
    >>> data = torch.utils.data.TensorDataset(images, (images[:, 0] > 0).long())
    >>> loader = torch.utils.data.DataLoader(data, 16, shuffle=True)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> torch_glue.attach(model, ["0"])
    ['0']
    >>> result = torch_glue.finetune(model, loader, epochs=3, lr=0.01)
    >>> result.ended > result.began, result.worse, result.left
    (True, False, 'epoch 3')
    """
    epochs, seed = checks.whole(epochs, "epochs", 1), checks.whole(seed, "seed", 0)
    checks.choice(keep, "keep", ("best", "last"))
    if class_axis is not None:
        class_axis = checks.whole(class_axis, "class_axis", -8)
    lr = checks.number(lr, "lr")
    scale_lr = lr / 10 if scale_lr is None else checks.number(scale_lr, "scale_lr")
    other_lr = lr / 10 if other_lr is None else checks.number(other_lr, "other_lr")
    weight_decay = checks.number(weight_decay, "weight_decay")
    distillation = checks.number(distillation, "distillation", 1)
    warmup = checks.number(warmup, "warmup", 1)
    hardening = checks.number(hardening, "hardening", 1)
    temperature = checks.positive(checks.number(temperature, "temperature"), "temperature")
    shares = [checks.number(share, "shares", 1) for share in _listed(shares)]
    if not shares or 0 in shares or shares != sorted(shares):
        raise ValueError(f"shares: must be in (0, 1] and not fall, got {shares}")
    if distillation == 0:
        teacher = None
    calls = {"optimizer": optimizer, "loss": loss, "evaluate": evaluate, "progress": progress}
    for name, call in calls.items():
        if not callable(call) and (call is not None or name == "optimizer"):
            raise ValueError(f"{name}: must be callable, got a {type(call).__name__}")
    _check_objects(model, hardening, loader, teacher, recalibrate, checkpoint)
    if evaluate is None and (keep == "best" or recalibrate is not None) and _in_processes(model):
        raise ValueError(
            "evaluate: each process would judge by batches of its own, and leave another state: "
            "give one that is the same in all, or keep='last' without recalibrate"
        )
    with random_state_kept():
        first = itertools.islice(seeded_batches(loader, seed, 0), PROBE if evaluate is None else 0)
        probe, per_epoch = list(first), epoch_length(loader)
    schedule = Schedule(per_epoch, epochs * per_epoch, warmup, shares, hardening)
    rates = {"latents": lr, "scales": scale_lr, "other": other_lr}
    groups = parameter_groups(model, rates, weight_decay)
    if not groups:
        raise ValueError("nothing to train: no parameter asks for gradients, or all steps are 0")
    stepper = optimizer(groups)
    if not hasattr(stepper, "param_groups"):
        raise ValueError(f"optimizer: must give a torch optimiser, got a {type(stepper).__name__}")
    for group in stepper.param_groups:
        group["peak"] = group["lr"]
    criterion = loss or cross_entropy
    if loss is None and class_axis is None:
        class_axis = 1

    def judge() -> tuple[float, dict[str, float]]:
        with evaluating(model):
            if evaluate is None:
                return -mean_loss(model, criterion, probe), {}
            return evaluated(evaluate(model))

    def step_loss(batch: Any) -> Tensor:
        outputs = run_model(run_batch, model, batch, "loader: the model")
        value = loss_of(criterion, outputs, batch)
        if teacher is None:
            return value
        apart = distance(outputs, run_teacher(teacher, batch), temperature, class_axis)
        return (1 - distillation) * value + distillation * apart

    settings = {
        "epochs": epochs,
        "loader": per_epoch,
        "lr": lr,
        "scale_lr": scale_lr,
        "other_lr": other_lr,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "optimizer": digest(optimizer_settings(stepper)),
        "loss": loss is not None,
        "teacher": None if teacher is None else state_digest(teacher.state_dict()),
        "distillation": distillation,
        "temperature": temperature,
        "class_axis": None if teacher is None else class_axis,
        "freeze_batchnorm": bool(freeze_batchnorm),
        "recalibrate": recalibrate is not None,
        "shares": shares,
        "hardening": hardening,
        "evaluate": evaluate is not None,
        "keep": str(keep),
        "seed": seed,
        "model": digest([[name, str(p.shape)] for name, p in model.named_parameters()]),
        "attach": [
            [layer.binary.kind, layer.binary.clip, layer.binary.stochastic]
            for layer in attached(model).values()
        ],
    }
    start = state_digest(model.state_dict())
    modes = [(module, module.training) for module in model.modules()]
    state = load_state(checkpoint, settings, start)
    try:
        if state is None:
            score, measures = judge()
            state = {"settings": settings, "start": start, "epoch": 0, "seconds": 0.0}
            state |= {"began": score, "measures": measures, "score": score, "left": "start"}
            state["history"] = []
            if keep == "best":
                state["best"] = copied_state(model)
        else:
            model.load_state_dict(state["model"])
            stepper.load_state_dict(state["optimizer"])
        for epoch in range(state["epoch"] + 1, epochs + 1):
            begun = time.perf_counter()
            with random_state_kept():
                train_mode(model, freeze_batchnorm)
                batches = seeded_batches(loader, seed, epoch)
                mean = train_epoch(model, batches, step_loss, stepper, schedule, epoch, progress)
            set_codes(model)
            score, measures, left = *judge(), f"epoch {epoch}"
            if recalibrate is not None:
                plain = copied_state(model)
                recalibrate_batchnorm(model, recalibrate)
                anew = judge()
                if anew[0] > score or (math.isnan(score) and not math.isnan(anew[0])):
                    score, measures, left = *anew, f"{left}, BatchNorm anew"
                else:
                    model.load_state_dict(plain)
            if keep == "last" or score > state["score"] or math.isnan(state["score"]):
                state |= {"score": score, "left": left}
                if keep == "best":
                    state["best"] = copied_state(model)
            seconds = time.perf_counter() - begun
            state["history"].append([mean, score, measures, seconds])
            state |= {"epoch": epoch, "seconds": state["seconds"] + seconds}
            if checkpoint is not None:
                save_state(checkpoint, state, model, stepper)
        if keep == "best":
            model.load_state_dict(state["best"])
    except BaseException:  # Ctrl-C too
        if state is not None and "best" in state:
            model.load_state_dict(state["best"])
        raise
    finally:
        set_codes(model)
        for module, mode in modes:
            module.training = mode
    history = [Epoch(*row) for row in state["history"]]
    began, ended, measures = (state[name] for name in ("began", "score", "measures"))
    result = FineTuned(began, ended, measures, history, state["left"], state["seconds"])
    if result.worse:
        warnings.warn(f"fine-tuning left the network worse: {result}", stacklevel=2)
    return result


def _in_processes(model: nn.Module) -> bool:
    """Whether several processes train it together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    wrapped = (isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules())
    return distributed.get_world_size() > 1 and any(wrapped)


def _listed(shares: Any) -> list[Any]:
    """One number as a list of one, else its items."""
    one = getattr(shares, "ndim", None) == 0 or not isinstance(shares, Iterable)
    return [shares] if one else list(shares)


def _check_objects(
    model: nn.Module,
    hardening: float,
    loader: Iterable[Any],
    teacher: nn.Module | None,
    recalibrate: Tensor | Iterable[Any] | None,
    checkpoint: str | PathLike | None,
) -> None:
    check_model(model)
    layers = attached(model).values()
    if not layers:
        raise ValueError("the model has no attached layer: torch_glue.attach(model, run) first")
    if any(layer.parameter.dtype == torch.float16 for layer in layers):
        raise ValueError(
            "the model's latents are float16, whose steps vanish or overflow: model.float() first, "
            "and train under torch.autocast where half precision is wanted"
        )
    if hardening and any(layer.binary.stochastic for layer in layers):
        raise ValueError("hardening: has no stochastic form; attach with stochastic=False")
    for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{tensor_name}: has no size yet: run the model on a batch first")
    if teacher is not None:
        check_model(teacher, "teacher")
        if unwrapped(teacher)[0] is unwrapped(model)[0]:
            raise ValueError(
                "teacher: is the model itself: give the network in full precision, such as a copy "
                "that was made before it was binarised"
            )
    if isinstance(loader, data.Dataset) and not isinstance(loader, data.IterableDataset):
        raise ValueError(
            "loader: give batches: a torch.utils.data.DataLoader of this data set, with "
            "batch_size=None where its items are batches"
        )
    check_batches(loader, "loader")
    for name, batches in (("loader", loader), ("recalibrate", recalibrate)):
        check_again(batches, name, "epoch")
    if recalibrate is not None:
        running_norms(model)
        batches_of(recalibrate, "recalibrate")
    if checkpoint is not None:
        check_target(checkpoint, "checkpoint")
