"""Network: the protocol an adapter implements for its framework; Layer, what it says of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hashsolve.geometry import Geometry
from hashsolve.suggest import did_you_mean


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
    shortcut : str or None
        What is added to its output further on, in words, where the network can show it
        (`ResidualNetwork`).
    constant : str or None
        What would take up a constant for each filter, in words: its bias, the normalisation
        behind it. None: nothing would.
    layout : str
        How the weight lies in memory, where not as ``shape`` says: layers that share it agree.
    """

    name: str
    geometry: Geometry
    shape: tuple[int, ...]
    calls: int = 1
    shares: str | None = None
    bits: int = 32
    shortcut: str | None = None
    constant: str | None = None
    layout: str = ""

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
        """All layers of the kinds that can be binarised.

        A run begins with this call, in full precision: weights that an earlier run has written
        are put back.

        Parameters
        ----------
        batch
            One of the calibration.

        Returns
        -------
        sequence of Layer
            In the order in which one forward pass of the batch reaches them; those it does not
            reach come last, with ``calls=0``.
        """

    def weight(self, name: str) -> np.ndarray:
        """The full-precision weight of a layer, also after `write`.

        Parameters
        ----------
        name : str

        Returns
        -------
        array (filters, channels / groups, *kernel) or (filters, features)
        """

    def layer_input(
        self, name: str, batch: Any, *, binarized: bool
    ) -> np.ndarray | Sequence[np.ndarray]:
        """The input of a layer for one batch.

        Parameters
        ----------
        name : str
        batch
            One of the calibration.
        binarized : bool
            Whether from the network with all written layers binarised, or from the full-precision
            network.

        Returns
        -------
        array (n, channels, *spatial) or (n, ..., features)
            Of a layer that a pass reaches several times, a list with the input of each call, in
            order.
        """

    def write(self, name: str, weight: np.ndarray) -> None:
        """Replace a layer's weight in the network; `weight` still gives the full-precision one.

        For layers with a ``constant`` there may be a keyword ``constant``, (filters,): what to add
        to the layer's outputs beside its full-precision bias. Without it nothing is added.

        Parameters
        ----------
        name : str
        weight : array
            In the shape that `weight` gives.
        """

    def state(self) -> Any:
        """Everything else that shapes activations, for the fingerprint of a run.

        Returns
        -------
        arrays in mappings
            Biases, normalisation, skipped layers, and the full-precision weights.
        """


@runtime_checkable
class ResidualNetwork(Network, Protocol):
    """A network that can show what its layers' outputs are added to.

    The driver then lets such a layer also make up for what the shortcut lacks.
    """

    def shortcut(self, name: str, batch: Any, *, binarized: bool) -> np.ndarray:
        """What is added to the output of a layer that says so, for one batch.

        Parameters
        ----------
        name : str
        batch
            One of the calibration.
        binarized : bool
            As in `Network.layer_input`.

        Returns
        -------
        array
            In the shape and the units of that output: divided by the factor that is applied to it
            (a normalisation's) before the two are added.
        """


def what_lacks(network: object) -> str:
    """What an object lacks to be a `Network`, in words; nothing where it is one."""
    if isinstance(network, type):
        return f"it is the class {network.__name__} itself, not one made of it"
    needed = ("layers", "weight", "layer_input", "write", "state")
    missing = [name for name in needed if not callable(getattr(network, name, None))]
    if not missing:
        return ""
    return (
        f"a {type(network).__name__} is no hashsolve.Network: it lacks {', '.join(missing)} "
        "(a torch module becomes one by torch_glue.TorchNetwork(model))"
    )


def calls_of(inputs: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """What `Network.layer_input` gave, one array a call."""
    return list(inputs) if isinstance(inputs, (list, tuple)) else [np.asarray(inputs)]


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
        Where a name matches no layer, nothing is left, a selected layer is not reached, or it
        shares its weight with what is no layer, is skipped, or is of another shape.

    Examples
    --------
    >>> layers = [Layer(name, Geometry(), (2, 3)) for name in ("conv1", "layer1.0.conv1", "fc")]
    >>> [layer.name for layer in select(layers, skip=["conv1", "f*"])]
    ['layer1.0.conv1']
    """
    if isinstance(skip, str):
        skip = (skip,)
    for layer in layers:
        if not isinstance(layer, Layer):
            raise ValueError(f"layers: expected hashsolve.Layer, got {layer!r}")
    names = [layer.name for layer in layers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"layers: {twice[0]!r} is there twice; each needs a name of its own")
    skipped = set()
    for pattern in skip:
        if not isinstance(pattern, str):
            raise ValueError(f"skip: expected names of layers, got {pattern!r}")
        matches = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not matches:
            hint = did_you_mean(pattern, _patterns(names)) or f"; layers: {', '.join(names)}"
            raise ValueError(f"skip: {pattern!r} matches no layer{hint}")
        skipped |= matches
    selected = [layer for layer in layers if layer.name not in skipped]
    if not selected:
        raise ValueError(
            "no layer to binarise: "
            + ("every layer is skipped" if layers else "the network has no convolution or linear")
        )
    by_name = {layer.name: layer for layer in layers}
    for layer in selected:
        problem = _obstacle(layer, by_name, skipped)
        if problem:
            raise ValueError(f"layer {layer.name} {problem}: add it to skip")
    return selected


def _patterns(names: Sequence[str]) -> list[str]:
    """Names, and the globs of what is inside a block: "layer1.*"."""
    blocks = {
        name.rsplit(".", depth)[0] for name in names for depth in range(1, 1 + name.count("."))
    }
    return [*names, *(f"{block}.*" for block in sorted(blocks))]


def _obstacle(layer: Layer, layers: dict[str, Layer], skipped: set[str]) -> str | None:
    """What keeps a layer from being binarised."""
    if layer.calls == 0:
        return "is not reached by the first batch"
    sharers = [other for other in layers.values() if other.shares == layer.name]
    if layer.shares is not None:
        if layer.shares not in layers:
            return f"shares its weight with {layer.shares}, which is no layer of this kind"
        sharers.append(layers[layer.shares])
    for other in sharers:
        if other.name in skipped:
            return f"shares its weight with {other.name}, which is skipped"
        if _use(other) != _use(layer):
            return f"shares its weight with {other.name}, which uses it in another way"
    return None


def _use(layer: Layer) -> tuple[Any, ...]:
    """What layers that share a weight must agree in."""
    return layer.shape, layer.geometry.groups, layer.layout


def units(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """Layers that are binarised together, in the order of the first of each: those that share
    one weight.

    >>> layers = [Layer(n, Geometry(), (2, 3), shares=s) for n, s in [("a", None), ("b", "a")]]
    >>> [[layer.name for layer in unit] for unit in units(layers)]
    [['a', 'b']]
    """
    return [
        (layer, *(other for other in layers if other.shares == layer.name))
        for layer in layers
        if layer.shares is None
    ]
