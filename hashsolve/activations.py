"""The HDF5 activation cache, one file a layer, and the streaming sums over it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike

import h5py
import numpy as np

from hashsolve import checks
from hashsolve.files import atomic, open_h5, undisturbed
from hashsolve.geometry import Geometry
from hashsolve.lags import Plan, plan_of
from hashsolve.planes import LagSums
from hashsolve.sums import Sums, block_rows
from hashsolve.threads import product

FULL, BINARIZED = "full_precision", "binarized"
"""Names of the two streams: inputs from the full-precision and the partly binarised network."""
DTYPES = ("float16", "float32", "float64")
_CHUNK_BYTES = 4 * 2**20
_SLAB_BYTES = 64 * 2**20
_SHARD_NUMBERS = 2**27  # of maps that are summed apart


def write_activations(
    path: str | PathLike,
    batches: Iterable[Mapping[str, np.ndarray]],
    geometry: Geometry,
    dtype: str = "float32",
    name: str = "layer",
) -> int:
    """Cache one layer's raw feature maps (not patches) in an HDF5 file.

    Parameters
    ----------
    path : path
        The file; it appears whole or not at all, and every chunk carries a checksum.
    batches : iterable of {stream name: array (n, channels, *spatial) or (n, ..., features)}
        Every batch has the same streams, row by row of the same samples.
    geometry : Geometry
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
    total = 0
    with atomic(path) as part, h5py.File(part, "w", locking=False) as file:
        for batch in batches:
            for stream, maps in batch.items():
                at = f"{name}: {stream} inputs"
                maps = checks.finite(geometry.samples(np.asarray(maps)), at)
                if float(np.abs(maps).max(initial=0)) > limit:
                    raise ValueError(f"{at}: values above {limit:g} do not fit {dtype}")
                if stream not in file:
                    if total:
                        raise ValueError(f"{at}: missing from the first batch")
                    _create(file, stream, maps.shape[1:], geometry, dtype)
                data = file[stream]
                if maps.shape[1:] != data.shape[1:]:
                    raise ValueError(
                        f"{at}: a batch of samples of shape {maps.shape[1:]} after one of "
                        f"{data.shape[1:]}; calibrate with samples of one size"
                    )
                with undisturbed():
                    data.resize(len(data) + len(maps), axis=0)
                    data[len(data) - len(maps) :] = maps
            sizes = {stream: len(file[stream]) for stream in file}
            if len(set(sizes.values())) > 1:
                raise ValueError(f"{name}: streams differ in samples: {sizes}")
            total = next(iter(sizes.values()), 0)
        if total == 0:
            raise ValueError(f"{name}: the calibration held no samples: no rows to sum")
    return total


def _create(
    file: h5py.File, stream: str, shape: tuple[int, ...], geometry: Geometry, dtype: str
) -> None:
    """An extensible data set whose chunks hold whole samples."""
    bytes_each = int(np.prod(shape)) * np.dtype(dtype).itemsize
    samples = max(1, _CHUNK_BYTES // max(bytes_each, 1))
    inputs = shape[0] * int(np.prod(geometry.kernel)) // geometry.groups
    first, _ = next(geometry.blocks((samples, *shape), block_rows(inputs)))
    file.create_dataset(
        stream,
        shape=(0, *shape),
        maxshape=(None, *shape),
        chunks=(first.stop - first.start, *shape),
        dtype=dtype,
        fletcher32=True,
    )


@contextmanager
def open_activations(path: str | PathLike) -> Iterator[dict[str, h5py.Dataset]]:
    """The streams of a cache file, by name; a ValueError names the file where it is damaged."""
    with open_h5(path) as file:
        yield {stream: file[stream] for stream in file}


@contextmanager
def layer_streams(path: str | PathLike) -> Iterator[tuple[h5py.Dataset, h5py.Dataset | None]]:
    """The inputs that a layer's sums are over, and those its targets come from, if others."""
    with open_activations(path) as streams:
        both = FULL in streams and BINARIZED in streams
        yield streams[BINARIZED if BINARIZED in streams else FULL], streams[FULL] if both else None


def layer_sums(
    inputs: h5py.Dataset | np.ndarray,
    weights: np.ndarray,
    geometry: Geometry,
    reference: h5py.Dataset | np.ndarray | None = None,
    name: str = "layer",
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

    Returns
    -------
    list of Sums
        One a group; `group_weights` gives the weights that go with each.

    Raises
    ------
    ValueError
        Where shapes do not fit.
    """
    total: list[Sums] = []
    for samples in shards(inputs.shape):
        part = shard_sums(inputs, weights, geometry, reference, name, samples)
        total = add_in_order(total, part)
    return total


def shards(shape: tuple[int, ...]) -> list[slice]:
    """Maps of this shape (n, …), cut into samples that are summed apart.

    Sums are those of the shards, added in order, wherever each was summed
    (`hashsolve.cluster`).
    """
    step = max(1, _SHARD_NUMBERS // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + step, shape[0])) for start in range(0, max(shape[0], 1), step)]


def add_in_order(total: list[Sums], part: list[Sums]) -> list[Sums]:
    """A layer's sums, one a group, after another shard; those of the first are taken over."""
    for a, b in zip(total, part, strict=bool(total)):
        a.merge(b)
    return total or part


def shard_sums(
    inputs: h5py.Dataset | np.ndarray,
    weights: np.ndarray,
    geometry: Geometry,
    reference: h5py.Dataset | np.ndarray | None,
    name: str,
    samples: slice,
) -> list[Sums]:
    """The sums of one of `shards`, as `layer_sums` takes them."""
    if reference is not None and reference.shape != inputs.shape:
        raise ValueError(f"{name}: reference {reference.shape} and inputs {inputs.shape} differ")
    channels = inputs.shape[-1 if geometry.linear else 1]
    if channels != weights.shape[1] * geometry.groups:
        raise ValueError(
            f"{name}: maps of {channels} channels do not fit weights {weights.shape} in "
            f"{geometry.groups} groups"
        )
    matrices = group_weights(weights, geometry)
    size, targets = matrices[0].shape
    labels = [name if geometry.groups == 1 else f"{name}[group {g}]" for g in range(len(matrices))]
    sums = [Sums(size, 0 if reference is None else targets, label) for label in labels]
    plan = plan_of(geometry, inputs.shape[2:], weights.shape[1], sums[0].energy.size)
    if plan is not None:
        _sum_by_lags(inputs, reference, matrices, plan, sums, samples)
        return sums
    shape = (samples.stop - samples.start, *inputs.shape[1:])
    for block, lines in geometry.blocks(shape, block_rows(size)):
        seen = slice(samples.start + block.start, samples.start + block.stop)
        maps = inputs[seen]
        reference_maps = None if reference is None else reference[seen]
        for group, (w, total) in enumerate(zip(matrices, sums, strict=True)):
            target = None
            if reference_maps is not None:
                target = product(w.T, geometry.patches(reference_maps, group, lines))
            total.add_block(geometry.patches(maps, group, lines), target)
    return sums


def _sum_by_lags(
    inputs: h5py.Dataset | np.ndarray,
    reference: h5py.Dataset | np.ndarray | None,
    matrices: list[np.ndarray],
    plan: Plan,
    sums: list[Sums],
    samples: slice,
) -> None:
    """Sum without patches, a group at a time per slab of samples."""
    lagged = [
        LagSums(plan, w, reference is not None, total.name)
        for w, total in zip(matrices, sums, strict=True)
    ]
    channels = lagged[0].channels
    chunk = plan.samples(channels)
    bytes_each = 8 * chunk * int(np.prod(inputs.shape[1:])) + lagged[0].bytes
    step = chunk * max(1, _SLAB_BYTES // bytes_each)
    for start in range(samples.start, samples.stop, step):
        slab = slice(start, min(start + step, samples.stop))
        maps = inputs[slab]
        shown = None if reference is None else reference[slab]
        for group, part in enumerate(lagged):
            cut = slice(group * channels, (group + 1) * channels)
            part.add(maps[:, cut], None if shown is None else shown[:, cut])
    for part, total in zip(lagged, sums, strict=True):
        part.add_to(total)


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
