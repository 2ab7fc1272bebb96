"""Plan: the settings of a binarisation, checked against its network and data before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.activations import DTYPES
from hashsolve.control import EFFORTS
from hashsolve.files import digest, update
from hashsolve.methods import METHODS
from hashsolve.network import Layer, Network, ResidualNetwork, select, units, what_lacks
from hashsolve.sums import PRECISIONS

PROPAGATIONS = ("asym", "symfp", "symqt")


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes
    ----------
    layers : list of Layer
        Those to binarise, in the order of execution.
    settings : dict
        With "residual" and "intercept" as the names of the layers that they concern.
    fingerprints : dict of str
        Of weights, calibration data, geometry and settings.
    data : str
        The fingerprint of the calibration data.
    weights : dict of str
        The fingerprint of each layer's full-precision weight.
    """

    layers: list[Layer]
    settings: dict[str, Any]
    fingerprints: dict[str, str]
    data: str
    weights: dict[str, str]


def make_plan(
    network: Network,
    calibration: Iterable[Any],
    method: str = "auto",
    effort: str = "default",
    propagation: str = "asym",
    *,
    skip: Iterable[str] = (),
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "double",
    residual: str | bool = False,
    intercept: str | bool = False,
    scale_group: int | None = None,
    fixed_scales: float | None = None,
) -> Plan:
    """Check all that can be checked before work; the arguments of `hashsolve.binarize`.

    Raises
    ------
    ValueError
        For settings, calibration or layers that cannot be used.
    """
    checks.choice(method, "method", METHODS)
    checks.choice(effort, "effort", EFFORTS)
    checks.choice(propagation, "propagation", PROPAGATIONS)
    checks.choice(dtype, "dtype", DTYPES)
    checks.choice(precision, "precision", PRECISIONS)
    seed = checks.whole(seed, "seed", 0)
    if lacking := what_lacks(network):
        raise ValueError(f"network: {lacking}")
    layers = select(network.layers(first_of(calibration)), skip)
    state = hashlib.sha256()
    for batch in calibration:  # one at a time: they need not fit in memory
        update(batch, state)
    data = state.hexdigest()
    settings = {
        "method": method,
        "effort": effort,
        "propagation": propagation,
        "seed": seed,
        "dtype": dtype,
        "precision": precision,
        "residual": _residual(network, layers, residual, propagation),
        "intercept": _intercept(layers, intercept),
        "scale_group": _scale_group(layers, scale_group),
        "fixed_scales": None
        if fixed_scales is None
        else checks.positive(fixed_scales, "fixed_scales"),
    }
    if scale_group is not None and fixed_scales is not None:
        raise ValueError("scale_group and fixed_scales: give one of them")
    weights = {layer.name: _weight_digest(network, layer) for layer in layers}
    others = network.state()
    if others is None:
        raise ValueError("network: state() returned None; let it return what else shapes outputs")
    fingerprints = {
        "weights": digest(weights, others),
        "calibration data": data,
        "geometry": digest(
            [[layer.name, *map(str, _shape_of(layer))] for layer in layers],
        ),
        "settings": digest(settings),
    }
    return Plan(layers, settings, fingerprints, data, weights)


def first_of(calibration: Iterable[Any]) -> Any:
    """The first batch of calibration that can be gone through again and again."""
    try:
        once = iter(calibration) is calibration
    except TypeError:
        raise ValueError(
            f"calibration: expected batches to go through, got {type(calibration).__name__}"
        ) from None
    if once:
        raise ValueError(
            "calibration: this iterator can be gone through only once, but each layer needs a "
            "pass; give a list, an array of batches or a loader"
        )
    first = next(iter(calibration), None)
    if first is None:
        raise ValueError("calibration: it holds no batches")
    return first


def _weight_digest(network: Network, layer: Layer) -> str:
    weight = network.weight(layer.name)
    if np.shape(weight) != tuple(layer.shape):
        raise ValueError(
            f"layer {layer.name}: weight() has shape {np.shape(weight)}, but layers() says "
            f"{tuple(layer.shape)}"
        )
    if not np.isfinite(weight).all():
        raise ValueError(
            f"layer {layer.name}: its weight holds what is not finite: mend it, or add it to skip"
        )
    return digest(weight)


def _shape_of(layer: Layer) -> tuple[Any, ...]:
    return layer.geometry, layer.shape, layer.calls, layer.shares, layer.shortcut, layer.constant


def _auto_or_bool(value: str | bool, name: str) -> None:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"{name}: {value!r} is not one of 'auto', True, False")


def _residual(
    network: Network, layers: list[Layer], residual: str | bool, propagation: str
) -> list[str]:
    """The layers whose targets make up for a shortcut."""
    _auto_or_bool(residual, "residual")
    if residual is True and propagation != "asym":
        raise ValueError(
            f"residual: with propagation {propagation!r} a target knows nothing of the binarised "
            "network; use 'asym'"
        )
    found = []
    if residual and propagation == "asym" and isinstance(network, ResidualNetwork):
        found = [layer.name for layer in layers if layer.shortcut and layer.calls == 1]
    if residual is True and not found:
        raise ValueError(
            "residual: the network shows no layer whose output is added to a shortcut; use 'auto', "
            "or name the shortcuts to the adapter"
        )
    return found


def _intercept(layers: list[Layer], intercept: str | bool) -> list[str]:
    """The layers whose filters get a constant."""
    _auto_or_bool(intercept, "intercept")
    if not intercept:
        return []
    found: list[str] = []
    without: list[str] = []
    for unit in units(layers):
        takes = len(unit) == 1 and unit[0].constant is not None
        (found if takes else without).append(unit[0].name)
    if intercept is True and without:
        raise ValueError(
            f"intercept: layer {without[0]} has no bias of its own and no normalisation behind it "
            "that could take it up: add it to skip, give it a bias, or use intercept='auto'"
        )
    return found


def _scale_group(layers: list[Layer], group: int | None) -> int | None:
    """Inputs a scale, checked against every layer."""
    if group is None:
        return None
    group = checks.whole(group, "scale_group", 1)
    for layer in layers:
        if layer.fan_in % group:
            raise ValueError(
                f"scale_group: {group} does not divide the {layer.fan_in} inputs of layer "
                f"{layer.name}: choose a divisor, or add it to skip"
            )
    return group
