"""Codes at one bit each, in memory and in HDF5, and the weights that they stand for."""

from __future__ import annotations

import math

import h5py
import numpy as np

from hashsolve.files import attribute, write_attributes


def pack(codes: np.ndarray) -> np.ndarray:
    """The bits of codes, +1 as 1, least significant bit first, columns one after the other.

    Parameters
    ----------
    codes : int8 array (S, T), or (M, S, T)

    Returns
    -------
    uint8 array (ceil(codes / 8),)

    Examples
    --------
    >>> import numpy as np
    >>> pack(np.array([[1], [-1], [1]], dtype=np.int8))
    array([5], dtype=uint8)
    """
    return np.packbits(codes.T.reshape(-1) > 0, bitorder="little")


def unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The int8 codes that `pack` packed.

    Parameters
    ----------
    bits : uint8 array
    shape : tuple of int
        Of the codes.

    Returns
    -------
    int8 array of that shape

    Examples
    --------
    >>> import numpy as np
    >>> unpack(np.array([5], dtype=np.uint8), (3, 1)).T
    array([[ 1, -1,  1]], dtype=int8)
    """
    flat = np.unpackbits(bits, count=math.prod(shape), bitorder="little").astype(np.int8)
    return np.ascontiguousarray((2 * flat - 1).reshape(shape[::-1]).T)


def write_packed(group: h5py.Group, name: str, codes: np.ndarray) -> None:
    """Write codes as a packed data set that records its logical shape and bit order."""
    data = group.create_dataset(name, data=pack(codes), fletcher32=True)
    write_attributes(data, {"shape": codes.shape, "bitorder": "little, column by column"})


def read_packed(data: h5py.Dataset, where: str) -> np.ndarray:
    """Read what `write_packed` wrote; a ValueError names the file where the sizes disagree."""
    shape = tuple(int(n) for n in attribute(data, "shape"))
    if min(shape) < 1 or data.shape != ((math.prod(shape) + 7) // 8,):
        raise ValueError(f"{where}: damaged: {data.shape} bytes of codes for shape {shape}")
    return unpack(data[()], shape)


def combine(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The weights (S, T) that codes and scales stand for.

    Parameters
    ----------
    codes : array (S, T), or (M, S, T) for M bases
    scales : array (T,), (M, T) for M bases, or (G, T) for G groups of S / G inputs

    Examples
    --------
    >>> combine(np.array([[1], [-1]]), np.array([[2.0], [3.0]])).T
    array([[ 2., -3.]])
    """
    codes, scales = np.asarray(codes, dtype=float), np.asarray(scales, dtype=float)
    if codes.ndim == 3:
        return np.einsum("mst,mt->st", codes, scales)
    if scales.ndim == 2:
        scales = np.repeat(scales, len(codes) // len(scales), axis=0)
    return codes * scales
