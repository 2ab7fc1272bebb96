"""beam: K-best search on the triangular form, over windows of scales."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hashsolve.bounds import dual_bounds, dual_diagonals, dual_name
from hashsolve.control import EFFORTS, Control
from hashsolve.instance import Instance
from hashsolve.lattice import Lattice, Triangle, lattice_codes
from hashsolve.methods.each_column import search_columns
from hashsolve.methods.one_flip import one_flip
from hashsolve.methods.outcome import STOPPED, Outcome
from hashsolve.problem import cancelling

WIDTHS = (6_000, 30_000, 200_000)
"""K times S, by effort; each effort tries the lesser ones' too."""
WINDOWS = (1.04, 1.0, 1.08, 0.96)
"""Centres of the beams' ranges of scales, against the column's first scale: the best was mostly
found above it."""
HALF_WINDOW = 0.05
"""A beam that may take any scale decides its first bits for scales that fit nothing."""
_LARGEST_WORK = 9e7  # width × S²; above it, beams narrow


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
    lattice = Lattice(instance, diagonals)

    def search(t: int) -> np.ndarray:
        codes = first.codes[t]
        for better in beam_steps(instance, t, lattice.triangle(t), codes, widths):
            codes = better
            if control.stop:
                break
        return codes

    last = search_columns(instance, first, np.arange(len(start)), search, control)
    bound = dual_bounds(instance, control, diagonals)
    status = control.stop or last.status
    return last._replace(status=status, bound=bound, bound_name=dual_name(instance))


def beam_steps(
    instance: Instance, t: int, form: Triangle, codes: np.ndarray, widths: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """Column t's best codes after beams of each width in turn."""
    for width in widths:
        codes = best_of(
            instance, t, beam_pool(instance, t, form, codes, width, len(WINDOWS), leaves=1)
        )
        yield codes


def beam_pool(
    instance: Instance,
    t: int,
    form: Triangle,
    codes: np.ndarray,
    width: int,
    windows: int,
    leaves: int,
) -> np.ndarray:
    """Column t's ``codes`` (S,) and the best leaves of a beam in each window, (E, S).

    Where a beam has fewer leaves, the codes are repeated.
    """
    inputs = len(codes)
    width = max(1, int(min(width / inputs, _LARGEST_WORK / inputs**2)))
    ranges = [(1.0, 1.0)]
    if instance.free:
        # the codes tell the scale to some 10 %; a narrow beam tells it better
        scale = abs(instance.cross[t] @ codes) / max(codes @ (instance.gram @ codes), 1e-300)
        found = lattice_codes(form, True, 0.9 * scale, 1.2 * scale, min(width, 32), 1)[1][0]
        ranges = [
            ((centre - HALF_WINDOW) * found, (centre + HALF_WINDOW) * found)
            for centre in WINDOWS[:windows]
        ]
    else:
        leaves *= windows
    pool = np.repeat(codes[None], 1 + len(ranges) * leaves, axis=0)
    for place, (low, high) in enumerate(ranges):
        found, _ = lattice_codes(form, instance.free, low, high, width, leaves)
        first = 1 + place * leaves
        pool[first : first + len(found)] = found
    return pool


def best_of(instance: Instance, t: int, pool: np.ndarray) -> np.ndarray:
    """The member of column t's pool (E, S) with the smallest loss; the first of equals."""
    codes = pool.astype(float)
    p = codes @ instance.cross[t]
    q = np.einsum("es,es->e", codes @ instance.gram, codes)
    if instance.free:
        usable = q > cancelling(instance.gram)
        return pool[np.argmax(np.divide(p * p, q, out=np.zeros_like(p), where=usable))]
    return pool[np.argmax(2 * p - q)]
