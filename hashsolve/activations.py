"""The HDF5 activation cache, one file a layer, and the streaming sums over it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import h5py
import numpy as np

from hashsolve import checks
from hashsolve.chunks import Room
from hashsolve.files import atomic, open_h5, undisturbed
from hashsolve.geometry import Geometry
from hashsolve.instance import LARGE
from hashsolve.lags import Plan, plan_of
from hashsolve.planes import LagSums
from hashsolve.spectra import forget, kept_memory
from hashsolve.spectral_sums import SpectralSums
from hashsolve.sums import MAX_BLOCK_ROWS, PRECISIONS, Sums, block_rows
from hashsolve.threads import ahead

FULL, BINARIZED, SHIFT = "full_precision", "binarized", "shift"
"""Names of the streams: inputs from the full-precision and the partly binarised network, and what
is added to the targets. Those of a layer's second call end in ".1", and so on: `stream`."""
DTYPES = ("float16", "float32", "float64")
_CHUNK_BYTES = 4 * 2**20
_SLAB_BYTES = 64 * 2**20
_SHARD_NUMBERS = 2**27  # of maps that are summed apart


class Maps(NamedTuple):
    """What is cached of one call of a layer.

    Attributes
    ----------
    inputs : data set or array (n, channels, *spatial) or (n, features)
        X̂, which the sums are over.
    reference : the same, or None
        X, which the targets come from where that is not X̂.
    shift : data set or array (n, filters, *positions) or (n, filters), or None
        What is added to the targets.
    """

    inputs: h5py.Dataset | np.ndarray
    reference: h5py.Dataset | np.ndarray | None = None
    shift: h5py.Dataset | np.ndarray | None = None


def stream(kind: str, call: int = 0) -> str:
    """The name of a stream of a layer's n-th call in one forward pass."""
    return f"{kind}.{call}" if call else kind


def _call(name: str) -> int:
    return int(name.partition(".")[2] or 0)


def write_activations(
    path: str | PathLike,
    batches: Iterable[Mapping[str, np.ndarray]],
    geometry: Geometry | Sequence[Geometry],
    dtype: str = "float32",
    name: str = "layer",
) -> int:
    """Cache one layer's raw feature maps (not patches) in an HDF5 file.

    Parameters
    ----------
    path : path
        The file; it appears whole or not at all, and every chunk carries a checksum.
    batches : iterable of {stream name: array (n, channels, *spatial) or (n, ..., features)}
        Every batch has the same streams; those of one call are row by row of the same samples.
    geometry : Geometry, or one a call
        Chunks are cut as the sums over this geometry read them.
    dtype : {"float32", "float16", "float64"}
        Storage type.
    name : str
        The layer, for error messages.

    Returns
    -------
    int
        Samples written.

    Raises
    ------
    ValueError
        No samples, streams or shapes that differ, values that are not finite or too large for
        the storage type.
    """
    checks.choice(dtype, "dtype", DTYPES)
    limit = float(np.finfo(dtype).max)
    geometries = [geometry] if isinstance(geometry, Geometry) else list(geometry)
    total, found = 0, dict[str, h5py.Dataset]()
    with atomic(path) as part, h5py.File(part, "w", locking=False) as file:
        for batch in batches:
            for which, maps in batch.items():
                at = f"{name}: {which}" + ("" if which.startswith(SHIFT) else " inputs")
                call = geometries[_call(which)]
                before = len(found[which]) if which in found else 0
                maps = checks.finite(call.samples(np.asarray(maps)), at, before, 0)
                if maps.dtype != dtype and float(np.abs(maps).max(initial=0)) > limit:
                    raise ValueError(f"{at}: values above {limit:g} do not fit {dtype}")
                if which not in found:
                    if total:
                        raise ValueError(f"{at}: missing from the first batch")
                    found[which] = _create(file, which, maps.shape[1:], call, dtype)
                data = found[which]
                if maps.shape[1:] != data.shape[1:]:
                    raise ValueError(
                        f"{at}: a batch of samples of shape {maps.shape[1:]} after one of "
                        f"{data.shape[1:]}; calibrate with samples of one size"
                    )
                with undisturbed():
                    data.resize(len(data) + len(maps), axis=0)
                    data[len(data) - len(maps) :] = maps
            for number in range(len(geometries)):
                sizes = {
                    which: len(data) for which, data in found.items() if _call(which) == number
                }
                if len(set(sizes.values())) > 1:
                    raise ValueError(
                        f"{name}: streams differ in samples, {sizes}: if weights before it decide "
                        "which samples reach it, as a router does, use propagation='symfp' "
                        "without residual or refit, or skip it"
                    )
            total = sum(len(data) for which, data in found.items() if not which.startswith(SHIFT))
            total //= 2 if FULL in found and BINARIZED in found else 1
        if total == 0:
            raise ValueError(f"{name}: the calibration held no samples: no rows to sum")
    return total


def _create(
    file: h5py.File, which: str, shape: tuple[int, ...], geometry: Geometry, dtype: str
) -> h5py.Dataset:
    """An extensible data set whose chunks hold whole samples."""
    bytes_each = int(np.prod(shape)) * np.dtype(dtype).itemsize
    samples = max(1, _CHUNK_BYTES // max(bytes_each, 1))
    if not which.startswith(SHIFT):
        inputs = shape[0] * int(np.prod(geometry.kernel)) // geometry.groups
        if geometry.linear:  # blocks are whole chunks in either precision, and are read as such
            block = math.gcd(*(block_rows(inputs, precision) for precision in PRECISIONS))
            samples = min(_power(samples), block & -block)
        else:
            first, _ = next(geometry.blocks((samples, *shape), block_rows(inputs)))
            samples = first.stop - first.start
    return file.create_dataset(
        which,
        shape=(0, *shape),
        maxshape=(None, *shape),
        chunks=(samples, *shape),
        dtype=dtype,
        fletcher32=True,
    )


def _power(number: int) -> int:
    """The largest power of two that is not above it."""
    return 1 << (number.bit_length() - 1)


@contextmanager
def open_activations(path: str | PathLike) -> Iterator[dict[str, h5py.Dataset]]:
    """The streams of a cache file, by name; a ValueError names the file where it is damaged."""
    with open_h5(path) as file:
        yield {which: file[which] for which in file}


@contextmanager
def layer_streams(path: str | PathLike) -> Iterator[list[Maps]]:
    """What a cache file holds of each call of its layer."""
    with open_activations(path) as streams:
        found = []
        for call in range(1 + max(map(_call, streams))):
            full, binarized, shift = (
                streams.get(stream(kind, call)) for kind in (FULL, BINARIZED, SHIFT)
            )
            alone = full if binarized is None else binarized
            if alone is None:
                raise ValueError(f"{path}: no inputs of call {call}; it holds {sorted(streams)}")
            found.append(Maps(alone, None if binarized is None else full, shift))
        yield found


def layer_sums(
    inputs: h5py.Dataset | np.ndarray,
    weights: np.ndarray,
    geometry: Geometry,
    reference: h5py.Dataset | np.ndarray | None = None,
    name: str = "layer",
    shift: h5py.Dataset | np.ndarray | None = None,
    precision: str = "double",
) -> list[Sums]:
    """Stream the sums of one layer, a group at a time per block, in bounded memory.

    Parameters
    ----------
    inputs : data set or array (n, channels, *spatial) or (n, features)
        X̂ as feature maps.
    weights : array (T, channels / groups, *kernel) or (T, features)
        The layer's full-precision weight.
    geometry : Geometry
    reference : data set or array, optional
        X, the full-precision maps; the target is then Y = XᵀW, else X̂ᵀW.
    name : str
        The layer, for error messages.
    shift : data set or array (n, T, *positions) or (n, T), optional
        What is added to the target: for the residual-aware one, what the shortcut lacks.
    precision : {"double", "single"}
        As in ``hashsolve.sums``; convolutions that are summed without patches are always in double.

    Returns
    -------
    list of Sums
        One a group; `group_weights` gives the weights that go with each.

    Raises
    ------
    ValueError
        Where shapes do not fit.
    """
    return calls_sums([Maps(inputs, reference, shift)], weights, [geometry], name, precision)


def calls_sums(
    calls: Sequence[Maps],
    weights: np.ndarray,
    geometries: Sequence[Geometry],
    name: str,
    precision: str = "double",
) -> list[Sums]:
    """The sums of a layer over all its calls, as `layer_sums` takes those of one."""
    total: list[Sums] = []
    with kept_memory():
        for call, samples in pieces(calls):
            part = shard_sums(calls[call], weights, geometries[call], name, samples, precision)
            total = add_in_order(total, part)
    return total


def pieces(calls: Sequence[Maps]) -> list[tuple[int, slice]]:
    """Which samples of which call are summed apart.

    A layer's sums are those of its pieces, added in order, wherever each was summed
    (`hashsolve.cluster`).
    """
    return [
        (call, samples) for call, maps in enumerate(calls) for samples in shards(maps.inputs.shape)
    ]


def shards(shape: tuple[int, ...]) -> list[slice]:
    """Maps of this shape (n, …), cut into samples that are summed apart."""
    step = max(1, _SHARD_NUMBERS // max(1, math.prod(shape[1:])))
    if len(shape) == 2:  # of linear layers: whole chunks
        step -= step % min(MAX_BLOCK_ROWS, _power(step))
    return [slice(start, min(start + step, shape[0])) for start in range(0, max(shape[0], 1), step)]


def add_in_order(total: list[Sums], part: list[Sums]) -> list[Sums]:
    """A layer's sums, one a group, after another shard; those of the first are taken over."""
    for a, b in zip(total, part, strict=bool(total)):
        a.merge(b)
    return total or part


def shard_sums(
    maps: Maps,
    weights: np.ndarray,
    geometry: Geometry,
    name: str,
    samples: slice,
    precision: str = "double",
) -> list[Sums]:
    """The sums of one of `shards`, as `layer_sums` takes them."""
    inputs, reference, shift = maps
    if shift is not None and reference is None:
        reference = inputs
    if reference is not None and reference.shape != inputs.shape:
        raise ValueError(f"{name}: reference {reference.shape} and inputs {inputs.shape} differ")
    channels = inputs.shape[-1 if geometry.linear else 1]
    if channels != weights.shape[1] * geometry.groups:
        raise ValueError(
            f"{name}: maps of {channels} channels do not fit weights {weights.shape} in "
            f"{geometry.groups} groups"
        )
    positions = () if geometry.linear else geometry.output(inputs.shape[2:])
    outputs = (len(inputs), len(weights), *positions)
    if shift is not None and shift.shape != outputs:
        raise ValueError(
            f"{name}: what is added to its targets has shape {shift.shape}, its outputs {outputs}"
        )
    matrices = group_weights(weights, geometry)
    size, targets = matrices[0].shape
    labels = [name if geometry.groups == 1 else f"{name}[group {g}]" for g in range(len(matrices))]
    summed = 0 if reference is None else targets
    sums = [Sums(size, summed, label, precision) for label in labels]
    plan = plan_of(
        geometry,
        inputs.shape[2:],
        weights.shape[1],
        summed,
        samples.stop - samples.start,
        shift is not None,
    )
    if plan is not None:
        _sum_without_patches(Maps(inputs, reference, shift), matrices, plan, sums, samples)
        return sums
    shape = (samples.stop - samples.start, *inputs.shape[1:])
    dtype: Any = np.float64
    if precision == "single":  # linear layers' rows are taken as they lie
        dtype = inputs.dtype if geometry.linear or inputs.dtype == np.float64 else np.float32

    def read() -> Iterator[tuple[slice, list[Any]]]:
        spare = [[Room() for _ in maps] for _ in range(2)]  # one is filled, the other used
        for block, lines in geometry.blocks(shape, block_rows(size, precision)):
            seen = slice(samples.start + block.start, samples.start + block.stop)
            streams = zip(maps, spare[0], strict=True)
            yield lines, [None if m is None else _read(m, seen, room) for m, room in streams]
            spare.reverse()

    from_file = isinstance(inputs, h5py.Dataset)
    for lines, (shown, reference_maps, added) in ahead(read()) if from_file else read():
        if reference_maps is None and reference is not None:
            reference_maps = shown
        patches = partial(geometry.patches, lines=lines, dtype=dtype)
        for group, (w, total) in enumerate(zip(matrices, sums, strict=True)):
            target = None
            if reference_maps is not None:
                target = total.outputs(w, patches(reference_maps, group))
            if added is not None:
                part = added[:, group * targets : (group + 1) * targets]
                if not geometry.linear:
                    part = part[:, :, lines]
                target = target + part.swapaxes(0, 1).reshape(targets, -1)
            total.add_block(patches(shown, group), target)
    return sums


def _read(source: h5py.Dataset | np.ndarray, seen: slice, room: Room) -> np.ndarray:
    """Some samples of a stream; those of a file in memory that is used again."""
    return room.read(source, seen) if isinstance(source, h5py.Dataset) else source[seen]


def _sum_without_patches(
    maps: Maps, matrices: list[np.ndarray], plan: Plan, sums: list[Sums], samples: slice
) -> None:
    """Sum by lags or by spectra."""
    kind = SpectralSums if plan.spectral else LagSums
    parts = [
        kind(plan, w, maps.reference is not None, total.name)
        for w, total in zip(matrices, sums, strict=True)
    ]
    _add_slabs(maps, parts, samples)
    for part in parts:
        part.release()
    if len(sums[0].gram) > LARGE:
        forget()
    for part, total in zip(parts, sums, strict=True):
        part.add_to(total)


def _add_slabs(maps: Maps, parts: list[Any], samples: slice) -> None:
    """Add samples to the sums of each group, a slab at a time."""
    channels, filters = parts[0].channels, parts[0].weights.shape[2]
    chunk = parts[0].chunk
    streams = [math.prod(stream.shape[1:]) for stream in maps if stream is not None]
    bytes_each = 8 * chunk * sum(streams) + parts[0].bytes
    step = chunk * max(1, _SLAB_BYTES // bytes_each)
    own_room, *rooms = [Room() for _ in maps]
    for start in range(samples.start, samples.stop, step):
        slab = slice(start, min(start + step, samples.stop))
        inputs = _read(maps.inputs, slab, own_room)
        reference, shift = (
            None if m is None else _read(m, slab, room)
            for m, room in zip(maps[1:], rooms, strict=True)
        )
        for group, part in enumerate(parts):
            cut = slice(group * channels, (group + 1) * channels)
            own = slice(group * filters, (group + 1) * filters)
            part.add(
                inputs[:, cut],
                None if reference is None else reference[:, cut],
                None if shift is None else shift[:, own],
            )


def group_weights(weights: np.ndarray, geometry: Geometry) -> list[np.ndarray]:
    """A layer's weight (T, channels / groups, *kernel) as one float64 W (S, T / groups) a group,
    read-only, so that a `Problem` needs no copy of it."""
    if len(weights) % geometry.groups:
        raise ValueError(f"{len(weights)} filters do not divide into {geometry.groups} groups")
    flat = np.asarray(weights, dtype=np.float64).reshape(geometry.groups, -1, weights[0].size)
    matrices = [w.T.copy() for w in flat]
    for matrix in matrices:
        matrix.flags.writeable = False
    return matrices
