"""Sizes of packed checkpoints, which do not depend on the values: ResNet-20 and VGG-9, sign codes.

    python tests/benchmarks/packed_sizes.py

Each is loaded back into a fresh network, which must then be equal. Prints one line of JSON each.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from cifar10 import SKIP, VGG9
from resnet20 import ResNet20

import torch_glue

for name, kind in {"resnet20": ResNet20, "vgg9": VGG9}.items():
    model, fresh = kind(), kind()
    torch_glue.attach(
        model,
        [
            layer
            for layer, module in model.named_modules()
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and layer not in SKIP[name]
        ],
    )
    torch_glue.detach(model)
    with tempfile.TemporaryDirectory() as folder:
        sizes = torch_glue.save_packed(model, Path(folder, "packed.safetensors"))
        torch_glue.load_packed(fresh, Path(folder, "packed.safetensors"))
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in fresh.state_dict().items())
    row = {key: value for key, value in vars(sizes).items() if key != "layers"}
    print(json.dumps({"network": name, **row, "ratio": sizes.binarized_ratio}))
