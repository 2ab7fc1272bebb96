"""verify: a certificate for any (problem, codes, scales), whoever made them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hashsolve import checks, reference
from hashsolve.bounds import lower_bound
from hashsolve.instance import Instance
from hashsolve.problem import Problem
from hashsolve.solution import OPTIMAL_TOLERANCE

LEVELS = ("valid", "dcc", "one_flip")
"""What can be required of a solution; each level includes those before it.

valid: entries ±1, scales finite and >= 0, loss as claimed. dcc: the scale is the best for the
codes, and no bit changes at that scale (a fixpoint of BWNH's alternation). one_flip: no flip of
one bit lowers the loss, the scale being set anew.
"""
TOLERANCE = 1e-9  # share of a column's energy that a loss may be improved by or be off


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
    """

    require: str
    inputs: int
    columns: int
    loss: list[float]
    energy: list[float]
    lower_bound: list[float]
    level: list[str]
    optimal: list[bool]
    violations: list[str]

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
                f"  lower bound {sum(self.lower_bound):.9g}; "
                f"{sum(self.optimal)} of {self.columns} columns proven optimal",
                "  columns by level: "
                + ", ".join(f"{self.level.count(level)} {level}" for level in LEVELS),
            ]
        lines += [f"  - {violation}" for violation in self.violations[:shown]]
        if len(self.violations) > shown:
            lines.append(f"  … and {len(self.violations) - shown} more")
        return "\n".join(lines)


def verify(
    problem: Problem,
    codes: Any,
    scales: Any,
    *,
    require: str = "one_flip",
    claimed_loss: Any = None,
) -> Certificate:
    """Check codes and scales against a problem, trusting nothing about how they were made.

    Parameters
    ----------
    problem : Problem
    codes : array (S, T)
    scales : array (T,)
    require : {"one_flip", "dcc", "valid"}
        The level below which a column is a violation; see `LEVELS`. A solution of method "dcc"
        need not be one-flip optimal, one of "sign" is only valid.
    claimed_loss : array (T,), optional
        The loss to compare with the recomputed one.

    Returns
    -------
    Certificate
        Unusable codes or scales are violations, not exceptions.

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
    checks.choice(require, "require", LEVELS)
    violations = _unusable(problem, codes, scales)
    if violations:
        return Certificate(require, problem.inputs, problem.columns, [], [], [], [], [], violations)
    codes = np.asarray(codes).astype(np.int8)
    scales = np.asarray(scales, dtype=float)
    loss = reference.loss(problem, codes, scales)
    unit = np.maximum(problem.energy, np.abs(loss))
    tolerance = TOLERANCE * unit
    if claimed_loss is not None:
        claimed = np.asarray(claimed_loss, dtype=float)
        if claimed.shape != loss.shape:
            violations.append(f"claimed loss: must have shape {loss.shape}, got {claimed.shape}")
            claimed = loss
        for t in np.flatnonzero(~(np.abs(claimed - loss) <= tolerance)):
            violations.append(f"column {t}: claims loss {claimed[t]:.9g}, has {loss[t]:.9g}")
    if problem.free_scale:
        for t in np.flatnonzero(loss < -tolerance):
            violations.append(f"column {t}: loss {loss[t]:.6g} < 0: the energies are too small")

    level = ["valid"] * problem.columns
    ranks = LEVELS.index(require)
    for t, (reached, why) in enumerate(_levels(problem, codes, scales, loss, tolerance)):
        level[t] = LEVELS[reached]
        if reached < ranks:
            violations.append(f"column {t}: {why}")
    instance = Instance.of(problem)
    bound = lower_bound(instance)[0] * instance.loss_unit * instance.loss_unit
    for t in np.flatnonzero(loss < bound - tolerance):
        violations.append(f"column {t}: loss {loss[t]:.9g} is below the bound {bound[t]:.9g}")
    return Certificate(
        require=require,
        inputs=problem.inputs,
        columns=problem.columns,
        loss=loss.tolist(),
        energy=problem.energy.tolist(),
        lower_bound=bound.tolist(),
        level=level,
        optimal=(loss - bound <= OPTIMAL_TOLERANCE * unit).tolist(),
        violations=violations,
    )


def _unusable(problem: Problem, codes: Any, scales: Any) -> list[str]:
    """Why the codes and scales cannot even be evaluated."""
    try:
        codes = checks.array(codes, "codes", 2)[...]
        scales = checks.array(scales, "scales", 1)[...]
    except ValueError as error:
        return [str(error)]
    shape = (problem.inputs, problem.columns)
    if codes.shape != shape:
        return [f"codes: must have shape (S, T) = {shape}, got {codes.shape}"]
    if scales.shape != shape[1:]:
        return [f"scales: must have shape (T,) = {shape[1:]}, got {scales.shape}"]
    found = []
    bad = np.argwhere(np.abs(codes.astype(float)) != 1)
    if len(bad):
        j, t = (int(i) for i in bad[0])
        found.append(f"column {t}: code {j} is {codes[j, t]}; {len(bad)} entries are not -1 or +1")
    for t in np.flatnonzero(~(np.isfinite(scales) & (scales >= 0))):
        found.append(f"column {t}: scale {scales[t]} is not a finite number >= 0")
    if not problem.free_scale and not found:
        for t in np.flatnonzero(scales != problem.fixed_scales):
            fixed = problem.fixed_scales[t]
            found.append(f"column {t}: scale {scales[t]:.9g} differs from the fixed {fixed:.9g}")
    return found


def _levels(problem, codes, scales, loss, tolerance):
    """For each column the index of the level it reaches, and why it does not reach the next."""
    best = reference.best_scales(problem, codes)
    best_loss = reference.loss(problem, codes, best)
    diagonal = np.diagonal(problem.gram)
    for t in range(problem.columns):
        if loss[t] - best_loss[t] > tolerance[t]:
            yield 0, f"scale {scales[t]:.6g} is not the best, which is {best[t]:.6g}"
            continue
        b, c = codes[:, t].astype(float), problem.cross[:, t]
        h, alpha = problem.gram @ b, scales[t]
        gain = 4 * alpha * (alpha * (b * h - diagonal) - b * c)  # of each flip, at this scale
        bit = int(gain.argmax())
        if gain[bit] > tolerance[t]:
            yield 0, f"flipping bit {bit} at its scale lowers the loss by {gain[bit]:.6g}"
            continue
        if problem.free_scale:
            p = c @ b - 2 * b * c
            q = b @ h + 4 * (diagonal - b * h)
            usable = q > 1e-12 * max(diagonal.max(), b @ h)
            # p² alone could overflow
            profiled = p * np.divide(p, q, out=np.zeros_like(p), where=usable)
            # less what an error of 1e-12 in bᵀHb would change
            noise = np.divide(profiled, q, out=np.zeros_like(p), where=usable)
            gain = loss[t] - (problem.energy[t] - profiled) - 1e-12 * diagonal.max() * noise
            bit = int(gain.argmax())
            if gain[bit] > tolerance[t]:
                why = "and setting the scale anew lowers the loss by"
                yield 1, f"flipping bit {bit} {why} {gain[bit]:.6g}"
                continue
        yield 2, ""
