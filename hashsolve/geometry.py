"""Geometry: how a layer's feature maps become the rows (patches) it multiplies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad(maps: np.ndarray, widths: Sequence[tuple[int, int]], mode: str) -> np.ndarray:
    """Maps with (before, after) added along each axis, in a `padding_mode`."""
    kind: Any = PAD_MODES[mode]
    return np.pad(maps, widths, mode=kind)


@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution in 1, 2 or 3 dimensions, or of a linear layer.

    Feature maps are (n, channels, *spatial); a linear layer's are (n, ..., features).

    Attributes
    ----------
    kernel : tuple of int
        Size along each spatial axis; () for a linear layer.
    stride, dilation : tuple of int
    padding : tuple of (before, after), or "same"
        "same" gives ceil(size / stride) outputs, the odd one behind.
    groups : int
        Channels are cut into so many groups, each with filters of its own.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}

    Examples
    --------
    >>> g = Geometry.conv(kernel=(3, 3), stride=2, padding=1)
    >>> g.output((32, 32))
    (16, 16)
    >>> import numpy as np
    >>> g.patches(np.ones((2, 4, 32, 32))).shape  # (S, rows) = (4·3·3, 2·16·16)
    (36, 512)
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    @classmethod
    def conv(
        cls,
        kernel: Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[Any] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> Geometry:
        """A convolution; numbers stand for all axes.

        Parameters
        ----------
        kernel : sequence of int
            One size an axis.
        stride : int, or one an axis
        padding : int, "same", "valid", or one int or (before, after) per axis
        dilation : int, or one an axis
        groups : int
        padding_mode : {"zeros", "reflect", "replicate", "circular"}

        Raises
        ------
        ValueError
            Naming what does not fit.
        """
        kernel = tuple(int(k) for k in kernel)
        dims = len(kernel)
        if dims not in (1, 2, 3):
            raise ValueError(f"kernel: 1, 2 or 3 dimensions, got {kernel}")

        def each(value: Any, name: str) -> tuple:
            values = (value,) * dims if np.ndim(value) == 0 else tuple(value)
            if len(values) != dims:
                raise ValueError(f"{name}: {value!r} does not fit a kernel of {dims} dimensions")
            return values

        if padding == "valid":
            padding = 0
        if isinstance(padding, str):
            if padding != "same":
                raise ValueError(f"padding: {padding!r} is neither 'same', 'valid' nor numbers")
            pads: Any = "same"
        else:
            pairs = ((p, p) if np.ndim(p) == 0 else tuple(p) for p in each(padding, "padding"))
            pads = tuple((int(a), int(b)) for a, b in pairs)
            if min(min(pair) for pair in pads) < 0:
                raise ValueError(f"padding: negative, {padding!r}")
        result = cls(
            kernel=kernel,
            stride=tuple(int(s) for s in each(stride, "stride")),
            padding=pads,
            dilation=tuple(int(d) for d in each(dilation, "dilation")),
            groups=int(groups),
            padding_mode=padding_mode,
        )
        if min(*result.kernel, *result.stride, *result.dilation, result.groups) < 1:
            raise ValueError(f"{result}: sizes, strides, dilations and groups must be >= 1")
        if padding_mode not in PAD_MODES:
            raise ValueError(f"padding_mode: {padding_mode!r} is not one of {', '.join(PAD_MODES)}")
        return result

    @property
    def linear(self) -> bool:
        """Whether this is a linear layer."""
        return not self.kernel

    def padded(self, spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The padding (before, after) along each axis for maps of this size."""
        if not isinstance(self.padding, str):
            return self.padding
        pads = []
        for size, k, s, d in zip(spatial, self.kernel, self.stride, self.dilation, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            pads.append((total // 2, total - total // 2))
        return tuple(pads)

    def output(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Output positions along each axis.

        Parameters
        ----------
        spatial : sequence of int
            The maps' size along each axis.
        """
        sizes = []
        for axis, (before, after) in enumerate(self.padded(spatial)):
            reach = (self.kernel[axis] - 1) * self.dilation[axis] + 1
            size = (spatial[axis] + before + after - reach) // self.stride[axis] + 1
            if size < 1:
                raise ValueError(
                    f"maps of size {tuple(spatial)} are smaller than the kernel {self.kernel} "
                    f"(padding {self.padding}, dilation {self.dilation})"
                )
            sizes.append(size)
        return tuple(sizes)

    def samples(self, maps: np.ndarray) -> np.ndarray:
        """Maps as they are cached: a linear layer's leading axes become one.

        Parameters
        ----------
        maps : array (n, channels, *spatial) or (n, ..., features)
        """
        if self.linear:
            return maps.reshape(-1, maps.shape[-1])
        if maps.ndim != 2 + len(self.kernel):
            wanted = ", ".join(["samples", "channels", *"DHW"[-len(self.kernel) :]])
            raise ValueError(
                f"a convolution's inputs must be ({wanted}), got shape {maps.shape}; check the "
                "shape of the calibration data"
            )
        return maps

    def rows(self, shape: Sequence[int]) -> int:
        """Rows that maps make.

        Parameters
        ----------
        shape : sequence of int
            Of maps as `samples` gives them.
        """
        return shape[0] if self.linear else shape[0] * int(np.prod(self.output(shape[2:])))

    def patches(
        self,
        maps: np.ndarray,
        group: int = 0,
        lines: slice | None = None,
        dtype: type = np.float64,
    ) -> np.ndarray:
        """The rows of one group as columns of a matrix (S, rows).

        Parameters
        ----------
        maps : array (n, channels, *spatial) or, for a linear layer, (n, features)
        group : int
        lines : slice, optional
            Only these output positions along the first spatial axis.
        dtype : type
            Of the matrix; other than float64, a linear layer's is not copied where it is that.

        Returns
        -------
        array (S, rows)
            Inputs in the order of ``weight.reshape(T, S)``: channel, then kernel position. Rows
            in the order of samples, then output positions.
        """
        maps = self.samples(maps)
        channels = maps.shape[-1 if self.linear else 1]
        if channels % self.groups:
            raise ValueError(f"{channels} channels do not divide into {self.groups} groups")
        share = channels // self.groups
        if self.linear:
            part = maps[:, group * share : (group + 1) * share]
            return part.T.astype(dtype, order="C" if dtype == np.float64 else "K", copy=False)
        maps = maps[:, group * share : (group + 1) * share]
        positions = self.output(maps.shape[2:])
        first, last, _ = (lines or slice(None)).indices(positions[0])
        shape = (last - first, *positions[1:])
        pads = ((0, 0), (0, 0), *self.padded(maps.shape[2:]))
        if any(pad != (0, 0) for pad in pads):
            maps = pad(maps, pads, self.padding_mode)
        origin = (first, *(0 for _ in positions[1:]))
        result = np.empty((share, *self.kernel, maps.shape[0], *shape), dtype)
        for tap in itertools.product(*map(range, self.kernel)):
            window: list[Any] = list(
                slice(t * d + o * s, t * d + (o + n - 1) * s + 1, s)
                for t, d, s, o, n in zip(
                    tap, self.dilation, self.stride, origin, shape, strict=True
                )
            )
            into: tuple[Any, ...] = (slice(None), *tap)
            result[into] = maps[:, :, *window].swapaxes(0, 1)
        return result.reshape(share * int(np.prod(self.kernel)), -1)

    def blocks(self, shape: Sequence[int], max_rows: int) -> Iterator[tuple[slice, slice]]:
        """Cut maps into (samples, lines) of few rows each.

        The cut depends on nothing else, so that sums over it are reproducible. One line (one
        output position of the first spatial axis of one sample) is never cut.

        Parameters
        ----------
        shape : sequence of int
            Of maps as `samples` gives them.
        max_rows : int
            Of a block, at most, unless a line has more.

        Yields
        ------
        (slice, slice)
            Samples, and lines of each.
        """
        if self.linear:
            for start in range(0, shape[0], max_rows):
                yield slice(start, min(start + max_rows, shape[0])), slice(None)
            return
        positions = self.output(shape[2:])
        per_line = int(np.prod(positions[1:]))
        per_sample = positions[0] * per_line
        if per_sample <= max_rows:
            step = max_rows // per_sample
            for start in range(0, shape[0], step):
                yield slice(start, min(start + step, shape[0])), slice(None)
            return
        step = max(1, max_rows // per_line)
        for sample, line in itertools.product(range(shape[0]), range(0, positions[0], step)):
            yield slice(sample, sample + 1), slice(line, min(line + step, positions[0]))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
