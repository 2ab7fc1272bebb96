"""hashsolve.testing: our own methods keep the laws; planted bugs are caught, each by its law."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import hashsolve as hs
from hashsolve.activations import layer_sums
from hashsolve.instance import signs
from hashsolve.methods import METHODS
from hashsolve.testing import STANDARD, LawBroken, check_solver, check_sums


def solver(method: str):
    """One of our methods as anyone's solver."""

    def run(problem, effort="default"):
        s = hs.solve(problem, method, effort)
        return s.codes, s.scales

    return run


LAWS_OF = {
    "valid": ("valid", "permute_columns", "flip_inputs", "positive_factor"),
    "dcc": tuple(law for law in STANDARD if law != "one_flip"),
    "one_flip": STANDARD,
}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_our_methods_keep_the_laws(method):
    laws = LAWS_OF[METHODS[method].promise]
    check_solver(solver(method), laws, examples=25)
    check_solver(solver(method), ("effort",), examples=10)


def descend(problem, *, zero=False, stale=False, last=False, scale=1.0):
    """Coordinate descent in plain NumPy, with bugs to switch on."""
    codes, scales = [], []
    start = problem.cross if problem.weights is None else problem.weights
    for t in range(problem.columns):
        b, c = signs(start[:, t]).astype(float), problem.cross[:, t]
        alpha = 1.0
        for _ in range(30):
            h = problem.gram @ b
            if problem.free_scale:
                alpha = c @ b / (b @ h) if b @ h > 0 else 0.0
                if alpha < 0:
                    b, h, alpha = -b, -h, -alpha
            else:
                alpha = problem.fixed_scales[t]
            for j in range(problem.inputs - last):
                pull = c[j] - alpha * (h[j] - problem.gram[j, j] * b[j])
                if pull == 0 and not zero:
                    continue
                if np.sign(pull) != b[j]:
                    b[j] = np.sign(pull)
                    if not stale:
                        h = problem.gram @ b
        if problem.free_scale:
            q = b @ problem.gram @ b
            alpha = scale * max(c @ b / q, 0) if q > 0 else 0.0
        codes.append(b)
        scales.append(alpha)
    return np.array(codes).T, np.array(scales)


PLANTED = {
    "sgn(0) = 0": ({"zero": True}, "valid"),
    "stale h after a flip": ({"stale": True}, "one_flip"),
    "wrong scale": ({"scale": 1.01}, "best_scale"),
    "off by one in the last bit": ({"last": True}, "one_flip"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(bug):
    options, law = PLANTED[bug]

    def broken(problem):
        return descend(problem, **options)

    with pytest.raises(LawBroken, match=f"law '{law}'") as caught:
        check_solver(broken, (law,), examples=300)
    code = str(caught.value).split("To see it again:\n")[1]
    space = {"solver": broken}
    exec("\n".join(line[4:] for line in code.splitlines() if line.startswith("    ")), space)
    assert space["problem"].inputs <= 4  # it was shrunk
    certificate = hs.verify(space["problem"], space["codes"], space["scales"])
    assert not certificate.ok


def test_the_sound_descent_is_not_accused():
    laws = ("valid", "not_worse_than_sign", "permute_columns", "flip_inputs", "positive_factor")
    check_solver(descend, laws, examples=25)


def test_more_breaches():
    def absolute(problem):
        """A threshold in the data's unit."""
        s = hs.solve(problem, "dcc" if problem.energy.max() < 50 else "sign")
        return s.codes, s.scales

    def prefers_plus(problem):
        s = hs.solve(problem, "dcc", init=np.ones((problem.inputs, problem.columns)))
        return s.codes, s.scales

    for broken, law in (
        (absolute, "positive_factor"),
        (prefers_plus, "flip_inputs"),
        (solver("sign"), "best_scale"),
        (solver("dcc"), "exact"),
    ):
        with pytest.raises(LawBroken, match=f"law '{law}'"):
            check_solver(broken, (law,), examples=200)


def test_a_solver_that_fails_is_told_with_the_problem():
    """As one does that takes the weights for granted."""
    with pytest.raises(LawBroken, match=r"the solver raised TypeError: .*\nTo see it") as caught:
        check_solver(lambda problem: (problem.weights >= 0, None))
    assert isinstance(caught.value.__cause__, TypeError)
    assert "fixed_scales" in str(caught.value) and "weights=" not in str(caught.value)
    with pytest.raises(LawBroken, match=r"returned a Solution, not \(codes, scales\)"):
        check_solver(hs.solve, "valid")


def test_a_solver_that_does_not_always_give_the_same_breaks_its_law():
    calls = itertools.count(1)

    def moody(problem):
        codes = np.where(problem.cross >= 0, 1, -1)
        scales = hs.reference.best_scales(problem, codes)
        return codes * (0 if next(calls) % 7 == 0 else 1), np.abs(scales)

    with pytest.raises(LawBroken, match="does not always give the same"):
        check_solver(moody, "valid")


def test_no_law_and_no_example_are_refused():
    for arguments, message in (
        ({"laws": ()}, "laws: name one"),
        ({"examples": 0}, "examples: must be a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            check_solver(solver("one_flip"), **arguments)
    with pytest.raises(ValueError, match="solver: must be callable, got a int"):
        check_solver(3)


def test_effort_must_be_monotone():
    def worse_with_effort(problem, effort):
        s = hs.solve(problem, "sign" if effort == "thorough" else "one_flip")
        return s.codes, s.scales

    with pytest.raises(LawBroken, match=r"more effort gave a larger loss"):
        check_solver(worse_with_effort, ("effort",))


def ours(maps, weights, geometry, reference):
    """Our sums, as anyone's."""
    from hashsolve.activations import group_weights
    from hashsolve.problem import Problem

    sums = layer_sums(maps, weights, geometry, reference)
    made = [
        Problem.from_sums(s, w) for s, w in zip(sums, group_weights(weights, geometry), strict=True)
    ]
    return [(p.gram, p.cross, p.energy) for p in made]


def test_our_sums_keep_the_law():
    check_sums(ours)


def test_pooled_groups_are_caught():
    def pooled(maps, weights, geometry, reference):
        triples = ours(maps, weights, geometry, reference)
        gram = sum(h for h, _, _ in triples)
        return [(gram, c, e) for _, c, e in triples]

    with pytest.raises(LawBroken, match=r"H is not that of its patches"):
        check_sums(pooled)


def test_averaged_batches_are_caught():
    def averaged(maps, weights, geometry, reference):
        parts = [
            ours(
                maps[i : i + 2],
                weights,
                geometry,
                None if reference is None else reference[i : i + 2],
            )
            for i in range(0, len(maps), 2)
        ]
        return [
            tuple(np.mean([part[g][k] for part in parts], axis=0) for k in range(3))
            for g in range(geometry.groups)
        ]

    with pytest.raises(LawBroken, match=r"group 0"):
        check_sums(averaged)


def test_unknown_law():
    with pytest.raises(ValueError, match=r"did you mean 'one_flip'"):
        check_solver(descend, ("oneflip",))


def test_one_breach_at_a_time():
    """A solver that breaks a law in two ways gets one LawBroken, not a group of exceptions."""

    def solver(problem):
        codes = np.where(problem.weights < 0, -1, 1)
        best = problem.best_scales(codes)
        return codes, best + 1 if problem.inputs % 2 else best - 1e6

    with pytest.raises(LawBroken, match="best_scale"):
        check_solver(solver, ["best_scale"], free_scale_only=True)
