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
# # Vector search with one bit a dimension
#
# The columns of W are a database of vectors, X holds queries: codes that keep XᵀW are what one-bit
# search is made of. Here the vectors are scikit-learn's images of digits, turned and shifted a
# little to have more of them, and neighbours are judged on queries that nothing was fitted on.

# %%
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import rotate, shift
from sklearn.datasets import load_digits

import hashsolve as hs

rng = np.random.default_rng(0)
images = load_digits().images
moved = [
    shift(
        rotate(image, rng.uniform(-12, 12), reshape=False, order=1), rng.uniform(-1, 1, 2), order=1
    )
    for image in np.concatenate([images, images, images])
]
vectors = np.concatenate([images, moved]).reshape(-1, 64).astype(np.float32)
vectors = vectors[rng.permutation(len(vectors))]
queries, sample, vectors = vectors[:300], vectors[300:1300], vectors[1300:]
truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
print(vectors.shape)


# %%
def recall(found):
    """The share of the true ten best that are among the ten found."""
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])


# %% [markdown]
# ## An index
#
# `fit` learns a map and chooses rules on held-out queries; its report says which, and why.

# %%
rows = {}
for bits in (1, 2, 3):
    begun = time.perf_counter()
    index = hs.InnerProductIndex(metric="ip", bits=bits)
    index.fit(vectors, sample)
    index.add(vectors)
    scores, found = index.search(queries, k=10)
    rows[f"hashsolve, {bits} bit"] = index.bytes_per_vector, recall(found)
    print(
        f"{bits} bit: recall@10 {recall(found):.3f}, {index.bytes_per_vector} bytes a vector, "
        f"{time.perf_counter() - begun:.1f} s"
    )
print(index.report)

# %% [markdown]
# Candidates can be ranked anew by the full vectors, and an index is one packed file.

# %%
with tempfile.TemporaryDirectory() as folder:
    index.save(Path(folder, "index.h5"))
    again = hs.InnerProductIndex.load(Path(folder, "index.h5"))
    assert np.array_equal(again.search(queries, k=10)[1], found)
    size = Path(folder, "index.h5").stat().st_size
print(f"{size:,} bytes on disk, {vectors.nbytes:,} as float32")
_, ranked = index.search(queries, k=10, vectors=vectors)
print(f"recall@10 {recall(ranked):.3f} with candidates ranked by the full vectors")

# %% [markdown]
# ## Lists
#
# With `lists`, k-means puts vectors that are near one another together, and a query visits a few
# of the lists. All of them find what the search above finds, to the last bit.

# %%
listed = hs.InnerProductIndex(metric="ip", lists=32)
listed.fit(vectors, sample)
listed.add(vectors)
for probes in (1, 2, 4, 8, 32):
    _, visited = listed.search(queries, k=10, probes=probes)
    print(f"{probes} of 32 lists: recall@10 {recall(visited):.3f}")

# %% [markdown]
# ## Against others at one bit
#
# The sign of the centred vectors, and FAISS's RaBitQ where `faiss` is installed.

# %%
mean = vectors.mean(axis=0)
signs = np.where(vectors >= mean, 1.0, -1.0)
scales = ((vectors - mean) * signs).mean(axis=1)
order = np.argsort(-((queries @ signs.T) * scales + (queries @ mean)[:, None]), axis=1)
rows["sign, mean |w|"] = 8 + 4, recall(order[:, :10])
if find_spec("faiss"):
    import faiss

    turned = faiss.RandomRotationMatrix(64, 64)
    turned.init(0)
    rival = faiss.IndexPreTransform(turned, faiss.IndexRaBitQ(64, faiss.METRIC_INNER_PRODUCT))
    rival.train(vectors)
    rival.add(vectors)
    rows["FAISS RaBitQ"] = (
        faiss.downcast_index(rival.index).code_size,
        recall(rival.search(queries, 10)[1]),
    )
print(rows)

# %%
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, (size, value) in rows.items():
    axes.plot(size, value, "o" if name.startswith("hashsolve") else "s", label=name)
axes.set(xlabel="bytes a vector", ylabel="recall@10 of held-out queries")
axes.grid(alpha=0.3)
axes.legend()
plt.show()
