"""An adapter: a network in plain NumPy, and the six methods that `hashsolve.binarize` needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

import hashsolve as hs
from hashsolve.activations import group_weights


@dataclass
class Product:
    """A convolution or a linear layer without bias."""

    weight: np.ndarray
    geometry: hs.Geometry

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        matrices = group_weights(self.weight, self.geometry)
        groups = [w.T @ self.geometry.patches(maps, g) for g, w in enumerate(matrices)]
        outputs = np.concatenate(groups)
        if self.geometry.linear:
            return outputs.T
        positions = self.geometry.output(maps.shape[2:])
        return outputs.reshape(len(outputs), len(maps), *positions).swapaxes(0, 1)


@dataclass
class ScaleShift:
    """What batch normalisation is once trained: a factor and a constant per channel."""

    scale: np.ndarray
    shift: np.ndarray

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        channels = (-1, *(1,) * (maps.ndim - 2))
        return maps * self.scale.reshape(channels) + self.shift.reshape(channels)


def relu(maps: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(maps, 0)


def pool(maps: np.ndarray) -> np.ndarray:
    """The mean over all positions."""
    return maps.mean(axis=tuple(range(2, maps.ndim)))


class NumpyNetwork:
    """Named steps, one after the other; each is a function of what the step before it gives."""

    def __init__(self, steps: Iterable[tuple[str, Product | ScaleShift | object]]):
        self.steps = list(steps)
        self.products = {name: s for name, s in self.steps if isinstance(s, Product)}
        self.original = {name: step.weight for name, step in self.products.items()}

    def __call__(
        self, batch: np.ndarray, inputs_of: str = "", binarized: bool = True
    ) -> np.ndarray | list[np.ndarray]:
        """The output of the network, or the inputs of all calls of the step ``inputs_of``."""
        seen = []
        for name, step in self.steps:
            if name == inputs_of:
                seen.append(batch)
            if name in self.products and not binarized:
                step = Product(self.original[name], step.geometry)
            batch = step(batch)
        return seen if inputs_of else batch

    def layers(self, batch: np.ndarray) -> list[hs.Layer]:
        for name, weight in self.original.items():
            self.write(name, weight)
        calls, first_with = Counter(name for name, _ in self.steps), {}
        found = []
        for name, step in self.products.items():
            shares = first_with.setdefault(id(self.original[name]), name)
            found.append(
                hs.Layer(
                    name,
                    step.geometry,
                    step.weight.shape,
                    calls=calls[name],
                    shares=None if shares == name else shares,
                )
            )
        return found

    def weight(self, name: str) -> np.ndarray:
        return self.original[name]

    def layer_input(self, name: str, batch: np.ndarray, *, binarized: bool) -> list[np.ndarray]:
        return self(batch, name, binarized)

    def write(self, name: str, weight: np.ndarray) -> None:
        self.products[name].weight = weight

    def state(self) -> dict[str, object]:
        fixed = {n: [s.scale, s.shift] for n, s in self.steps if isinstance(s, ScaleShift)}
        return {"weights": self.original, "scales and shifts": fixed}
