"""A layer's weight as a matrix, a row a filter, and the scales of rows that are exactly ±α."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*PLAIN, *TRANSPOSED)
"""Modules whose weight may be binary."""
NORMS = nn.modules.batchnorm._BatchNorm
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""What those of `nn.MultiheadAttention` are called that are no modules, in the order in which they
are packed."""


def transposed_groups(module: nn.Module) -> int:
    """Groups of a transposed convolution, whose filters lie on the second axis; else 0."""
    return module.groups if isinstance(module, TRANSPOSED) else 0


def as_rows(weight: Tensor, groups: int = 0) -> Tensor:
    """The weight as (T, S), a row a filter; ``groups`` as `transposed_groups` gives it.

    >>> as_rows(torch.zeros(8, 4, 3, 3)).shape, as_rows(torch.zeros(8, 4, 3, 3), 2).shape
    (torch.Size([8, 36]), torch.Size([8, 36]))
    """
    if groups:
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def from_rows(rows: Tensor, shape: torch.Size, groups: int = 0) -> Tensor:
    """The weight of this shape whose rows these are: what `as_rows` undoes."""
    if not groups:
        return rows.reshape(shape)
    inner = (groups, shape[1], shape[0] // groups, *shape[2:])
    return rows.reshape(inner).transpose(1, 2).reshape(shape)


def binary_scales(rows: Tensor) -> Tensor | None:
    """α (T,) of rows (T, S) that are exactly ±α, each with its own; None where one is not.

    >>> binary_scales(torch.tensor([[2.0, -2.0], [0.0, -0.0]]))
    tensor([2., 0.])
    >>> binary_scales(torch.tensor([[2.0, 1.0]])) is None
    True
    """
    if not rows.is_floating_point() or not rows.numel():
        return None
    magnitude = rows.detach().abs()
    scales = magnitude[:, 0].clone()
    same = (magnitude == scales[:, None]).all() and scales.isfinite().all()  # NaN is never equal
    return scales if same else None


def group_length(rows: Tensor) -> int:
    """The most consecutive inputs over which the magnitude of no row (T, S) changes.

    That is S where each row is exactly ±α, and mostly 1 where they are not binary: NaN is never
    the same.

    >>> group_length(torch.tensor([[2.0, -2.0, 1.0, 1.0], [3.0, 3.0, -3.0, 3.0]]))
    2
    """
    size = rows.detach().abs()
    change = (size[:, 1:] != size[:, :-1]).any(0).nonzero()[:, 0] + 1
    return math.gcd(rows.shape[1], *change.tolist())
