"""Sums about means, for a constant beside the codes: they are left of what may be far larger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hashsolve.kernels.twofold import about_means, about_own_mean
from hashsolve.validation import CONSTANT

if TYPE_CHECKING:
    from hashsolve.problem import Problem

SPREAD_LOST = 5e-14
"""Share of an input's sum of squares that is rounding where the mean accounts for the rest: half of
it is lost of 10⁴ rows of 0.1."""
MATTERS = 1e-6
"""Share of an energy that such an input must account for not to be left out."""


def centred_sums(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """gram, cross and energy about the means. Inputs and targets that are constant leave rounding,
    which is zero.

    Raises
    ------
    ValueError
        Where nothing but rounding is left of an input that is not constant, or of all inputs.
    """
    inputs, targets, weight = _sums(problem)
    assert problem.input_sum is not None and problem.row_weight
    gram, cross, energy = problem.gram.copy(), problem.cross.copy(), problem.energy.copy()
    about_means(gram, inputs, inputs, weight)
    about_means(cross, inputs, targets, weight)
    about_own_mean(energy, targets, weight)
    flat = energy <= CONSTANT * problem.energy
    constant = _constant(problem)
    for i in np.flatnonzero(constant).tolist():
        constant[i] = not _matter(problem, i, gram, cross, energy)[~flat].any()
    if problem.free_scale and constant[np.diagonal(problem.gram) > 0].all():
        raise ValueError(
            f"{problem.name}: intercept: the inputs are constant on all rows but for rounding, so "
            "that a constant is all there is to find"
        )
    unclear = (np.diagonal(gram) <= 0) & (np.diagonal(problem.gram) > 0) & ~constant
    if problem.free_scale and unclear.any():
        i = int(np.argmax(unclear))
        raise ValueError(
            f"{problem.name}: intercept: input {i} has a mean of "
            f"{problem.input_sum[i] / problem.row_weight:.3g} and spreads so little about it that "
            "the sums have too few digits for that; use precision='double', or take the means off "
            "the inputs first"
        )
    gram[constant] = gram[:, constant] = cross[constant] = 0.0
    energy[flat] = 0.0
    if problem.free_scale:
        cross[:, flat] = 0.0
    return gram, cross, energy


def centring_error(problem: Problem, weight: np.ndarray) -> np.ndarray:
    """What rounding of the sums, and leaving out constant inputs, can do to the loss of weights
    (S, T) about the means, (T,)."""
    assert problem.input_sum is not None and problem.row_weight
    size = np.abs(weight)
    total = np.abs(problem.input_sum) @ size
    error = 1e-13 * (problem.energy + total / problem.row_weight * total)
    constant = np.flatnonzero(_constant(problem))
    if not len(constant):
        return error
    gram, cross = problem.gram[constant], problem.cross[constant]
    inputs, targets, row_weight = _sums(problem)
    about_means(gram, inputs[constant], inputs, row_weight)
    about_means(cross, inputs[constant], targets, row_weight)
    # how they go with others and with targets
    return error + 2 * (size[constant] * (np.abs(cross) + np.abs(gram) @ size)).sum(axis=0)


def _sums(problem: Problem) -> tuple[np.ndarray, np.ndarray, float]:
    """Sums of inputs and targets, and of row weights, in units in which the last is between 1/2 and
    2, so that no product of two leaves the range."""
    assert problem.input_sum is not None and problem.target_sum is not None and problem.row_weight
    half = int(np.frexp(problem.row_weight)[1]) // 2
    inputs, targets = (np.ldexp(s, -half) for s in (problem.input_sum, problem.target_sum))
    return inputs, targets, float(np.ldexp(problem.row_weight, -2 * half))


def _constant(problem: Problem) -> np.ndarray:
    """Which inputs have a mean that accounts for all of their squares but rounding, or, where sums
    are of single precision, for more, (S,)."""
    assert problem.input_sum is not None and problem.row_weight
    size = np.diagonal(problem.gram)
    left = size - problem.input_sum / problem.row_weight * problem.input_sum
    return (size > 0) & (left <= SPREAD_LOST * size)


@np.errstate(over="ignore", invalid="ignore")
def _matter(
    problem: Problem, i: int, gram: np.ndarray, cross: np.ndarray, energy: np.ndarray
) -> np.ndarray:
    """Of which columns the loss may show how input i goes with the target and with other inputs, at
    the scale of codes that fit it by chance; of sums about means, less what is rounding, (T,)."""
    sizes = np.sqrt(np.diagonal(problem.gram).clip(0))
    rounding = 8 * SPREAD_LOST * sizes[i]
    pulls, others = np.abs(cross[i]), np.abs(np.delete(gram[i], i))
    pulls[pulls <= rounding * np.sqrt(problem.energy)] = 0.0
    others[others <= rounding * np.delete(sizes, i)] = 0.0
    if problem.fixed_scales is not None:
        scales = np.abs(problem.fixed_scales)
    else:
        scales = np.sqrt(energy.clip(0) / max(np.trace(gram), np.finfo(float).tiny))
    return 2 * scales * (pulls + scales * others.sum()) > MATTERS * energy
