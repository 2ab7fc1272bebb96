# ruff: noqa: E402
"""The demo, with little training; and the README's Python, as it is printed there."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
import pages
from torch_support import small_images, small_net

from hashsolve import cli
from torch_glue import demo


@pytest.fixture
def short(monkeypatch):
    """A demo that is over in seconds: hardly trained, without the way that searches longest."""
    monkeypatch.setattr(demo, "EPOCHS", 1)
    ways = {way: how for way, how in demo.WAYS.items() if how[0] != "auto"}
    assert len(ways) == len(demo.WAYS) - 1
    monkeypatch.setattr(demo, "WAYS", ways)


def test_demo(short, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    assert cli.main(["demo"]) == 0
    out, error = capsys.readouterr()
    assert error == "" and torch.equal(torch.random.get_rng_state(), state)
    assert "full precision" in out and all(way in out for way in demo.WAYS)
    saved = json.loads(Path("hashsolve-demo/demo.json").read_text())
    assert [row["way"] for row in saved["rows"]] == list(demo.WAYS)
    assert all(row["bytes"] < saved["bytes_full_precision"] / 8 for row in saved["rows"])
    sign, symfp = saved["rows"][:2]
    assert symfp["relative_error"] < sign["relative_error"]
    for row in saved["rows"]:
        assert cli.main(["inspect", row["run_dir"]]) == 0
        out, error = capsys.readouterr()
        assert f"method: {row['method']}" in out and "finished: yes" in out
    # a second one, into another folder, is the same
    assert cli.main(["demo", "--json", "--run-dir", "again"]) == 0
    again = json.loads(capsys.readouterr().out)
    for row, other in zip(saved["rows"], again["rows"], strict=True):
        assert row["relative_error"] == other["relative_error"]
        assert row["top1"] == other["top1"]


def test_demo_refuses_a_folder_of_other_things(short, tmp_path, capsys):
    (tmp_path / "sign-symfp").mkdir()
    (tmp_path / "sign-symfp/letter.txt").write_text("dear")
    assert cli.main(["demo", "--run-dir", str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "neither empty nor a run folder" in error
    assert (tmp_path / "sign-symfp/letter.txt").exists()


def test_readme_python(tmp_path, monkeypatch, capsys):
    """Every block runs, given what it takes for granted: a model and images."""
    monkeypatch.chdir(tmp_path)
    matrix, glue, vectors = pages.blocks("README.md", "python")
    assert [len(block.replace("\n\n", "\n").splitlines()) for block in (matrix, glue)] == [5, 4]
    exec(matrix, {})
    assert "PASSED" in capsys.readouterr().out
    model = torch.nn.Sequential()
    for name, layer in zip(["conv1", "relu1", "conv2", "relu2"], small_net(), strict=False):
        model.add_module(name, layer)
    model.add_module("norm", torch.nn.BatchNorm2d(6))
    model.add_module("flatten", torch.nn.Flatten())
    model.add_module("linear", torch.nn.Linear(54, 5))
    exec(glue, {"model": model, "images": small_images()})
    assert "conv2" in capsys.readouterr().out and Path("binary.pt").exists()
    weight = torch.load("binary.pt")["conv2.weight"].abs().flatten(1)
    assert torch.equal(weight.amin(1), weight.amax(1))
    exec(vectors, {})
    assert "recall@10" in capsys.readouterr().out and Path("index.h5").exists()


def test_readme_shell(tmp_path, monkeypatch, capsys):
    """The commands on matrices, one after the other."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("X.npy", rng.normal(size=(8, 100)))
    np.save("W.npy", rng.normal(size=(8, 3)))
    commands = pages.commands("README.md")
    assert len(commands) >= 3
    for command in commands:
        assert cli.main(command) == 0, command
    assert capsys.readouterr().err == ""
