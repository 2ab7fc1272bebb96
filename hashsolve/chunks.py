"""Samples of an HDF5 data set, read at the speed of memory where it lies in whole samples.

The library checks, copies and clears on the way to an array, which takes as long as a layer's sums
in float32. Chunks are taken as they lie in the file, one behind the other; their checksums are
computed here. Whatever is not as `write_activations` lays it out, or does not match its checksum,
is read by the library, which says what is wrong with it.
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
        count = seen.stop - seen.start
        each = source.dtype.itemsize * math.prod(source.shape[1:])
        chunk = source.chunks[0] if source.chunks else 1
        wanted = -(-count // chunk) * chunk * each + _MARK
        if len(self._bytes) < wanted:
            self._bytes = np.empty(wanted, np.uint8)
        found = self._bytes[: count * each].view(source.dtype).reshape(count, *source.shape[1:])
        if not (_plain(source, seen) and self._read_chunks(source, seen, chunk, chunk * each)):
            source.read_direct(found, np.s_[seen])
        return found

    def _read_chunks(self, source: h5py.Dataset, seen: slice, chunk: int, size: int) -> bool:
        """Whether all chunks were there, and as their checksums have them."""
        rest = (0,) * (source.ndim - 1)
        sums, at = np.empty(2, np.uint64), 0
        for start in range(seen.start, seen.stop, chunk):
            room = self._bytes[at : at + size + _MARK]  # the next chunk overwrites the checksum
            try:
                skipped, raw = source.id.read_direct_chunk((start, *rest), out=room)
            except (OSError, RuntimeError, ValueError):
                return False
            if skipped or len(raw) != len(room):
                return False
            word_sums(room[:size].view("<u2"), sums)
            # HDF5 takes the words' high bytes first, which turns both sums by 8 of their 16 bits
            mark = np.array([room[size:].view("<u4")[0] & 0xFFFF, room[size:].view("<u4")[0] >> 16])
            if not np.array_equal(mark % 65535, sums * 256 % 65535):
                return False
            at += size
        return True


def _plain(source: h5py.Dataset, seen: slice) -> bool:
    """Whether these samples are whole chunks of whole samples, with a checksum and no more."""
    if source.chunks is None or source.chunks[1:] != source.shape[1:]:
        return False
    chunk, filters = source.chunks[0], source.id.get_create_plist()
    return (
        seen.start % chunk == 0
        and (seen.stop % chunk == 0 or seen.stop == len(source))
        and source.dtype.isnative
        and source.dtype.kind == "f"
        and filters.get_nfilters() == 1
        and filters.get_filter(0)[0] == h5py.h5z.FILTER_FLETCHER32
    )
