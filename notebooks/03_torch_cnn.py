# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Binarise a CNN, fine-tune it, pack it
#
# The network of `hashsolve demo`: four 3×3 convolutions with BatchNorm, trained on 1,200 of
# scikit-learn's digits. The first convolution and the classifier stay in full precision, as in the
# paper.

# %%
import copy
import html
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML, display
from torch.utils.data import DataLoader, TensorDataset

import torch_glue
from hashsolve.packed_checkpoint import read_packed_checkpoint
from hashsolve.page import write_page
from torch_glue.demo import SKIP, accuracy, load_data, make_model, train

torch.manual_seed(0)
images, labels = load_data()
calibration, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])
full = make_model()
train(full, *calibration)
print(f"full precision: {accuracy(full, *test):.1f} % of {len(test[1])} test images")

# %% [markdown]
# ## Binarise
#
# No labels and no training: each layer's codes are solved for, on the inputs that it will see once
# the layers before it are binary. `sign` (BWN) is there to compare with. The smallest budget,
# `effort="fast"`, will do for a network of this size. Each run leaves a folder; ours are temporary.

# %%
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
models, runs = {}, {}
for method in ("sign", "dcc", "auto"):
    models[method] = copy.deepcopy(full)
    runs[method] = torch_glue.binarize(
        models[method], calibration[0], folder / method, SKIP, method, effort="fast"
    )
    print(f"{method}: {accuracy(models[method], *test):.1f} % of test images")
print(runs["auto"].report)

# %% [markdown]
# ## The report page
#
# `hashsolve report RUN`, or `write_page` as here, makes one HTML file that needs nothing else. Two
# runs can be shown side by side.

# %%
write_page(folder / "report.html", folder / "auto", against=None)
page = (folder / "report.html").read_text()
print(f"report.html: {len(page) / 1e3:.0f} kB")
frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="600"></iframe>'
display(HTML(f"<div>{frame}</div>"))

# %%
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
names = list(runs["auto"].relative_errors)
for number, (method, run) in enumerate(runs.items()):
    places = np.arange(len(names)) + 0.27 * (number - 1)
    bars = axes.bar(places, list(run.relative_errors.values()), 0.25, label=method)
    axes.bar_label(bars, fmt="%.2f")
axes.set_xticks(np.arange(len(names)), names)
axes.set(ylabel="relative error Σloss / Σenergy", yscale="log")
axes.legend()
plt.show()

# %% [markdown]
# ## Fine-tune
#
# `attach` makes the binarised layers trainable: latent weights start at the solver's codes, so the
# network computes what it did. `finetune` is a short loop for those who have none of their own; it
# keeps the best state it has seen, the start included. The teacher is the network in full
# precision. We let it look at training images only: the test images stay unseen.

# %%
model = models["auto"]
torch_glue.attach(model, runs["auto"], scales="fixed")
print(f"attached: {accuracy(model, *test):.1f} %, as before")


def on_training_images(network):
    """Minus the cross-entropy, so that larger is better."""
    return -float(torch.nn.functional.cross_entropy(network(calibration[0]), calibration[1]))


losses = []
result = torch_glue.finetune(
    model,
    DataLoader(TensorDataset(*calibration), 64, shuffle=True),
    epochs=4,
    teacher=full,
    recalibrate=calibration[0],
    evaluate=on_training_images,
    progress=lambda epoch, step, steps, loss: losses.append(loss),
)
print(result)
print("detached:", ", ".join(torch_glue.detach(model)))
print(f"fine-tuned: {accuracy(model, *test):.1f} % of test images")
for name in names:
    weight = model.get_submodule(name).weight.detach().flatten(1).abs()
    assert torch.equal(weight, weight[:, :1].expand_as(weight)), "one magnitude a filter"

# %%
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.plot(losses, color="#2b7bd9")
axes.set(xlabel="step", ylabel="training loss")
plt.show()

# %% [markdown]
# ## Pack
#
# One bit a weight, a scale a filter, all else as it is, in a safetensors file. It loads bit for
# bit, and can be read without torch.

# %%
path = folder / "model.safetensors"
print(torch_glue.save_packed(model, path))
again = make_model()
torch_glue.load_packed(again, path)
again.eval()
with torch.no_grad():
    assert torch.equal(again(test[0]), model(test[0]))
arrays = read_packed_checkpoint(path)
print(f"loaded: {accuracy(again, *test):.1f} %, the very same outputs; {path.stat().st_size} bytes")
same = all(np.array_equal(arrays[name], value) for name, value in model.state_dict().items())
print(f"read without torch: {len(arrays)} arrays, the same: {same}")
scratch.cleanup()
