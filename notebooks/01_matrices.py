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
# # A hashing problem on matrices
#
# A layer computes $Y = X^\top W$. One bit a weight and one scale a filter means
#
# $$\min_{B \in \{-1,+1\}^{S \times T},\ \alpha}\ \| Y - X^\top B\,\mathrm{diag}(\alpha) \|^2 .$$
#
# The matrices here are real ones: a small network of scikit-learn, trained on its digits. No deep
# learning framework is needed.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import hashsolve as hs

images, labels = load_digits(return_X_y=True)
images = images / 16
train, test = slice(0, 1200), slice(1200, None)
network = MLPClassifier((48, 24), max_iter=80, early_stopping=True, random_state=0)
network.fit(images[train], labels[train])
print(f"accuracy on test images: {network.score(images[test], labels[test]):.3f}")

# %% [markdown]
# ## From arrays to a problem
#
# We take the second layer: its inputs are what the first leaves after ReLU. hashsolve wants one
# column a sample, X (S, N), and one column a filter, W (S, T). A `Problem` keeps only the sums
# $H = XX^\top$, $C = XY$, $e_t = \|Y_t\|^2$: its size does not depend on N.


# %%
def hidden(pixels, weights):
    """What the second layer sees, one column a sample."""
    return np.maximum(pixels @ weights + network.intercepts_[0], 0).T


first, second, _ = network.coefs_
X, W = hidden(images[train], first), second
problem = hs.Problem.from_arrays(X, W, name="second layer")
dead = int((np.diag(problem.gram) == 0).sum())
print(problem, f"- {dead} inputs are zero on all data")

# %% [markdown]
# ## All methods, one table
#
# `loss` is the squared error of all filters, `error` its share of the energy $\|Y\|^2$. `bound` is
# proven: no codes and scales whatever do better. `gap` is (loss − bound) / loss, here the mean over
# filters, so a gap of 0.1 says that at most a tenth of the loss can still be gained. The first call
# of a method compiles it; we do that before the clock runs.
#
# A method reports the bound that it has at hand; `auto` spends time on a better one. A bound holds
# for everyone's codes, so we judge all methods by the best.

# %%
METHODS = ("sign", "dcc", "one_flip", "babai", "beam", "tabu", "auto")
for method in METHODS:
    hs.solve(problem.select([0]), method, "fast")

solutions = {method: hs.solve(problem, method) for method in METHODS}
bound = np.max([s.lower_bound for s in solutions.values()], axis=0)
print(f"{'method':<10}{'loss':>10}{'error':>9}{'bound':>10}{'mean gap':>10}{'seconds':>9}")
for method, s in solutions.items():
    gap = np.mean((s.loss - bound) / s.loss)
    print(
        f"{method:<10}{s.loss.sum():>10.1f}{s.relative_error:>9.4f}{bound.sum():>10.1f}"
        f"{gap:>10.3f}{s.wall_time:>9.3f}"
    )

# %% [markdown]
# `sign` is BWN: sign(W) and mean |W|. `dcc` is the method of the paper (BWNH). `auto` runs the
# searches and keeps, column by column, what is best: it is never worse than any of the others.
#
# Left: the error of each method, and the share that is proven to be unavoidable. Right: each filter
# on its own, in the order of the bound.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
errors = [solutions[method].relative_error for method in METHODS]
bars = left.bar(METHODS, errors, color="#2b7bd9")
left.bar_label(bars, fmt="%.3f")
left.axhline(bound.sum() / problem.energy.sum(), color="#d98c2b", label="proven lower bound")
left.set(ylabel="relative error Σloss / Σenergy", yscale="log", ylim=(2e-3, 0.5))
left.tick_params("x", rotation=30)
left.legend()
order = np.argsort(bound / problem.energy)
for method, colour in (("sign", "#8a8f98"), ("dcc", "#d9532b"), ("auto", "#2b7bd9")):
    right.plot((solutions[method].loss / problem.energy)[order], ".", color=colour, label=method)
right.plot((bound / problem.energy)[order], color="#d98c2b", label="proven lower bound")
right.set(xlabel="filter", ylabel="loss / energy", yscale="log")
right.legend()
plt.show()

# %% [markdown]
# ## Effort
#
# `effort` is a budget of counted work, not of seconds, so the answer does not depend on the
# machine. More effort never makes a column worse. `auto` proves every filter of this layer, so we
# watch `beam` come closer to the proven optimum, on eight of them.

# %%
some, best = problem.select(range(8)), bound[:8]
print(f"{'effort':<10}{'error':>9}{'gap':>8}{'filters at the optimum':>24}{'seconds':>9}")
for effort in ("fast", "default", "thorough"):
    s = hs.solve(some, "beam", effort)
    done = np.sum(s.loss - best <= 1e-9 * some.energy)
    gap = np.mean((s.loss - best) / s.loss)
    print(f"{effort:<10}{s.relative_error:>9.5f}{gap:>8.4f}{done:>24}{s.wall_time:>9.2f}")

# %% [markdown]
# ## The asymmetric problem
#
# Once the first layer is binarised, the second sees other inputs, X̂. Its target is still what the
# full-precision network computes: pass that as `reference`. Codes that know of X̂ make up for a part
# of the first layer's error. We judge them on images that no solver has seen.

# %%
s1 = hs.solve(hs.Problem.from_arrays(images[train].T, first, name="first layer"), "beam")
print("first layer:", s1)
X_hat = hidden(images[train], s1.weight)
asym = hs.Problem.from_arrays(X_hat, W, reference=X, name="second layer, asym")
fresh = hs.Problem.from_arrays(
    hidden(images[test], s1.weight), W, reference=hidden(images[test], first), name="test images"
)


def accuracy(weight):
    """Of the network with both hidden layers binary, on the test images."""
    z = np.maximum(hidden(images[test], s1.weight).T @ weight + network.intercepts_[1], 0)
    out = z @ network.coefs_[2] + network.intercepts_[2]
    return np.mean(out.argmax(axis=1) == labels[test])


ways = {
    "sign": solutions["sign"],
    "auto, not knowing of X̂": solutions["auto"],
    "auto, asym": hs.solve(asym),
}
for name, s in ways.items():
    error = fresh.loss(s.codes, s.scales).sum() / fresh.energy.sum()
    print(f"{name:<24} error {error:.4f}, accuracy {accuracy(s.weight):.3f}")

# %% [markdown]
# ## Trust, but verify
#
# `hs.verify` takes anyone's codes and scales. It computes the loss anew in extended precision and
# says which columns cannot be improved by flipping one bit. Bounds that somebody claims are
# compared with quick ones of its own; `require="optimal"` proves them again, by a search. Codes
# with one bit turned are found out.

# %%
s = solutions["auto"]
print(hs.verify(problem, s.codes, s.scales, claimed_loss=s.loss, claimed_bound=s.lower_bound))
few = problem.select(range(4))
print(hs.verify(few, s.codes[:, :4], s.scales[:4], require="optimal"))
spoilt = s.codes.copy()
spoilt[0, 3] *= -1
print(hs.verify(problem, spoilt, s.scales))

# %% [markdown]
# ## Save and load
#
# Problems and solutions are HDF5 files, with codes at one bit each. Files appear whole or not at
# all, and a damaged one is refused. The shell reads the same files: `hashsolve verify problem.h5
# solution.h5`, `hashsolve inspect solution.h5`.

# %%
with tempfile.TemporaryDirectory() as folder:
    problem.save(Path(folder, "problem.h5"))
    s.save(Path(folder, "solution.h5"))
    same = hs.Problem.load(Path(folder, "problem.h5"))
    again = hs.Solution.load(Path(folder, "solution.h5"))
    size = Path(folder, "solution.h5").stat().st_size
print(f"{again}; {size} bytes")
print("the same codes:", again.codes_sha256 == s.codes_sha256)
print("still sound:", hs.verify(same, again.codes, again.scales).ok)
