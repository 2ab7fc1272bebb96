"""LAPACK without Python's lock, in place: SciPy's own wrappers hold it, so that threads take turns.

The routines are those that SciPy exports for Cython. Matrices are float64 in Fortran's order, of
which the lower triangle is read and written; the upper one is left alone.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np
from numba.extending import get_cython_function_address
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LOWER, _UPPER, _TRANSPOSED, _NOT_UNIT = (
    ctypes.c_char_p(letter) for letter in (b"L", b"U", b"T", b"N")
)


def _routine(library: str, name: str, arguments: int) -> Any:
    """A routine, all of whose arguments are addresses; ctypes calls it without the lock."""
    module = importlib.import_module(f"scipy.linalg.cython_{library}")
    if " int *" not in str(module.__pyx_capi__[name]):
        raise ImportError(f"SciPy's {name} takes other integers than C's int")
    address = get_cython_function_address(module.__name__, name)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


_dpotrf, _dpotri = _routine("lapack", "dpotrf", 5), _routine("lapack", "dpotri", 5)
_dpotrs = _routine("lapack", "dpotrs", 8)
_dtpsv = _routine("blas", "dtpsv", 7)


def _square(matrix: Array, written: bool = True) -> tuple[Any, int]:
    """The addresses of a matrix's order, a C integer, and of itself."""
    size, flags = len(matrix), matrix.flags
    fits = matrix.shape == (size, size) and matrix.dtype == np.float64 and size > 0
    if not fits or not flags.f_contiguous or (written and not flags.writeable):
        raise TypeError("needs a square float64 matrix in Fortran's order")
    return ctypes.byref(ctypes.c_int(size)), matrix.ctypes.data


def cholesky(matrix: Array) -> bool:
    """Overwrite the lower triangle by its Cholesky factor; whether there is one."""
    order, address = _square(matrix)
    failed = ctypes.c_int()
    _dpotrf(_LOWER, order, address, order, ctypes.byref(failed))
    return failed.value == 0 and bool(np.isfinite(matrix[-1, -1]))


def invert(factor: Array) -> None:
    """Overwrite a Cholesky factor by the inverse of what it is the factor of."""
    order, address = _square(factor)
    _dpotri(_LOWER, order, address, order, ctypes.byref(ctypes.c_int()))


def solve(factor: Array, right: Array) -> Array:
    """Rows of ``right`` (K, S) through the factored matrix."""
    order, address = _square(factor, written=False)
    found = np.array(right, dtype=np.float64, order="C")
    if found.ndim != 2 or found.shape[1] != len(factor):
        raise ValueError(f"right sides of {len(factor)} numbers, not of shape {found.shape}")
    columns, failed = ctypes.c_int(len(found)), ctypes.c_int()
    _dpotrs(
        _LOWER,
        order,
        ctypes.byref(columns),
        address,
        order,
        found.ctypes.data,
        order,
        ctypes.byref(failed),
    )
    return found


def solve_packed(lower: Array, right: Array) -> Array:
    """x of Lx = right, of a lower triangle L whose rows are given one after the other."""
    found = np.array(right, dtype=np.float64)
    lower = np.ascontiguousarray(lower, dtype=np.float64)
    if found.ndim != 1 or lower.shape != (len(found) * (len(found) + 1) // 2,):
        raise ValueError("the triangle is of another order")
    size, step = ctypes.c_int(len(found)), ctypes.c_int(1)
    # its rows are the columns of an upper triangle, the transpose
    _dtpsv(
        _UPPER,
        _TRANSPOSED,
        _NOT_UNIT,
        ctypes.byref(size),
        lower.ctypes.data,
        found.ctypes.data,
        ctypes.byref(step),
    )
    return found
