"""Network: the protocol an adapter implements for its framework; Layer, what it says of a layer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hashsolve.geometry import Geometry


@dataclass(frozen=True)
class Layer:
    """A layer that can be binarised.

    Attributes
    ----------
    name : str
        Its dotted name.
    geometry : Geometry
        Kernel, stride, padding, dilation, groups; or linear.
    shape : tuple of int
        Of its weight: (filters, channels / groups, *kernel) or (filters, features).
    calls : int
        How often one forward pass reaches it.
    shares : str or None
        The name of an earlier layer that holds the very same weight.
    bits : int
        Bits of one full-precision weight.
    """

    name: str
    geometry: Geometry
    shape: tuple[int, ...]
    calls: int = 1
    shares: str | None = None
    bits: int = 32

    @property
    def fan_in(self) -> int:
        """Inputs of one filter, S."""
        return int(np.prod(self.shape[1:]))


@runtime_checkable
class Network(Protocol):
    """What the layer-by-layer driver needs of a network, whatever its framework.

    A batch is whatever the calibration yields; only the adapter looks inside.
    """

    def layers(self, batch: Any) -> Sequence[Layer]:
        """All layers of the kinds that can be binarised, in the order in which one forward pass
        of ``batch`` reaches them; those it does not reach come last, with ``calls=0``. A run begins
        with this call, in full precision: weights that an earlier run has written are put back."""

    def weight(self, name: str) -> np.ndarray:
        """The full-precision weight of a layer, also after `write`: (filters, channels / groups,
        *kernel) or (filters, features)."""

    def layer_input(self, name: str, batch: Any, *, binarized: bool) -> np.ndarray:
        """The input of a layer for one batch, (n, channels, *spatial) or (n, ..., features): from
        the network with all written layers binarised, or from the full-precision network."""

    def write(self, name: str, weight: np.ndarray) -> None:
        """Replace a layer's weight in the network; `weight` still gives the full-precision one."""

    def state(self) -> Any:
        """Everything else that shapes activations (biases, normalisation, skipped layers, and the
        full-precision weights): arrays in mappings, for the fingerprint of a run."""


def select(layers: Sequence[Layer], skip: Iterable[str] = ()) -> list[Layer]:
    """The layers to binarise: all but those that ``skip`` names.

    Parameters
    ----------
    layers : sequence of Layer
    skip : iterable of str
        Whole dotted names or globs: "conv1" is not "layer1.0.conv1"; "layer3.*" is all of layer3.

    Raises
    ------
    ValueError
        Where a name matches no layer, nothing is left, or a selected layer is not reached, is
        reached more than once, or shares its weight with another.

    Examples
    --------
    >>> layers = [Layer(name, Geometry(), (2, 3)) for name in ("conv1", "layer1.0.conv1", "fc")]
    >>> [layer.name for layer in select(layers, skip=["conv1", "f*"])]
    ['layer1.0.conv1']
    """
    if isinstance(skip, str):
        skip = (skip,)
    names = [layer.name for layer in layers]
    skipped = set()
    for pattern in skip:
        matches = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; layers: {', '.join(names)}"
            raise ValueError(f"skip: {pattern!r} matches no layer{hint}")
        skipped |= matches
    selected = [layer for layer in layers if layer.name not in skipped]
    if not selected:
        raise ValueError(
            "no layer to binarise: "
            + ("every layer is skipped" if layers else "the network has no convolution or linear")
        )
    for layer in selected:
        if layer.calls == 0:
            problem = "is not reached by the calibration data"
        elif layer.calls > 1:
            problem = f"is reached {layer.calls} times in one forward pass"
        elif layer.shares is not None:
            problem = f"shares its weight with {layer.shares}"
        elif any(other.shares == layer.name for other in layers):
            sharer = next(other.name for other in layers if other.shares == layer.name)
            problem = f"shares its weight with {sharer}"
        else:
            continue
        raise ValueError(f"layer {layer.name} {problem}: add it to skip")
    return selected
