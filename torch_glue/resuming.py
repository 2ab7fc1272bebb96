"""Checkpoints of fine-tuning: what is written after an epoch, and what may go on from it."""

from __future__ import annotations

import copy
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hashsolve.files import atomic, digest

FORMAT = 4


def copied_state(model: nn.Module) -> dict[str, Any]:
    """A state dict that later steps leave as it is."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


def state_digest(state: dict[str, Any]) -> str:
    """Of the tensors of a state dict."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return digest({name: value.detach().contiguous() for name, value in tensors.items()})


def optimizer_settings(stepper: torch.optim.Optimizer) -> list[Any]:
    """An optimiser's class and all its settings, however it was made."""
    groups = stepper.state_dict()["param_groups"]
    settings = [
        [[key, repr(_plain(value))] for key, value in sorted(group.items())] for group in groups
    ]
    return [type(stepper).__qualname__, settings]


def save_state(
    path: str | PathLike, state: dict[str, Any], model: nn.Module, stepper: torch.optim.Optimizer
) -> None:
    """Write a checkpoint whole, or not at all."""
    optimizer = stepper.state_dict()
    optimizer["param_groups"] = [
        {key: _plain(value) for key, value in group.items()} for group in optimizer["param_groups"]
    ]
    state = state | {"model": model.state_dict(), "optimizer": optimizer}
    with atomic(path) as part:
        torch.save(state | {"format": FORMAT}, part)


def _plain(value: Any) -> Any:
    """A setting without NumPy's scalars, which torch reads back from no file."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim)
    return value.item() if scalar else value


def load_state(
    path: str | PathLike | None, settings: dict[str, Any], start: str
) -> dict[str, Any] | None:
    """A checkpoint of these settings and this start, if there is one.

    Raises
    ------
    ValueError
        For one of other settings, of another start, or damaged.
    """
    if path is None or not Path(path).exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version, found, began = state["format"], state["settings"], state["start"]
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(f"{path}: damaged, or not a checkpoint; remove it ({error})") from error
    if version != FORMAT:
        raise ValueError(
            f"{path}: a checkpoint of another version; name another file, or remove it"
        )
    if other := [name for name in settings if found.get(name) != settings[name]]:
        raise ValueError(
            f"{path}: a checkpoint of other settings or another model ({', '.join(other)}); name "
            "another file, or remove it"
        )
    # the best is what an interrupted call left in the model
    if start != began and ("best" not in state or start != state_digest(state["best"])):
        raise ValueError(
            f"{path}: a checkpoint of a model with other weights at the start; build the model as "
            "it was then, name another file, or remove it"
        )
    return state
