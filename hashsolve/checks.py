"""Checks of arrays that come from outside; each error names the array and the mend."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from hashsolve.suggest import did_you_mean


def array(value: Any, name: str, ndim: int | tuple[int, ...]) -> np.ndarray:
    """A real numeric array of the wanted number of dimensions, not empty; dtype unchanged.

    Raises
    ------
    ValueError
        Naming the array, where it is ragged, not numeric, complex, empty, or of other dimensions.
    """
    try:
        # an h5py data set, or anything else that is sliced lazily, is left as it is
        lazy = hasattr(value, "shape") and isinstance(getattr(value, "dtype", None), np.dtype)
        result = value if lazy else np.asarray(value)
        kind = result.dtype.kind
    except (ValueError, TypeError, RuntimeError) as error:  # the last: a tensor with gradients
        raise ValueError(f"{name}: not an array of numbers ({error})") from None
    if np.ma.is_masked(result):
        raise ValueError(f"{name}: has masked entries; give what they stand for, by filled()")
    if kind not in "fiub":
        raise ValueError(f"{name}: dtype {result.dtype} is not a real number type")
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if len(result.shape) not in wanted:
        dims = " or ".join(map(str, wanted))
        hint = (
            "; a single column is array[:, None]"
            if wanted == (2,) and len(result.shape) == 1
            else ""
        )
        raise ValueError(
            f"{name}: expected {dims} dimensions, got shape {tuple(result.shape)}{hint}"
        )
    if 0 in result.shape:
        raise ValueError(f"{name}: empty, shape {tuple(result.shape)}")
    return result


def codes(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Codes of this shape (S, T), or (M, S, T) for several bases.

    Raises
    ------
    ValueError
        For another shape, or entries other than −1 and +1.
    """
    result: np.ndarray = array(value, "codes", (2, 3))[...]
    if result.shape[-2:] != shape:
        raise ValueError(f"codes: must have shape (S, T) = {shape}, got {result.shape}")
    if (np.abs(result.astype(float)) != 1).any():
        raise ValueError("codes: entries other than -1 and +1; of bits, give 2 * bits - 1.0")
    return result


def finite(values: np.ndarray, name: str, start: int = 0, axis: int = -1) -> np.ndarray:
    """The same array, or a ValueError that says where it is NaN or infinite, in the whole of which
    this is the part from ``start`` on along an axis."""
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0]
        value = values[tuple(where)]
        if start:
            where[axis] += start
        place = tuple(int(i) for i in where)
        raise ValueError(f"{name}: {value} at {place}; every entry must be finite")
    return values


def matrix(value: Any, name: str, ndim: int | tuple[int, ...] = 2) -> np.ndarray:
    """`array`, as finite float64 in memory."""
    return finite(np.asarray(array(value, name, ndim)[...], dtype=np.float64), name)


def whole(value: Any, name: str, least: int, most: int = 2**63 - 1) -> int:
    """A whole number in [least, most], as int; a ValueError for anything else, bool included."""
    number: int | None
    try:
        number = operator.index(value)
    except TypeError:
        number = int(value) if isinstance(value, float) and value.is_integer() else None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        above = number is not None and number > most
        limit = f">= {least}" if most == 2**63 - 1 and not above else f"from {least} to {most}"
        raise ValueError(f"{name}: must be a whole number {limit}, got {value!r}")
    return number


def positive(value: Any, name: str, unit: str = "") -> float:
    """A finite number > 0, as float; a ValueError for anything else."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    if not number or not 0 < value < np.inf:
        raise ValueError(f"{name}: must be > 0{unit}, got {value!r}")
    return float(value)


def number(value: Any, name: str, most: float = np.inf) -> float:
    """A finite number from 0 to ``most``, of any type that float takes but text and bool."""
    if str(getattr(value, "dtype", "")) == "object" and value.ndim == 0:
        value = value.item()
    dtype = str(getattr(value, "dtype", ""))  # of NumPy's and torch's numbers and arrays
    other = getattr(getattr(value, "dtype", None), "kind", "f") in "SUmM"
    other = other or "bool" in dtype or "complex" in dtype
    text = (str, bytes, bytearray, memoryview)
    refused = other or isinstance(value, (*text, bool, complex))
    try:
        result = np.nan if refused else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        result = np.nan
    if not 0 <= result <= most or result == np.inf:
        limit = ">= 0" if most == np.inf else f"in [0, {most}]"
        raise ValueError(f"{name}: must be a number {limit}, got {value!r}")
    return result


def choice(value: str, name: str, allowed: Any) -> str:
    """The value, if it is one of ``allowed``; else a ValueError with the nearest of them."""
    try:
        known = value in allowed
    except (TypeError, ValueError):  # a list, an array
        known = False
    if known:
        return value
    names = ", ".join(map(repr, allowed))
    raise ValueError(f"{name}: {value!r} is not one of {names}{did_you_mean(value, allowed)}")
