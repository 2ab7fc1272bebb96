"""Spectra of maps, and their correlations at all lags at once.

Σ x[p]·z[p + lag] over all positions is, for every pair of channels, the inverse transform of the
cross-spectrum. Per frequency that is one product (channels, samples) with its own transpose, which
costs about as much as one lag does. Only a few lags are wanted, so the inverse is a small product
too; and maps are small, so that the transforms are products with cosines and sines, which leave
their results frequency by frequency as the next step needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import product
from math import prod

import numpy as np

from hashsolve.threads import spread

_TILE = 96  # channels
_JOBS = 8  # at least, however few tiles there are
_SCRATCH = 2**17  # numbers in the cross-spectra of a tile at a time


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
