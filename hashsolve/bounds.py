"""Lower bounds on the loss of a column, over all codes and scales."""

from __future__ import annotations

import numpy as np

from hashsolve.instance import Instance

_ROUNDING = 1e-11  # share of the energy that a bound gives away to rounding


def lower_bound(instance: Instance) -> tuple[np.ndarray, str]:
    """The best bound there is for each column, in the instance's units, and its name.

    Parameters
    ----------
    instance : Instance

    Returns
    -------
    bound : array (T,)
    name : str
        "least squares": no real vector in the place of αb does better, so no code does;
        "spectral", for fixed scales: bᵀHb >= S λ_min and cᵀb <= ‖c‖₁.
    """
    values, vectors = instance.spectrum
    size = len(values)
    coordinates = instance.cross @ vectors
    noise = size * np.finfo(float).eps * np.abs(values).max(initial=0.0)
    if not instance.free:
        linear = np.abs(instance.cross).sum(axis=1)
        bound = instance.energy + size * (values.min(initial=0.0) - noise) - 2 * linear
        margin = _ROUNDING * (np.abs(instance.energy) + size * np.abs(values).max(initial=0.0))
        return bound - margin - _ROUNDING * linear, "spectral"
    # directions whose eigenvalue is rounding noise explain at most what Cauchy-Schwarz lets them
    explained = (coordinates**2 / np.maximum(values, noise)).sum(axis=1)
    return np.maximum(instance.energy * (1 - _ROUNDING) - explained, 0.0), "least squares"
