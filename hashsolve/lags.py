"""Sums of a convolution without its patches: from correlations of its maps at each lag.

Two taps of a kernel see the same pairs of inputs as any other two at the same distance, but for
strips at the border. So the (k²)² blocks of H = X̂X̂ᵀ of a k×k kernel are sums of a few matrices
(channels, channels), each the product of the maps with themselves, shifted by one of (2k − 1)²
lags; half of those are the other half's transposes. With a stride, taps and lags are those of its
phases: maps of every s-th position.

Along one axis the taps at one lag see ranges of positions that overlap; the ends of those ranges
cut the axis into segments, and what a pair of taps sees is the sum over its segments. Nothing is
subtracted: an input that is zero wherever its tap sees it gets an exact zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf, prod
from typing import Any

from hashsolve.geometry import Geometry

Range = tuple[int, int]

# Measured on one core, in nanoseconds; only their ratios matter, and only for what is chosen.
_PER_FLOP, _THIN = 1 / 40, 8  # of a product, this much more where as thin as that
_PER_PATCH_ENTRY, _PER_COPY, _PER_CELL, _PER_PLAN = 2.7, 3.0, 15e3, 25e6
_MARGIN = 0.85  # share of the time of patches that is surely less
_LARGEST_SAMPLE = 32 * 2**20
_LARGEST_STATE = 128 * 2**20
_SHORT = 1.5  # the products of spectra, over few samples, cost this much more
_PER_MOMENT = 16  # a product's flops, in all that is made of it
SPECTRA = 5 * 2**22  # numbers in the spectra that are held at a time
_FEWEST_SAMPLES = 8
_MOST_TAPS, _FEWEST_CHANNELS = 64, 8  # no plan is made for others
_CHUNK = 2**18  # numbers in the maps that are summed at a time, so that they stay in the cache
_CHUNK_ROWS = (2048, 8192)
_WASTE = 1.15  # share of zero positions that costs less than to leave them out


@dataclass(frozen=True)
class Axis:
    """One spatial axis: which positions of its phases are filled, and which each tap sees.

    Tap t sees, of phase t·dilation mod stride, ``outputs`` positions from ``shifts[t]`` on.
    """

    before: int
    size: int
    outputs: int
    kernel: int
    stride: int
    dilation: int

    @cached_property
    def phases(self) -> list[int]:
        """Of each tap."""
        return [t * self.dilation % self.stride for t in range(self.kernel)]

    @cached_property
    def shifts(self) -> list[int]:
        """Of each tap."""
        return [t * self.dilation // self.stride for t in range(self.kernel)]

    @property
    def length(self) -> int:
        """Positions of a phase that some tap sees, padding included."""
        return self.outputs + self.shifts[-1]

    def filled(self, phase: int) -> Range:
        """The positions of a phase that hold values, not zeros."""
        ends = (ceil((end - phase) / self.stride) for end in (self.before, self.before + self.size))
        first, last = (min(max(end, 0), self.length) for end in ends)
        return first, last

    def overlap(self, a: int, b: int, lag: int) -> Range:
        """Positions p of phase a for which p and, in phase b, p + lag are filled."""
        (first, last), (other_first, other_last) = self.filled(a), self.filled(b)
        return max(first, other_first - lag), min(last, other_last - lag)

    def segments(self, a: int, b: int, lag: int) -> tuple[list[Range], dict[int, list[int]]]:
        """The cut of phase a into segments, and which of them each tap with this lag sees."""
        low, high = self.overlap(a, b, lag)
        seen = {}
        for tap, partner in itertools.product(range(self.kernel), repeat=2):
            if (self.phases[tap], self.phases[partner]) != (a, b):
                continue
            shift = self.shifts[tap]
            if self.shifts[partner] - shift == lag:
                seen[tap] = max(shift, low), min(shift + self.outputs, high)
        ranges = [r for r in seen.values() if r[0] < r[1]]
        ends = sorted({end for r in ranges for end in r})
        pieces = [
            (i, j)
            for i, j in itertools.pairwise(ends)
            if any(r[0] <= i and j <= r[1] for r in ranges)
        ]
        members = {
            tap: [n for n, (i, j) in enumerate(pieces) if r[0] <= i and j <= r[1]]
            for tap, r in seen.items()
        }
        return pieces, members

    def wraps(self, a: int, b: int, lag: int) -> bool:
        """Whether a filled position plus the lag comes round to a filled one of the next line."""
        (first, last), (other_first, other_last) = self.filled(a), self.filled(b)
        return last - 1 + lag - self.length >= other_first or first + lag + self.length < other_last


@dataclass(frozen=True)
class Cell:
    """Positions, a range an axis, over which phase a is multiplied with phase b, ``lag`` away."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    lag: tuple[int, ...]
    ranges: tuple[Range, ...]
    whole: bool
    """Whether all but the first axis may be taken as they lie in memory, zeros included."""

    @property
    def volume(self) -> int:
        """Positions."""
        return prod(j - i for i, j in self.ranges)


def plan_of(
    geometry: Geometry,
    spatial: Sequence[int],
    channels: int,
    targets: int,
    samples: int,
    shifted: bool,
) -> Plan | None:
    """A plan where it is faster than patches; else None.

    ``channels`` and ``targets`` are those of one group; the latter are 0 where only inputs are
    summed. ``shifted`` is whether something is added to targets.
    """
    fit = 2 <= prod(geometry.kernel) <= _MOST_TAPS and channels >= _FEWEST_CHANNELS
    if not fit or samples == 0:
        return None
    plan = Plan(geometry, spatial, samples)
    most = _MARGIN * plan.patches_cost(channels, targets)
    lags = plan.lags_cost(channels, targets)
    spectra = inf if shifted else plan.spectra_cost(channels, targets, samples)
    plan.spectral = spectra < lags
    return plan if min(lags, spectra) <= most else None


class Plan:
    """How the sums of a geometry over maps of one size are put together.

    Parameters
    ----------
    geometry : Geometry
        A convolution.
    spatial : sequence of int
        The size of its maps.
    total : int, optional
        Samples in all, where that is known: spectra are then held of equal parts of them.
    """

    def __init__(self, geometry: Geometry, spatial: Sequence[int], total: int = 0):
        self.geometry = geometry
        self.total = total
        self.spatial = tuple(spatial)
        outputs = geometry.output(spatial)
        pads = geometry.padded(spatial)
        self.pads: tuple | None = None
        if geometry.padding_mode != "zeros" and any(pad != (0, 0) for pad in pads):
            self.pads = ((0, 0), (0, 0), *pads)
            spatial = [size + sum(pad) for size, pad in zip(spatial, pads, strict=True)]
            pads = ((0, 0),) * len(spatial)
        g = geometry
        each = zip(pads, spatial, outputs, g.kernel, g.stride, g.dilation, strict=True)
        self.axes = [Axis(pad[0], *rest) for pad, *rest in each]
        self.taps = list(itertools.product(*map(range, geometry.kernel)))
        self.cells: list[Cell] = []
        self.uses: list[tuple[int, int, int]] = []  # tap, tap, cell
        self.squares: list[int] = []  # cells in which inputs are multiplied with themselves
        self.spectral = False  # whether to sum by spectra: `hashsolve.spectra`
        self.shared: Any = None  # what the sums of groups by spectra have in common
        self._cut()
        self.margin = sum(
            axis.shifts[-1] * prod(other.length for other in self.axes[i + 1 :])
            for i, axis in enumerate(self.axes)
            if i > 0
        )

    def phase(self, tap: tuple[int, ...]) -> tuple[int, ...]:
        """The phase along each axis that a tap sees."""
        return tuple(axis.phases[t] for axis, t in zip(self.axes, tap, strict=True))

    def shift(self, tap: tuple[int, ...]) -> tuple[int, ...]:
        """The first position along each axis that a tap sees."""
        return tuple(axis.shifts[t] for axis, t in zip(self.axes, tap, strict=True))

    def _cut(self) -> None:
        """Find the cells, and which of them the block of H of each pair of taps is the sum of."""
        key = [(self.phase(tap), self.shift(tap)) for tap in self.taps]
        order = sorted(range(len(self.taps)), key=key.__getitem__)
        classes: dict[tuple, list[tuple[int, int]]] = {}
        for i, j in itertools.combinations_with_replacement(order, 2):
            (a, start), (b, end) = key[i], key[j]
            lag = tuple(q - p for p, q in zip(start, end, strict=True))
            classes.setdefault((a, b, lag), []).append((i, j))
        for (a, b, lag), pairs in classes.items():
            along = list(zip(self.axes, a, b, lag, strict=True))
            cuts = [axis.segments(*which) for axis, *which in along]
            numbers = {}
            for index in itertools.product(*(range(len(pieces)) for pieces, _ in cuts)):
                ranges = tuple(pieces[n] for n, (pieces, _) in zip(index, cuts, strict=True))
                whole = all(
                    r == axis.overlap(*which) and not axis.wraps(*which)
                    for r, (axis, *which) in zip(ranges[1:], along[1:], strict=True)
                ) and prod(axis.length for axis in self.axes[1:]) <= _WASTE * prod(
                    r[1] - r[0] for r in ranges[1:]
                )
                numbers[index] = len(self.cells)
                if a == b and not any(lag):
                    self.squares.append(len(self.cells))
                self.cells.append(Cell(a, b, lag, ranges, whole))
            for i, j in pairs:
                members = [cut[1][t] for cut, t in zip(cuts, self.taps[i], strict=True)]
                self.uses += [(i, j, numbers[index]) for index in itertools.product(*members)]

    def patches_cost(self, channels: int, targets: int) -> float:
        """Of the sums of a sample over patches; see `plan_of`."""
        outputs, taps = prod(axis.outputs for axis in self.axes), len(self.taps)
        flops = (taps * channels) ** 2 * outputs + self._targets_flops(channels, targets)
        streams = 2 if targets else 1
        return flops * _PER_FLOP + streams * taps * channels * outputs * _PER_PATCH_ENTRY

    def _targets_flops(self, channels: int, targets: int) -> float:
        """Flops that make targets and multiply inputs with them, for a sample."""
        return 4 * len(self.taps) * channels * targets * prod(axis.outputs for axis in self.axes)

    def lags_cost(self, channels: int, targets: int) -> float:
        """Of the sums of a sample by lags; infinite where they take too much memory."""
        size = prod(axis.length for axis in self.axes)
        if 8 * channels * size > _LARGEST_SAMPLE or len(self.cells) > 2 * len(self.taps) ** 2:
            return inf
        outputs, taps = prod(axis.outputs for axis in self.axes), len(self.taps)
        streams = 2 if targets else 1
        flops = 2 * channels**2 * self._multiplied_rows() * (1 + _THIN / channels)
        flops += self._targets_flops(channels, targets) * (
            1 + _THIN / min(channels, targets or channels)
        )
        copied = channels * (streams * size + self._copied_rows()) + taps * targets * outputs
        cells = _PER_CELL * (len(self.cells) + 2 * taps * (streams - 1)) / self.samples(channels)
        return flops * _PER_FLOP + copied * _PER_COPY + cells

    def spectra_cost(self, channels: int, targets: int, samples: int) -> float:
        """Of the sums of a sample by spectra, of so many; infinite where these cannot be had."""
        size = channels * (2 if targets else 1)
        chunk = min(self.spectral_samples(size), samples)
        if not self.one_phase() or self._most_samples(size) < _FEWEST_SAMPLES:
            return inf
        if 16 * len(self.cells) * size**2 > _LARGEST_STATE:
            return inf
        values = prod(axis.size for axis in self.axes)
        flops, copied = 0.0, 2.0 * values
        for n, axis in enumerate(self.axes[::-1]):
            length = axis.size + axis.shifts[-1]
            made = length if n else 2 * (length // 2 + 1)  # from numbers that are real at first
            flops += size * values * 2 * made * (2 if n else 1)
            values = values // axis.size * made
            copied += values
        lags = {cell.lag: 0 for cell in self.cells}
        for cell in self.cells:
            lags[cell.lag] = max(lags[cell.lag], cell.volume)
        thin = sum(cell.volume for cell in self.cells) - sum(lags.values())
        pairs = 3 * self._frequencies() * (1 + _PER_MOMENT / chunk) * _SHORT + 2 * thin
        flops += size**2 * pairs * (1 + _THIN / size)
        cells = _PER_CELL * len(self.cells) / chunk
        once = 4 * (len(self.taps) * channels) ** 2 * targets * _PER_FLOP
        once += (len(self.taps) * size) ** 2 * _PER_COPY + _PER_PLAN
        return flops * _PER_FLOP + size * copied * _PER_COPY + cells + once / samples

    def one_phase(self) -> bool:
        """Whether the cells of a lag make up all that it multiplies, of phases that are all one."""
        if any(stride > 1 for stride in self.geometry.stride):
            return False
        volumes: dict[tuple[int, ...], int] = {}
        for cell in self.cells:
            volumes[cell.lag] = volumes.get(cell.lag, 0) + cell.volume
        return all(
            volume
            == prod(
                j - i
                for axis, along in zip(self.axes, lag, strict=True)
                for i, j in [axis.overlap(0, 0, along)]
            )
            for lag, volume in volumes.items()
        )

    def _frequencies(self) -> int:
        *others, last = (axis.size + axis.shifts[-1] for axis in self.axes)
        return prod(others) * (last // 2 + 1)

    def spectral_samples(self, channels: int) -> int:
        """Samples whose spectra are held at a time: a fixed cut, as maps of all groups are read."""
        most = self._most_samples(channels)
        even = -(-self.total // max(1, -(-self.total // most)))
        return min(most, -(-even // 8) * 8) if even else most

    def _most_samples(self, channels: int) -> int:
        """Samples whose spectra there is room for."""
        samples = SPECTRA // (2 * self._frequencies() * channels * self.geometry.groups)
        return samples - samples % 8 if samples > 8 else max(1, samples)

    def _multiplied_rows(self) -> float:
        """Rows of all products of one sample; half of them for those that are symmetric."""
        across = prod(axis.length for axis in self.axes[1:])
        rows = 0.0
        for n, cell in enumerate(self.cells):
            first, *rest = (j - i for i, j in cell.ranges)
            rows += (
                first * (across if cell.whole else prod(rest)) * (0.5 if n in self.squares else 1)
            )
        return rows

    def _copied_rows(self) -> int:
        """Positions of one sample that are copied for cells that cannot be taken as they lie."""
        parts = set()
        for cell in self.cells:
            if not cell.whole:
                moved = (
                    (i + lag, j + lag) for (i, j), lag in zip(cell.ranges, cell.lag, strict=True)
                )
                parts |= {(cell.a, cell.ranges[1:]), (cell.b, tuple(moved)[1:])}
        return sum(self.axes[0].length * prod(j - i for i, j in rest) for _, rest in parts)

    def samples(self, channels: int) -> int:
        """Samples to sum at a time: a fixed cut."""
        low, high = _CHUNK_ROWS
        rows = min(max(_CHUNK // channels, low), high)
        return max(1, rows // prod(axis.length for axis in self.axes))
