"""`hashsolve inspect` on every kind of file that the project writes, and on hostile ones."""

from __future__ import annotations

import json
import pickle
from importlib.util import find_spec

import numpy as np
import pytest

import hashsolve as hs
from hashsolve import packed_checkpoint


@pytest.fixture
def look(run):
    """What inspect says of a file, as JSON; said to people too."""

    def command(path: object) -> dict:
        code, out, error = run("inspect", path)
        assert (code, error) == (0, ""), error
        code, as_json, _ = run("inspect", path, "--json")
        found = json.loads(as_json)
        assert code == 0 and out.startswith(f"kind: {found['kind']}\n")
        return found

    return command


def test_a_packed_checkpoint(look, refused, tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    tensors = {"w::codes": np.zeros(2, np.uint8), "w::scales": np.ones((3, 1), np.float32)}
    tensors["b"] = np.zeros(4, np.float32)
    about = {"format": packed_checkpoint.FORMAT, "version": packed_checkpoint.VERSION}
    about |= {"layers": '{"w": [[3, 5], 0]}', "aliases": '{"v": "b"}'}
    path = tmp_path / "packed.safetensors"
    save_file(tensors, path, about)
    found = look(path)
    assert found["kind"] == "packed checkpoint" and found["bytes"] == path.stat().st_size
    assert found["layers"] == {"w": {"shape": [3, 5], "scales": [3, 1]}}
    assert (found["binary_weights"], found["other_tensors"]) == (15, 1)
    assert found["aliases"] == {"v": "b"}
    save_file(tensors, path)
    assert "not a packed checkpoint" in refused("inspect", path)
    path.write_bytes(path.read_bytes()[:40])
    assert "damaged, or not a safetensors file" in refused("inspect", path)


def test_an_index(look, refused, tmp_path, rng):
    index = hs.InnerProductIndex(metric="cosine", bits=2, effort="fast")
    vectors = rng.normal(size=(60, 16))
    index.fit(vectors)
    index.add(vectors)
    index.save(tmp_path / "index.h5")
    found = look(tmp_path / "index.h5")
    assert found["kind"] == "index" and found["metric"] == "cosine"
    assert (found["bits"], found["dimensions"], found["vectors"]) == (2, 16, 60)
    assert found["bytes_per_vector"] == index.bytes_per_vector
    assert found["text"] == str(index.report)
    cut = tmp_path / "cut.h5"
    cut.write_bytes((tmp_path / "index.h5").read_bytes()[:2000])
    assert "damaged" in refused("inspect", cut)


class _Trap:
    """What a pickle can do: run anything. This one leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_opened(refused, tmp_path, protocol):
    trap = tmp_path / "sprung"
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(pickle.dumps(_Trap(trap), protocol))
    message = refused("inspect", path)
    assert "pickled" in message and not trap.exists()


def test_what_a_run_leaves(look, run, tmp_path):
    from commands import BINARIZE

    assert run(*BINARIZE, "--run-dir", tmp_path, "--method", "sign")[0] == 0
    names = ["manifest.json", "report.json", "report.csv"]
    if find_spec("jinja2") and find_spec("matplotlib"):
        names.append("report.html")
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    for name in (".", *names):
        assert look(tmp_path / name)["kind"] == "run"


def test_the_demos_table(look, refused, tmp_path):
    row = {"way": "dcc, asym (BWNH)", "top1": 90.0, "run_dir": "a", "bytes": 1.0}
    table = {"top1_full_precision": 95.0, "rows": [row]}
    (tmp_path / "demo.json").write_text(json.dumps(table))
    for path in (tmp_path, tmp_path / "demo.json"):
        found = look(path)
        assert (found["kind"], found["top1_full_precision"]) == ("demo", 95.0)
        assert found["dcc, asym (BWNH)"] == {"top1": 90.0, "run_dir": "a"}
    (tmp_path / "demo.json").write_text("{}")
    assert "not the demo's" in refused("inspect", tmp_path)


def test_an_onnx_file(look, refused, tmp_path):
    onnx = pytest.importorskip("onnx")
    weights = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 2]), ("y", [1, 3]))
    ]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "net.onnx")
    found = look(tmp_path / "net.onnx")
    assert (found["inputs"], found["outputs"]) == (["x"], ["y"])
    assert (found["operators"], found["weights"]) == ({"MatMul": 1}, 6)
    (tmp_path / "net.onnx").write_bytes(b"no network")
    assert "not an ONNX file" in refused("inspect", tmp_path / "net.onnx")
