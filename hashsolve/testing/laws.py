"""The laws, and the search for a problem on which a solver breaks one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from hashsolve import checks, reference
from hashsolve.certificate import verify
from hashsolve.instance import signs
from hashsolve.problem import Problem
from hashsolve.testing.strategies import GENERIC, cases, problems, with_fields

Solver = Callable[..., tuple[Any, Any]]

TOLERANCE = 1e-8  # share of a column's energy


class LawBroken(AssertionError):
    """A solver breaks a law; the message holds a runnable counterexample."""


def unit(problem: Problem) -> np.ndarray:
    """What losses are compared against: the energy, or the size of a quadratic's terms, (T,)."""
    scales = problem.fixed_scales
    if scales is None:
        return problem.energy
    size = scales * np.abs(problem.cross).sum(axis=0) + scales**2 * np.abs(problem.gram).sum()
    return problem.energy + size


def _require(holds: np.ndarray | bool, text: str) -> None:
    if not np.all(holds):
        column = "" if np.ndim(holds) == 0 else f"column {int(np.argmin(holds))}: "
        raise LawBroken(column + text)


def _answer(solver: Solver, problem: Problem, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The solver's codes and scales, once they are valid."""
    try:
        answer = solver(problem, **options)
    except Exception as error:
        raise LawBroken(f"the solver raised {type(error).__name__}: {error}") from error
    try:
        codes, scales = answer
    except (TypeError, ValueError):
        what = type(answer).__name__
        raise LawBroken(f"the solver returned a {what}, not (codes, scales)") from None
    found = verify(problem, codes, scales, require="valid")
    if not found.ok:
        raise LawBroken(found.violations[0])
    return np.asarray(codes).astype(np.int8), np.asarray(scales, dtype=float)


def _loss(solver: Solver, problem: Problem, **options: Any) -> np.ndarray:
    return reference.loss(problem, *_answer(solver, problem, **options))


def _valid(solver: Solver, problem: Problem) -> None:
    """Codes are −1 or +1, scales finite and >= 0 (as given, where they are), shapes right."""
    _answer(solver, problem)


def _not_worse_than_sign(solver: Solver, problem: Problem) -> None:
    """No column is worse than sign(W) with its best scale."""
    if problem.weights is not None and problem.free_scale:
        codes = signs(problem.weights)
        limit = reference.loss(problem, codes, reference.best_scales(problem, codes))
        excess = _loss(solver, problem) - limit
        _require(excess <= TOLERANCE * unit(problem), "is worse than sign(W) with its best scale")


def _best_scale(solver: Solver, problem: Problem) -> None:
    """The scale is the best for the codes: α = cᵀb / bᵀHb."""
    codes, scales = _answer(solver, problem)
    best = reference.best_scales(problem, codes)
    excess = reference.loss(problem, codes, scales) - reference.loss(problem, codes, best)
    _require(excess <= TOLERANCE * unit(problem), "another scale has a smaller loss")


def _one_flip(solver: Solver, problem: Problem) -> None:
    """No flip of one bit lowers the loss, the scale being set anew."""
    found = verify(problem, *_answer(solver, problem), require="one_flip")
    if not found.ok:
        raise LawBroken(found.violations[0])


def _permute_columns(solver: Solver, problem: Problem) -> None:
    """Columns in another order have the same losses in that order."""
    fields = ("cross", "energy", "weights", "fixed_scales")
    kept = {f: getattr(problem, f) for f in fields if getattr(problem, f) is not None}
    turned = with_fields(problem, **{f: values[..., ::-1] for f, values in kept.items()})
    change = _loss(solver, turned)[::-1] - _loss(solver, problem)
    _require(np.abs(change) <= TOLERANCE * unit(problem), "depends on the order of the columns")


def _flip_inputs(solver: Solver, problem: Problem) -> None:
    """An input with its sign changed turns its codes and nothing else."""
    sign = np.where(np.arange(problem.inputs) % 2 == 0, -1.0, 1.0)[:, None]
    weights = None if problem.weights is None else problem.weights * sign
    turned = with_fields(
        problem, gram=problem.gram * sign * sign.T, cross=problem.cross * sign, weights=weights
    )
    change = _loss(solver, turned) - _loss(solver, problem)
    _require(np.abs(change) <= TOLERANCE * unit(problem), "depends on the signs of the inputs")


def _permute_inputs(solver: Solver, problem: Problem) -> None:
    """Inputs in another order have the same losses (for solvers that claim it)."""
    weights = None if problem.weights is None else problem.weights[::-1]
    turned = with_fields(
        problem, gram=problem.gram[::-1, ::-1], cross=problem.cross[::-1], weights=weights
    )
    change = _loss(solver, turned) - _loss(solver, problem)
    _require(np.abs(change) <= TOLERANCE * unit(problem), "depends on the order of the inputs")


def _positive_factor(solver: Solver, problem: Problem) -> None:
    """All inputs times 8, or all targets times 4: the same losses, in the new unit."""
    base = _loss(solver, problem)
    for inputs, targets in ((8.0, 1.0), (1.0, 4.0)):
        if not problem.free_scale:
            inputs = targets  # a given scale ties the two units
        weights = None if problem.weights is None else problem.weights * (targets / inputs)
        scaled = with_fields(
            problem,
            gram=problem.gram * inputs**2,
            cross=problem.cross * (inputs * targets),
            energy=problem.energy * targets**2,
            weights=weights,
        )
        change = _loss(solver, scaled) / targets**2 - base
        _require(np.abs(change) <= TOLERANCE * unit(problem), "depends on the unit of the data")


def _effort(solver: Solver, problem: Problem) -> None:
    """More effort never gives a larger loss (``solver(problem, effort=...)``)."""
    losses = [_loss(solver, problem, effort=effort) for effort in ("fast", "default", "thorough")]
    for less, more in itertools.pairwise(losses):
        _require(more <= less + TOLERANCE * unit(problem), "more effort gave a larger loss")


def _exact(solver: Solver, problem: Problem) -> None:
    """The loss is the smallest over all 2^S codes (small S)."""
    excess = _loss(solver, problem) - reference.brute_force(problem)
    _require(excess <= TOLERANCE * unit(problem), "is not optimal")


LAWS: dict[str, tuple[Callable[[Solver, Problem], None], bool]] = {
    "valid": (_valid, False),
    "not_worse_than_sign": (_not_worse_than_sign, False),
    "best_scale": (_best_scale, False),
    "one_flip": (_one_flip, False),
    "permute_columns": (_permute_columns, True),
    "flip_inputs": (_flip_inputs, True),
    "positive_factor": (_positive_factor, False),
    "permute_inputs": (_permute_inputs, True),
    "effort": (_effort, False),
    "exact": (_exact, False),
}
"""Each law, and whether it is asked only of problems without ties (`GENERIC`)."""
STANDARD = (
    "valid",
    "not_worse_than_sign",
    "best_scale",
    "one_flip",
    "permute_columns",
    "flip_inputs",
    "positive_factor",
)
"""The laws that a good solver keeps. Further ones are asked for by name: "permute_inputs",
"effort" (for solvers that take it as a keyword), "exact"."""


def check_solver(
    solver: Solver,
    laws: str | Iterable[str] = STANDARD,
    *,
    examples: int = 100,
    sizes: tuple[int, int] = (1, 10),
    free_scale_only: bool = False,
) -> None:
    """Hold a solver to laws, on problems that it did not choose.

    Parameters
    ----------
    solver : callable
        ``solver(problem) -> (codes, scales)``.
    laws : iterable of str
        Names of `LAWS`, or one name.
    examples : int
        Problems tried per law; the same ones each time.
    sizes : (int, int)
        Fan-ins S tried.
    free_scale_only : bool
        Whether to leave out problems whose scales are given, and quadratic programmes.

    Raises
    ------
    LawBroken
        With the law, the breach, and the smallest problem found that shows it, as a snippet; also
        where the solver raises, or returns something else.
    """
    if not callable(solver):
        raise ValueError(f"solver: must be callable, got a {type(solver).__name__}")
    laws = (laws,) if isinstance(laws, str) else tuple(laws)
    if not laws:
        raise ValueError("laws: name one at least")
    examples = checks.whole(examples, "examples", 1)
    for law in laws:
        checks.choice(law, "laws", LAWS)
    for law in laws:
        if LAWS[law][1]:
            tried = cases(GENERIC, sizes, rows=(20, 40)).map(lambda case: case.problem)
        elif free_scale_only:
            tried = cases(sizes=sizes).map(lambda case: case.problem)
        else:
            tried = problems(sizes=sizes)
        _hold(solver, law, tried, examples)


def _hold(solver: Solver, law: str, tried: st.SearchStrategy[Problem], examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,  # several would come as an ExceptionGroup, not a LawBroken
        suppress_health_check=list(HealthCheck),
    )
    @given(tried)
    def run(problem: Problem) -> None:
        try:
            LAWS[law][0](solver, problem)
        except LawBroken as breach:
            told = LawBroken(f"law {law!r}: {breach}\n{snippet(problem)}")
            raise told from breach.__cause__  # what the solver raised, if it did

    try:
        run()
    except Flaky as error:  # which Hypothesis sees where it runs a failing example again
        raise LawBroken(
            f"law {law!r}: broken in one run and not in the next, of the same problem: the solver "
            "does not always give the same"
        ) from error


def snippet(problem: Problem) -> str:
    """Python that makes this problem again."""
    fields = ("gram", "cross", "energy", "weights", "fixed_scales")
    lines = ["To see it again:", "    import numpy as np, hashsolve as hs"]
    lines += ["    problem = hs.Problem("]
    for field in fields:
        value = getattr(problem, field)
        if value is not None:
            lines.append(f"        {field}=np.array({value.tolist()!r}),")
    return "\n".join([*lines, "    )", "    codes, scales = solver(problem)"])


def check_sums(sums: Callable[..., list[tuple[Any, Any, Any]]], *, examples: int = 30) -> None:
    """Hold a way of summing a convolution's activations to the explicit patches.

    Parameters
    ----------
    sums : callable
        ``sums(maps, weights, geometry, reference) -> [(H, C, e), ...]``, one triple a group;
        ``reference`` is the maps of the full-precision network, or None.
    examples : int
        Layers tried.

    Raises
    ------
    LawBroken
        For example where groups are pooled into one Gram matrix, or sums are averaged.
    """
    from hashsolve.activations import group_weights
    from hashsolve.geometry import Geometry

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(
        st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 4), st.booleans()
    )
    def run(groups: int, share: int, filters: int, samples: int, asymmetric: bool) -> None:
        rng = np.random.default_rng(groups + 10 * share + 100 * filters)
        geometry = Geometry.conv((3, 3), 1, 1, groups=groups)
        maps = rng.normal(size=(samples, groups * share, 5, 4))
        other = rng.normal(size=maps.shape) if asymmetric else None
        weights = rng.normal(size=(groups * filters, share, 3, 3))
        found = sums(maps, weights, geometry, other)
        _require(len(found) == groups, f"{len(found)} sums for a layer of {groups} groups")
        for group, w in enumerate(group_weights(weights, geometry)):
            x = geometry.patches(maps, group)
            y = (x if other is None else geometry.patches(other, group)).T @ w
            wanted = (x @ x.T, x @ y, (y * y).sum(axis=0))
            for name, got, want in zip(("H", "C", "e"), found[group], wanted, strict=True):
                close = np.shape(got) == want.shape and np.allclose(got, want, rtol=1e-6)
                _require(close, f"group {group} of {groups}: {name} is not that of its patches")

    run()
