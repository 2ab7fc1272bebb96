"""The same sums and solves on workers of their own processes, one of which is killed."""

from __future__ import annotations

import functools
import json
import operator
import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_network import calibration, network

import hashsolve as hs
from hashsolve import activations, cli, retrieval
from hashsolve.bounds import COLUMNS
from hashsolve.instance import LARGE
from hashsolve.methods import METHODS
from hashsolve.readers import read_problem
from hashsolve.testing.strategies import make_case

distributed = pytest.importorskip("distributed")
from hashsolve import cluster  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # distributed's own


@pytest.fixture(scope="module")
def client():
    """Two workers, each a process."""
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with (
        distributed.LocalCluster(**options, dashboard_address=None) as workers,
        distributed.Client(workers, set_as_default=False) as made,
    ):
        yield made


@pytest.fixture
def parts(tmp_path, rng):
    """Rows of one layer in five files, and W."""
    np.save(tmp_path / "W.npy", rng.normal(size=(30, 21)))
    for i, rows in enumerate((50, 1, 40, 3, 20)):
        np.save(tmp_path / f"X{i}.npy", rng.normal(size=(30, rows)))
    return [
        {"source": str(tmp_path / f"X{i}.npy"), "weights": str(tmp_path / "W.npy")}
        for i in range(5)
    ]


def same(a, b):
    """Equal to the last bit, as far as both have it."""
    for name in ("codes", "scales", "loss", "energy", "lower_bound", "intercept"):
        one, two = getattr(a, name), getattr(b, name)
        assert (one is None) == (two is None), name
        if one is not None:
            np.testing.assert_array_equal(one, two, err_msg=name)
    assert (a.status, a.method, a.bound_name) == (b.status, b.method, b.bound_name)


def test_sums_of_many_files(client, parts):
    found = cluster.sum_problems(client, parts)
    alone = functools.reduce(operator.add, [read_problem(**part) for part in parts])
    for name in ("gram", "cross", "energy", "input_sum", "target_sum", "rows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    assert cluster.sum_problems(client, parts, bases=2).bases == 2


def test_a_file_that_cannot_be_read_is_named(client, parts):
    with pytest.raises(ValueError, match=r"nowhere.npy: no such file"):
        cluster.sum_problems(client, [*parts, {"source": "nowhere.npy", "weights": "w"}])
    with pytest.raises(ValueError, match="give at least one file"):
        cluster.sum_problems(client, [])


@pytest.mark.parametrize("method", ["sign", "dcc", "tabu", "auto"])
def test_solves_are_those_of_one_process(client, method, tmp_path):
    problems = [
        make_case("relu", 1, size=30, columns=21, rows=60).problem,
        make_case("asymmetric", 2, size=12, columns=3, rows=40).problem,
        hs.Problem.from_quadratic(np.diag(np.arange(6.0)) - 1, np.arange(60.0).reshape(6, 10)),
    ]
    problems[0].save(tmp_path / "p.h5")
    found = cluster.solve(client, [str(tmp_path / "p.h5"), *problems[1:]], method)
    for solution, problem in zip(found, problems, strict=True):
        same(solution, hs.solve(problem, method))


def test_columns_of_many_inputs_are_solved_apart(client, rng, tmp_path):
    inputs = LARGE + 1
    gram, cross = np.eye(inputs) + 0.1, rng.normal(size=(inputs, 150))
    problem = hs.Problem(gram, cross, np.full(150, 2.0 * inputs))
    assert len(cluster.cuts(inputs, 150, "dcc", 2)) > 1
    problem.save(tmp_path / "p.h5")
    (found,) = cluster.solve(client, [tmp_path / "p.h5"], "dcc")
    same(found, hs.solve(problem, "dcc"))


@given(
    st.integers(1, 4000), st.integers(1, 5000), st.sampled_from(list(METHODS)), st.integers(0, 99)
)
def test_cuts(inputs, columns, method, threads):
    """They cover the columns in order, at places where one process cuts too."""
    pieces = cluster.cuts(inputs, columns, method, threads)
    assert [n for piece in pieces for n in range(columns)[piece]] == list(range(columns))
    assert all(piece.start % COLUMNS == 0 for piece in pieces)
    if inputs > LARGE and method not in cluster.APART:
        assert len(pieces) == 1
    elif columns >= 2 * max(COLUMNS * cluster.PIECES, inputs) * max(threads, 1):
        assert len(pieces) >= threads


def test_a_file_is_read_once_for_all_its_pieces(tmp_path, monkeypatch):
    """And again when it has changed."""
    read = []
    monkeypatch.setattr(cluster, "read_problem", lambda s: read.append(s) or hs.Problem.load(s))
    path = str(tmp_path / "p.h5")
    for cross in (1.0, 2.0):
        hs.Problem(np.eye(2), np.full((2, 1), cross), [4.0]).save(path)
        for _ in range(3):
            assert cluster._open(path).cross[0, 0] == cross
    assert len(read) == 2


@pytest.mark.parametrize(
    "fields",
    [{"bases": 2}, {"scale_group": 5}, {"intercept": True}, {"fixed_scales": 0.3}],
    ids=str,
)
def test_variants(client, fields):
    case = make_case("relu", 3, size=15, columns=10, rows=40)
    problem = hs.Problem.from_arrays(case.inputs, case.weights, **fields)
    (found,) = cluster.solve(client, [problem], "dcc")
    same(found, hs.solve(problem, "dcc"))


def test_columns_without_energy(client, rng):
    weights = np.zeros((6, 20))
    weights[:, 17] = rng.normal(size=6)
    problem = hs.Problem.from_arrays(rng.normal(size=(6, 30)), weights)
    (found,) = cluster.solve(client, [problem], "dcc")
    same(found, hs.solve(problem, "dcc"))


def test_a_worker_that_is_killed(client):
    """In the middle of its work; another does that again, and not a bit differs."""
    problem = make_case("relu", 4, size=120, columns=64, rows=200).problem
    victim = next(iter(client.run(os.getpid).values()))

    def kill():
        time.sleep(1.0)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    (found,) = cluster.solve(client, [problem], "auto")
    killer.join()
    assert victim not in client.run(os.getpid).values()
    same(found, hs.solve(problem, "auto"))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_vectors_are_encoded_as_in_one_process(client, metric, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(retrieval.encoder, "BLOCK", 100)
    vectors = rng.normal(size=(450, 16)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    alone, spread = (hs.InnerProductIndex(metric, effort="fast").fit(vectors) for _ in range(2))
    told = []
    alone.add(vectors)
    spread.add(tmp_path / "vectors.npy", client=client, progress=lambda *a: told.append(a))
    assert told[-1] == (450, 450) and len(told) == 5
    for name in ("words", "scales", "offsets", "ids"):
        np.testing.assert_array_equal(
            getattr(spread._contents, name), getattr(alone._contents, name)
        )
    with pytest.raises(ValueError, match="client: give vectors as 'FILE"):
        spread.add(vectors, client=client)


def test_no_scheduler():
    with pytest.raises(ValueError, match="no scheduler answers there"):
        cluster.connect("tcp://127.0.0.1:9", timeout="1s")


def test_binarize(client, tmp_path, monkeypatch):
    """A whole run: its sums in shards on the workers, its solves too."""
    monkeypatch.setattr(activations, "_SHARD_NUMBERS", 200)
    runs = [
        hs.binarize(network(), calibration(), tmp_path / str(i), client=c)
        for i, c in enumerate([None, client])
    ]
    for alone, spread in zip(*(run.layers for run in runs), strict=True):
        same(alone.solution, spread.solution)


def test_scheduler(client, tmp_path, capsys):
    make_case("relu", 1, size=12, columns=9, rows=60).problem.save(tmp_path / "p.h5")
    shas = []
    for options in ([], ["--scheduler", client.scheduler.address]):
        assert cli.main(["solve", str(tmp_path / "p.h5"), "--json", *options]) == 0
        shas.append(json.loads(capsys.readouterr().out)["codes_sha256"])
    assert shas[0] == shas[1]
    options = ["--scheduler", client.scheduler.address, "--threads", "2"]
    assert cli.main(["solve", str(tmp_path / "p.h5"), *options]) == 2
    assert "--scheduler: not with" in capsys.readouterr().err
