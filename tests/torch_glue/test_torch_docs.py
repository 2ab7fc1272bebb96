"""The code on the pages about torch, as it is printed there."""

import pages
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")


def test_pages(tmp_path, monkeypatch, capsys):
    """`docs/torch.md`, and `docs/fine_tuning.md`, which goes on from it."""
    monkeypatch.chdir(tmp_path)
    names = pages.run("docs/torch.md", {})
    assert names["full"] > 0.9  # there was something to keep
    assert names["accuracy"](names["model"]) > names["full"] - 0.1
    pages.run("docs/fine_tuning.md", names)
    assert "2 binarised weights" in capsys.readouterr().out
