"""refit: least squares for layers that stay in full precision behind binarised ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import linalg

from hashsolve import checks
from hashsolve.activations import (
    BINARIZED,
    FULL,
    calls_sums,
    group_weights,
    layer_streams,
    stream,
    write_activations,
)
from hashsolve.layer_run import layer_calls, same_inputs
from hashsolve.network import Layer, Network, what_lacks
from hashsolve.plan import first_of
from hashsolve.suggest import did_you_mean
from hashsolve.sums import Sums
from hashsolve.threads import one_blas_thread

LEAST_RIDGE = 1e-9  # so that whatever the data, the system is far from singular


def refit(
    network: Network,
    reference: Network,
    calibration: Iterable[Any],
    layers: Iterable[str],
    *,
    ridge: float = 0.01,
) -> dict[str, tuple[float, float]]:
    """Fit layers that were left in full precision to what the binarised ones before them give.

    The target is the asymmetric one of `binarize` (BWNH, section 3.3), the weight any real one:
    min over W and a constant a filter of ‖Y − X̂ᵀW − 1cᵀ‖² + λ‖W − W₀‖², Y being the outputs of the
    layer in the full-precision network. It is solved in closed form; nothing is trained, and no
    labels are used.

    Parameters
    ----------
    network : Network
        As `binarize` has left it, in an adapter that has not written it; these layers of it are
        rewritten in place, or none after an error. What takes up their constants is as in the
        reference: a layer is not to be fitted twice.
    reference : Network
        The same network in full precision.
    calibration : iterable of batches
        As in `binarize`: gone through once a layer; inputs are cached in the system's folder for
        temporary files.
    layers : iterable of str
        Names of layers to fit, which are fitted in the order in which a pass reaches them. Each
        gets a constant too where something takes it up (`Layer.constant`).
    ridge : float
        λ as a share of the mean of ‖X̂_s‖² over the inputs s (about their means, where there is a
        constant), 1e-9 at least: what keeps W near W₀ where the data say little of it.

    Returns
    -------
    dict
        By layer: its relative error ‖Y − Ŷ‖² / ‖Y‖² before and after.

    Raises
    ------
    ValueError
        For layers that are not there or not reached, share a weight or differ from the
        reference's, are binarised themselves, have no outputs, or have nothing binarised before
        them.

    Examples
    --------
    >>> import numpy as np, hashsolve as hs
    >>> class Two:  # a layer that was binarised, one that was not
    ...     def __init__(self, first, second):
    ...         self.weights = {"first": first, "second": second}
    ...
    ...     def layers(self, batch):
    ...         return [hs.Layer(n, hs.Geometry(), w.shape) for n, w in self.weights.items()]
    ...
    ...     def weight(self, name):
    ...         return self.weights[name]
    ...
    ...     def layer_input(self, name, batch, *, binarized):
    ...         hidden = np.maximum(batch @ self.weights["first"].T, 0)
    ...         return batch if name == "first" else hidden
    ...
    ...     def write(self, name, weight):
    ...         self.weights[name] = weight
    ...
    ...     def state(self):
    ...         return {}
    >>> rng = np.random.default_rng(0)
    >>> first, second = rng.normal(size=(6, 8)), rng.normal(size=(2, 6))
    >>> binary, full = Two(0.8 * np.sign(first), second), Two(first, second)
    >>> errors = hs.refit(binary, full, [rng.normal(size=(100, 8))], ["second"])
    >>> before, after = errors["second"]
    >>> after < before
    True
    """
    ridge = checks.positive(ridge, "ridge")
    if ridge < LEAST_RIDGE:
        raise ValueError(f"ridge: must be {LEAST_RIDGE:g} at least, got {ridge:g}")
    wanted = [layers] if isinstance(layers, str) else list(layers)
    for name, given in (("network", network), ("reference", reference)):
        if lacking := what_lacks(given):
            raise ValueError(f"{name}: {lacking}")
    batch = first_of(calibration)
    known = {layer.name: layer for layer in reference.layers(batch)}
    found = _chosen(network.layers(batch), wanted)
    for layer in found:
        if known.get(layer.name) != layer:
            raise ValueError(f"reference: its layer {layer.name} is missing, or another one")
    if all(same_inputs(network, reference, layer, batch) for layer in found):
        raise ValueError(
            "network: these layers have the inputs that they have in the reference: is it the "
            "binarised network, binarised before them, and not the reference itself? (An adapter "
            "that has written puts weights back when it is used again: run.apply(network), then "
            "make a new one)"
        )
    for layer in found:
        weight = network.weight(layer.name)
        size = np.abs(weight.reshape(layer.shape[0], -1))[:, :2]  # of one group, at least
        same = size.shape[1] > 1 and size.any() and (size[:, 0] == size[:, 1]).all()
        if same and not np.array_equal(weight, reference.weight(layer.name)):
            raise ValueError(
                f"layers: {layer.name} is binarised; only layers in full precision are fitted"
            )
    errors, written = {}, []
    try:
        for layer in found:
            written.append(layer.name)
            errors[layer.name] = _refit_layer(network, reference, calibration, layer, ridge)
    except BaseException:
        for name in written:
            network.write(name, network.weight(name))
        raise
    return errors


def _chosen(layers: Iterable[Layer], wanted: list[str]) -> list[Layer]:
    """The layers of these names, in order of execution."""
    known = {layer.name: layer for layer in layers}
    for name in wanted:
        if name not in known:
            raise ValueError(f"layers: no layer {name!r}{did_you_mean(name, known)}")
        if not known[name].calls:
            raise ValueError(f"layers: {name} is not reached by the calibration data")
    shared = {
        name for layer in known.values() if layer.shares for name in (layer.name, layer.shares)
    }
    if tied := shared.intersection(wanted):
        raise ValueError(f"layers: {', '.join(sorted(tied))}: its weight is shared")
    if not wanted:
        raise ValueError("layers: none is named")
    return [layer for layer in known.values() if layer.name in wanted]


def _refit_layer(
    network: Network, reference: Network, calibration: Iterable[Any], layer: Layer, ridge: float
) -> tuple[float, float]:
    """Fit and write one layer; its relative error before and after."""

    def maps() -> Iterator[dict[str, np.ndarray]]:
        for batch in calibration:
            own = layer_calls(network, layer, batch, True)
            full = layer_calls(reference, layer, batch, False)
            seen = {stream(BINARIZED, call): array for call, array in enumerate(own)}
            yield seen | {stream(FULL, call): array for call, array in enumerate(full)}

    full_weight = reference.weight(layer.name)
    geometries = [layer.geometry] * layer.calls
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "activations.h5"
        write_activations(cache, maps(), geometries, "float32", layer.name)
        with layer_streams(cache) as calls:
            sums = calls_sums(calls, full_weight, geometries, layer.name)
    starts = group_weights(network.weight(layer.name), layer.geometry)
    if not any(total.energy.any() for total in sums):
        raise ValueError(f"{layer.name}: its outputs are zero on all calibration data")
    fits = [
        _fit(total, start, ridge, layer.constant is not None)
        for total, start in zip(sums, starts, strict=True)
    ]
    weight = np.concatenate([fit for fit, *_ in fits], axis=1).T.reshape(layer.shape)
    more = {}
    if layer.constant is not None:
        more["constant"] = np.concatenate([constant for _, constant, *_ in fits])
    network.write(layer.name, weight, **more)
    before, after, energy = np.sum([losses for *_, losses in fits], axis=0)
    return float(before / energy), float(after / energy)


def _fit(
    sums: Sums, start: np.ndarray, ridge: float, intercept: bool
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """The weight (S, T) and constants (T,) of one group; losses before and after, and Σ‖Y‖²."""
    gram, cross, weight = sums.finish().gram, sums.cross, start
    before = _loss(gram, cross, sums.energy, start)
    energy, constant = sums.energy, np.zeros(start.shape[1])
    with one_blas_thread():
        if intercept:
            mean = sums.input_sum / sums.row_weight
            gram = gram - np.outer(mean, sums.input_sum)
            cross = cross - np.outer(mean, sums.target_sum)
            energy = energy - sums.target_sum**2 / sums.row_weight
        hold = ridge * np.trace(gram) / len(gram)
        if hold > 0:  # else there are no data
            held, missing = gram.copy(), cross - gram @ start
            held[np.diag_indices(len(held))] += hold
            weight = start + linalg.cho_solve(linalg.cho_factor(held, overwrite_a=True), missing)
        if intercept:
            constant = (sums.target_sum - weight.T @ sums.input_sum) / sums.row_weight
    after = _loss(gram, cross, energy, weight)
    return weight, constant, (before, after, float(sums.energy.sum()))


def _loss(gram: np.ndarray, cross: np.ndarray, energy: np.ndarray, weight: np.ndarray) -> float:
    """‖Y − X̂ᵀW‖² over all columns."""
    return float(energy.sum() + np.einsum("st,st->", weight, gram @ weight - 2 * cross))
