"""finetune: a short reference loop for attached models, for those who have none of their own."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hashsolve import checks
from hashsolve.files import atomic, digest
from torch_glue.batchnorm import recalibrate_batchnorm
from torch_glue.network import evaluating, random_state_kept, run_batch, run_model, to_device
from torch_glue.parametrize import attached, binary_of

PROBE = 8  # batches that judge the network where no evaluation is given
FORMAT = 1


@dataclass(frozen=True)
class Epoch:
    """One epoch: its mean training loss, what the evaluation says after it, and seconds."""

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
    freeze_batchnorm: bool = False,
    recalibrate: Tensor | Iterable[Any] | None = None,
    shares: Sequence[float] = (1.0,),
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
        generator and sampler are seeded anew each epoch, torch's random state too.
    epochs : int
    lr, scale_lr, other_lr : float
        Peak steps of the latents, of trained scales (default lr / 10) and of all other parameters
        that ask for gradients (default lr / 10; 0 leaves them).
    weight_decay : float
        Of the other parameters only: latents and scales need none.
    warmup : float
        Share of all steps in which the step grows linearly from 0.
    optimizer : callable
        Makes an optimiser of parameter groups: torch.optim.Adam, or a partial of any other.
    loss : callable, optional
        ``loss(outputs, batch)``; cross-entropy with ``batch[1]`` by default.
    teacher : torch.nn.Module, optional
        The network in full precision, which is only run.
    distillation : float
        Share of the loss that is KL(teacher ‖ student) of the softmax outputs, times
        temperature² (Hinton et al., arXiv:1503.02531), where there is a teacher.
    temperature : float
    freeze_batchnorm : bool
        Normalise by running statistics, which stay.
    recalibrate : tensor or batches, optional
        Re-estimate BatchNorm from these at the end; kept where the score is then better.
    shares : sequence of float
        Of filters binarised while training, in stages of equal length: (0.5, 0.75, 0.875, 1) is
        SQ-BWN's schedule within the same budget.
    evaluate : callable, optional
        ``evaluate(model)`` gives the score, larger being better, or a dict of numbers of which
        the first is the score. It is called in eval mode, without gradients. By default minus
        the loss over the first 8 batches.
    keep : {"best", "last"}
        Leave the network in the best state seen, the first included, or in the last.
    checkpoint : path, optional
        Written whole after each epoch; where it is there, training goes on from it, to the same
        bits as if never stopped (as far as the machine's kernels repeat themselves).
    seed : int
    progress : callable, optional
        Called with (epoch, step, steps, training loss) after each step.

    Returns
    -------
    FineTuned

    Warns
    -----
    UserWarning
        Where the network is left worse than it was, by ``evaluate``.

    Raises
    ------
    ValueError
        For settings that cannot be used, a model that has no attached layer, a checkpoint of
        other settings or damaged.
    FloatingPointError
        Where the loss is no longer finite.

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
    if not attached(model):
        raise ValueError("the model has no attached layer: torch_glue.attach(model, run) first")
    shares = [float(share) for share in shares]
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares: must be in (0, 1], got {shares}")
    if not 0 <= distillation <= 1 or not temperature > 0 or not 0 <= warmup <= 1:
        raise ValueError(
            "distillation and warmup must be in [0, 1], temperature positive, got "
            f"{distillation}, {warmup}, {temperature}"
        )
    if isinstance(loader, Iterator):
        raise ValueError(
            "loader: this iterator can be gone through only once, but each epoch needs a pass"
        )
    with random_state_kept():
        probe = PROBE if evaluate is None else 0
        first = list(itertools.islice(_batches(loader, seed, 0), probe))
        try:
            per_epoch = len(loader)
        except TypeError:
            per_epoch = sum(1 for _ in loader)
    if not per_epoch:
        raise ValueError("loader: it holds no batches")
    steps = epochs * per_epoch
    rates = {"latents": lr, "scales": scale_lr, "other": other_lr}
    rates = {name: lr / 10 if rate is None else rate for name, rate in rates.items()}
    groups = parameter_groups(model, rates, weight_decay)
    stepper = optimizer(groups)
    for group in stepper.param_groups:
        group["peak"] = group["lr"]
    criterion = loss or _cross_entropy

    def judge() -> tuple[float, dict[str, float]]:
        with evaluating(model):
            if evaluate is None:
                parts = [to_device(batch, model) for batch in first]
                losses = [criterion(run_model(run_batch, model, part), part) for part in parts]
                return -float(torch.stack(losses).double().mean()), {}
            found = evaluate(model)
            found = found if isinstance(found, dict) else {"score": found}
            measures = {name: float(value) for name, value in found.items()}
            return next(iter(measures.values())), measures

    def train_epoch(epoch: int) -> float:
        total, count = 0.0, 0
        _prepare(model, freeze_batchnorm)
        for batch in _batches(loader, seed, epoch):
            done = (epoch - 1) * per_epoch + count
            _set_step(stepper, model, min(done, steps - 1), steps, warmup, shares)
            count += 1
            batch = to_device(batch, model)
            outputs = run_model(run_batch, model, batch)
            value = criterion(outputs, batch)
            if teacher is not None:
                value = (1 - distillation) * value + distillation * _distance(
                    outputs, _outputs(teacher, batch), temperature
                )
            if not value.isfinite():
                raise FloatingPointError(
                    f"epoch {epoch}, step {count}: the loss is {value.item()}: use a smaller lr"
                )
            stepper.zero_grad()
            value.backward()
            stepper.step()
            for module in attached(model).values():
                binary_of(module).clip_(module.parametrizations.weight.original)
            total += value.item()
            if progress is not None:
                progress(epoch, count, per_epoch, value.item())
        if count != per_epoch:
            raise ValueError(f"loader: {count} batches in epoch {epoch}, {per_epoch} at first")
        return total / per_epoch

    settings = digest(
        [epochs, per_epoch, *rates.values(), weight_decay, warmup, distillation, temperature]
        + [str(freeze_batchnorm), shares, keep, seed, str(teacher is not None)]
        + [[name, str(p.shape)] for name, p in model.named_parameters()]
    )
    modes = [(module, module.training) for module in model.modules()]
    state = _load(checkpoint, settings)
    try:
        if state is None:
            score, measures = judge()
            state = {"format": FORMAT, "settings": settings, "epoch": 0, "seconds": 0.0}
            state |= {"began": score, "measures": measures, "score": score, "left": "start"}
            state["history"] = []
            if keep == "best":
                state["best"] = _copy(model)
        else:
            model.load_state_dict(state["model"])
            stepper.load_state_dict(state["optimizer"])
        for epoch in range(state["epoch"] + 1, epochs + 1):
            begun = time.perf_counter()
            with random_state_kept():
                mean = train_epoch(epoch)
            _set_share(model, 1.0)
            score, measures = judge()
            if keep == "last" or not score <= state["score"]:
                state |= {"score": score, "left": f"epoch {epoch}"}
                if keep == "best":
                    state["best"] = _copy(model)
            seconds = time.perf_counter() - begun
            state["history"].append([mean, score, measures, seconds])
            state |= {"epoch": epoch, "seconds": state["seconds"] + seconds}
            if checkpoint is not None:
                _save(
                    checkpoint,
                    state | {"model": model.state_dict(), "optimizer": stepper.state_dict()},
                )
        if keep == "best":
            model.load_state_dict(state["best"])
        ended, left = state["score"], state["left"]
        if recalibrate is not None:
            ended, left = _recalibrated(model, recalibrate, judge, ended, left)
    finally:
        _set_share(model, 1.0)
        for module, mode in modes:
            module.training = mode
    history = [Epoch(*row) for row in state["history"]]
    result = FineTuned(state["began"], ended, state["measures"], history, left, state["seconds"])
    if result.worse:
        warnings.warn(f"fine-tuning left the network worse: {result}", stacklevel=2)
    return result


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
    latents = [module.parametrizations.weight.original for module in layers]
    scales = [p for module in layers for p in binary_of(module).parameters()]
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


def _cross_entropy(outputs: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])


def _outputs(teacher: nn.Module, batch: Any) -> Tensor:
    with evaluating(teacher):
        return run_model(run_batch, teacher, batch)


def _distance(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    student = (outputs / temperature).log_softmax(-1).flatten(0, -2)
    target = (wanted / temperature).log_softmax(-1).flatten(0, -2)
    divergence = nn.functional.kl_div(student, target, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def _prepare(model: nn.Module, freeze_batchnorm: bool) -> None:
    """Train mode, but for BatchNorm where that is frozen."""
    model.train()
    if freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _set_step(
    stepper: torch.optim.Optimizer,
    model: nn.Module,
    done: int,
    steps: int,
    warmup: float,
    shares: list[float],
) -> None:
    """The learning rates and the share of the step that comes after ``done`` of them."""
    rise = warmup * steps
    if done < rise:
        factor = min(1.0, (done + 1) / rise)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1.0, steps - rise)))
    for group in stepper.param_groups:
        group["lr"] = group["peak"] * factor
    _set_share(model, shares[done * len(shares) // steps])


def _set_share(model: nn.Module, share: float) -> None:
    for module in attached(model).values():
        binary_of(module).share = share


def _batches(loader: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """The batches of an epoch, the same each time: whatever draws is seeded by the epoch."""
    start = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed)).item())
    start = (start + epoch) % 2**63
    torch.manual_seed(start)
    sampler = getattr(loader, "sampler", None)
    for holder in (loader, sampler, getattr(loader, "batch_sampler", None)):
        if isinstance(getattr(holder, "generator", None), torch.Generator):
            holder.generator.manual_seed(start)
    if hasattr(sampler, "set_epoch"):  # DistributedSampler
        sampler.set_epoch(epoch)
    return iter(loader)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _recalibrated(
    model: nn.Module,
    batches: Any,
    judge: Callable[[], tuple[float, dict[str, float]]],
    score: float,
    left: str,
) -> tuple[float, str]:
    """Re-estimate BatchNorm; take it back unless the score is better."""
    before = _copy(model)
    recalibrate_batchnorm(model, batches)
    anew, _ = judge()
    if anew > score:
        return anew, f"{left}, BatchNorm anew"
    model.load_state_dict(before)
    return score, left


def _save(path: str | PathLike, state: dict[str, Any]) -> None:
    with atomic(path) as part:
        torch.save(state, part)


def _load(path: str | PathLike | None, settings: str) -> dict[str, Any] | None:
    """A checkpoint of these settings, if there is one."""
    if path is None or not Path(path).exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"], state["settings"]
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(f"{path}: damaged, or not a checkpoint; remove it ({error})") from error
    if found != (FORMAT, settings):
        raise ValueError(
            f"{path}: a checkpoint of other settings or another model; name another file, or "
            "remove it"
        )
    return state
