"""What makes a Problem valid: shapes, ranges, and consistency of its sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hashsolve import checks
from hashsolve.sums import in_range

if TYPE_CHECKING:
    from hashsolve.problem import Problem

Fields = dict[str, Any]
CONSTANT = 32 * np.finfo(float).eps
"""Share of a sum of squares that is rounding where the mean accounts for the rest."""
IMPOSSIBLE = 1e6
"""Times what an entry of the cross sums can be is no rounding."""
LARGEST_RATIO = 1e120
"""So much larger than the quadratic part may be what is not: the square is within float64."""


def validated(problem: Problem) -> Fields:
    """The fields of a problem as they are to be: float64 arrays of its own, read-only; numbers.

    Raises
    ------
    ValueError
        Naming the array at fault.
    """
    at = f"{problem.name}: "
    fields = _arrays(problem, at)
    fields["rows"] = checks.whole(problem.rows, at + "rows", 1)
    weight = problem.rows if problem.row_weight is None else problem.row_weight
    fields["row_weight"] = checks.positive(weight, at + "row_weight")
    if "fixed_scales" not in fields:
        _check_sums(fields["gram"], fields["cross"], fields["energy"], problem.name)
    elif not (fields["fixed_scales"] > 0).all():
        raise ValueError(f"{at}fixed_scales: every scale must be > 0")
    else:
        _check_range(fields, at)
    fields |= _variant(problem, len(fields["gram"]), at)
    if problem.intercept and problem.fixed_scales is None:
        _check_spread(problem, fields, at)
    for name, value in fields.items():
        if isinstance(value, np.ndarray) and value.flags.writeable:
            fields[name] = value.copy()  # it may be the caller's, to change later
            fields[name].flags.writeable = False
    return fields


def _arrays(problem: Problem, at: str) -> Fields:
    gram = checks.matrix(problem.gram, at + "gram")
    if gram.shape[0] != gram.shape[1]:
        raise ValueError(f"{at}gram: must be square (S, S), got shape {gram.shape}")
    inputs = len(gram)
    cross = checks.matrix(problem.cross, at + "cross", (1, 2))
    cross = cross.reshape(len(cross), -1)
    if len(cross) != inputs:
        raise ValueError(f"{at}cross: must be (S, T) with S = {inputs}, got {cross.shape}")
    targets = cross.shape[1]
    fields = {"gram": _symmetric(gram, at + "gram"), "cross": cross}
    for name, shape in {
        "energy": (targets,),
        "weights": (inputs, targets),
        "fixed_scales": (targets,),
        "input_sum": (inputs,),
        "target_sum": (targets,),
    }.items():
        value = getattr(problem, name)
        if value is None and name != "energy":
            continue
        if name == "fixed_scales" and np.ndim(value) == 0:
            value = np.full(shape, value)
        value = checks.matrix(value, at + name, (0, 1) if name == "energy" else (1, 2))
        if name == "energy":
            value = value.reshape(-1)
        elif name == "weights" and value.ndim == 1:
            value = value[:, None]
        if value.shape != shape:
            raise ValueError(f"{at}{name}: must have shape {shape}, got {value.shape}")
        fields[name] = value
    return fields


def _symmetric(gram: np.ndarray, name: str) -> np.ndarray:
    """``gram`` made exactly symmetric, if rounding is all that it lacks."""
    if np.array_equal(gram, gram.T):
        return gram
    with np.errstate(over="ignore"):
        difference = np.abs(gram - gram.T)
    worst = np.unravel_index(np.argmax(difference), gram.shape)
    if not difference[worst] <= 1e-6 * np.abs(gram).max():
        i, j = (int(k) for k in worst)
        raise ValueError(
            f"{name}: not symmetric: entry ({i}, {j}) is {gram[i, j]:.6g}, "
            f"({j}, {i}) is {gram[j, i]:.6g}"
        )
    return 0.5 * gram + 0.5 * gram.T


def _check_sums(gram: np.ndarray, cross: np.ndarray, energy: np.ndarray, name: str) -> None:
    """Refuse what no inputs and targets can sum to; with fixed scales anything goes."""
    at = f"{name}: "
    diagonal = np.diagonal(gram)
    if (diagonal < 0).any():
        raise ValueError(
            f"{at}gram: negative diagonal entry at {int(np.argmin(diagonal))}; a Gram matrix has "
            "none (for a quadratic programme use Problem.from_quadratic)"
        )
    if not diagonal.any():
        raise ValueError(f"{at}gram: all zero: every input is zero on all rows")
    if gram[diagonal == 0].any():
        raise ValueError(f"{at}gram: zero on the diagonal but not in its row: not a Gram matrix")
    if (energy < 0).any():
        raise ValueError(f"{at}energy: negative at {int(np.argmin(energy))}")
    if not energy.any():
        raise ValueError(f"{at}energy: all zero: the targets (outputs) are zero on all rows")
    in_range("gram", name, 1.0, float(diagonal.max()))
    # Cauchy-Schwarz: c_i² <= H_ii e; with room for diagonal entries that underflowed
    root = np.sqrt(energy)
    # what is less wrong than this gives losses below zero, which are refused when they are seen
    limit = 1e-9 * np.sqrt(diagonal.max()) + IMPOSSIBLE * np.sqrt(diagonal)
    with np.errstate(over="ignore"):
        excess = np.abs(cross)
        excess /= limit[:, None]
        wrong = excess.max(axis=0) > np.where(root > 0, root, root.max())
    if wrong.any():
        t = int(np.argmax(wrong))
        i = int(np.argmax(excess[:, t]))
        raise ValueError(
            f"{at}cross: {cross[i, t]:.3g} at ({i}, {t}), with gram diagonal {diagonal[i]:.3g} "
            f"and energy {energy[t]:.3g}: no inputs and targets have such sums (their product "
            "is at least its square); all three are to be sums over the same rows"
        )


def _check_range(fields: Fields, at: str) -> None:
    """Refuse a quadratic programme whose loss could overflow, in its own units or in those of its
    quadratic part at its scales."""
    scale, gram = fields["fixed_scales"], np.abs(fields["gram"])
    pull = np.abs(fields["cross"])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        size = scale.max() * scale.max() * gram.sum() + np.abs(fields["energy"]).max()
        size += 2 * scale.max() * pull.sum(axis=0).max()
        rest = np.maximum(scale * pull.max(axis=0), np.abs(fields["energy"]))
        ratio = rest / scale / scale / gram.max() if gram.any() else np.zeros_like(rest)
    if not size < 1e300:
        raise ValueError(
            f"{at}gram, cross: the loss can reach {size:.3g}, which leaves the range of float64; "
            "divide both by a power of two"
        )
    if not (ratio <= LARGEST_RATIO).all():
        t = int(np.argmin(ratio <= LARGEST_RATIO))
        raise ValueError(
            f"{at}cross, energy: column {t}: {ratio[t]:.3g} times as large as the quadratic part "
            "at its fixed scale, which is lost to rounding beside them; mend the scale, or leave "
            "the quadratic part out"
        )


def _check_spread(problem: Problem, fields: Fields, at: str) -> None:
    """Refuse an intercept beside inputs, or targets, that it alone accounts for."""
    weight = fields["row_weight"]
    for name, squares, total in (
        ("inputs", np.diagonal(fields["gram"]), fields["input_sum"]),
        ("targets", fields["energy"], fields["target_sum"]),
    ):
        if (squares - total / weight * total <= CONSTANT * np.abs(squares)).all():
            raise ValueError(
                f"{at}intercept: the {name} are constant on all rows, so that a constant is all "
                "there is to find"
            )


def _variant(problem: Problem, inputs: int, at: str) -> Fields:
    if problem.intercept not in (True, False):
        raise ValueError(f"{at}intercept: must be True or False, got {problem.intercept!r}")
    if problem.intercept and (problem.input_sum is None or problem.target_sum is None):
        raise ValueError(f"{at}intercept: needs input_sum and target_sum")
    fields: Fields = {"bases": checks.whole(problem.bases, at + "bases", 1)}
    fields["intercept"] = bool(problem.intercept)
    if problem.scale_group is not None:
        group = checks.whole(problem.scale_group, at + "scale_group", 1)
        if inputs % group:
            raise ValueError(f"{at}scale_group: must divide S = {inputs}, got {group}")
        fields["scale_group"] = group
    chosen = {
        "fixed_scales": problem.fixed_scales is not None,
        "scale_group": problem.scale_group is not None,
        "bases": fields["bases"] > 1,
    }
    names = [name for name, on in chosen.items() if on]
    if len(names) > 1:
        raise ValueError(f"{at}{' and '.join(names)} do not go together")
    return fields
