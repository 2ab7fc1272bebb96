"""Instance: a problem as the methods see it, normalised, live and one column a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import linalg

from hashsolve.dual import factorise, folded, safety_margin
from hashsolve.kernels.twofold import divide
from hashsolve.problem import Problem

LARGE = 1500
"""Inputs above which memory counts: columns share one diagonal (`hashsolve.bounds`), and no factor
of H is kept beside it where it can be helped."""


@dataclass(frozen=True, eq=False)
class Instance:
    """A problem in units where the largest gram diagonal and every energy are about 1.

    Units are powers of two, so a method decides the same bits whatever power of two the inputs
    or a column's targets are multiplied by. Inputs whose row of the Gram matrix is zero have
    left; `restore` gives them back the sign of their weight. A fixed scale is folded into the
    column, so that it is 1 here.

    Attributes
    ----------
    gram : (S', S')
    cross, weights, start : (T, S')
        ``weights`` are W in these units, or the least-squares solution where W is not known;
        ``start`` its signs.
    energy : (T,)
    free : bool
        Whether each column's scale is found (profiled out) or is 1.
    cross_rest, energy_rest : (T, S'), (T,), or None
        What the rounding of cross and energy lost, where a fixed scale is folded in.
    """

    gram: np.ndarray
    cross: np.ndarray
    energy: np.ndarray
    free: bool
    live: np.ndarray
    dead_codes: np.ndarray
    known_weights: np.ndarray | None
    known_magnitude: np.ndarray | None
    scale_unit: np.ndarray
    loss_unit: np.ndarray
    cross_rest: np.ndarray | None = None
    energy_rest: np.ndarray | None = None

    @classmethod
    def of(cls, problem: Problem) -> Instance:
        """Normalise a problem."""
        live: np.ndarray = np.asarray(problem.gram.any(axis=1))
        peak = max(problem.gram.max(), -problem.gram.min()) or 1.0
        half = (np.frexp(peak)[1] + 1) // 2  # inputs are measured in units of 2**half
        gram = problem.gram.copy() if live.all() else problem.gram[np.ix_(live, live)]
        np.ldexp(gram, -2 * half, out=gram)
        dead_pull = problem.cross[~live]
        cross_rest = energy_rest = None
        if problem.fixed_scales is None:
            exponent = (np.frexp(problem.energy)[1] + 1) // 2
            target_unit = np.ldexp(1.0, exponent)
            cross = np.ldexp(problem.cross[live].T, -(half + exponent)[:, None])
            energy = np.ldexp(problem.energy, -2 * exponent)
            scale_unit = np.ldexp(1.0, exponent - half)
        else:
            scale_unit = problem.fixed_scales
            target_unit = np.ldexp(scale_unit, half)
            cross, energy, cross_rest, energy_rest = _folded(problem, live, half)
        weights = problem.weights
        dead_codes = np.where(dead_pull != 0, signs(dead_pull), 1).astype(np.int8)
        magnitude = None
        if weights is not None:
            dead_codes = np.where(dead_pull != 0, dead_codes, signs(weights[~live]))
            weights = np.ascontiguousarray(weights.T) / scale_unit[:, None]
            magnitude = np.abs(weights).mean(axis=1)
            weights = weights[:, live]
        return cls(
            gram=gram,
            cross=np.ascontiguousarray(cross),
            energy=energy,
            free=problem.free_scale,
            live=live,
            dead_codes=dead_codes.astype(np.int8),
            known_weights=weights,
            known_magnitude=magnitude,
            scale_unit=scale_unit,
            loss_unit=target_unit,
            cross_rest=cross_rest,
            energy_rest=energy_rest,
        )

    def column(self, t: int) -> Instance:
        """One column of it."""
        sums = ("cross", "energy", "cross_rest", "energy_rest")
        others = ("known_weights", "known_magnitude", "scale_unit", "loss_unit")
        rows = {name: getattr(self, name) for name in (*sums, *others)}
        return replace(self, **{name: v[t : t + 1] for name, v in rows.items() if v is not None})

    @property
    def rounding(self) -> np.ndarray:
        """By how much folding a fixed scale in may have changed the loss of any codes, (T,)."""
        if self.cross_rest is None or self.energy_rest is None:
            return np.zeros_like(self.energy)
        return np.abs(self.energy_rest) + 2 * np.abs(self.cross_rest).sum(axis=1)

    @property
    def large(self) -> bool:
        """Whether the whole instance is factored in place, by one thread, to spare memory."""
        return len(self.gram) > LARGE

    @cached_property
    def safely_definite(self) -> bool:
        """Whether the Gram matrix is positive definite, far beyond rounding: a factorisation
        says so in a tenth of the time that its eigenvalues take."""
        margin = np.full(len(self.gram), -2.0 * safety_margin(self.gram))
        with folded(self.gram, self.large) as gram:
            return factorise(gram, margin) is not None

    @cached_property
    def smallest_eigenvalue(self) -> float:
        """Of the Gram matrix."""
        with folded(self.gram, self.large) as gram:
            half = gram.half if self.large else gram
            values = linalg.eigvalsh(half, subset_by_index=(0, 0), overwrite_a=self.large)
        return float(values[0])

    @cached_property
    def weights(self) -> np.ndarray:
        """W, or the minimum-norm least-squares solution, (T, S')."""
        if self.known_weights is not None:
            return self.known_weights
        values, vectors = linalg.eigh(self.gram, driver="evd")
        kept = np.abs(values) > len(values) * np.finfo(float).eps * np.abs(values).max(initial=0.0)
        return (self.cross @ vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    @property
    def mean_magnitude(self) -> np.ndarray:
        """mean |W| over all inputs, dead ones too, (T,)."""
        if self.known_magnitude is not None:
            return self.known_magnitude
        return np.abs(self.weights).sum(axis=1) / len(self.live)

    @cached_property
    def start(self) -> np.ndarray:
        """The signs of `weights`, (T, S') int8."""
        return signs(self.weights)

    def restore(self, codes: np.ndarray) -> np.ndarray:
        """Codes (T, S') of the live inputs as codes (S, T) of the whole problem."""
        whole = np.empty((len(self.live), len(codes)), dtype=np.int8)
        whole[self.live] = codes.T
        whole[~self.live] = self.dead_codes
        return whole


def _folded(problem: Problem, live: np.ndarray, half: int) -> tuple[np.ndarray, ...]:
    """cross and energy in units of which the fixed scale is one, and what their rounding lost."""
    assert problem.fixed_scales is not None
    scale, exponent = np.frexp(problem.fixed_scales)  # a power of two has the scale 1/2
    cross = np.ldexp(np.ascontiguousarray(problem.cross.T), -(2 * half + exponent)[:, None])
    energy = np.ldexp(problem.energy, -2 * (half + exponent))[:, None]
    cross_rest, energy_rest = np.empty_like(cross), np.empty_like(energy)
    divide(cross, scale, cross_rest)
    divide(energy, scale, energy_rest)
    terms = np.hstack([energy, energy_rest])
    rest = np.empty_like(terms)
    divide(terms, scale, rest)
    # an input that has left still pulls in a quadratic programme, with its best bit
    best = -2 * np.sign(cross[:, ~live])
    terms = np.hstack([terms, rest, best * cross[:, ~live], best * cross_rest[:, ~live]])
    total = np.array([math.fsum(row) for row in terms])
    lost = np.array([math.fsum([*row, -e]) for row, e in zip(terms, total, strict=True)])
    return cross[:, live], total, cross_rest[:, live], lost


def signs(values: np.ndarray) -> np.ndarray:
    """int8 signs, where zero counts as +1: never 0.

    >>> signs(np.array([-2.0, 0.0, 3.0]))
    array([-1,  1,  1], dtype=int8)
    """
    return np.where(values < 0, -1, 1).astype(np.int8)
