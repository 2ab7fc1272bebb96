"""Single columns of every kind, as kernels take them, with their optima in rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from hashsolve.instance import Instance
from hashsolve.reference import all_codes

FREE = ("full", "ill", "singular", "duplicated", "integer", "asymmetric", "fits", "zero cross")
FIXED = ("indefinite", "integer indefinite", "rank two", "scale one")
KINDS = FREE + FIXED


class Column(NamedTuple):
    """One column's sums; ``free`` says whether its scale is found or is 1."""

    gram: np.ndarray
    cross: np.ndarray
    energy: float
    free: bool

    @property
    def size(self) -> float:
        """What rounding is relative to."""
        return max(self.energy, 1.0 if self.free else np.abs(self.gram).sum())

    @property
    def instance(self) -> Instance:
        """The instance of this one column, in these very units."""
        inputs = len(self.cross)
        return Instance(
            gram=self.gram,
            cross=self.cross[None],
            energy=np.array([self.energy]),
            free=self.free,
            live=np.ones(inputs, dtype=bool),
            dead_codes=np.ones((inputs, 1), dtype=np.int8),
            known_weights=None,
            known_magnitude=None,
            scale_unit=np.ones(1),
            loss_unit=np.ones(1),
        )


def make_column(kind: str, size: int, seed: int) -> Column:
    """A column of one of `KINDS`: energy 1 where the scale is free, small integers in "integer"."""
    rng = np.random.default_rng(seed)
    if kind == "indefinite":
        gram = rng.normal(size=(size, size))
        return Column(gram + gram.T, 3 * rng.random() * rng.normal(size=size), 0.0, False)
    if kind == "integer indefinite":
        gram = rng.integers(-9, 10, (size, size)).astype(float)
        return Column(gram + gram.T, rng.integers(-9, 10, size).astype(float), 0.0, False)
    if kind == "rank two":
        a, b = rng.normal(size=(2, size))
        gram = np.outer(a, a) - np.outer(b, b)
        return Column(0.5 * (gram + gram.T), rng.normal(size=size), 0.0, False)
    rows = max(1, size // 2) if kind == "singular" else 3 * size
    x = rng.normal(size=(size, rows)) + 0.5 * rng.normal(size=rows)
    if kind == "ill":
        x *= 10.0 ** -rng.uniform(0, 6, size)[:, None]
    elif kind == "duplicated":
        x = x[rng.integers(0, (size + 1) // 2, size)]
    elif kind == "integer":
        x = np.rint(x)
        x[:, 0] = 1.0
    target = x.T @ (np.sign(rng.normal(size=size)) if kind == "fits" else rng.normal(size=size))
    if kind == "integer":
        target = np.rint(target)
    elif kind != "fits":
        target = target + rng.normal(size=rows) * (rng.uniform(0, 3) if kind == "asymmetric" else 1)
    gram, cross, energy = x @ x.T, x @ target, float(target @ target)
    gram = 0.5 * (gram + gram.T)
    if kind == "integer":
        return Column(gram, cross, energy, True)
    unit = np.diag(gram).max()
    gram, cross = gram / unit, cross / np.sqrt(unit * energy)
    if kind == "zero cross":
        cross = np.zeros(size)
    if kind == "scale one":  # at the best scale of the target's signs
        scale = np.abs(cross).sum() / np.trace(gram)
        return Column(gram, cross / scale, 1.0 / scale**2, False)
    return Column(gram, cross, 1.0, True)


def random_codes(seed: int, *shape: int) -> np.ndarray:
    """Codes of this shape."""
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def losses(column: Column, codes: np.ndarray) -> np.ndarray:
    """The loss of each row of codes, at the best scale where it is free."""
    b = codes.astype(float)
    p, q = b @ column.cross, ((b @ column.gram) * b).sum(axis=-1)
    if not column.free:
        return column.energy - 2 * p + q
    p, q = np.atleast_1d(p), np.atleast_1d(q)
    usable = q > 1e-12 * np.trace(column.gram)
    return column.energy - np.divide(p * p, q, out=np.zeros_like(p), where=usable)


def rational_loss(column: Column, codes: np.ndarray, scale: float | None = None) -> Fraction:
    """The loss without any rounding, at its best scale or a given one; nothing is gained where bᵀHb
    is not positive."""
    bits = [int(b) for b in codes]
    p = sum(Fraction(float(c)) * b for c, b in zip(column.cross, bits, strict=True))
    q = Fraction(0)
    for row, a in zip(column.gram, bits, strict=True):
        q += a * sum(Fraction(float(h)) * b for h, b in zip(row, bits, strict=True))
    energy = Fraction(float(column.energy))
    if scale is not None:
        return energy - 2 * Fraction(float(scale)) * p + Fraction(float(scale)) ** 2 * q
    if not column.free:
        return energy - 2 * p + q
    return energy - p * p / q if q > 0 else energy


def optimum(column: Column, candidates: int = 4) -> tuple[Fraction, np.ndarray]:
    """The smallest loss over all codes, and its codes; those near it are compared as fractions.

    Codes with bᵀHb below a millionth of the trace reach nothing in floating point: they are left
    out, as rounding of the sums decides their loss.
    """
    codes = all_codes(len(column.cross)).T
    loss = losses(column, codes)
    if column.free:
        b = codes.astype(float)
        loss = np.where(
            ((b @ column.gram) * b).sum(axis=1) > 1e-6 * np.trace(column.gram), loss, column.energy
        )
    near = np.argsort(loss, kind="stable")[:candidates]
    best = min(((rational_loss(column, codes[i]), i) for i in near), key=lambda pair: pair[0])
    if column.free and loss[near].min() >= column.energy:
        return Fraction(float(column.energy)), codes[near[0]]
    return best[0], codes[best[1]]


def unpacked(lower):
    """The factor that has these rows."""
    size = int(np.sqrt(2 * len(lower)))
    matrix = np.zeros((size, size))
    matrix[np.tril_indices(size)] = lower
    return matrix
