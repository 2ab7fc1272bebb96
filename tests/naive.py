"""Convolution geometry by plain loops, for the tests to compare with."""

from __future__ import annotations

import itertools

import numpy as np


def source(index: int, size: int, mode: str) -> int | None:
    """Which entry of an axis stands at ``index``, which may lie outside; None for a zero."""
    if 0 <= index < size:
        return index
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(index, 0), size - 1)
    if mode == "circular":
        return index % size
    return -index if index < 0 else 2 * (size - 1) - index


def patches(maps, kernel, stride, padding, dilation, mode="zeros") -> np.ndarray:
    """(S, rows): for every sample and output position, the inputs under the kernel."""
    spatial = maps.shape[2:]
    counts = [
        (size + before + after - (k - 1) * d - 1) // s + 1
        for size, k, s, (before, after), d in zip(
            spatial, kernel, stride, padding, dilation, strict=True
        )
    ]
    columns = []
    for sample in maps:
        for position in itertools.product(*map(range, counts)):
            column = []
            for channel in sample:
                for tap in itertools.product(*map(range, kernel)):
                    where = [
                        source(o * s + t * d - before, size, mode)
                        for o, s, t, d, (before, _), size in zip(
                            position, stride, tap, dilation, padding, spatial, strict=True
                        )
                    ]
                    column.append(0.0 if None in where else channel[tuple(where)])
            columns.append(column)
    return np.array(columns).T


def convolution(maps, weight, padding=1, stride=1, groups=1) -> np.ndarray:
    """A square convolution in two dimensions, filter by filter and position by position."""
    maps = np.pad(maps, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    filters, share, k, _ = weight.shape
    high, wide = ((size - k) // stride + 1 for size in maps.shape[2:])
    out = np.empty((len(maps), filters, high, wide))
    for t in range(filters):
        first = t // (filters // groups) * share
        for i, j in itertools.product(range(high), range(wide)):
            a, b = i * stride, j * stride
            window = maps[:, first : first + share, a : a + k, b : b + k]
            out[:, t, i, j] = (window * weight[t]).sum(axis=(1, 2, 3))
    return out
