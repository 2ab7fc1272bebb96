"""Slow, readable NumPy twins of kernels, and brute force; `hashsolve.verify` uses them.

Twins share name and signature with their kernels, change the same arrays, and compute each
quantity afresh from its definition where the kernel keeps it up to date. Those of the kernels that
search are in `hashsolve.reference_search`.
"""

from __future__ import annotations

import numpy as np

from hashsolve.problem import Problem, cancelling


def correlations(gram, codes, h) -> None:
    """h[t] = gram @ codes[t]."""
    h[:] = codes @ gram


def add_rows(rows, weights, h) -> None:
    """h[t] += Σ_k weights[t, k] rows[k], one row after the other."""
    for k in range(len(rows)):
        h += weights[:, k : k + 1] * rows[k]


def word_sums(words, found) -> None:
    """found = Σ w_i and Σ (n − i) w_i over n 16-bit words, both modulo 65,535."""
    found[:] = sum(map(int, words)) % 65535, sum(map(int, np.cumsum(words, dtype=object))) % 65535


def add_moments(values, total, squares) -> None:
    """Add Σ v and Σ v² of each column of values (n, R), in float64, to total and squares (R,)."""
    total += values.sum(axis=0, dtype=np.float64)
    squares += np.square(values.astype(np.float64)).sum(axis=0)


def products(cross, codes, h, p, q) -> None:
    """p[t] = cross[t] · codes[t] and q[t] = codes[t] · h[t]."""
    p[:] = (cross * codes).sum(axis=1)
    q[:] = (codes * h).sum(axis=1)


def dcc_sweep(gram, cross, codes, h, scales, active, flips) -> None:
    """One cyclic sweep at fixed scales (BWNH, eq. 9): b_j = sgn(c_j − α Σ_{k≠j} H_jk b_k)."""
    others = gram - np.diag(np.diagonal(gram))
    flips[:] = 0
    for t in np.flatnonzero(active):
        for j in range(len(gram)):
            best = np.sign(cross[t, j] - scales[t] * others[j] @ codes[t])
            if best == -codes[t, j]:
                codes[t, j] = best
                flips[t] += 1
    correlations(gram, codes, h)


def group_dcc_sweep(gram, cross, codes, h, scales, active, flips) -> None:
    """One cyclic sweep at fixed group scales: b_j = sgn(α_j (c_j − Σ_{k≠j} H_jk α_k b_k))."""
    others = gram - np.diag(np.diagonal(gram))
    spread = np.repeat(scales, len(gram) // scales.shape[1], axis=1)
    flips[:] = 0
    for t in np.flatnonzero(active):
        for j in range(len(gram)):
            pull = cross[t, j] - others[j] @ (spread[t] * codes[t])
            best = np.sign(spread[t, j] * pull)
            if best == -codes[t, j]:
                codes[t, j] = best
                flips[t] += 1
    h[:] = (spread * codes) @ gram


def one_flip_sweep(gram, free, tolerance, floor, cross, codes, h, p, q, active, flips) -> None:
    """One cyclic sweep that makes every flip that lowers the loss by more than rounding."""

    def value(b):
        """The loss without its constant, and the size of its rounding."""
        p, q = cross[t] @ b, b @ gram @ b
        if not free:
            return q - 2 * p, abs(q) + 2 * abs(p)
        return (-p * p / q, p * p / q / q) if q > floor else (0.0, 0.0)

    flips[:] = 0
    for t in np.flatnonzero(active):
        for j in range(len(gram)):
            flipped = codes[t].copy()
            flipped[j] *= -1
            (old, old_size), (new, new_size) = value(codes[t]), value(flipped)
            size = 1 + old_size + new_size if free else old_size
            if old - new > tolerance * size:
                codes[t] = flipped
                flips[t] += 1
                p[t], q[t] = cross[t] @ flipped, flipped @ gram @ flipped
    correlations(gram, codes, h)


def best_scales(problem: Problem, codes: np.ndarray) -> np.ndarray:
    """α* = cᵀb / bᵀHb of each column (BWNH, eq. 6), 0 where that cancels; or the fixed scales."""
    if problem.fixed_scales is not None:
        return problem.fixed_scales
    b = codes.astype(np.longdouble)
    p = (problem.cross * b).sum(axis=0)
    q = (b * (problem.gram @ b)).sum(axis=0)
    usable = q > cancelling(problem.gram)
    return np.divide(p, q, out=np.zeros_like(p), where=usable).astype(float)


def loss(problem: Problem, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """e − 2α cᵀb + α² bᵀHb of each column, accumulated in extended precision, (T,)."""
    u = codes.astype(np.longdouble)
    if u.ndim == 3:  # several bases
        u = (u * scales[:, None]).sum(axis=0)
    else:  # a scale a group of inputs, or one
        u = u * (np.repeat(scales, len(u) // len(scales), axis=0) if scales.ndim == 2 else scales)
    return (
        problem.energy - 2 * (problem.cross * u).sum(0) + (u * (problem.gram @ u)).sum(0)
    ).astype(float)


def separable(problem: Problem) -> np.ndarray:
    """The smallest loss of each column where the Gram matrix is zero and scales are given."""
    assert problem.fixed_scales is not None
    return problem.energy - 2 * problem.fixed_scales * np.abs(problem.cross).sum(axis=0)


def explicit_loss(
    inputs: np.ndarray, target: np.ndarray, codes: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """‖Y − X̂ᵀBA‖² of each column, from the arrays themselves, (T,)."""
    return ((target - inputs.T @ (codes * scales)) ** 2).sum(axis=0)


def all_codes(size: int) -> np.ndarray:
    """All 2^S codes, (S, 2^S)."""
    counts = np.arange(2**size)
    return (2 * ((counts >> np.arange(size)[:, None]) & 1) - 1).astype(np.int8)


def brute_force(problem: Problem) -> np.ndarray:
    """The smallest loss of each column over all 2^S codes and all scales, (T,); S <= 20."""
    if problem.inputs > 20:
        raise ValueError(f"brute force takes S <= 20, got {problem.inputs}")
    codes = all_codes(problem.inputs).astype(float)
    q = (codes * (problem.gram @ codes)).sum(axis=0)
    size = np.sqrt(np.abs(np.diagonal(problem.gram))).sum() ** 2  # what bᵀHb sums, at most
    best = np.empty(problem.columns)
    for t in range(problem.columns):
        p = problem.cross[:, t] @ codes
        if problem.fixed_scales is None:
            scale = np.divide(p, q, out=np.zeros_like(p), where=q > cancelling(problem.gram))
            found = problem.energy[t] - p * scale
            # below zero by no more than the rounding of the sums is zero
            found[(found < 0) & (found > -1e-13 * size * scale**2)] = 0.0
        else:
            scale = problem.fixed_scales[t]
            found = problem.energy[t] - 2 * scale * p + scale**2 * q
        best[t] = found.min()
    return best
