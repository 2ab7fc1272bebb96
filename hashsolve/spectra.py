"""Sums of a convolution of stride 1 from the spectra of its maps: correlations at all lags at once.

Σ x[p]·z[p + lag] over all positions is, for every pair of channels, the inverse transform of the
cross-spectrum. Per frequency that is one product (channels, samples) with its own transpose, which
costs about as much as one lag does. Only a few lags are wanted, so the inverse is a small product
too; and maps are small, so that the transforms are products with cosines and sines, which leave
their results frequency by frequency as the next step needs them.

A class of cells of one lag (see `hashsolve.lags`) then needs its thin cells alone to be summed
directly: the largest is what is left of the whole. That subtracts, so a channel with nearly all of
its energy where some tap does not see it is summed as lags are; its exact zeros remain exact.

Targets that come from other maps need no maps of their own: these maps are more channels, of which
W makes C and e in the end, Y = XᵀW as for the sums without targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import product
from math import prod

import numpy as np

from hashsolve.checks import finite
from hashsolve.geometry import pad
from hashsolve.lags import Cell, Plan, Range
from hashsolve.planes import Planes, add_blocks
from hashsolve.sums import SMALLEST_SQUARE, Sums
from hashsolve.threads import one_blas_thread, spread

_HIDDEN = 16
"""A channel with so many times the energy that some tap sees is summed without spectra."""
_TILE = 96  # channels
_JOBS = 8  # at least, however few tiles there are
_SCRATCH = 2**17  # numbers in the cross-spectra of a tile at a time
_ROUNDING = 16 * np.finfo(float).eps


class Room:
    """Buffers that threads take over from each other: memory that is new costs a pass over it."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[np.ndarray]] = {}

    @contextmanager
    def buffer(self, *shape: int) -> Iterator[np.ndarray]:
        """A buffer with anything in it, the caller's until it is given back."""
        free = self._free.setdefault(shape, [])
        try:
            found = free.pop()
        except IndexError:
            found = np.empty(shape)
        yield found
        free.append(found)

    def clear(self) -> None:
        """Drop them all."""
        self._free.clear()


class Spectra:
    """The spectra of maps (channels, samples, *sizes), and their correlations at given lags.

    Parameters
    ----------
    sizes : sequence of int
    lags : sequence of tuple of int
        One number an axis, each.
    channels : int
    """

    def __init__(self, sizes: Sequence[int], lags: Sequence[tuple[int, ...]], channels: int):
        self.lags = np.array(lags)
        self.channels = channels
        self.sizes = tuple(sizes)
        reach = np.abs(self.lags).max(axis=0)
        self.lengths = [int(size + lag) for size, lag in zip(sizes, reach, strict=True)]
        # frequencies of each axis, the last first: of that one half, as maps are real
        self.kept = (self.lengths[-1] // 2 + 1, *self.lengths[-2::-1])
        self.samples = 0
        self.room = Room()
        self._memory = np.empty(0)

    def reserve(self, samples: int) -> None:
        """Make room for maps of so many samples."""
        if samples != self.samples:
            self.samples = samples
            self.room.clear()
            shape = (prod(self.kept), self.channels, 2, samples)
            if self._memory.size < prod(shape):
                self._memory = np.empty(prod(shape))
            self.values = self._memory[: prod(shape)].reshape(shape)

    def bytes(self, samples: int) -> int:
        """Of the spectra of so many samples."""
        return 16 * prod(self.kept) * self.channels * samples

    @cached_property
    def matrices(self) -> list[np.ndarray]:
        """Of each axis, the last first: (frequencies, 2, size) of real maps and then, of what is
        complex, (frequencies, 2, 2 · size)."""
        result: list[np.ndarray] = []
        for size, length, kept in zip(self.sizes[::-1], self.lengths[::-1], self.kept, strict=True):
            angle = np.outer(np.arange(kept), np.arange(size)) % length * (2 * np.pi / length)
            real, imag = np.cos(angle), -np.sin(angle)
            if result:
                real, imag = np.hstack([real, -imag]), np.hstack([imag, real])
            result.append(np.stack([real, imag], axis=1))
        return result

    @cached_property
    def waves(self) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines of each lag at each frequency, times its share."""
        turns = np.zeros((len(self.lags), *self.kept))
        lengths = self.lengths[::-1]
        along = zip(np.indices(self.kept), lengths, self.lags.T[::-1], strict=True)
        for frequency, length, lag in along:
            turns += np.multiply.outer(lag, frequency) % length / length
        share = np.full(self.kept, 2.0 / prod(lengths))  # the other half are their conjugates
        share[0] /= 2
        if lengths[0] % 2 == 0:
            share[-1] /= 2
        cosine, sine = share * np.cos(2 * np.pi * turns), share * np.sin(2 * np.pi * turns)
        return cosine.reshape(len(self.lags), -1), sine.reshape(len(self.lags), -1)

    def transform(self, channel: int, maps: np.ndarray) -> None:
        """Set the spectra of a channel from its maps (samples, *sizes)."""
        dims = len(self.sizes)
        order = (*range(dims - 1, 0, -1), 0, dims)  # samples, then the last axis, behind others
        *first, last = self.matrices
        with ExitStack() as stack:
            found = stack.enter_context(self.room.buffer(*(maps.shape[n] for n in order)))
            found[...] = maps.transpose(order)
            found = found.reshape(-1, self.sizes[-1]).T[None]
            for matrix, size in zip(first, self.sizes[-2::-1], strict=True):
                shape = len(found), 2 * len(matrix), found.shape[2]
                out = stack.enter_context(self.room.buffer(*shape))
                np.matmul(matrix.reshape(2 * len(matrix), -1), found, out=out)
                found = out.reshape(len(found) * len(matrix), 2 * size, -1)
            target = self.values[:, channel].reshape(len(found), len(last), 2, self.samples)
            for part in range(2):
                np.matmul(last[:, part], found, out=target[:, :, part])

    def correlations(self) -> np.ndarray:
        """Σ x_c[p]·x_d[p + lag] over samples and positions, (lags, channels, channels)."""
        cuts = -(-self.channels // _TILE)
        edges = [self.channels * n // cuts for n in range(cuts + 1)]
        tiles = [
            (slice(*edges[i : i + 2]), slice(*edges[j : j + 2]))
            for i in range(cuts)
            for j in range(i, cuts)
        ]
        total = len(self.values)
        parts = min(total, -(-_JOBS // len(tiles)))
        jobs = [
            (number, *tile, total * n // parts, total * (n + 1) // parts)
            for number, (tile, n) in enumerate(product(tiles, range(parts)))
        ]
        most = (-(-self.channels // cuts)) ** 2
        result = np.zeros((len(self.lags), self.channels, self.channels))
        with self.room.buffer(len(jobs), 2, len(self.lags) * most) as found:
            spread(lambda job: self._tile(found[job[0]], *job[1:]), jobs)
            for number, i, j, *_ in jobs:
                shape = len(self.lags), i.stop - i.start, j.stop - j.start
                even, odd = (half[: prod(shape)].reshape(shape) for half in found[number])
                result[:, i, j] += even
                result[:, i, j] += odd
                if i != j:
                    even -= odd
                    result[:, j, i] += even.swapaxes(1, 2)
        return result

    def _tile(self, found: np.ndarray, i: slice, j: slice, first: int, last: int) -> None:
        """Set the even and the odd part in the lag, of a range of frequencies and one tile."""
        shape = (i.stop - i.start, j.stop - j.start)
        step = max(1, min(last - first, _SCRATCH // prod(shape)))
        found = found[:, : len(self.lags) * prod(shape)].reshape(2, len(self.lags), -1)
        found[...] = 0.0
        n = self.samples
        with (
            np.errstate(all="ignore"),
            self.room.buffer(3, step, *shape) as scratch,
            self.room.buffer(*found[0].shape) as part,
        ):
            for start in range(first, last, step):
                at = slice(start, min(start + step, last))
                real, imag, other = scratch[:, : at.stop - start]
                a = self.values[at, i].reshape(len(real), -1, 2 * n)
                b = self.values[at, j].reshape(len(real), -1, 2 * n).swapaxes(1, 2)
                np.matmul(a, b, out=real)
                np.matmul(a[..., n:], b[:, :n], out=imag)
                if i == j:
                    other[...] = imag.swapaxes(1, 2)
                else:
                    np.matmul(a[..., :n], b[:, n:], out=other)
                imag -= other
                for total, wave, values in zip(found, self.waves, (real, imag), strict=True):
                    total += np.matmul(wave[:, at], values.reshape(len(values), -1), out=part)


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
        axis = self._axis(cell)
        return sum(
            self._part(axis, at, cell.ranges, [0] * len(cell.lag))
            @ self._part(axis, at + cell.lag[axis], cell.ranges, cell.lag).T
            for at in range(*cell.ranges[axis])
        )

    def _part(self, axis: int, at: int, ranges: Sequence[Range], lag: Sequence[int]) -> np.ndarray:
        values = self.values[axis, at]
        moved = [slice(i + shift, j + shift) for (i, j), shift in zip(ranges, lag, strict=True)]
        del moved[axis]
        return values[(slice(None), *moved)].reshape(len(values), -1)


class SpectralSums:
    """The sums of one group of a convolution's channels.

    Parameters
    ----------
    plan : Plan
        One for which `Plan.one_phase` holds.
    weights : array (S, T)
        W of this group.
    asymmetric : bool
        Whether targets are those of other maps.
    name : str
        What the maps belong to, for error messages.
    """

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

    def _sum(self, streams: list[np.ndarray]) -> None:
        """Add the sums of a chunk."""
        count = len(streams[0])
        self.spectra.reserve(count)
        self.borders.reserve(count)
        inputs, energy = np.empty((2, *self.inputs.shape))

        def transform(channel: int) -> None:
            number, own = divmod(channel, self.channels)
            shape = (count, *self.plan.spatial)
            with np.errstate(all="ignore"), self.spectra.room.buffer(*shape) as maps:
                maps[...] = streams[number][:, own]
                inputs[channel] = maps.sum(axis=0)
                energy[channel] = np.einsum("n...,n...->...", maps, maps)
                filled = self._padded(maps[:, None])[:, 0]
                self.borders.keep(channel, filled)
                self.spectra.transform(channel, filled)

        spread(transform, range(len(inputs)))
        for number, stream in enumerate(streams):
            own = slice(number * self.channels, (number + 1) * self.channels)
            if not np.isfinite(inputs[own]).all():
                finite(stream, f"{self.name}: {('inputs', 'reference')[number]}")
            if energy[own].max() < SMALLEST_SQUARE:
                self.peaks[number] = max(self.peaks[number], np.abs(stream).max())
        self.inputs += inputs
        whole = self.spectra.correlations()

        def separate(k: int) -> None:
            _, *others = self.classes[k]
            with np.errstate(all="ignore"):
                for n in others:
                    part = self.borders.correlation(self.inner[n])
                    self.cells[n] += part
                    whole[k] -= part

        spread(separate, range(len(whole)))
        hidden = self._hidden(energy)
        if hidden.any():
            self._sum_directly(whole, hidden, np.concatenate(streams, axis=1))
        for part, (largest, *_) in zip(whole, self.classes, strict=True):
            self.cells[largest] += part

    def _padded(self, maps: np.ndarray) -> np.ndarray:
        if self.plan.pads is None:
            return maps
        return pad(maps, self.plan.pads, self.plan.geometry.padding_mode)

    def _hidden(self, energy: np.ndarray) -> np.ndarray:
        """Which channels have nearly all of their energy where some tap does not see it."""
        seen = Planes(self.plan, energy[None]).totals().min(axis=1)
        return self._padded(energy[None])[0].reshape(len(energy), -1).sum(axis=1) > _HIDDEN * seen

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
