"""Sums of a convolution of stride 1 from the spectra of its maps (`hashsolve.spectra`).

Spectra give the whole of a lag, over all positions. Of its cells (see `hashsolve.lags`) only the
thin ones are summed directly: the largest is what is left of the whole. That subtracts, so a
channel with nearly all of its energy where some tap does not see it is summed as lags are; its
exact zeros remain exact.

Targets that come from other maps need no maps of their own: these maps are more channels, of which
W makes C and e in the end, Y = XᵀW as for the sums without targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from hashsolve.checks import finite
from hashsolve.geometry import pad
from hashsolve.lags import Cell, Plan, Range
from hashsolve.planes import Planes, add_blocks
from hashsolve.spectra import Spectra
from hashsolve.sums import SMALLEST_SQUARE, Sums
from hashsolve.threads import one_blas_thread, spread

_HIDDEN = 16
"""A channel with so many times the energy that some tap sees is summed without spectra."""
_ROUNDING = 16 * np.finfo(float).eps


class Borders:
    """What thin cells need of maps: these at single positions of an axis.

    Each is (channels, *other axes, samples), so that a range of the first other axis is a range
    of columns.
    """

    def __init__(self, cells: Sequence[Cell], channels: int, sizes: Sequence[int]):
        self.values: dict[tuple[int, int], np.ndarray] = {}
        self.samples = 0
        for cell in cells:
            axis = self._axis(cell)
            shape = (channels, *(size for k, size in enumerate(sizes) if k != axis), 0)
            for at in range(*cell.ranges[axis]):
                self.values[axis, at] = self.values[axis, at + cell.lag[axis]] = np.empty(shape)

    def reserve(self, samples: int) -> None:
        """Make room for maps of so many samples."""
        if samples != self.samples:
            self.samples = samples
            for place, values in self.values.items():
                self.values[place] = np.empty((*values.shape[:-1], samples))

    @staticmethod
    def _axis(cell: Cell) -> int:
        """The axis along which a cell is thinnest."""
        return min(range(len(cell.lag)), key=lambda k: cell.ranges[k][1] - cell.ranges[k][0])

    def keep(self, channel: int, maps: np.ndarray) -> None:
        """Set a channel, from its maps (samples, *sizes)."""
        for (axis, at), values in self.values.items():
            line = maps[(slice(None),) * (axis + 1) + (at,)]
            values[channel] = line.transpose(*range(1, line.ndim), 0)

    def correlation(self, cell: Cell) -> np.ndarray:
        """The product over a thin cell, (channels, channels)."""
        axis, zero = self._axis(cell), [0] * len(cell.lag)
        result: Any = 0.0
        for at in range(*cell.ranges[axis]):
            a = b = self._part(axis, at, cell.ranges, zero)
            if any(cell.lag):
                b = self._part(axis, at + cell.lag[axis], cell.ranges, cell.lag)
            result = result + a @ b.T  # half the work where both are one
        return result

    def _part(self, axis: int, at: int, ranges: Sequence[Range], lag: Sequence[int]) -> np.ndarray:
        values = self.values[axis, at]
        moved = [slice(i + shift, j + shift) for (i, j), shift in zip(ranges, lag, strict=True)]
        del moved[axis]
        return values[(slice(None), *moved)].reshape(len(values), -1)


class SpectralSums:
    """What `hashsolve.planes.LagSums` is, for a plan for which `Plan.one_phase` holds."""

    def __init__(self, plan: Plan, weights: np.ndarray, asymmetric: bool, name: str):
        self.plan = plan
        self.name = name
        self.channels = len(weights) // len(plan.taps)
        self.weights = weights.reshape(self.channels, len(plan.taps), -1)
        self.samples = 0
        size = self.channels * (2 if asymmetric else 1)
        self.chunk = plan.spectral_samples(size)
        self.cells = np.zeros((len(plan.cells), size, size))
        self.inputs = np.zeros((size, *plan.spatial))
        self.peaks = np.zeros(size // self.channels)
        self.inner = [  # cells counted from the first position that holds a value
            replace(cell, ranges=tuple((i - a.before, j - a.before) for (i, j), a in along))
            for cell in plan.cells
            for along in [zip(cell.ranges, plan.axes, strict=True)]
        ]
        classes: dict[tuple[int, ...], list[int]] = {}
        for n in sorted(range(len(plan.cells)), key=lambda n: -plan.cells[n].volume):
            classes.setdefault(plan.cells[n].lag, []).append(n)
        self.classes = list(classes.values())  # cells of a lag, the largest first
        if plan.shared is None:
            sizes = [axis.size for axis in plan.axes]
            thin = [self.inner[n] for _, *others in self.classes for n in others]
            plan.shared = Spectra(sizes, list(classes), size), Borders(thin, size, sizes)
        self.spectra, self.borders = plan.shared

    @property
    def bytes(self) -> int:
        """Of the sums, and of the spectra of a chunk."""
        return 2 * self.cells.nbytes + self.spectra.bytes(self.chunk)

    def add(
        self, maps: np.ndarray, reference: np.ndarray | None = None, shift: np.ndarray | None = None
    ) -> None:
        """Add maps (n, channels, *spatial), and those the targets come from.

        They are summed ``chunk`` at a time, so n must be a multiple of that until the last call;
        ``shift`` must be None.
        """
        streams = [maps] if reference is None else [maps, reference]
        with one_blas_thread(), np.errstate(all="ignore"):
            for start in range(0, len(maps), self.chunk):
                self._sum([stream[start : start + self.chunk] for stream in streams])
        self.samples += len(maps)

    def release(self) -> None:
        """Drop what sums are made with: nothing can be added afterwards. The memory of spectra is
        left to the next ones."""
        if self.plan.shared is not None:
            self.spectra.leave()
            self.plan.shared = None
        del self.spectra, self.borders

    def _sum(self, streams: list[np.ndarray]) -> None:
        """Add the sums of a chunk."""
        count = len(streams[0])
        self.spectra.reserve(count)
        self.borders.reserve(count)
        inputs, ones = np.empty(self.inputs.shape), np.ones(count)
        sizes = self.spectra.shape

        def transform(channel: int) -> None:
            number, own = divmod(channel, self.channels)
            with np.errstate(all="ignore"), self.spectra.room.buffer(count, *sizes) as maps:
                maps[...] = self._padded(streams[number][:, own : own + 1])[:, 0]
                inputs[channel] = self._inner((ones @ maps.reshape(count, -1)).reshape(sizes))
                self.borders.keep(channel, maps)
                self.spectra.transform(channel, maps)

        spread(transform, range(len(inputs)))
        for number, stream in enumerate(streams):
            own = slice(number * self.channels, (number + 1) * self.channels)
            if not np.isfinite(inputs[own]).all():
                finite(stream, f"{self.name}: {('inputs', 'reference')[number]}")
        self.inputs += inputs
        with self.spectra.room.buffer(len(self.classes), *self.cells.shape[1:]) as whole:
            self.spectra.correlations(whole)
            self._add_cells(whole, streams)

    def _add_cells(self, whole: np.ndarray, streams: Sequence[np.ndarray]) -> None:
        """Add the cells that make up the correlations of a chunk, which are used up."""
        squares: dict[int, np.ndarray] = {}  # of each channel, over the cells that show them

        def separate(k: int) -> None:
            largest, *others = self.classes[k]
            with np.errstate(all="ignore"):
                for n in others:
                    part = self.borders.correlation(self.inner[n])
                    self.cells[n] += part
                    whole[k] -= part
                    if n in self.plan.squares:
                        squares[n] = np.diagonal(part)
            if largest in self.plan.squares:
                squares[largest] = np.diagonal(whole[k]).copy()

        spread(separate, range(len(whole)))
        energy = np.sum(list(squares.values()), axis=0)
        for number, stream in enumerate(streams):
            if energy.reshape(-1, self.channels)[number].max() < SMALLEST_SQUARE:
                self.peaks[number] = max(self.peaks[number], np.abs(stream).max())
        seen = np.zeros((len(self.plan.taps), len(energy)))
        for i, j, n in self.plan.uses:
            if i == j:
                seen[i] += squares[n]
        hidden = energy > _HIDDEN * seen.min(axis=0)
        if hidden.any():
            self._sum_directly(whole, hidden, np.concatenate(streams, axis=1))
        for part, (largest, *_) in zip(whole, self.classes, strict=True):
            self.cells[largest] += part

    def _padded(self, maps: np.ndarray) -> np.ndarray:
        if self.plan.pads is None:
            return maps
        return pad(maps, self.plan.pads, self.plan.geometry.padding_mode)

    def _inner(self, maps: np.ndarray) -> np.ndarray:
        """One channel (*spatial) without its padding."""
        before = [first for first, _ in self.plan.pads[2:]] if self.plan.pads else [0] * maps.ndim
        sizes = zip(before, self.plan.spatial, strict=True)
        return maps[tuple(slice(first, first + size) for first, size in sizes)]

    def _sum_directly(self, whole: np.ndarray, hidden: np.ndarray, maps: np.ndarray) -> None:
        """Set rows and columns of hidden channels to the products over the largest cells."""
        whole[:, hidden], whole[:, :, hidden] = 0.0, 0.0
        step = self.plan.samples(len(hidden))
        for start in range(0, len(maps), step):
            planes = Planes(self.plan, maps[start : start + step])

            def multiply(k: int, planes: Planes = planes) -> None:
                largest, *_ = self.classes[k]
                a, b = planes.factors(self.plan.cells[largest])
                with np.errstate(all="ignore"):
                    whole[k][hidden] += a[hidden] @ b.T
                    whole[k][np.ix_(~hidden, hidden)] += a[~hidden] @ b[hidden].T

            spread(multiply, range(len(whole)))

    @np.errstate(over="ignore", under="ignore", invalid="ignore")
    def add_to(self, sums: Sums) -> None:
        """Put the blocks together and add them to the sums of rows."""
        own = slice(self.channels)
        add_blocks(self.plan, self.cells[:, own, own], sums.gram)
        totals = Planes(self.plan, self.inputs[None]).totals()
        rows = self.samples * prod(axis.outputs for axis in self.plan.axes)
        sums.count(rows, totals[own].reshape(-1), self.peaks[0])
        if len(self.peaks) > 1:
            sums.add_target_sums(*self._targets(totals[self.channels :]))

    def _targets(self, totals: np.ndarray) -> tuple[np.ndarray, ...]:
        """C, e and ΣY, and numbers > 0 where Y is not 0, from sums of the reference maps."""
        own, other = slice(self.channels), slice(self.channels, None)
        taps = len(self.plan.taps)
        # by columns of magnitude 1, so that only the results can leave the range
        exponent = np.frexp(np.abs(self.weights).max(axis=(0, 1)))[1]
        unit = np.ldexp(self.weights, -exponent)
        parts: dict[tuple[int, int], list[np.ndarray]] = {}
        for i, j, n in self.plan.uses:
            parts.setdefault((i, j), []).append(self.cells[n][:, other])
            if i != j:
                parts.setdefault((j, i), []).append(self.cells[n][other].T)

        def products(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """What tap i adds to C, to e and to a bound of √e."""
            found, squares = np.zeros((len(self.inputs), unit.shape[2])), np.zeros(self.channels)
            with np.errstate(all="ignore"):
                for j in range(taps):
                    if (i, j) in parts:
                        found += sum(parts[i, j]) @ unit[:, j]
                for part in parts.get((i, i), []):
                    squares += np.diagonal(part[other])
                energy = np.einsum("ct,ct->t", unit[:, i], found[other])
                return found[own], energy, np.sqrt(np.maximum(squares, 0.0)) @ np.abs(unit[:, i])

        with one_blas_thread():
            added = list(zip(*spread(products, range(taps)), strict=True))
        cross = np.stack(added[0], axis=1)
        energy, size = np.maximum(sum(added[1]), 0.0), np.asarray(sum(added[2]))
        # outputs that cancel (weights +1, −1 on equal inputs) leave rounding: that is zero
        cancel = np.isfinite(size) & (energy <= _ROUNDING * size**2)
        energy[cancel], cross[:, :, cancel] = 0.0, 0.0
        some = (energy > 0) | (self.peaks[1] > 0)
        return (
            np.ldexp(cross, exponent).reshape(-1, len(energy)),
            np.ldexp(energy, 2 * exponent),
            np.ldexp(np.einsum("ct,ctk->k", totals, unit), exponent),
            np.where(some, np.abs(self.weights).max(axis=(0, 1)), 0.0),
        )
