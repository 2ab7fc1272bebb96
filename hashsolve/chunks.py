"""Samples of an HDF5 data set, read at the speed of memory where it lies in whole samples.

The library checks, copies and clears on the way to an array, which takes as long as a layer's sums
in float32. Chunks are taken as they lie in the file, one behind the other; their checksums are
computed here. Parts of chunks, whatever is laid out otherwise, and what does not match its checksum
are read by the library, which says what is wrong with it.
"""

from __future__ import annotations

import math

import h5py
import numpy as np

from hashsolve.kernels.streams import word_sums

_MARK = 4  # bytes of a chunk's checksum


class Room:
    """Memory that samples are read into, used again by the next that have room in it."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def read(self, source: h5py.Dataset, seen: slice) -> np.ndarray:
        """The samples ``seen`` of a data set (n, …); they stay until the next call.

        Raises
        ------
        OSError
            Where the file is damaged.
        """
        count, shape = seen.stop - seen.start, source.shape[1:]
        each = source.dtype.itemsize * math.prod(shape)
        if len(self._bytes) < count * each + _MARK:
            self._bytes = np.empty(count * each + _MARK, np.uint8)
        found = self._bytes[: count * each].view(source.dtype).reshape(count, *shape)
        chunk = source.chunks[0] if _plain(source) else count + 1  # of which none is inside
        first, last = -(-seen.start // chunk) * chunk, seen.stop // chunk * chunk
        if first < last and self._read_chunks(source, range(first, last, chunk), seen.start, each):
            parts = [slice(seen.start, first), slice(last, seen.stop)]
        else:
            parts = [seen]
        for part in parts:
            if part.start < part.stop:
                own = found[part.start - seen.start : part.stop - seen.start]
                source.read_direct(own, np.s_[part])
        return found

    def _read_chunks(self, source: h5py.Dataset, starts: range, origin: int, each: int) -> bool:
        """Whether all of these chunks were there, and as their checksums have them."""
        rest, size = (0,) * (source.ndim - 1), starts.step * each
        sums = np.empty(2, np.uint64)
        for start in starts:
            at = (start - origin) * each
            room = self._bytes[at : at + size + _MARK]  # what follows overwrites the checksum
            try:
                skipped, raw = source.id.read_direct_chunk((start, *rest), out=room)
            except (OSError, RuntimeError, ValueError):
                return False
            if skipped or len(raw) != len(room):
                return False
            word_sums(room[:size].view("<u2"), sums)
            # HDF5 takes the words' high bytes first, which turns both sums by 8 of their 16 bits
            mark = int(room[size:].view("<u4")[0])
            wanted = np.array([mark & 0xFFFF, mark >> 16]) % 65535
            if not np.array_equal(wanted, sums * 256 % 65535):
                return False
        return True


def _plain(source: h5py.Dataset) -> bool:
    """Whether chunks hold whole samples of NumPy's own numbers, with a checksum and no more."""
    if source.chunks is None or source.chunks[1:] != source.shape[1:] or source.dtype.kind != "f":
        return False
    filters = source.id.get_create_plist()
    return (
        source.id.get_type() == h5py.h5t.py_create(source.dtype.newbyteorder("="))
        and filters.get_nfilters() == 1
        and filters.get_filter(0)[0] == h5py.h5z.FILTER_FLETCHER32
    )
