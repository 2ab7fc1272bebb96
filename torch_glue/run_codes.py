"""What a run says of a layer's weight, as `attach` takes it: codes, scales, |W| from its folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import hashsolve
from hashsolve.files import open_h5
from hashsolve.packing import combine
from hashsolve.problem import Problem
from hashsolve.runfolder import RunFolder
from torch_glue.filters import as_rows, from_rows, group_length


def of_run(result: Any, weight: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Codes (T, S) and scales (T, G) of a run's layer, like its weight."""
    codes, scales = result.solution.codes, np.atleast_2d(result.solution.scales)
    if codes.ndim != 2 or codes.T.shape != as_rows(weight, groups).shape:
        raise ValueError(
            f"{result.name}: the run has codes of shape {codes.shape}, the model a weight of shape "
            f"{tuple(weight.shape)}: it is not the model of this run"
        )
    if groups and len(scales) > 1:
        raise ValueError(f"{result.name}: transposed convolutions have one scale a filter")
    rows = torch.from_numpy(np.ascontiguousarray(codes.T)).to(weight)
    return _turned(rows, weight, groups), torch.from_numpy(scales.T.copy()).to(weight)


def check_written(
    run: hashsolve.Run, result: Any, weight: Tensor, groups: int, codes: Tensor, alpha: Tensor
) -> None:
    """A weight that is binary must be what the run wrote, else attaching would change it; but for
    one that was so in full precision. So must one with constants, which else were not there."""
    rows = as_rows(weight, groups)
    written = codes * alpha.repeat_interleave(codes.shape[1] // alpha.shape[1], 1)
    if torch.allclose(rows, written, rtol=0.01, atol=0):
        return
    if result.solution.intercept is not None:
        raise ValueError(
            f"{result.name}: the run has a constant for each of its filters, and this model is not "
            "as the run left it: attach to the model that was binarised, or binarize this one with "
            "the same run_dir first"
        )
    if group_length(rows) == 1 and not (rows.abs() == 1).all():  # one input: if absorbed
        return
    try:
        before = as_rows(magnitudes_of(run, result, weight, groups).to(rows), groups)
    except ValueError:  # without the run's folder it is not known
        before = None
    if before is None or not torch.allclose(rows.abs(), before, rtol=0.01, atol=0):
        raise ValueError(
            f"{result.name}: its weight is binary, but not as the run left it (its scales were "
            "absorbed, or it was trained): attach what it is now, by names of layers"
        )


def magnitudes_of(run: hashsolve.Run, result: Any, weight: Tensor, groups: int) -> Tensor:
    """|W| of a run's layer, from the problems in its folder, in the shape of its weight."""
    path = RunFolder(run.run_dir).problem_path(result.name)
    parts = result.layer.geometry.groups
    columns = np.array_split(combine(result.solution.codes, result.solution.scales), parts, 1)
    try:
        with open_h5(path) as file:
            stored = set(file)
        for part, column in enumerate(columns):
            group = "/" if parts == 1 else f"group{part}"
            if stored if parts == 1 else group in stored:
                weights = Problem.load(path, group).weights
                if weights is None or weights.shape != column.shape:
                    raise ValueError(f"{path}: it holds no weights of shape {column.shape}")
                columns[part] = weights
            # a group without data has no problem: its weights are sign(W) mean |W|
    except ValueError as error:
        raise ValueError(
            f"{result.name}: |W| is not to be had from the run's folder ({error}); give the "
            "full-precision network as magnitudes"
        ) from error
    rows = torch.from_numpy(np.concatenate(columns, axis=1).T.copy()).abs()
    return from_rows(_turned(rows, weight, groups), weight.shape, groups)


def _turned(rows: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A layer's rows as its weight has them: a transposed convolution's kernels are turned round,
    since to the solver it is a convolution."""
    if not groups:
        return rows
    kernel = weight.shape[2:]
    axes = tuple(range(2, 2 + len(kernel)))
    return rows.reshape(len(rows), -1, *kernel).flip(axes).flatten(1)
