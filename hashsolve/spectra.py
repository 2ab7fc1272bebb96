"""Spectra of maps, and their correlations at all lags at once.

Σ x[p]·z[p + lag] over all positions is, for every pair of channels, the inverse transform of the
cross-spectrum. Of a spectrum R + iI the two real numbers P = R + I and Q = R − I are kept. Then
PQᵀ = (RRᵀ − IIᵀ) + (IRᵀ − RIᵀ): what is symmetric, and what changes its sign when transposed. With
(P + Q)(P + Q)ᵀ = 4RRᵀ, which is half the work, they make the cross-spectra of all pairs:

    RRᵀ + IIᵀ = ((P + Q)(P + Q)ᵀ − PQᵀ − QPᵀ) / 2        IRᵀ − RIᵀ = (PQᵀ − QPᵀ) / 2

Only a few lags are wanted, so the inverse is a small product, an axis at a time; and maps are
small, so that the transforms are products with cosines and sines, which leave their results
frequency by frequency as the next step needs them.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import combinations_with_replacement, product
from math import prod
from typing import ClassVar

import numpy as np

from hashsolve.threads import spread

_TILE = 192  # channels
_ROWS = 16  # of a tile, inverted at a time
_HELD = 2**22  # numbers in the moments of tiles at a time
_GAP = 24  # numbers between spectra: a power of two apart, they push each other out of the cache


class _Spare:
    """The memory that spectra have left to the next ones, one array, and who wants that kept."""

    lock = threading.Lock()
    holders = 0
    arrays: ClassVar[list[np.ndarray]] = []


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within this, spectra leave their memory to the next ones: where it is new, it may cost more
    time than the transforms. May be nested; the last one out drops it."""
    with _Spare.lock:
        _Spare.holders += 1
    try:
        yield
    finally:
        with _Spare.lock:
            _Spare.holders -= 1
            if _Spare.holders == 0:
                _Spare.arrays.clear()


def forget() -> None:
    """Drop what is kept now, and give the system back what is free: the C library would keep some
    of it, as much as a large H."""
    with _Spare.lock:
        _Spare.arrays.clear()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(ctypes.c_size_t(0))  # glibc's


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
        self.shape = self.sizes = tuple(sizes)
        if len(sizes) == 1:  # frequencies of the last axis are spread over the cores
            self.sizes, self.lags = (1, *sizes), np.insert(self.lags, 0, 0, axis=1)
        reach = np.abs(self.lags).max(axis=0)
        self.lengths = [int(size + lag) for size, lag in zip(self.sizes, reach, strict=True)]
        # frequencies of each axis, the last first: of that one half, as maps are real
        self.kept = (self.lengths[-1] // 2 + 1, *self.lengths[-2::-1])
        self.samples = 0
        self.room = Room()
        self.values: np.ndarray = np.empty(0)
        self._memory: np.ndarray = np.empty(0)
        with _Spare.lock:
            if _Spare.arrays:
                self._memory = _Spare.arrays.pop()

    def reserve(self, samples: int) -> None:
        """Make room for maps of so many samples."""
        if samples != self.samples:
            self.samples = samples
            self.room.clear()
            numbers = self.channels * samples
            shape = 2 * prod(self.kept), numbers + _GAP
            if self._memory.size < prod(shape):
                self.values = self._memory = np.empty(0)  # before there is more
                self._memory = np.empty(prod(shape))
            lines = self._memory[: prod(shape)].reshape(shape)[:, :numbers]
            self.values = lines.reshape(prod(self.kept), 2, self.channels, samples)

    def leave(self) -> None:
        """Leave the memory to the next ones, within `kept_memory`. It is gone from these."""
        with _Spare.lock:
            if _Spare.holders:
                _Spare.arrays[:] = [self._memory]
        del self._memory, self.values

    def bytes(self, samples: int) -> int:
        """Of the spectra of so many samples."""
        return 16 * prod(self.kept) * self.channels * samples

    @cached_property
    def matrices(self) -> list[np.ndarray]:
        """Of each axis, the last first: (2 · frequencies, size) of real maps and then, of what is
        complex, (2 · frequencies, 2 · size). They make R and I by turns, the last P and Q."""
        result: list[np.ndarray] = []
        for size, length, kept in zip(self.sizes[::-1], self.lengths[::-1], self.kept, strict=True):
            angle = np.outer(np.arange(kept), np.arange(size)) % length * (2 * np.pi / length)
            real, imag = np.cos(angle), -np.sin(angle)
            if result:
                real, imag = np.hstack([real, -imag]), np.hstack([imag, real])
            if len(result) == len(self.sizes) - 1:
                real, imag = real + imag, real - imag
            result.append(np.stack([real, imag], axis=1).reshape(2 * kept, -1))
        return result

    @cached_property
    def moments(self) -> np.ndarray:
        """Cosines of the lags 0, 1, … along the first axis, then sines of 1, 2, …; (M,
        frequencies)."""
        lags = np.arange(np.abs(self.lags[:, 0]).max() + 1)
        turns = np.outer(lags, np.arange(self.kept[-1])) % self.lengths[0] / self.lengths[0]
        return np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns[1:])])

    @cached_property
    def halved(self) -> np.ndarray:
        """`moments` of a line of which one half are conjugates of the other."""
        size = self.kept[-1]
        share = np.full(size // 2 + 1, 2.0)
        share[0] = 1.0
        if size % 2 == 0:
            share[-1] = 1.0
        return self.moments[:, : len(share)] * share

    @cached_property
    def twins(self) -> np.ndarray:
        """Lines of frequencies of which one half are conjugates of the other."""
        alone = [
            2 * np.arange(kept) % length == 0
            for kept, length in zip(self.kept[:-1], self.lengths[:0:-1], strict=True)
        ]
        return np.array([all(each) for each in product(*alone)])

    @cached_property
    def waves(self) -> np.ndarray:
        """What makes cosines and sines of each lag of the moments at each frequency of the other
        axes, times half of their weight: (2, lags, frequencies, M)."""
        others = self.kept[:-1]
        turns = np.zeros((len(self.lags), *others))
        along = zip(np.indices(others), self.lengths[:0:-1], self.lags.T[:0:-1], strict=True)
        for frequency, length, lag in along:
            turns += np.multiply.outer(lag, frequency) % length / length
        share = np.full(others, 1.0 / prod(self.lengths))  # the other half are their conjugates
        share[0] /= 2
        if self.lengths[-1] % 2 == 0:
            share[-1] /= 2
        wave = (share * np.exp(2j * np.pi * turns)).reshape(len(self.lags), -1)
        result = np.zeros((2, *wave.shape, len(self.moments)))
        for n, lag in enumerate(self.lags[:, 0]):
            cosine, sine = abs(lag), len(self.moments) // 2 + abs(lag)
            result[0, n, :, cosine], result[1, n, :, cosine] = wave[n].real, wave[n].imag
            if lag:
                turned = np.sign(lag) * wave[n]
                result[0, n, :, sine], result[1, n, :, sine] = -turned.imag, turned.real
        return result

    def transform(self, channel: int, maps: np.ndarray) -> None:
        """Set the spectra of a channel from its maps (samples, *sizes)."""
        first, *middle, last = self.matrices
        dims, (size, *sizes) = len(self.sizes), self.sizes[-2::-1]
        lines = maps.reshape(-1, *self.sizes).transpose(*range(dims - 1, 0, -1), dims, 0)
        with ExitStack() as stack:

            def buffer(*shape: int) -> np.ndarray:
                return stack.enter_context(self.room.buffer(*shape))

            out = buffer(len(first), *lines.shape[:-2], self.samples)
            np.matmul(first, lines, out=np.moveaxis(out, 0, -2))  # turns samples to the end
            found = out.reshape(len(first) // 2, 2 * size, -1)
            for matrix, size in zip(middle, sizes, strict=True):
                out = buffer(len(found), len(matrix), found.shape[2])
                np.matmul(matrix, found, out=out)
                found = out.reshape(len(found) * len(matrix) // 2, 2 * size, -1)
            values = self.values.reshape(len(found), len(last), self.channels, self.samples)
            np.matmul(last, found, out=values[:, :, channel])

    def correlations(self, out: np.ndarray) -> None:
        """Set ``out`` (lags, channels, channels): Σ x_c[p]·x_d[p + lag] over samples and
        positions."""
        cuts = -(-self.channels // _TILE)
        edges = [self.channels * n // cuts for n in range(cuts + 1)]
        blocks = [slice(*edges[n : n + 2]) for n in range(cuts)]
        tiles = list(combinations_with_replacement(blocks, 2))
        lines, most = prod(self.kept[:-1]), -(-self.channels // cuts)
        shape = 2, lines, len(self.moments), most * most
        held = min(len(tiles), max(1, _HELD // prod(shape)))
        with self.room.buffer(held, *shape) as found:
            for start in range(0, len(tiles), held):
                parts = list(zip(tiles[start : start + held], found, strict=False))
                multiplied = [(*part, line) for part, line in product(parts, range(lines))]
                spread(lambda job: self._multiply(*job), multiplied)
                rows = range(0, most, _ROWS)
                inverted = [(*part, row, out) for part, row in product(parts, rows)]
                spread(lambda job: self._invert(*job), inverted)

    def _multiply(self, tile: tuple[slice, slice], found: np.ndarray, line: int) -> None:
        """Set the moments of a tile of the cross-spectra, real and imaginary parts times two, along
        a line of frequencies."""
        (i, j), each, count = tile, self.kept[-1], len(self.moments)
        matrix = self.halved if self.twins[line] else self.moments
        rows, columns = i.stop - i.start, j.stop - j.start
        shapes = [(rows, columns)] * 2 + [(columns, rows)] * (i != j)
        with (
            np.errstate(all="ignore"),
            self.room.buffer(len(shapes), each, found.shape[-1]) as products,
            self.room.buffer(count, found.shape[-1]) as spare,
            self.room.buffer(*self.values.shape[2:]) as total,
        ):
            size = matrix.shape[1]
            flat = products[:, :size, : rows * columns]
            made = [part.reshape(size, *shape) for part, shape in zip(flat, shapes, strict=True)]
            spectra = self.values[line * each : line * each + size]
            for (p, q), *into in zip(spectra, *made, strict=True):
                for own in {i.start: i, j.start: j}.values():
                    np.add(p[own], q[own], out=total[own])
                np.matmul(total[i], total[j].T, out=into[0])
                np.matmul(p[i], q[j].T, out=into[1])
                if i != j:
                    np.matmul(p[j], q[i].T, out=into[2])
            outs = [out[:, : rows * columns] for out in (*found[:, line], spare)]
            real, imag, *other = (
                np.matmul(matrix, part, out=out).reshape(count, *shape)
                for part, out, shape in zip(flat, outs, shapes, strict=False)
            )
            turned = (other[0] if other else imag).swapaxes(1, 2)
            real -= imag
            real -= turned
            imag -= turned

    def _invert(
        self, tile: tuple[slice, slice], found: np.ndarray, start: int, out: np.ndarray
    ) -> None:
        """Set a tile of the correlations, from some of its rows on."""
        i, j = tile
        rows = slice(i.start + start, min(i.start + start + _ROWS, i.stop))
        columns = j.stop - j.start
        cut = slice(start * columns, (rows.stop - i.start) * columns)
        waves = self.waves.reshape(2, len(self.lags), -1)
        flat = found.reshape(2, -1, found.shape[-1])[:, :, cut]
        with np.errstate(all="ignore"):
            even, odd = (waves @ flat).reshape(2, len(self.lags), -1, columns)
            np.add(even, odd, out=out[:, rows, j])
            if i != j:
                out[:, j, rows] = (even - odd).swapaxes(1, 2)
