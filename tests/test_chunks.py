"""Samples read chunk by chunk are those the library reads, and damage is found as it finds it."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashsolve import reference
from hashsolve.activations import (
    FULL,
    layer_sums,
    open_activations,
    shards,
    write_activations,
)
from hashsolve.chunks import Room
from hashsolve.geometry import Geometry
from hashsolve.kernels.streams import add_moments, word_sums
from hashsolve.sums import PRECISIONS, block_rows

PLAIN = {"fletcher32": True}
OTHER = [{}, {"compression": "gzip", "fletcher32": True}, {"shuffle": True, "fletcher32": True}]


def written(path, maps, chunk, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "x", data=maps, chunks=(chunk, *maps.shape[1:]), maxshape=(None, *maps.shape[1:]),
            **options,
        )  # fmt: skip
    return path


def refuse(*_, **__):
    raise AssertionError("the library was asked")


@given(st.lists(st.integers(0, 65535), max_size=9000))
def test_word_sums_are_those_of_the_twin(words):
    words, found, twin = np.array(words, np.uint16), np.empty(2, np.uint64), np.empty(2, np.uint64)
    word_sums(words, found)
    reference.word_sums(words, twin)
    assert found.tolist() == twin.tolist()


@pytest.mark.parametrize("word", (65534, 65535))
@pytest.mark.parametrize("count", (4096, 4097, 300_000))
def test_word_sums_of_the_largest_words_do_not_overflow(count, word):
    words, found = np.full(count, word, np.uint16), np.empty(2, np.uint64)
    word_sums(words, found)
    twin = word * count % 65535, word * (count * (count + 1) // 2) % 65535
    assert tuple(found.tolist()) == twin


@given(st.integers(0, 9), st.integers(1, 40), st.integers(0, 99))
def test_moments_are_those_of_the_twin(count, size, seed):
    values = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    start = np.random.default_rng(seed).normal(size=(2, size))
    found, twin = start.copy(), start.copy()
    add_moments(values, *found)
    reference.add_moments(values, *twin)
    np.testing.assert_allclose(found, twin, rtol=0, atol=1e-12 * 100)


@pytest.mark.parametrize("dtype", ("float16", "float32", "float64"))
@pytest.mark.parametrize("shape", ((), (3,), (2, 3, 5)))
def test_whole_chunks_are_read_without_the_library(tmp_path, monkeypatch, dtype, shape):
    maps = np.random.default_rng(0).normal(size=(24, *shape)).astype(dtype)
    with h5py.File(written(tmp_path / "a.h5", maps, 4, **PLAIN)) as file:
        monkeypatch.setattr(h5py.Dataset, "read_direct", refuse)
        room = Room()
        for start, stop in ((0, 8), (8, 12), (0, 24), (20, 24), (4, 8)):
            assert np.array_equal(room.read(file["x"], slice(start, stop)), maps[start:stop])
        with pytest.raises(AssertionError, match="the library"):
            room.read(file["x"], slice(1, 8))  # parts of chunks


@given(
    st.integers(1, 30), st.integers(1, 9), st.data(),
    st.sampled_from([PLAIN, *OTHER]), st.sampled_from(["<f4", ">f4", "<f2", "<f8"]),
)  # fmt: skip
def test_any_samples_of_any_layout(tmp_path_factory, count, chunk, data, options, dtype):
    maps = np.random.default_rng(count).normal(size=(count, 3)).astype(dtype)
    path = written(tmp_path_factory.mktemp("chunks") / "a.h5", maps, chunk, **options)
    room = Room()
    with h5py.File(path) as file:
        for _ in range(3):
            start = data.draw(st.integers(0, count - 1))
            stop = data.draw(st.integers(start + 1, count))
            assert np.array_equal(room.read(file["x"], slice(start, stop)), maps[start:stop])


def test_numbers_of_another_layout_are_left_to_the_library(tmp_path):
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(23, 15, 8, 0, 15)
    kind.set_precision(24)
    maps = np.arange(12, dtype=np.float32).reshape(4, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (4, 3), kind, chunks=(2, 3), **PLAIN)[...] = maps
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["x"].dtype == np.float32
        assert np.array_equal(Room().read(file["x"], slice(0, 4)), maps)


@pytest.mark.parametrize("chunks", ((2**22, 1), (2**20, 1000)))
def test_memory_taken_is_that_of_the_samples(tmp_path, chunks):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "x", (64, 1000), "f4", chunks=chunks, maxshape=(None, 1000), fletcher32=True
        )
    room = Room()
    with h5py.File(tmp_path / "a.h5") as file:
        assert not room.read(file["x"], slice(0, 64)).any()
    assert len(room._bytes) < 64 * 1000 * 4 + 8


@pytest.mark.parametrize("inputs", (3, 576, 1152, 2304, 4608, 20_000, 2**28))
def test_shards_of_linear_layers_are_whole_chunks(inputs):
    chunk = min(block_rows(inputs, precision) for precision in PRECISIONS)
    chunk = min(chunk & -chunk, max(1, 2**20 // inputs))
    first = shards((2**20, inputs))[0]
    assert first.stop % (1 << (chunk.bit_length() - 1)) == 0
    assert first.stop * inputs > 2**25 or first.stop in (1, 2**20)


def test_chunks_never_written_are_read_as_the_library_fills_them(tmp_path):
    path = written(tmp_path / "a.h5", np.ones((4, 3), np.float32), 2, **PLAIN)
    with h5py.File(path, "r+") as file:
        file["x"].resize(8, axis=0)
        assert Room().read(file["x"], slice(0, 8)).sum() == 12


@given(st.integers(0, 2**30), st.integers(0, 7))
def test_every_flipped_bit_is_found(tmp_path_factory, place, bit):
    maps = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    path = written(tmp_path_factory.mktemp("chunks") / "a.h5", maps, 16, **PLAIN)
    with h5py.File(path) as file:
        where = file["x"].id.get_chunk_info(place % 4)
    content = bytearray(path.read_bytes())
    content[where.byte_offset + place % where.size] ^= 1 << bit
    path.write_bytes(content)
    with h5py.File(path) as file, pytest.raises(OSError):
        Room().read(file["x"], slice(0, 64))


@pytest.mark.parametrize("inputs", (7, 576, 1152, 2304, 4608))
@pytest.mark.parametrize("dtype", ("float16", "float32"))
def test_blocks_of_linear_layers_are_whole_chunks(tmp_path, inputs, dtype):
    maps = np.zeros((1, inputs), np.float32)
    write_activations(tmp_path / "a.h5", [{FULL: maps}], Geometry(), dtype)
    with open_activations(tmp_path / "a.h5") as streams:
        chunk = streams[FULL].chunks[0]
    assert chunk * inputs * np.dtype(dtype).itemsize > 2**20 or chunk == block_rows(inputs)
    assert all(block_rows(inputs, precision) % chunk == 0 for precision in PRECISIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("geometry", (Geometry(), Geometry.conv((3, 3), 2)))
def test_sums_of_a_cache_are_those_of_memory(tmp_path, precision, geometry):
    shape = (9000, 6) if geometry.linear else (90, 6, 40, 40)
    maps = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weights = np.ones((2, 6, *geometry.kernel))
    write_activations(tmp_path / "a.h5", [{FULL: maps}], geometry)
    (wanted,) = layer_sums(maps, weights, geometry, precision=precision)
    with open_activations(tmp_path / "a.h5") as streams:
        (found,) = layer_sums(streams[FULL], weights, geometry, precision=precision)
    assert np.array_equal(found.gram, wanted.gram)
    assert np.array_equal(found.input_sum, wanted.input_sum)
