"""Raw float64 sums over rows: all that is ever kept of activations and targets.

With ``precision="single"`` blocks of rows are multiplied in float32 before they are added in
float64, at up to twice the rate. For a block of n rows, at most 8,192, every entry of H then is
within n·2⁻²⁴·√(H_ii H_jj) of what double gives (5e-4 at worst; about 1e-7 was seen): the same as
though the rows had been seen through a little noise. ΣX̂ and e are summed in float64, and H is
exactly symmetric, but where it is singular it may have eigenvalues a little below zero. Losses,
bounds and certificates are those of the sums as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.checks import finite
from hashsolve.kernels.streams import add_moments
from hashsolve.threads import add_gram, ahead, mirror, one_blas_thread, product, spread, strips

MAX_BLOCK_ROWS = 8192
SMALLEST_SQUARE = 1e-305
"""Sums of squares below this have lost digits to underflow."""
PRECISIONS = ("double", "single")
_BLOCK_BYTES = 64 * 2**20
_INLINE = 100_000  # numbers below which threads cost more than they save
_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
_PIECE = 1024  # columns of a block that one thread converts
_SINGLE_SQUARES = 2.0**-80, 2.0**120
"""Rows of a block whose sum of squares is outside are not multiplied in float32: inside, no product
of two overflows, and what underflows in it is below its rounding."""


def block_rows(inputs: int, precision: str = "double") -> int:
    """Rows summed at a time for a fan-in of ``inputs``: a fixed cut, so that sums never
    depend on how rows arrive, and bounded (64 MB where that leaves 256 rows); a multiple of 256."""
    size = 4 if precision == "single" else 8
    return max(256, min(MAX_BLOCK_ROWS, _BLOCK_BYTES // (size * max(inputs, 1)) // 256 * 256))


class Sums:
    """Sums H = X̂X̂ᵀ, C = X̂Y, e = ΣY² (and ΣX̂, ΣY) over rows that arrive in any batches.

    Rows are re-cut into fixed blocks before they are added, so the result does not depend on
    the batches. Without targets (``targets=0``) only H and ΣX̂ are summed: enough where
    Y = X̂ᵀW, because then C = HW.

    Parameters
    ----------
    inputs : int
        Fan-in S.
    targets : int
        Number of filters T, or 0.
    name : str
        What the rows belong to, for error messages.
    precision : {"double", "single"}
        "single": blocks are multiplied in float32 (what is not in float32, rounded to it first),
        save those with inputs or targets too large or too small for it.

    Attributes
    ----------
    gram : array (S, S)
        H; only its upper triangle until `finish`.
    """

    def __init__(
        self, inputs: int, targets: int = 0, name: str = "problem", precision: str = "double"
    ):
        self.name = name
        self.precision = checks.choice(precision, "precision", PRECISIONS)
        self.rows = 0
        self.row_weight = 0.0
        self.input_sum = np.zeros(inputs)
        self.target_sum = np.zeros(targets)
        self.cross = np.zeros((inputs, targets))
        self.energy = np.zeros(targets)
        self.input_peak = 0.0
        self.target_peak = np.zeros(targets)
        self.gram = np.zeros((inputs, inputs))
        self._block_rows = block_rows(inputs, precision)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._pending_rows = 0

    def add(self, inputs: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Add rows: ``inputs`` (S, n), ``targets`` (T, n); any n."""
        if targets is None:
            targets = np.zeros((0, inputs.shape[1]))
        start = 0
        while start < inputs.shape[1]:
            stop = start + self._block_rows - self._pending_rows
            piece = inputs[:, start:stop], targets[:, start:stop]
            if self._pending_rows == 0 and piece[0].shape[1] == self._block_rows:
                self.add_block(*map(np.ascontiguousarray, piece))
            else:
                self._pending.append((piece[0].copy(), piece[1].copy()))
                self._pending_rows += piece[0].shape[1]
                if self._pending_rows == self._block_rows:
                    self._flush()
            start = stop

    def add_block(
        self,
        inputs: np.ndarray,
        targets: np.ndarray | None = None,
        row_weights: np.ndarray | None = None,
    ) -> None:
        """Add one block as it is, for callers whose blocks are fixed already; weighted by row."""
        single = self.precision == "single" and row_weights is None
        if single and self._add_single(inputs, targets):
            return
        x = np.ascontiguousarray(inputs, dtype=np.float64)
        y = np.ascontiguousarray(targets, dtype=np.float64) if self.energy.size else None
        root = np.ones(x.shape[1]) if row_weights is None else np.sqrt(row_weights)
        quiet = np.errstate(over="ignore", under="ignore", invalid="ignore")
        with one_blas_thread(), quiet:
            if row_weights is not None:
                x = x * root
                y = None if y is None else y * root
            add_gram(self.gram, x)
            self.input_sum += _row_sums(x, root, f"{self.name}: inputs", self.rows)
            if np.diagonal(self.gram).max() < SMALLEST_SQUARE:
                self.input_peak = max(self.input_peak, np.abs(x).max(initial=0.0))
            if y is not None:
                self.cross += product(x, y.T)
                self.target_sum += _row_sums(y, root, f"{self.name}: targets", self.rows, True)
                self.energy += np.einsum("tn,tn->t", y, y)
                small = self.energy < SMALLEST_SQUARE
                self.target_peak[small] = np.maximum(
                    self.target_peak[small], np.abs(y[small]).max(axis=1, initial=0.0)
                )
        self.rows += x.shape[1]
        self.row_weight += float(root @ root)

    def _add_single(self, inputs: np.ndarray, targets: np.ndarray | None) -> bool:
        """Add one block by products in float32; or nothing, where they would leave its range."""
        x, input_sum = in_single(inputs)
        y, target_sum = None, np.zeros(0)
        if targets is not None and self.energy.size:
            y, target_sum = in_single(targets)
        if x is None or (self.energy.size and y is None):
            return False
        add_gram(self.gram, x)
        self.input_sum += input_sum
        if y is not None:
            self.cross += product(x, y.T)
            self.target_sum += target_sum
            self.energy += np.einsum("tn,tn->t", y, y, dtype=np.float64)
        self.rows += x.shape[1]
        self.row_weight += float(x.shape[1])
        return True

    def outputs(self, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """WᵀX (T, n), in this precision, of weights (S, T) and rows (S, n)."""
        if self.precision == "single":
            x, w = in_single(inputs)[0], in_single(weights.T)[0]
            if x is not None and w is not None:
                return product(w, x)
        return product(weights.T, np.asarray(inputs, dtype=np.float64))

    def count(self, rows: int, input_sum: np.ndarray, input_peak: float) -> None:
        """Add ΣX̂ and the largest |X̂| of rows whose H was added elsewhere."""
        self.input_sum += input_sum
        self.input_peak = max(self.input_peak, input_peak)
        self.rows += rows
        self.row_weight += float(rows)

    def merge(self, other: Sums) -> None:
        """Add the sums of other rows."""
        other._flush()
        self.gram += other.gram
        self.count(other.rows, other.input_sum, other.input_peak)
        self.row_weight += other.row_weight - other.rows
        self.add_target_sums(other.cross, other.energy, other.target_sum, other.target_peak)

    def add_target_sums(
        self, cross: np.ndarray, energy: np.ndarray, target_sum: np.ndarray, peak: np.ndarray
    ) -> None:
        """Add C, e and ΣY of rows that `count` has counted, and the largest |Y|."""
        self.cross += cross
        self.energy += energy
        self.target_sum += target_sum
        self.target_peak = np.maximum(self.target_peak, peak)

    def _flush(self) -> None:
        if self._pending:
            inputs = np.concatenate([x for x, _ in self._pending], axis=1)
            targets = np.concatenate([y for _, y in self._pending], axis=1)
            self._pending, self._pending_rows = [], 0
            self.add_block(inputs, targets)

    def finish(self) -> Sums:
        """Add what is left of the last block, check that nothing over- or underflowed, and fill the
        lower triangle of H; nothing can be added afterwards.

        Raises
        ------
        ValueError
            If no row was added, or if sums left the range of float64.
        """
        self._flush()
        if self.rows == 0:
            raise ValueError(f"{self.name}: no rows were summed: the inputs are empty")
        peak = np.diagonal(self.gram).max()
        in_range("inputs", self.name, self.input_peak, peak)
        for t in range(len(self.energy)):
            in_range(f"target column {t}", self.name, self.target_peak[t], self.energy[t])
        if self.gram.flags.writeable:
            mirror(self.gram)
            for array in (self.gram, self.cross, self.energy, self.input_sum, self.target_sum):
                array.flags.writeable = False  # so that a `Problem` needs no copy
        return self


def in_single(values: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Rows (R, n) as float32, and their sums (R,); None for rows that hold what is not finite, or
    too large or too small for products in float32."""
    result = values
    if values.dtype != np.float32:
        result = np.empty_like(values, dtype=np.float32)

    def convert(cut: slice) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):
            if result is not values:
                if values.dtype == np.float16:
                    # twice as fast as a conversion; .T, as it mostly lies in memory
                    halves, out = values[:, cut].T.view(np.uint16), result[:, cut].T
                    np.take(_HALVES, halves, out=out, mode="wrap")
                else:
                    result[:, cut] = values[:, cut]
            part = result[:, cut]
            if part.T.flags.c_contiguous:
                moments = np.zeros((2, len(part)))
                add_moments(part.T, *moments)
                return moments[0], moments[1]
            return part.sum(axis=1, dtype=np.float64), np.einsum("rn,rn->r", part, part)

    found = spread(
        convert, strips(values.shape[1], _PIECE if values.size > _INLINE else values.shape[1] or 1)
    )
    sums = [np.sum(each, axis=0, dtype=np.float64) for each in zip(*found, strict=True)]
    total, squares = map(np.asarray, sums)
    low, high = _SINGLE_SQUARES
    inside = np.logical_and(squares >= low, squares <= high)  # false for what is not a number
    inside[~inside] = ~values[~inside].any(axis=1)
    return (result if inside.all() else None), total


def _row_sums(
    values: np.ndarray, root: np.ndarray, name: str, start: int, samples_first: bool = False
) -> np.ndarray:
    """Σ over weighted columns, which are those from ``start`` on; a ValueError names the first
    entry that is not finite, as it lies in X (S, N) or Y (N, T)."""
    total = values @ root
    if not np.isfinite(total).all():
        finite(*((values.T, name, start, 0) if samples_first else (values, name, start)))
    return total


def in_range(what: str, name: str, peak: float, total: float) -> None:
    """Refuse a sum of squares that over- or underflowed float64."""
    if not np.isfinite(total) or (peak > 0 and total < SMALLEST_SQUARE):
        raise ValueError(
            f"{name}: {what}: the sum of squares ({total:.3g}) leaves the range of float64; "
            "multiply by a power of two that brings the values near 1"
        )


def _transpose_x(fits: bool) -> str:
    return "; X is to be (S, N), a column a sample: transpose X" if fits else ""


def sum_arrays(
    inputs: Any,
    weights: Any,
    target: Any,
    reference: Any,
    row_weights: Any,
    name: str,
    precision: str = "double",
) -> tuple[Sums, np.ndarray | None]:
    """The sums of arrays as `Problem.from_arrays` takes them, checked; and W as float64."""
    at = f"{name}: "
    x = checks.array(inputs, at + "inputs (X)", 2)
    w = None if weights is None else checks.matrix(weights, at + "weights (W)")
    y = None if target is None else checks.array(target, at + "target (Y)", 2)
    ref = None if reference is None else checks.array(reference, at + "reference (X)", 2)
    v = None if row_weights is None else checks.matrix(row_weights, at + "row_weights", 1)
    size, rows = x.shape
    if w is None and y is None:
        raise ValueError(f"{at}give weights (W) or a target (Y)")
    if w is not None and w.shape[0] != size:
        hint = "; transpose W" if w.shape[1] == size else _transpose_x(w.shape[0] == rows)
        raise ValueError(f"{at}weights (W): must be (S, T) with S = {size}, got {w.shape}{hint}")
    if y is not None and (y.shape[0] != rows or (w is not None and y.shape[1] != w.shape[1])):
        hint = "; transpose Y" if y.shape[1] == rows else _transpose_x(y.shape[0] == size)
        raise ValueError(f"{at}target (Y): must be (N, T) with N = {rows}, got {y.shape}{hint}")
    if ref is not None and (y is not None or ref.shape != x.shape):
        why = f"must have the shape of inputs, {x.shape}, got {ref.shape}"
        raise ValueError(f"{at}reference (X): " + (why if y is None else "has no use beside Y"))
    if v is not None and (v.shape != (rows,) or (v < 0).any() or not v.any()):
        raise ValueError(f"{at}row_weights: must be {rows} numbers >= 0, not all 0")

    source = y if y is not None or ref is None else w
    sums = Sums(size, 0 if source is None else source.shape[1], name, precision)
    step = block_rows(size, precision)

    def blocks() -> Iterator[tuple[slice, np.ndarray, np.ndarray | None, np.ndarray | None]]:
        for start in range(0, rows, step):
            cut = slice(start, start + step)
            ref_block = None if ref is None else np.asarray(ref[:, cut])
            yield cut, np.asarray(x[:, cut]), ref_block, None if y is None else np.asarray(y[cut]).T

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        in_memory = all(a is None or type(a) is np.ndarray for a in (x, y, ref))
        for cut, x_block, ref_block, y_block in blocks() if in_memory else ahead(blocks()):
            if ref_block is not None and w is not None:
                y_block = sums.outputs(w, finite(ref_block, at + "reference (X)", cut.start))
            sums.add_block(x_block, y_block, None if v is None else v[cut])
    return sums, w
