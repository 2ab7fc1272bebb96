"""verify: a certificate for any (problem, codes, scales), whoever made them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hashsolve import checks, reference
from hashsolve.bounds import certify, dual_diagonals
from hashsolve.control import Control
from hashsolve.instance import Instance
from hashsolve.levels import LEVELS, highest_local, local_levels
from hashsolve.packing import combine
from hashsolve.problem import Problem
from hashsolve.solution import Solution, sound_bound
from hashsolve.solver import INCONSISTENT, solve_sums
from hashsolve.state import precise_where

TOLERANCE = 1e-9  # share of a column's energy that a loss may be improved by or be off
ENERGY_ROUNDING = 16 * np.finfo(float).eps  # share of an energy, before its mean is taken off


@dataclass(frozen=True)
class Certificate:
    """What was checked and what was found.

    Attributes
    ----------
    require : str
        The level asked for.
    columns, inputs : int
    loss, energy, lower_bound : list of float, one a column
        The loss is recomputed in extended precision, independently of any solver.
    level : list of str
        The level that each column reaches.
    optimal : list of bool
        Whether the bound proves the column optimal.
    violations : list of str
        What fails, and where; empty where the solution passes.
    unconfirmed : list of int
        Columns whose claimed bound is above the one proven here, and not refuted.
    """

    require: str
    inputs: int
    columns: int
    loss: list[float]
    energy: list[float]
    lower_bound: list[float]
    bound_name: str
    level: list[str]
    optimal: list[bool]
    violations: list[str]
    unconfirmed: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was violated."""
        return not self.violations

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        shown = 10
        lines = [
            f"Certificate: {'PASSED' if self.ok else 'FAILED'} at level {self.require!r}",
            f"  {self.columns} columns of {self.inputs} codes",
        ]
        if self.loss:
            total, energy = sum(self.loss), sum(self.energy)
            relative = f", relative error {total / energy:.6g}" if energy > 0 else ""
            lines += [
                f"  loss {total:.9g}{relative}",
                f"  lower bound {sum(self.lower_bound):.9g} ({self.bound_name}); "
                f"{sum(self.optimal)} of {self.columns} columns proven optimal by this check",
                "  columns by level: "
                + ", ".join(f"{self.level.count(level)} {level}" for level in LEVELS),
            ]
        if self.unconfirmed:
            lines.append(
                f"  {len(self.unconfirmed)} columns claim higher bounds than are proven here; a "
                "search found no codes below them (level 'optimal' proves more)"
            )
        lines += [f"  - {violation}" for violation in self.violations[:shown]]
        if len(self.violations) > shown:
            lines.append(f"  … and {len(self.violations) - shown} more")
        return "\n".join(lines)


def verify(
    problem: Problem,
    codes: Any,
    scales: Any = None,
    *,
    require: str | None = None,
    claimed_loss: Any = None,
    claimed_bound: Any = None,
    intercept: Any = None,
) -> Certificate:
    """Check codes and scales against a problem, trusting nothing about how they were made.

    Parameters
    ----------
    problem : Problem
    codes : array (S, T) or Solution
        A solution stands for its codes and, where they are not given, its scales and intercept.
    scales : array (T,)
    require : {"valid", "dcc", "one_flip", "two_flip", "optimal"}, optional
        The level below which a column is a violation; see `hashsolve.levels.LEVELS`. By default
        "one_flip", or "dcc" where the problem has bases or group scales, for which no more is
        checked. A solution of method "dcc" need not be one-flip optimal, one of "sign" is only
        valid. "optimal" may take long: columns that no bound settles are searched exactly.
    claimed_loss : array (T,), optional
        The loss to compare with the recomputed one.
    claimed_bound : array (T,), optional
        A bound that others proved. Where it is above the one proven here, codes below it are
        looked for.
    intercept : array (T,), optional
        The constants beside the codes, where the problem asks for them.

    Returns
    -------
    Certificate
        Unusable codes or scales are violations, not exceptions.

    Raises
    ------
    ValueError
        For what is no problem, an unknown level, or codes without scales.

    Examples
    --------
    >>> import numpy as np, hashsolve as hs
    >>> problem = hs.Problem(gram=np.eye(3), cross=[[3.0], [1.0], [-2.0]], energy=[20.0])
    >>> s = hs.solve(problem)
    >>> hs.verify(problem, s.codes, s.scales).ok
    True
    >>> print(hs.verify(problem, -s.codes, s.scales).violations[0])
    column 0: scale 2 is not the best, which is -2
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem: expected a hashsolve.Problem, got a {type(problem).__name__}")
    if require is None:
        require = highest_local(problem)
    checks.choice(require, "require", LEVELS)
    if isinstance(codes, Solution):
        scales = codes.scales if scales is None else scales
        intercept = codes.intercept if intercept is None else intercept
        codes = codes.codes
    if scales is None:
        raise ValueError("scales: give them beside the codes, or a Solution in the place of both")
    violations = _unusable(problem, codes, scales)
    if violations:
        return _unevaluated(problem, require, violations)
    codes = np.asarray(codes).astype(np.int8)
    scales = np.asarray(scales, dtype=float)
    weight = combine(codes, scales)
    given, problem = problem, problem.centred()
    energy = problem.energy
    with np.errstate(over="ignore", invalid="ignore"):
        centring = given.centring_error(weight)
        rounding = problem.rounding(weight)
        loss = precise_where(rounding, problem, weight, reference.loss(problem, codes, scales))
        unit = np.maximum(energy, np.abs(loss))
        tolerance = TOLERANCE * unit
        # large scales on codes that all but cancel: then the rounding of the sums themselves shows
        slack = tolerance + rounding + centring
    if not np.isfinite(loss).all():
        violations = [
            f"column {t}: its scales give a loss beyond the range of float64"
            for t in np.flatnonzero(~np.isfinite(loss))
        ]
        return _unevaluated(problem, require, violations)
    # whoever claims free scales can make that as large as any loss: it excuses little
    # but for the rounding of energies that were nearly all mean
    most = np.maximum(INCONSISTENT * unit, ENERGY_ROUNDING * given.energy)
    excused = np.minimum(slack, most) if problem.free_scale else slack
    violations = _intercept(given, codes, scales, intercept, excused)
    if claimed_loss is not None:
        claimed = _claim(claimed_loss, loss, "claimed loss", violations)
        for bad in np.flatnonzero(~(np.abs(claimed - loss) <= excused)):
            violations.append(f"column {bad}: claims loss {claimed[bad]:.9g}, has {loss[bad]:.9g}")
    bound, bound_name = _bounds(problem)
    bound = bound - centring
    if problem.free_scale:
        for bad in np.flatnonzero(loss < -INCONSISTENT * energy - slack):
            violations.append(f"column {bad}: loss {loss[bad]:.6g} < 0: the energies are too small")
        bound = sound_bound(np.maximum(bound, 0.0), loss, energy)
    for bad in np.flatnonzero(loss < bound - slack):
        violations.append(f"column {bad}: loss {loss[bad]:.9g} is below the bound {bound[bad]:.9g}")
    unconfirmed = []
    if claimed_bound is not None:
        claimed = _claim(claimed_bound, bound, "claimed bound", violations)
        unconfirmed = [int(t) for t in np.flatnonzero(~(claimed <= bound + excused))]
        violations += _refuted(problem, codes, loss, excused, claimed, unconfirmed)
    wanted = LEVELS.index(require)
    level = []
    levels = local_levels(problem, codes, scales, loss, excused, require)
    for t, (reached, why) in enumerate(levels):
        sound = loss[t] >= bound[t] - slack[t]
        if reached == wanted - 1 and require == "optimal" and sound:
            limits = tolerance[t], excused[t]
            better, why = _prove(problem, codes, t, loss[t], bound[t], *limits)
            bound[t] = max(bound[t], better - centring[t])
        if sound and loss[t] - bound[t] <= tolerance[t]:
            reached = LEVELS.index("optimal")
        level.append(LEVELS[reached])
        if reached < wanted:
            violations.append(f"column {t}: {why}")
    unconfirmed = [t for t in unconfirmed if not claimed[t] <= bound[t] + excused[t]]
    return Certificate(
        require=require,
        inputs=problem.inputs,
        columns=problem.columns,
        loss=loss.tolist(),
        energy=energy.tolist(),
        lower_bound=bound.tolist(),
        bound_name=bound_name,
        level=level,
        optimal=[reached == "optimal" for reached in level],
        violations=violations,
        unconfirmed=unconfirmed,
    )


def _unevaluated(problem: Problem, require: str, violations: list[str]) -> Certificate:
    """Of codes and scales that have no loss."""
    shape = (problem.inputs, problem.columns)
    return Certificate(require, *shape, [], [], [], "", [], [], violations)


def _claim(value: Any, like: np.ndarray, name: str, violations: list[str]) -> np.ndarray:
    """A claimed array; ``like`` itself, and a violation, where it is of another kind or shape."""
    try:
        claimed = checks.array(value, name, 1)[...].astype(float)
    except ValueError as error:
        violations.append(str(error))
        return like
    if claimed.shape == like.shape:
        return claimed
    violations.append(f"{name}: must have shape {like.shape}, got {claimed.shape}")
    return like


def _intercept(
    problem: Problem, codes: np.ndarray, scales: np.ndarray, intercept: Any, excused: np.ndarray
) -> list[str]:
    """Where given constants are not the best, by more than is excused."""
    if intercept is None:
        return []
    if not problem.intercept:
        return ["intercept: the problem asks for none"]
    best = problem.intercepts(codes, scales)
    found: list[str] = []
    claimed = _claim(intercept, best, "intercept", found)
    # its own share of the loss: N·(difference)²
    with np.errstate(over="ignore"):
        excess = problem.row_weight * (claimed - best) ** 2
    return found + [
        f"column {t}: intercept {claimed[t]:.6g} is not the best, which is {best[t]:.6g}"
        for t in np.flatnonzero(~(excess <= excused))
    ]


def _refuted(
    problem: Problem,
    codes: np.ndarray,
    loss: np.ndarray,
    slack: np.ndarray,
    claimed: np.ndarray,
    columns: list[int],
) -> list[str]:
    """Claimed bounds that are above a loss, these codes' or one that a short search finds."""
    if not columns:
        return []
    best = loss[columns]
    if problem.energy[columns].any() or not problem.free_scale:
        start, control = codes[..., columns], Control("fast")
        found = solve_sums(problem.select(columns), "auto", start, control)
        best = np.minimum(best, found.loss)
    return [
        f"column {t}: claims that nothing loses less than {claimed[t]:.9g}, but codes that lose "
        f"{reached:.9g} exist"
        for t, reached in zip(columns, best, strict=True)
        if not claimed[t] <= reached + slack[t]
    ]


def _bounds(problem: Problem) -> tuple[np.ndarray, str]:
    """Lower bounds in the problem's units; zero where only a variant's squares are known."""
    if problem.bases > 1 or problem.scale_group is not None:
        return np.zeros(problem.columns), "zero"
    instance = Instance.of(problem)
    if not instance.live.any():
        return reference.separable(problem), "separable"
    unit = instance.loss_unit
    with Control("fast") as control:
        bound = certify(instance, control, dual_diagonals(instance, control))
    return (bound - instance.rounding) * unit * unit, "dual"


def _prove(
    problem: Problem,
    codes: np.ndarray,
    t: int,
    loss: float,
    bound: float,
    tolerance: float,
    excused: float,
) -> tuple[float, str]:
    """A better bound for one column by exact search; what stands against its optimality, if any."""
    if loss - bound <= tolerance:
        return bound, ""
    if problem.free_scale and not problem.energy[t]:
        return bound, f"not optimal: a scale of 0 loses nothing, this one {loss:.9g}"
    start, control = codes[:, t : t + 1], Control("thorough")
    found = solve_sums(problem.select([t]), "exact", start, control)
    bound = max(bound, float(found.lower_bound[0]))
    if found.loss[0] < loss - excused:
        return bound, f"not optimal: codes with loss {found.loss[0]:.9g} < {loss:.9g} exist"
    return bound, f"not proven optimal: the best bound found is {bound:.9g}, the loss {loss:.9g}"


def _unusable(problem: Problem, codes: Any, scales: Any) -> list[str]:
    """Why the codes and scales cannot even be evaluated."""
    try:
        codes = checks.array(codes, "codes", (2, 3))[...]
        scales = checks.array(scales, "scales", (1, 2))[...]
    except ValueError as error:
        return [str(error)]
    shape: tuple[int, ...] = (problem.inputs, problem.columns)
    scale_shape: tuple[int, ...] = (problem.columns,)
    names, scale_names = "(S, T)", "(T,)"
    if problem.bases > 1:
        names, shape = "(M, S, T)", (problem.bases, *shape)
        scale_names, scale_shape = "(M, T)", (problem.bases, problem.columns)
    elif problem.scale_group is not None:
        groups = problem.inputs // problem.scale_group
        scale_names, scale_shape = "(S / scale_group, T)", (groups, problem.columns)
    if codes.shape != shape:
        return [f"codes: must have shape {names} = {shape}, got {codes.shape}"]
    if scales.shape != scale_shape:
        return [f"scales: must have shape {scale_names} = {scale_shape}, got {scales.shape}"]
    found = []
    bad = np.argwhere(np.abs(codes.astype(float)) != 1)
    if len(bad):
        *j, t = (int(i) for i in bad[0])
        where = ", ".join(map(str, j))
        value = codes[tuple(bad[0])]
        found.append(f"column {t}: code {where} is {value}; {len(bad)} entries are not -1 or +1")
    for place in np.argwhere(~(np.isfinite(scales) & (scales >= 0))):
        value = scales[tuple(place)]
        mend = "; negate it and the codes" if -np.inf < value < 0 else ""
        found.append(f"column {place[-1]}: scale {value:.6g} is not a finite number >= 0{mend}")
    if problem.fixed_scales is not None and not found:
        for column in np.flatnonzero(scales != problem.fixed_scales):
            fixed = problem.fixed_scales[column]
            found.append(
                f"column {column}: scale {scales[column]:.9g} differs from the fixed {fixed:.9g}"
            )
    return found
