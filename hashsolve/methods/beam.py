"""beam: K-best search on the triangular form, over windows of scales."""

from __future__ import annotations

import numpy as np

from hashsolve.bounds import dual_bounds, dual_diagonals, dual_name
from hashsolve.control import EFFORTS, Control
from hashsolve.instance import Instance
from hashsolve.lattice import Lattice, lattice_codes
from hashsolve.methods.one_flip import one_flip
from hashsolve.methods.outcome import STOPPED, Outcome
from hashsolve.solution import Status
from hashsolve.state import State

WINDOWS = (1.04, 1.0, 1.08, 0.96)
"""Centres of the beams' ranges of scales, against the column's first scale: the best was mostly
found above it."""
HALF_WINDOW = 0.05
"""A beam that may take any scale decides its first bits for scales that fit nothing."""
_LARGEST_WORK = 9e7  # width × S²; above it, beams narrow


WIDTHS = (30_000, 150_000, 600_000)
"""K times S, by effort; each effort tries the lesser ones' too."""


def beam(instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """The best leaves of K-best searches, each at its own scale, finished by `one_flip`.

    Time and memory are linear in K, which effort sets; with K >= 2^S the search is exact.
    """
    return lattice_search(instance, start, control, WIDTHS[: EFFORTS.index(control.effort) + 1])


def lattice_search(
    instance: Instance, start: np.ndarray, control: Control, widths: tuple[int, ...]
) -> Outcome:
    """Beams of each of ``widths`` / S states over all windows, from descent of the start."""
    first = one_flip(instance, start, control)
    if first.status in STOPPED:
        return first
    diagonals = dual_diagonals(instance, control)
    codes = first.codes
    for width in widths:
        pools = beam_pools(instance, codes, diagonals, control, width, len(WINDOWS), 1)
        codes = best_of(instance, pools, control)
    last = one_flip(instance, codes, control)
    bound = dual_bounds(instance, control, diagonals)
    status = Status.TIME_LIMIT if control.out_of_time else last.status
    return last._replace(status=status, bound=bound, bound_name=dual_name(instance))


def beam_pools(
    instance: Instance,
    codes: np.ndarray,
    diagonals: np.ndarray,
    control: Control,
    width: int,
    windows: int,
    leaves: int,
    columns: np.ndarray | None = None,
) -> np.ndarray:
    """For each column its ``codes`` and the best leaves of each window's beam, (T, E, S).

    Only ``columns``, in this order, are searched; the others, and those that the time limit leaves
    no time for, repeat their codes.
    """
    inputs = instance.gram.shape[0]
    width = max(1, int(min(width / inputs, _LARGEST_WORK / inputs**2)))
    count = windows if instance.free else 1
    leaves = leaves if instance.free else leaves * windows
    pools = np.repeat(codes[:, None, :], 1 + count * leaves, axis=1)
    scales = State(instance, codes, control).scales
    lattice = Lattice(instance, diagonals)

    order = np.arange(len(codes)) if columns is None else columns

    def search(i: int) -> None:
        if control.out_of_time:
            return
        t = order[i]
        form = lattice.triangle(t)
        ranges = [(1.0, 1.0)]
        if instance.free:
            # the descended start tells the scale to some 10 %; a narrow beam tells it better
            low, high = 0.9 * scales[t], 1.2 * scales[t]
            _, found = lattice_codes(form, True, low, high, min(width, 32), 1)
            ranges = [
                ((centre - HALF_WINDOW) * found[0], (centre + HALF_WINDOW) * found[0])
                for centre in WINDOWS[:count]
            ]
        for place, (low, high) in enumerate(ranges):
            found, _ = lattice_codes(form, instance.free, low, high, width, leaves)
            first = 1 + place * leaves
            pools[t, first : first + len(found)] = found

    control.each(search, len(order))
    return pools


def best_of(instance: Instance, pools: np.ndarray, control: Control) -> np.ndarray:
    """The member with the smallest loss of each column's pool, (T, S)."""
    states = [State(instance, pools[:, i], control) for i in range(pools.shape[1])]
    losses = np.array([state.loss(state.scales) for state in states])
    best = losses.argmin(axis=0)
    return np.stack([states[i].codes[t] for t, i in enumerate(best)])
