"""The sums of a convolution from its maps as planes, shifted against each other by each lag."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from hashsolve.checks import finite
from hashsolve.geometry import pad
from hashsolve.lags import Cell, Plan, Range
from hashsolve.sums import SMALLEST_SQUARE, Sums
from hashsolve.threads import one_blas_thread, spread

_WIDE = 128
"""Channels from which the products of one chunk are spread over the cores, not the chunks."""


class Planes:
    """The phases of maps (n, channels, *spatial), each flat as (channels, positions · n).

    The first axis is the slowest and samples come next, so that a range of the first axis is a
    range of columns; before and behind lie as many zeros as a lag can reach.
    """

    def __init__(self, plan: Plan, maps: np.ndarray):
        self.plan = plan
        self.count, self.channels = maps.shape[:2]
        if plan.pads is not None:
            maps = pad(maps, plan.pads, plan.geometry.padding_mode)
        self.maps = maps
        lengths = [axis.length for axis in plan.axes]
        self.shape = (self.channels, lengths[0], self.count, *lengths[1:])
        self.line = self.count * prod(lengths[1:])
        self._flat: dict[tuple[int, ...], np.ndarray] = {}
        self._parts: dict[tuple, np.ndarray] = {}

    def flat(self, phase: tuple[int, ...]) -> np.ndarray:
        """One phase, with its margins."""
        if phase not in self._flat:
            margin = self.plan.margin
            found = np.zeros((self.channels, 2 * margin + self.line * self.shape[1]))
            source, target = [], []
            for axis, p in zip(self.plan.axes, phase, strict=True):
                first, last = axis.filled(p)
                start = first * axis.stride + p - axis.before
                source.append(
                    slice(start, start + (last - first - 1) * axis.stride + 1, axis.stride)
                )
                target.append(slice(first, last))
                if first >= last:
                    source[-1] = slice(0)
            values = np.moveaxis(self.maps[(slice(None), slice(None), *source)], 0, 2)
            view = self._view(found)
            view[(slice(None), target[0], slice(None), *target[1:])] = values
            self._flat[phase] = found
        return self._flat[phase]

    def _view(self, flat: np.ndarray) -> np.ndarray:
        """The same without margins, one axis each."""
        margin = self.plan.margin
        return flat[:, margin : flat.shape[1] - margin].reshape(self.shape)

    def shifted(self, phase: tuple[int, ...], shift: Sequence[int], first: Range) -> np.ndarray:
        """Columns of a range of the first axis, seen from ``shift``; other axes whole."""
        offset, step = self.plan.margin + shift[0] * self.line, 1
        for length, along in zip(self.shape[:2:-1], shift[:0:-1], strict=True):
            offset += step * along
            step *= length
        return self.flat(phase)[:, offset + first[0] * self.line : offset + first[1] * self.line]

    def part(self, phase: tuple[int, ...], ranges: tuple[Range, ...], first: Range) -> np.ndarray:
        """Columns of a range of the first axis and the given ranges of the others."""
        if (phase, ranges) not in self._parts:
            view = self._view(self.flat(phase))
            cut = view[(slice(None), slice(None), slice(None), *(slice(*r) for r in ranges))]
            self._parts[phase, ranges] = np.ascontiguousarray(cut).reshape(self.channels, -1)
        line = self.count * prod(j - i for i, j in ranges)
        return self._parts[phase, ranges][:, first[0] * line : first[1] * line]

    def factors(self, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
        """What is multiplied over a cell, (channels, columns) each."""
        first, *rest = cell.ranges
        if cell.whole:
            a = self.shifted(cell.a, [0] * len(cell.lag), first)
            return a, self.shifted(cell.b, cell.lag, first)
        moved = [(i + lag, j + lag) for (i, j), lag in zip(cell.ranges, cell.lag, strict=True)]
        a = self.part(cell.a, tuple(rest), first)
        return a, self.part(cell.b, tuple(moved[1:]), moved[0])

    def correlation(self, cell: Cell) -> np.ndarray:
        """The product over a cell, (channels, channels)."""
        a, b = self.factors(cell)
        return a @ b.T

    def totals(self) -> np.ndarray:
        """Σ over samples and positions of what each tap sees, (channels, taps)."""
        plan = self.plan
        result = np.empty((self.channels, len(plan.taps)))
        for n, tap in enumerate(plan.taps):
            window = (
                slice(shift, shift + axis.outputs)
                for axis, shift in zip(plan.axes, plan.shift(tap), strict=True)
            )
            first, *rest = window
            seen = self._view(self.flat(plan.phase(tap)))[(slice(None), first, slice(None), *rest)]
            result[:, n] = seen.reshape(self.channels, -1).sum(axis=1)
        return result

    def peak(self) -> float:
        """The largest magnitude that some tap sees."""
        return max((np.abs(flat).max(initial=0.0) for flat in self._flat.values()), default=0.0)

    def outputs(self, weights: np.ndarray) -> np.ndarray:
        """The convolution with weights (channels, taps, T), flat (T, columns).

        There are as many columns as positions that the first tap sees; where these are no
        outputs, beyond the last along an axis, it is zero.
        """
        plan = self.plan
        first = (0, plan.axes[0].outputs)
        result = np.zeros((weights.shape[2], first[1] * self.line))
        for n, tap in enumerate(plan.taps):
            result += weights[:, n].T @ self.shifted(plan.phase(tap), plan.shift(tap), first)
        view = self._outputs(result)
        for number, axis in enumerate(plan.axes[1:], start=3):
            view[(slice(None),) * number + (slice(axis.outputs, None),)] = 0.0
        return result

    def _outputs(self, flat: np.ndarray) -> np.ndarray:
        """Flat outputs, one axis each: T, first axis, samples, other axes."""
        return flat.reshape(-1, self.plan.axes[0].outputs, *self.shape[2:])

    def add_to_outputs(self, flat: np.ndarray, shift: np.ndarray) -> None:
        """Add values (n, T, *positions) to flat `outputs`, in place."""
        places: tuple[Any, ...] = tuple(slice(0, axis.outputs) for axis in self.plan.axes[1:])
        self._outputs(flat)[(..., *places)] += np.moveaxis(shift, 0, 2)

    def seen_with(self, tap: tuple[int, ...], outputs: np.ndarray) -> np.ndarray:
        """The product of what a tap sees with flat outputs, (channels, T)."""
        first = (0, self.plan.axes[0].outputs)
        return self.shifted(self.plan.phase(tap), self.plan.shift(tap), first) @ outputs.T


def add_blocks(plan: Plan, cells: np.ndarray, gram: np.ndarray) -> None:
    """Add the blocks of H that cells (cells, channels, channels) make up."""
    channels, taps = cells.shape[1], len(plan.taps)
    blocks = gram.reshape(channels, taps, channels, taps)
    for i, j, n in plan.uses:
        blocks[:, i, :, j] += cells[n]
        if i != j:
            blocks[:, j, :, i] += cells[n].T


class LagSums:
    """The sums of one group of a convolution's channels.

    Parameters
    ----------
    plan : Plan
    weights : array (S, T)
        W of this group.
    asymmetric : bool
        Whether targets are those of other maps.
    name : str
        What the maps belong to, for error messages.
    """

    def __init__(self, plan: Plan, weights: np.ndarray, asymmetric: bool, name: str):
        taps = len(plan.taps)
        self.plan = plan
        self.name = name
        self.channels = len(weights) // taps
        self.weights = weights.reshape(self.channels, taps, -1)
        self.targets = weights.shape[1] if asymmetric else 0
        self.samples = 0
        self.chunk = plan.samples(self.channels)
        self.total = self._empty()

    @property
    def bytes(self) -> int:
        """Of the sums of one chunk."""
        return sum(value.nbytes for value in self.total.values())

    def release(self) -> None:
        """Nothing is held beside the sums."""

    def _empty(self) -> dict[str, np.ndarray]:
        channels, taps, targets = self.channels, len(self.plan.taps), self.targets
        return {
            "cells": np.zeros((len(self.plan.cells), channels, channels)),
            "inputs": np.zeros((channels, *self.plan.spatial)),
            "cross": np.zeros((channels, taps, targets)),
            "energy": np.zeros(targets),
            "targets": np.zeros(targets),
            "input_peak": np.zeros(1),
            "target_peak": np.zeros(targets),
        }

    def add(
        self,
        maps: np.ndarray,
        reference: np.ndarray | None = None,
        shift: np.ndarray | None = None,
    ) -> None:
        """Add maps (n, channels, *spatial), those the targets come from, and what is added to
        these, (n, T, *positions).

        They are summed ``chunk`` at a time, so n must be a multiple of that until the last call.
        """
        chunks = [slice(n, n + self.chunk) for n in range(0, len(maps), self.chunk)]

        def of(chunk: slice) -> list[Any]:
            return [None if m is None else m[chunk] for m in (maps, reference, shift)]

        def alone(chunk: slice) -> dict[str, np.ndarray]:
            part = self._empty()
            self._sum(lambda job, items: [job(item) for item in items], part, *of(chunk))
            return part

        with one_blas_thread():
            if self.channels >= _WIDE:
                for chunk in chunks:
                    self._sum(spread, self.total, *of(chunk))
            else:
                for part in spread(alone, chunks):
                    for field, value in part.items():
                        combine = np.maximum if field.endswith("peak") else np.add
                        combine(self.total[field], value, out=self.total[field])
        self.samples += len(maps)

    @np.errstate(over="ignore", under="ignore", invalid="ignore")
    def _sum(
        self,
        each: Callable,
        into: dict[str, np.ndarray],
        maps: np.ndarray,
        reference: np.ndarray | None,
        shift: np.ndarray | None,
    ) -> None:
        """Add the sums of a chunk; ``each`` runs a job for all items."""
        planes = Planes(self.plan, maps)
        inputs = maps.sum(axis=0, dtype=np.float64)
        if not np.isfinite(inputs).all():
            finite(maps, f"{self.name}: inputs")
        into["inputs"] += inputs

        def correlate(n: int) -> None:
            with np.errstate(all="ignore"):
                into["cells"][n] += planes.correlation(self.plan.cells[n])

        each(correlate, range(len(self.plan.cells)))
        squares = sum(np.diagonal(into["cells"][n]) for n in self.plan.squares)
        if np.max(squares, initial=0.0) < SMALLEST_SQUARE:
            into["input_peak"][0] = max(into["input_peak"][0], planes.peak())
        if reference is None:
            return
        shown = Planes(self.plan, reference)
        parts = np.array_split(self.weights, max(1, self.targets // 64), axis=2)

        def convolve(weights: np.ndarray) -> np.ndarray:
            with np.errstate(all="ignore"):
                return shown.outputs(weights)

        outputs = np.concatenate(each(convolve, parts))
        if shift is not None:
            shown.add_to_outputs(outputs, shift)
        sums = outputs.sum(axis=1)
        if not np.isfinite(sums).all():
            finite(reference, f"{self.name}: reference")
            finite(np.zeros(0) if shift is None else shift, f"{self.name}: shift")
            finite(outputs, f"{self.name}: targets")

        def cross(n: int) -> None:
            with np.errstate(all="ignore"):
                into["cross"][:, n] += planes.seen_with(self.plan.taps[n], outputs)

        each(cross, range(len(self.plan.taps)))
        into["targets"] += sums
        into["energy"] += np.einsum("tn,tn->t", outputs, outputs)
        small = into["energy"] < SMALLEST_SQUARE
        peak = np.abs(outputs[small]).max(axis=1, initial=0.0)
        into["target_peak"][small] = np.maximum(into["target_peak"][small], peak)

    @np.errstate(over="ignore", under="ignore", invalid="ignore")
    def add_to(self, sums: Sums) -> None:
        """Put the blocks together and add them to the sums of rows."""
        total, size = self.total, len(sums.gram)
        add_blocks(self.plan, total["cells"], sums.gram)
        rows = self.samples * prod(axis.outputs for axis in self.plan.axes)
        inputs = Planes(self.plan, total["inputs"][None]).totals().reshape(-1)
        sums.count(rows, inputs, total["input_peak"][0])
        if self.targets:
            cross = total["cross"].reshape(size, -1)
            sums.add_target_sums(cross, total["energy"], total["targets"], total["target_peak"])
