"""Codes at one bit each in HDF5."""

from __future__ import annotations

import h5py
import numpy as np


def pack(codes: np.ndarray) -> np.ndarray:
    """The bits of codes, +1 as 1, least significant bit first, columns one after the other.

    Parameters
    ----------
    codes : int8 array (S, T)

    Returns
    -------
    uint8 array (ceil(S T / 8),)

    Examples
    --------
    >>> import numpy as np
    >>> pack(np.array([[1], [-1], [1]], dtype=np.int8))
    array([5], dtype=uint8)
    """
    return np.packbits(codes.T.reshape(-1) > 0, bitorder="little")


def unpack(bits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The int8 codes (S, T) that `pack` packed.

    >>> unpack(np.array([5], dtype=np.uint8), (3, 1)).T
    array([[ 1, -1,  1]], dtype=int8)
    """
    size, columns = shape
    flat = np.unpackbits(bits, count=size * columns, bitorder="little").astype(np.int8)
    return np.ascontiguousarray((2 * flat - 1).reshape(columns, size).T)


def write_packed(group: h5py.Group, name: str, codes: np.ndarray) -> None:
    """Write codes as a packed data set that records its logical shape and bit order."""
    data = group.create_dataset(name, data=pack(codes), fletcher32=True)
    data.attrs["shape"], data.attrs["bitorder"] = codes.shape, "little, column by column"


def read_packed(data: h5py.Dataset, where: str) -> np.ndarray:
    """Read what `write_packed` wrote; a ValueError names the file where the sizes disagree."""
    size, columns = (int(n) for n in data.attrs["shape"])
    if size < 1 or columns < 1 or data.shape != ((size * columns + 7) // 8,):
        raise ValueError(f"{where}: damaged: {data.shape} bytes of codes for shape {size, columns}")
    return unpack(data[()], (size, columns))
