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
# # Is your own solver right?
#
# A solver of hashing problems is any function `solver(problem) -> (codes, scales)`. Here is one
# that looks right: cyclic coordinate descent on the codes and the closed-form scale in turn, as in
# the paper. It is wrong in ways that are easy to write and hard to see. `hashsolve.testing` holds
# it to laws, on problems that it did not choose, and prints the smallest one that breaks a law.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import hashsolve as hs
from hashsolve import reference
from hashsolve.testing import STANDARD, LawBroken, check_solver


def scales_of(problem, codes):
    """The best scale of each column, cᵀb / bᵀHb."""
    p = np.einsum("st,st->t", problem.cross, codes)
    q = np.einsum("st,st->t", codes, problem.gram @ codes)
    return np.divide(p, q, out=np.zeros_like(p), where=q > 0)


def first_try(problem, sweeps=1):
    """Coordinate descent: bit j is the sign of what the others leave of c_j."""
    codes = np.sign(problem.weights)
    for _ in range(sweeps):
        scales = scales_of(problem, codes)
        for j in range(problem.inputs):
            others = problem.gram[j] @ codes - problem.gram[j, j] * codes[j]
            codes[j] = np.sign(problem.cross[j] - scales * others)
    return codes, scales


# %% [markdown]
# ## What the laws say
#
# `free_scale_only` leaves out problems whose scale is given and quadratic programmes, which this
# solver does not claim to take.


# %%
def report(solver, *laws):
    """Hold a solver to laws one by one; say which hold."""
    for law in laws:
        try:
            check_solver(solver, [law], examples=60, sizes=(1, 6), free_scale_only=True)
            print(f"{law}: holds")
        except LawBroken as breach:
            print(breach, end="\n\n")


report(first_try, "valid")

# %% [markdown]
# The classic one: sign(0) is 0, which is no code. Dead inputs and ties are common in real layers.
#
# ## Mended once
#
# A zero keeps the bit it has.


# %%
def second_try(problem, sweeps=1):
    """As before; a zero keeps the current bit."""
    codes = np.where(problem.weights < 0, -1.0, 1.0)
    for _ in range(sweeps):
        scales = scales_of(problem, codes)
        for j in range(problem.inputs):
            others = problem.gram[j] @ codes - problem.gram[j, j] * codes[j]
            field = problem.cross[j] - scales * others
            codes[j] = np.where(field == 0, codes[j], np.where(field < 0, -1, 1))
    return codes, scales


report(second_try, "valid", "best_scale")

# %% [markdown]
# The scale may be negative: b and α must then both be turned. And it belongs to the codes before
# the sweep, not to those returned.
#
# ## Mended twice


# %%
def with_its_scale(problem, codes):
    """Codes with their best scale, both turned where that is negative."""
    scales = scales_of(problem, codes)
    turn = np.where(scales < 0, -1.0, 1.0)
    return codes * turn, scales * turn


def third_try(problem):
    """Many sweeps, and the scale of the codes that are returned."""
    return with_its_scale(problem, second_try(problem, sweeps=50)[0])


report(third_try, "valid", "best_scale", "one_flip")

# %% [markdown]
# Now it is the paper's method, and sound. But at a fixpoint of coordinate descent a single flip may
# still be of use: flips are tried at the old scale only, and with another scale one may gain.
#
# ## Mended for good
#
# We go on by the best single flip, judged with the scale set anew, as long as it gains. With
# $p = c^\top b$ and $q = b^\top H b$ the loss is $e - p^2/q$, and a flip of bit j makes them
# $p - 2 b_j c_j$ and $q - 4 b_j (Hb)_j + 4 H_{jj}$.


# %%
def fourth_try(problem):
    """Coordinate descent, then single flips; the scale of the codes that are returned."""
    codes, _ = third_try(problem)
    for b, c, energy in zip(codes.T, problem.cross.T, problem.energy, strict=True):
        for _ in range(1000):
            h = problem.gram @ b
            p, q = c @ b, b @ h
            new_p, new_q = p - 2 * b * c, q - 4 * b * h + 4 * np.diag(problem.gram)
            safe = new_q > 1e-12 * np.trace(problem.gram)
            gain = np.divide(new_p**2, new_q, out=np.zeros_like(b), where=safe)
            j = np.argmax(gain)
            if gain[j] <= (p**2 / q if q > 0 else 0) + 1e-12 * energy:
                break
            b[j] *= -1
    return with_its_scale(problem, codes)


report(fourth_try, *STANDARD)

# %% [markdown]
# ## How far from the best?
#
# The laws say nothing of how good a local optimum is. The law `exact` does, by trying all $2^S$
# codes. No descent keeps it, and the counterexample is small.

# %%
report(fourth_try, "exact")


# %% [markdown]
# A solver that tries all codes itself should keep it, and does.


# %%
def exhaustive(problem):
    """All codes, a row a code; half of them, as b and −b have one loss."""
    size = problem.inputs
    bits = np.arange(2 ** (size - 1))[:, None] >> np.arange(size) & 1
    every = 1.0 - 2 * bits
    p = every @ problem.cross
    q = np.einsum("ns,ns->n", every @ problem.gram, every)[:, None]
    safe = q > 1e-12 * np.trace(problem.gram)
    gain = np.divide(p**2, q, out=np.zeros_like(p), where=safe)
    return with_its_scale(problem, every[gain.argmax(axis=0)].T)


report(exhaustive, "exact", "one_flip")

# %% [markdown]
# ## Certificates on real data
#
# Now a real layer: the second of a small network trained on scikit-learn's digits, 48 inputs and 24
# filters. `hs.verify` knows nothing of how codes were made. It gives each column the highest level
# that it reaches, and a lower bound that nobody can go below.

# %%
images, labels = load_digits(return_X_y=True)
images = images[:1200] / 16
network = MLPClassifier((48, 24), max_iter=80, early_stopping=True, random_state=0)
network.fit(images, labels[:1200])
inputs = np.maximum(images @ network.coefs_[0] + network.intercepts_[0], 0).T
problem = hs.Problem.from_arrays(inputs, network.coefs_[1], name="digits")

mine, mended = third_try(problem), fourth_try(problem)
print(hs.verify(problem, *mine, require="dcc"), end="\n\n")
print(hs.verify(problem, *mended, require="one_flip"))

# %% [markdown]
# The quick bound leaves much room. On layers of this size the optimum itself can be had: `auto`
# searches, and proves every filter. On a part of the layer that is small enough all codes can be
# tried, as an independent check of such proofs.

# %%
part = hs.Problem(
    gram=problem.gram[:16, :16], cross=problem.cross[:16], energy=problem.energy, name="16 inputs"
)
proven, tried = hs.solve(part, "exact"), reference.brute_force(part)
print(f"16 inputs: exact differs from all {2**16} codes by at most", end=" ")
print(f"{np.max(np.abs(proven.loss - tried) / part.energy):.1e} of the energy")

optimum = hs.solve(problem)
print(optimum)
assert optimum.optimal.all()
losses = {
    "coordinate descent (third try)": problem.loss(*mine),
    "and single flips (fourth try)": problem.loss(*mended),
    "hashsolve beam": hs.solve(problem, "beam").loss,
}
for name, loss in losses.items():
    ratio = loss / optimum.loss
    print(f"{name:<34} {ratio.min():6.2f} to {ratio.max():6.2f} x the optimum")

# %% [markdown]
# Every filter's loss as a multiple of its proven optimum. To be right (all laws kept) and to be
# good are two things.

# %%
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
order = np.argsort(losses["coordinate descent (third try)"] / optimum.loss)
for (name, loss), colour in zip(losses.items(), ("#d9532b", "#d98c2b", "#2b7bd9"), strict=True):
    axes.plot((loss / optimum.loss)[order], "o", color=colour, label=name)
axes.axhline(1, color="#3d9a5f", label="proven optimum")
axes.set(xlabel="filter", ylabel="loss / optimum", yscale="log")
axes.legend()
plt.show()
