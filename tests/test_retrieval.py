"""Vector search: what it returns, keeps and refuses; its kernels against their twins."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hashsolve as hs
from hashsolve import reference_retrieval as twins
from hashsolve.kernels import encode as encoding
from hashsolve.kernels import scan as scanning
from hashsolve.retrieval import encoder as encoder_module
from hashsolve.retrieval import search as searching
from hashsolve.retrieval.codec import whole_numbers

METRICS = ("ip", "cosine", "l2")
LISTS = 12
seeds = st.integers(0, 2**32 - 1)


def anisotropic(seed, count, size=24, shift=0.5):
    """Vectors whose directions differ in variance by 100, about a mean that is not zero."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(7).normal(size=(size, size)))[0]
    return (rng.normal(size=(count, size)) * np.geomspace(0.1, 1, size)) @ turn + shift


def fitted(metric="ip", bits=1, effort="fast", **options):
    """An index that knows how to encode, empty."""
    return hs.InnerProductIndex(metric, bits=bits, effort=effort, **options).fit(
        anisotropic(0, 700), anisotropic(1, 300)
    )


@pytest.fixture(scope="module")
def indexes():
    """One for each metric and number of bits; tests that change one load a copy."""
    found = {(metric, bits, None): fitted(metric, bits) for metric in METRICS for bits in (1, 3)}
    return found | {(metric, 1, LISTS): fitted(metric, lists=LISTS) for metric in METRICS}


@pytest.fixture
def fresh(indexes, tmp_path):
    """A copy, so that tests do not share contents."""

    def copy(metric="ip", bits=1, lists=None):
        path = tmp_path / f"{metric}{bits}{lists}.h5"
        indexes[metric, bits, lists].save(path)
        return hs.InnerProductIndex.load(path)

    return copy


def contents(index):
    held = index._contents
    return held.words, held.scales, held.offsets, held.ids, held.counts


def equal(one, other):
    for a, b in zip(contents(one), contents(other), strict=True):
        np.testing.assert_array_equal(a, b)


def recall(ids, truth):
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ids, truth, strict=True)])


# -- search against brute force -------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bits", [1, 3])
def test_scores_are_those_of_the_reconstructed_vectors(fresh, metric, bits):
    """q·w + offset for real queries, to within what cutting the query to 8 bits can change."""
    index = fresh(metric, bits)
    vectors, queries = anisotropic(2, 300), anisotropic(3, 20)
    ids = index.add(vectors)
    scores, found = index.search(queries, len(vectors))
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    again, offsets = index.reconstruct(ids), index.offsets(ids)
    if metric == "l2":
        centred, inner = queries - index._encoder.centre, again - index._encoder.centre
        exact = (centred**2).sum(1, keepdims=True) - 2 * (centred @ inner.T + offsets)
    else:
        size = np.linalg.norm(queries, axis=1) / index.codec.query_length
        exact = queries @ again.T + size[:, None] * offsets
    shadows, _ = index.codec.transform(queries - index._encoder.centre)
    unit = np.abs(shadows).max(axis=1, keepdims=True) / searching.LEVELS
    bound = (
        0.5
        * unit
        * index.codec.length
        * index._contents.scales.max()
        * (2 if metric == "l2" else 1)
    )
    error = np.abs(np.take_along_axis(exact, found, 1) - scores)
    assert (error <= bound + 1e-4).all()
    # roundings do not all point one way: five standard deviations of a sum of so many of them
    assert error.max() < 5 * bound.max() / np.sqrt(3 * index.codec.length)
    order = np.diff(scores, axis=1)
    assert (order >= 0).all() if metric == "l2" else (order <= 0).all()


@settings(max_examples=25)
@given(seeds, st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(1, 50))
def test_scan_is_its_twin(seed, count, asked, width, k):
    """To the last bit; few distinct scales, so that many scores are equal."""
    rng = np.random.default_rng(seed)
    length = 64 * width - int(rng.integers(0, 60))
    codes = rng.choice(np.array([-1, 1], np.int8), (count, length))
    codes[rng.integers(0, count)] = codes[0]
    words = searching.pack_codes(codes)
    np.testing.assert_array_equal(searching.unpack_codes(words, length), codes)
    scales = rng.integers(0, 3, count).astype(np.float32)
    offsets = rng.integers(-2, 2, count).astype(np.float32)
    ids = rng.permutation(10 * count)[:count].astype(np.int64)
    queries = rng.normal(size=(asked, length))
    queries[0] = 0.0
    cut = searching.cut(queries, width)
    heaps = []
    for run in (scanning.scan, twins.scan):
        best = np.full((asked, k), -np.inf, np.float32)
        best_ids = np.full((asked, k), searching.NONE, np.int64)
        run(
            words, scales, offsets, ids, cut.planes, cut.totals, cut.units, 7, best, best_ids
        )  # fmt: skip
        order = np.lexsort((best_ids, -best), axis=1)
        heaps.append([np.take_along_axis(x, order, 1) for x in (best, best_ids)])
    np.testing.assert_array_equal(heaps[0][0], heaps[1][0])
    np.testing.assert_array_equal(heaps[0][1], heaps[1][1])
    inner = cut.whole.astype(int) @ codes.T  # and both are what they say
    scores = inner.astype(np.float32) * scales * cut.units[:, None] + offsets
    top = np.sort(scores, axis=1)[:, ::-1][:, : min(k, count)]
    np.testing.assert_array_equal(heaps[0][0][:, : min(k, count)], top)


@given(seeds, st.integers(1, 9), st.integers(1, 3))
def test_cut_queries_are_within_half_a_unit(seed, asked, width):
    queries = np.random.default_rng(seed).normal(size=(asked, 64 * width - 5)) * 1e3
    cut = searching.cut(queries, width)
    units = cut.units[:, None].astype(float)
    assert (np.abs(cut.whole * units - queries) <= 0.5001 * units).all()
    np.testing.assert_array_equal(cut.totals, cut.whole.astype(int).sum(axis=1))


@pytest.mark.parametrize("asked", [1, 3, 40])
def test_any_number_of_threads_finds_the_same(fresh, monkeypatch, asked):
    index = fresh()
    index.add(np.repeat(anisotropic(2, 100), 3, axis=0))  # ties
    queries = anisotropic(3, asked)
    monkeypatch.setattr(searching, "_WORK", 0)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(searching, "cores", lambda n=threads: n)
        found.append(index.search(queries, 12))
    for scores, ids in found[1:]:
        np.testing.assert_array_equal(scores, found[0][0])
        np.testing.assert_array_equal(ids, found[0][1])
    one = [index.search(query, 12) for query in queries]  # and one query is as good as many
    np.testing.assert_array_equal(np.stack([s for s, _ in one]), found[0][0])
    np.testing.assert_array_equal(np.stack([i for _, i in one]), found[0][1])


def test_equal_scores_come_by_id(fresh):
    index = fresh()
    vector = anisotropic(2, 1)
    index.add(np.repeat(vector, 5, axis=0), ids=[9, 3, 7, 1, 5])
    scores, ids = index.search(vector[0], 4)
    assert ids.tolist() == [1, 3, 5, 7]
    assert len(set(scores.tolist())) == 1


# -- a coarse partition ---------------------------------------------------------------------


@settings(max_examples=25)
@given(seeds, st.integers(1, 60), st.integers(1, 6), st.integers(1, 7), st.integers(1, 8))
def test_scan_lists_is_its_twin_and_of_all_lists_scan(seed, count, asked, lists, k):
    rng = np.random.default_rng(seed)
    words = searching.pack_codes(rng.choice(np.array([-1, 1], np.int8), (count, 70)))
    scales, offsets = rng.integers(0, 3, (2, count)).astype(np.float32)
    ids = rng.permutation(count).astype(np.int64)
    ends = np.concatenate([[0], np.sort(rng.integers(0, count + 1, lists - 1)), [count]])
    ranked = np.argsort(rng.random((asked, lists)), axis=1)
    probes = rng.integers(1, lists + 1, asked)
    probes[0] = lists
    planes, totals, units, _ = searching.cut(rng.normal(size=(asked, 70)), words.shape[1])
    heaps = []
    for run in (scanning.scan_lists, twins.scan_lists, None):
        best = np.full((asked, k), -np.inf, np.float32)
        best_ids = np.full((asked, k), searching.NONE, np.int64)
        ask = planes, totals, units, 7, best, best_ids
        if run is None:
            scanning.scan(words, scales, offsets, ids, *ask)
        else:
            run(words, scales, offsets, ids, ends, ranked, probes, *ask)
        order = np.lexsort((best_ids, -best), axis=1)
        heaps.append([np.take_along_axis(x, order, 1) for x in (best, best_ids)])
    for kernel, twin, every in zip(*heaps, strict=True):
        np.testing.assert_array_equal(kernel, twin)
        np.testing.assert_array_equal(kernel[0], every[0])


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from(METRICS), st.integers(1, 200), st.integers(1, 30))
def test_all_lists_find_what_a_search_without_lists_finds(indexes, seed, metric, count, k):
    """And fewer find the best of the lists that are visited, enough of them to hold k vectors."""
    vectors, queries = anisotropic(seed, count), anisotropic(seed + 1, 5)
    flat, listed = indexes[metric, 1, None], indexes[metric, 1, LISTS]
    before = [(index, index._contents) for index in (flat, listed)]
    try:
        for index in (flat, listed):
            index.add(vectors)
        wanted = flat.search(queries, k)
        for a, b in zip(wanted, listed.search(queries, k, probes=LISTS), strict=True):
            np.testing.assert_array_equal(a, b)
        scores, found = listed.search(queries, k, probes=2)
        assert found.shape == (5, min(k, count))
        encoder, held = listed._encoder, listed._contents
        lists = encoder.partition.assign(encoder.centred(vectors, "vectors"))
        every_score, every_id = flat.search(queries, count)
        asked = encoder.centred(queries, "queries")
        centroids = encoder.partition.centroids
        for i, query in enumerate(asked):
            value = centroids @ query
            if metric == "l2":
                value = -((centroids - query) ** 2).sum(axis=1)
            order, visited = np.argsort(-value), 2
            while held.counts[order[:visited]].sum() < len(found[i]):
                visited += 1
            inside = [lists[number] in order[:visited] for number in every_id[i].tolist()]
            np.testing.assert_array_equal(found[i], every_id[i][inside][: len(found[i])])
            np.testing.assert_array_equal(scores[i], every_score[i][inside][: len(found[i])])
    finally:
        for index, contents in before:
            index._contents = contents


def test_vectors_are_in_the_list_of_the_nearest_centroid(fresh):
    index, vectors = fresh("l2", lists=LISTS), anisotropic(2, 100)
    index.add(vectors)
    centroids = index._encoder.partition.centroids + index._encoder.centre
    distance = ((vectors[:, None] - centroids) ** 2).sum(axis=2)
    np.testing.assert_array_equal(index._contents.lists, distance.argmin(axis=1)[index.ids])
    assert len(np.unique(index._contents.lists)) > LISTS // 2
    found = [recall(index.search(vectors, 1, probes=n)[1], np.arange(100)[:, None]) for n in (1, 3)]
    assert 0.5 < found[0] <= found[1]
    again = fitted("l2", lists=LISTS)
    np.testing.assert_array_equal(
        again._encoder.partition.centroids, index._encoder.partition.centroids
    )


def test_what_lists_need(fresh, monkeypatch):
    index = fresh(lists=LISTS)
    index.add(anisotropic(2, 20))
    with pytest.raises(ValueError, match=f"probes: must be a whole number from 1 to {LISTS}"):
        index.search(np.ones(24), probes=LISTS + 1)
    with pytest.raises(ValueError, match="lists: 12 of them for a sample of 9 vectors"):
        index.fit(anisotropic(2, 9))
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"pip install 'hashsolve\[search\]'"):
        index.fit(anisotropic(2, 60))


# -- encoding -------------------------------------------------------------------------------


def whole_problem(seed, size, columns):
    """H and C of whole numbers, so that twins compute the same sums and decide the same bits."""
    rng = np.random.default_rng(seed)
    root = rng.integers(-2, 3, (size, size))
    gram = (root.T @ root).astype(float)
    gram[np.diag_indices(size)] += 1
    return gram, rng.integers(-3, 4, (columns, size)).astype(float)


@settings(max_examples=25)
@given(seeds, st.integers(1, 40), st.integers(1, 5), st.sampled_from([0, 5, 80]))
def test_encode_is_its_twin(seed, size, columns, moves):
    gram, cross = whole_problem(seed, size, columns)
    whole, unit = whole_numbers(gram)
    found = []
    for run in (encoding.encode, twins.encode):
        codes, (p, q) = np.empty((columns, size), np.int8), np.empty((2, columns))
        run(gram, whole, unit, cross, 0.25, moves, 3, codes, p, q)
        found.append((codes, p, q))
    for kernel, twin in zip(*found, strict=True):
        np.testing.assert_array_equal(kernel, twin)
    codes, p, q = found[0]
    assert (p >= 0).all()
    np.testing.assert_array_equal(p, (codes * cross).sum(axis=1))
    np.testing.assert_array_equal(q, ((codes @ gram) * codes).sum(axis=1))


@given(seeds, st.integers(1, 80), st.integers(1, 3))
def test_greedy_is_its_twin(seed, size, columns):
    """Of any numbers, to the last bit: blocks change no order of adding."""
    rng = np.random.default_rng(seed)
    gram, cross = rng.normal(size=(size, size)), rng.normal(size=(columns, size))
    found = []
    for run in (encoding.greedy, twins.greedy):
        codes, h = np.empty((columns, size), np.int8), np.empty((columns, size))
        run(gram, cross, 0.5, codes, h)
        found.append((codes, h))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


@settings(max_examples=25)
@given(seeds, st.integers(1, 40), st.integers(0, 80), st.integers(0, 9))
def test_walk_is_its_twin(seed, size, moves, tenure):
    gram, cross = whole_problem(seed, size, 1)
    whole, unit = whole_numbers(gram)
    start = np.where(cross[0] < 0, -1, 1).astype(np.int8)
    p, q = cross[0] @ start, start @ gram @ start
    if p <= 0:
        return
    found = []
    for run in (encoding.walk, twins.walk):
        codes = start.copy()
        run(gram, whole, unit, cross[0], codes, gram @ start, p, q, moves, tenure)
        found.append(codes)
    np.testing.assert_array_equal(*found)
    assert (cross[0] @ codes) ** 2 / (codes @ gram @ codes) >= p * p / q - 1e-5


@pytest.mark.parametrize("shrinkage", [1.0, 0.5])
def test_codes_solve_the_hashing_problem(shrinkage):
    """The core's certificate on Problem(DᵀΣD, DᵀΣx): scales closed-form, no flip helps."""
    index = fitted(rotation="learned", shrinkage=shrinkage)
    codec, vectors = index.codec, anisotropic(4, 30)
    weight = np.eye(24) if codec.weight is None else codec.weight
    assert (codec.weight is None) == (shrinkage == 1)
    x = vectors - codec.mean
    target = weight @ codec.decoder
    problem = hs.Problem(
        gram=codec.decoder.T @ target,
        cross=target.T @ x.T,
        energy=np.einsum("ij,jk,ik->i", x, weight, x),
    )
    codes, measures = codec.measure(vectors)
    certificate = hs.verify(problem, codes.T, measures[:, 0], require="one_flip")
    assert certificate.ok, str(certificate)
    searched = fitted(rotation="learned", shrinkage=shrinkage, effort="default").codec
    better, scales = searched.measure(vectors)
    searched_loss = np.zeros(30)
    for i, (b, a) in enumerate(zip(better, scales[:, 0], strict=True)):
        r = x[i] - a * searched.decoder @ b
        searched_loss[i] = r @ weight @ r
    assert searched_loss.sum() < problem.loss(codes.T, measures[:, 0]).sum()


def test_offsets_leave_no_error_for_the_expected_query(fresh):
    """β = r·m: of q̄ + a x itself the estimate is exact."""
    codec = fresh().codec
    vectors = anisotropic(4, 20)
    codes, scales, offsets = codec.encode(vectors)
    x = vectors - codec.mean
    r = vectors - codec.decode(codes, scales)
    expected = codec.query_mean + codec.pull * x
    np.testing.assert_allclose(offsets, (r * expected).sum(axis=1), atol=1e-12)


def test_an_unbiased_scale_is_exact_along_the_vector():
    """As in RaBitQ: x · αDb = x · x."""
    codec = replace(fitted(rotation="random").codec, unbiased=True)
    vectors = anisotropic(4, 20)
    codes, scales, _ = codec.encode(vectors)
    x = vectors - codec.mean
    u = codec.decode(codes, scales) - codec.mean
    np.testing.assert_allclose((x * u).sum(axis=1), (x * x).sum(axis=1))


# -- what is found --------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_a_learned_map_finds_more_and_more_bits_still_more(fresh, metric):
    vectors, queries = anisotropic(2, 800), anisotropic(3, 100)
    exact = {
        "ip": queries @ vectors.T,
        "cosine": queries @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T,
        "l2": -((queries[:, None] - vectors) ** 2).sum(-1),
    }[metric]
    truth = np.argsort(-exact, axis=1)[:, :10]
    plain = fitted(metric, rotation="random")
    found = []
    for index in (plain, fresh(metric), fresh(metric, 3)):
        index.add(vectors)
        found.append(recall(index.search(queries, 10)[1], truth))
    assert found[0] + 0.05 < found[1] < found[2] - 0.1
    scores, ids = index.search(queries, 10, vectors=vectors, candidates=200)
    assert recall(ids, truth) > 0.999
    wanted = np.take_along_axis(exact, ids, 1) * (-1 if metric == "l2" else 1)
    if metric == "cosine":
        wanted = wanted / np.linalg.norm(queries, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


@pytest.mark.parametrize(("bits", "more"), [(1, 0.02), (2, 0.005)])
def test_itq_is_a_rotation_and_finds_more_than_a_random_one(bits, more):
    vectors, queries = anisotropic(2, 800), anisotropic(3, 100)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = []
    for rotation in ("random", "itq"):
        index = fitted(bits=bits, rotation=rotation)
        turn = index.codec.decoder[:, :24]
        np.testing.assert_allclose(turn.T @ turn, np.eye(24), atol=1e-12)
        np.testing.assert_array_equal(index.codec.decoder[:, 24:], turn[:, : 24 * bits - 24] / 2)
        assert {one.rotation for one in index.report.candidates} == {rotation}
        index.add(vectors)
        found.append(recall(index.search(queries, 10)[1], truth))
    assert found[0] + more < found[1]


def test_dead_and_dependent_dimensions():
    """Fewer vectors than would determine the map; its columns are of one size all the same."""
    rng = np.random.default_rng(0)
    root = np.zeros((4, 64))
    root[:, :40] = rng.normal(size=(4, 40))
    vectors = rng.normal(size=(300, 4)) @ root
    index = hs.InnerProductIndex("l2", rotation="learned", effort="fast").fit(vectors)
    norms = np.linalg.norm(index.codec.decoder, axis=0)
    assert norms.max() < 30 * np.median(norms)
    index.add(vectors)
    truth = np.argsort(((vectors[:50, None] - vectors) ** 2).sum(-1), axis=1)[:, :10]
    assert recall(index.search(vectors[:50], 10)[1], truth) > 0.8


def test_nothing_to_learn_falls_back_and_says_so():
    rng = np.random.default_rng(0)
    index = hs.InnerProductIndex(effort="fast").fit(rng.normal(size=(2000, 24)))
    chosen = index.report.chosen
    assert (chosen.rotation, chosen.scale, chosen.pull) == ("random", "unbiased", 0)
    assert "fell back" in str(index.report)
    few = hs.InnerProductIndex(effort="fast").fit(rng.normal(size=(5, 24))).report
    assert np.isnan(few.chosen.recall) and "nothing was compared" in few.note
    assert "nan" not in str(few) and "150 queries and 100 vectors, or no queries" in few.note
    assert (few.chosen.rotation, few.chosen.scale) == ("random", "unbiased")


def test_the_report_says_what_was_held_out(indexes):
    report = indexes["ip", 1, None].report
    assert report.held_out_queries == 100 and report.queries == 200
    assert report.held_out_vectors == 350 and report.vectors == 350
    assert report.chosen.rotation == "learned"
    assert report.chosen.recall == max(one.recall for one in report.candidates)
    assert {one.rotation for one in report.candidates} == {"random", "itq", "learned"}


# -- contents -------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("bits", "lists"), [(1, None), (3, None), (1, LISTS)])
def test_adding_in_parts_is_adding_at_once(fresh, monkeypatch, metric, bits, lists):
    vectors = anisotropic(2, 300)
    whole = fresh(metric, bits, lists)
    whole.add(vectors)
    monkeypatch.setattr(encoder_module, "BLOCK", 64)
    parts = fresh(metric, bits, lists)
    for cut in (slice(0, 1), slice(1, 150), slice(150, 300)):
        parts.add(vectors[cut])
    equal(whole, parts)


@pytest.mark.parametrize("lists", [None, LISTS])
def test_the_order_of_adding_changes_no_answer(fresh, lists):
    vectors, queries = anisotropic(2, 200), anisotropic(3, 10)
    order = np.random.default_rng(0).permutation(200)
    one, other = fresh(lists=lists), fresh(lists=lists)
    one.add(vectors)
    other.add(vectors[order], ids=order)
    for a, b in zip(one.search(queries, 50), other.search(queries, 50), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_is_added_as_an_array_is(fresh, tmp_path):
    vectors = anisotropic(2, 100).astype(np.float32)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["vectors"] = vectors
    one, other, seen = fresh(), fresh(), []
    one.add(vectors)
    other.add(f"{tmp_path}/v.h5:/vectors", progress=lambda *done: seen.append(done))
    equal(one, other)
    assert seen == [(100, 100)]
    scores, ids = other.search(vectors[:3], 1, vectors=f"{tmp_path}/v.h5:/vectors")
    assert len(ids) == 3 and np.isfinite(scores).all()


@pytest.mark.parametrize("lists", [None, LISTS])
def test_remove(fresh, lists):
    vectors, queries = anisotropic(2, 60), anisotropic(3, 5)
    index, rest = fresh(lists=lists), fresh(lists=lists)
    index.add(vectors)
    index.remove(np.arange(0, 60, 2))
    rest.add(vectors[1::2], ids=np.arange(1, 60, 2))
    equal(index, rest)
    for a, b in zip(index.search(queries, 30), rest.search(queries, 30), strict=True):
        np.testing.assert_array_equal(a, b)
    index.remove(59)
    for number in (60, 61):  # no id is given twice
        assert index.add(vectors[:1]).tolist() == [number]
    with pytest.raises(ValueError, match="59 is not in the index"):
        index.remove([1, 59])
    assert 1 in index.ids


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_how_long_a_query_is_changes_only_its_scores(metric):
    vectors, queries = anisotropic(2, 1000), anisotropic(3, 40)
    index = hs.InnerProductIndex(metric, effort="fast").fit(20 * vectors)
    index.add(20 * vectors)
    scores, ids = index.search(queries)
    for factor in (2.0**-100, 2.0**-7, 8.0):
        other, found = index.search(factor * queries)
        np.testing.assert_array_equal(found, ids)
        scaled = scores * np.float32(factor if metric == "ip" else 1)
        np.testing.assert_allclose(other, scaled, rtol=1e-6)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    if metric == "ip":
        assert recall(ids, truth) > 0.5
        # nor do the lengths of those that it is fitted for
        lengths = np.geomspace(0.01, 100, 400)[:, None]
        one, other = (
            hs.InnerProductIndex(metric, effort="fast").fit(vectors, q)
            for q in (anisotropic(4, 400), lengths * anisotropic(4, 400))
        )
        for index in (one, other):
            index.add(vectors)
        same = (one.search(queries)[1] == other.search(queries)[1]).mean()
        assert same > 0.99


def test_cosines_of_tiny_vectors_are_ranked_anew():
    vectors = 2.0**-560 * anisotropic(2, 300)
    index = hs.InnerProductIndex("cosine", effort="fast").fit(vectors)
    index.add(vectors)
    scores, ids = index.search(vectors[:5], k=1, vectors=vectors)
    assert ids.ravel().tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(scores, 1, rtol=1e-6)


def test_queries_too_small_for_float32(fresh):
    index = fresh("l2")
    index.add(anisotropic(2, 50))
    with np.errstate(all="raise"):
        scores, ids = index.search(index._encoder.centre[None] + 1e-60, 50)
    assert np.isfinite(scores).all() and len(set(ids[0])) == 50
    with pytest.raises(ValueError, match=r"vectors: none above 1e-15; multiply all"):
        hs.InnerProductIndex().fit(1e-30 * anisotropic(2, 50))


def test_zero_and_equal_vectors(fresh):
    for metric in METRICS:
        index = fresh(metric)
        vectors = np.zeros((4, 24))
        vectors[2:] = index.codec.mean + index._encoder.centre if metric != "cosine" else 1.0
        index.add(vectors)
        scores, ids = index.search(np.zeros(24), 4)
        assert np.isfinite(scores).all() and sorted(ids) == [0, 1, 2, 3]
        assert np.isfinite(index.reconstruct(ids)).all()


@pytest.mark.parametrize(("bits", "lists"), [(1, None), (3, None), (1, LISTS)])
def test_save_and_load(indexes, tmp_path, bits, lists):
    index = indexes["l2", bits, lists]
    path = tmp_path / "index.h5"
    index.save(path)
    twin = hs.InnerProductIndex.load(path)
    assert str(twin.report) == str(index.report) and repr(twin) == repr(index)
    vectors = anisotropic(2, 50)
    twin.add(vectors)  # encoded as the first would
    twin.save(path)
    again = hs.InnerProductIndex.load(path)
    equal(twin, again)
    codes, scales, _ = index.codec.encode(vectors - index._encoder.centre)
    order = again.ids
    np.testing.assert_array_equal(again._contents.words, searching.pack_codes(codes)[order])
    np.testing.assert_array_equal(again._contents.scales, scales.astype(np.float32)[order])
    for a, b in zip(twin.search(vectors, 5), again.search(vectors, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.bytes_per_vector == again._contents.words[0].nbytes + 8


# -- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "l1"}, "metric: 'l1' is not one of"),
        ({"bits": 5}, "bits: must be a whole number from 1 to 4"),
        ({"shrinkage": 2.0}, "shrinkage: must be at most 1"),
        ({"rotation": "learn"}, "did you mean 'learned'"),
        ({"effort": "much"}, "effort"),
        ({"lists": 0}, "lists: must be a whole number from 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        hs.InnerProductIndex(**options)


def test_what_cannot_be_added_leaves_the_index_as_it_was(fresh, monkeypatch):
    index = fresh()
    index.add(anisotropic(2, 10))
    before = [part.copy() for part in contents(index)]
    monkeypatch.setattr(encoder_module, "BLOCK", 4)
    bad = anisotropic(3, 10)
    bad[9, 3] = np.nan  # in the last block
    huge = np.full((1, 24), 1e20)
    for vectors, ids, message in [
        (bad, None, "vectors: nan at"),
        (huge, None, "values above"),
        (np.ones((2, 5)), None, "5 dimensions; expected 24"),
        (np.ones((2, 24)), [3, 11], "3 is taken"),
        (np.ones((2, 24)), [11, 11], "11 is taken"),
        (np.ones((2, 24)), [11], "1 of them for 2"),
        (np.ones((2, 24)), [0.5, 1.5], "whole numbers"),
        (np.ones((2, 24)), [-1, 11], "must be from 0"),
        (np.ones((2, 24)), [11, 2**63 - 1], "must be from 0"),
        (np.empty((0, 24)), None, "empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.add(vectors, ids)
    for a, b in zip(contents(index), before, strict=True):
        np.testing.assert_array_equal(a, b)
    index.add(np.ones((1, 24)), [2**63 - 2])
    with pytest.raises(ValueError, match="ids: only 0 are left above"):
        index.add(np.ones((1, 24)))


def test_queries_are_checked(fresh):
    index = fresh()
    with pytest.raises(ValueError, match="empty; add"):
        index.search(np.ones(24))
    index.add(anisotropic(2, 10))
    assert index.search(np.ones(24), 99)[1].shape == (10,)
    for query, options, message in [
        (np.full(24, np.nan), {}, "queries: nan"),
        (np.ones(3), {}, "expected 24"),
        (np.ones(24), {"k": 0}, "k: must be a whole number >= 1"),
        (np.ones(24), {"candidates": 5}, "needs vectors"),
        (np.ones(24), {"probes": 2}, "an index without lists"),
        (np.ones(24), {"vectors": np.ones((3, 24))}, "no row for id 9"),
        (np.ones(24), {"vectors": np.ones((30, 3))}, "3 dimensions"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search(query, **options)
    for call in (lambda i: i.add(np.ones((2, 2))), lambda i: i.search(np.ones(2))):
        with pytest.raises(ValueError, match="not fitted; call fit"):
            call(hs.InnerProductIndex())
    with pytest.raises(ValueError, match="queries: 3 dimensions, but vectors have 4"):
        hs.InnerProductIndex().fit(np.ones((9, 4)), np.ones((9, 3)))


def _shift(file):
    file["scales"][3] += 1.0


def _cut(file):
    del file["offsets"]


def _foreign(file):
    file.attrs["kind"] = "song"


def _older(file):
    file.attrs["kind"] = np.bytes_("hashsolve index 1")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (_shift, "SHA-256"),
        (_cut, "SHA-256"),
        (_foreign, "kind"),
        (_older, r"another version \(hashsolve index 1; this one reads hashsolve index 3\)"),
    ],
)
def test_damaged_files_are_named(fresh, tmp_path, harm, why):
    index, path = fresh(), tmp_path / "index.h5"
    index.add(anisotropic(2, 10))
    index.save(path)
    with h5py.File(path, "r+") as file:
        harm(file)
    with pytest.raises(ValueError, match=rf"index\.h5.*{why}"):
        hs.InnerProductIndex.load(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ids", np.zeros(10, np.int64), "each may occur once"),
        ("scales", np.full(10, np.nan, np.float32), "must be finite"),
        ("offsets", np.zeros(9, np.float32), "offsets: must be"),
        ("words", np.full((10, 1), 2**63, np.uint64), "bits beyond the last"),
        ("counts", np.array([9]), "counts: must be"),
        ("counts", np.array([11, -1]), "counts: must be"),
        ("lists", 2, "centroids: must be"),
        ("bits", 2, "decoder: must be"),
        ("metric", "l3", "metric"),
    ],
)
def test_files_that_contradict_themselves_are_refused(fresh, tmp_path, name, value, message):
    """With a SHA-256 that is right: whoever writes the file writes that too."""
    index, path = fresh(), tmp_path / "index.h5"
    index.add(anisotropic(2, 10))
    if name in vars(index._contents):
        index._contents = replace(index._contents, **{name: value})
    else:
        setattr(index, name, value)
    index.save(path)
    with pytest.raises(ValueError, match=message):
        hs.InnerProductIndex.load(path)


def test_import_stays_fast():
    """`import hashsolve` loads neither this nor numba."""
    code = (
        "import sys, hashsolve; print('numba' in sys.modules, 'hashsolve.retrieval' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
