"""`hashsolve inspect` on what torch_glue writes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import torch_glue


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


def test_a_packed_checkpoint_of_a_model(run, tmp_path):
    model = small_model()
    torch_glue.attach(model, ["0"])
    torch_glue.detach(model)
    said = torch_glue.save_packed(model, tmp_path / "m.safetensors")
    found = json.loads(run("inspect", tmp_path / "m.safetensors", "--json")[1])
    assert found["kind"] == "packed checkpoint" and found["binary_weights"] == 48
    assert list(found["layers"]) == ["0.weight"] and found["bytes"] > 0 and str(said)


def test_a_checkpoint_of_fine_tuning_is_refused_without_opening_it(run, refused, tmp_path):
    model = small_model()
    torch_glue.attach(model, ["0"])
    data = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randint(2, (32,)))
    loader = torch.utils.data.DataLoader(data, 16)
    torch_glue.finetune(model, loader, keep="last", checkpoint=tmp_path / "tuned.pt")
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("tuned.pt", "old.pt"):
        message = refused("inspect", tmp_path / name)
        assert "pickled, as torch.save writes checkpoints: not opened" in message


def test_an_exported_network(run, tmp_path):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    torch_glue.export_onnx(small_model(), tmp_path / "m.onnx", torch.randn(1, 8))
    found = json.loads(run("inspect", tmp_path / "m.onnx", "--json")[1])
    assert found["kind"] == "ONNX network" and found["weights"] == 8 * 6 + 6 + 6 * 2 + 2
