"""Lower bounds on the loss of every column, over all codes and scales; see `hashsolve.dual`."""

from __future__ import annotations

import numpy as np

from hashsolve.control import Control
from hashsolve.dual import (
    certified_bounds,
    folded,
    improve_diagonal,
    proof_of,
    proven_bounds,
    starting_diagonal,
)
from hashsolve.instance import Instance

COLUMNS = 8
"""Columns that are bounded together where one factor serves all, and that may be solved apart
(`hashsolve.cluster`): a fixed cut, on which the last bits depend."""
MAX_STEPS = 60
STEPS_FROM_SHARES, INSIDE = (5, 10, 20), 0.01
"""Steps, by effort, where `common_shares` are known, and what is added to these to be inside."""
TOLERANCE, COARSE_TOLERANCE, COARSE_ABOVE = 5e-3, 2e-2, 400
"""Shares of the energy to which duals are solved; the coarse one for more inputs than the last."""


def cheap_bounds(instance: Instance, control: Control) -> tuple[np.ndarray, str]:
    """Bounds (T,) for methods that prove none themselves, and their name.

    "least squares": no real weights, so no codes, do better. With fixed scales that says nothing
    where the Gram matrix is indefinite, and the dual is taken. "sum of magnitudes", where there is
    a reason to stop, or nobody looks at them.
    """
    if control.stop or not control.bounded:
        return least_bounds(instance), "sum of magnitudes"
    if not instance.free:
        return certify(instance, control, dual_diagonals(instance, control)), "dual"
    start = start_diagonals(instance)[0]
    return _bounds_of_one(instance, np.zeros_like(start), start), "least squares"


def _bounds_of_one(instance: Instance, diagonal: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Bounds (T,) that one diagonal proves for all columns, whose scales are free."""
    bounds = np.zeros(len(instance.energy))
    with folded(instance.gram, instance.large) as gram:
        proof = proof_of(gram, diagonal, start, True)
        if proof is not None:
            for first in range(0, len(bounds), COLUMNS):
                part = slice(first, first + COLUMNS)
                cross, energy = instance.cross[part], instance.energy[part]
                bounds[part] = proven_bounds(gram, cross, energy, proof, True)
    return np.maximum(bounds, 0.0)


def least_bounds(instance: Instance) -> np.ndarray:
    """Bounds (T,) that cost nothing: every term of the loss as small as its magnitude allows."""
    if instance.free:
        return np.zeros(len(instance.energy))
    trace = np.trace(instance.gram)
    off = np.abs(instance.gram).sum() - np.abs(np.diagonal(instance.gram)).sum()
    pull = 2 * np.abs(instance.cross).sum(axis=1)
    size = np.abs(instance.energy) + pull + np.abs(instance.gram).sum()
    return instance.energy - pull + trace - off - 1e-12 * size


def shared(instance: Instance) -> bool:
    """Whether all columns share one diagonal."""
    return instance.free and instance.large


def dual_name(instance: Instance) -> str:
    """How the bounds of `dual_diagonals` are called."""
    return "dual, one diagonal" if shared(instance) else "dual"


def start_diagonals(instance: Instance) -> np.ndarray:
    """The uniform diagonals that bounds start from, (T, S)."""
    if instance.free and instance.safely_definite:
        return np.zeros_like(instance.cross)
    smallest = instance.smallest_eigenvalue
    if instance.free:
        start = starting_diagonal(instance.gram, smallest, instance.cross, True)
        return np.broadcast_to(start, instance.cross.shape)
    return np.stack([starting_diagonal(instance.gram, smallest, c, False) for c in instance.cross])


def dual_diagonals(
    instance: Instance, control: Control, tolerance: float | None = None
) -> np.ndarray:
    """A diagonal a column near the optimum of its semidefinite dual, (T, S).

    Each costs about ten factorisations of an S×S matrix, twice as many at a tolerance of 1e-4.
    Where S is above `hashsolve.instance.LARGE`, one diagonal serves all columns. Once there is a
    reason to stop, the others are what they start from. Where the control has `common_shares`, a
    few steps from those are all.
    """
    if control.stop:
        return np.zeros_like(instance.cross)
    if tolerance is None:
        tolerance = _tolerance(instance)
    if control.shares is None:
        starts, steps = start_diagonals(instance), MAX_STEPS
    else:
        load = instance.gram.diagonal() * (control.shares[instance.live] + INSIDE)
        starts = np.broadcast_to(load, instance.cross.shape)
        steps = control.budget(*STEPS_FROM_SHARES)
    if shared(instance):
        weight = np.sqrt(1.0 / np.maximum(instance.energy, np.finfo(float).tiny))
        with folded(instance.gram, instance.large) as gram:
            found, _ = improve_diagonal(
                gram,
                instance.cross * weight[:, None],
                float(len(weight)),
                starts[0],
                True,
                tolerance,
                steps,
                stop=lambda: control.stop,
            )
        return np.broadcast_to(found, starts.shape)
    diagonals = starts.copy()

    def improve(t: int) -> None:
        diagonals[t], _ = improve_diagonal(
            instance.gram,
            instance.cross[t : t + 1],
            instance.energy[t],
            starts[t],
            instance.free,
            tolerance,
            steps,
            stop=lambda: control.stop,
        )

    control.each(improve, len(diagonals))
    return diagonals


def _tolerance(instance: Instance) -> float:
    return TOLERANCE if len(instance.gram) <= COARSE_ABOVE else COARSE_TOLERANCE


def common_shares(instance: Instance, control: Control) -> np.ndarray:
    """A diagonal as shares (S,) of the Gram matrix's own, few steps from the best of any column
    that codes fit, whatever each input is multiplied by.

    It says nothing of the columns at hand: the mean of the bounds of columns H e_i is highest.
    """
    cross, own = instance.gram.copy(), instance.gram.diagonal().copy()
    start = start_diagonals(instance)[0]
    with folded(instance.gram, instance.large) as gram:
        found, _ = improve_diagonal(
            gram,
            cross,
            own.sum(),
            start,
            True,
            _tolerance(instance),
            MAX_STEPS,
            stop=lambda: control.stop,
        )
    shares = np.zeros(len(instance.live))
    shares[instance.live] = np.divide(found, own, out=np.zeros_like(own), where=own > 0)
    return shares


def dual_bounds(instance: Instance, control: Control, diagonals: np.ndarray) -> np.ndarray:
    """What the diagonals prove, (T,); with thorough effort, what better ones prove too;
    `least_bounds` where nobody looks at them."""
    if not control.bounded:
        return least_bounds(instance)
    bounds = certify(instance, control, diagonals)
    if control.effort == "thorough":
        better = dual_diagonals(instance, control, tolerance=1e-4)
        bounds = np.maximum(bounds, certify(instance, control, better))
    return bounds


def certify(instance: Instance, control: Control, diagonals: np.ndarray) -> np.ndarray:
    """The bounds that diagonals prove, (T,), in the instance's units, rounding accounted for."""
    bounds = least_bounds(instance)
    if control.stop:
        return bounds
    starts = start_diagonals(instance)

    def prove(t: int) -> None:
        bounds[t : t + 1], _ = certified_bounds(
            instance.gram,
            instance.cross[t : t + 1],
            instance.energy[t : t + 1],
            diagonals[t],
            starts[t],
            instance.free,
        )

    def prove_all(_: int) -> None:
        bounds[:] = _bounds_of_one(instance, diagonals[0], starts[0])

    if shared(instance):
        control.each(prove_all, 1)
    else:
        control.each(prove, len(bounds))
    return np.maximum(bounds, 0.0) if instance.free else bounds
