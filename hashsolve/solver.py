"""solve: validate, dispatch to a method, restart, and state the result in the problem's units."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from hashsolve import checks
from hashsolve.bounds import cheap_bounds
from hashsolve.control import EFFORTS, Control
from hashsolve.instance import Instance
from hashsolve.methods import METHODS, Method
from hashsolve.methods.outcome import Outcome
from hashsolve.methods.restarts import better, restarted
from hashsolve.problem import Problem
from hashsolve.solution import OPTIMAL_TOLERANCE, Solution, Status, Sweep, proven, sound_bound
from hashsolve.state import State
from hashsolve.threads import one_blas_thread
from hashsolve.variants import solve_variant

CHECKPOINTED = ("exact", "auto")
"""Methods that search long enough to keep a checkpoint."""
INCONSISTENT = 1e-4
"""By more of its energy no column's loss is below zero by rounding, unless its sums cancel."""


def solve(
    problem: Problem,
    method: str = "auto",
    effort: str = "default",
    seed: int = 0,
    time_limit: float | None = None,
    init: Any = None,
    callback: Callable[[Sweep], Any] | None = None,
    *,
    threads: int | None = None,
    checkpoint: str | PathLike | None = None,
) -> Solution:
    """Solve a hashing problem: min ‖Y − X̂ᵀBA‖² over codes B and scales A.

    Parameters
    ----------
    problem : Problem
    method : {"auto", "sign", "dcc", "one_flip", "babai", "beam", "tabu", "exact"}
        "sign" is BWN (sign(W), mean |W|), "dcc" the method of BWNH, "one_flip" descends on the
        loss with the scale profiled out; "babai" and "beam" search the triangular form, "tabu"
        walks from a pool of codes; "exact" proves the optimum, as far as its budget goes; "auto"
        combines them.
    effort : {"fast", "default", "thorough"}
        A budget of counted work, so that the answer is reproducible. "thorough" also restarts
        descent methods from perturbed starts.
    seed : int
        Of the perturbed starts. One seed gives one bit-identical answer, for any ``threads``.
    time_limit : float, optional
        Seconds after which to stop with the best so far; the status then says so.
    init : array (S, T) or Solution, optional
        Codes to start from instead of sign(W).
    callback : callable, optional
        Called with each `Sweep` (loss, flips): after a sweep over all columns, or after a column
        where a method searches them one by one. Return true to stop.
    threads : int, optional
        Threads that share the columns; all cores where not given.
    checkpoint : path, optional
        A file that the exact search (method "exact", or "auto" where it tries a proof) is kept
        in, and goes on from where it exists.

    Returns
    -------
    Solution

    Raises
    ------
    ValueError
        For an unknown method or effort, a seed, time_limit or threads out of range, an ``init``
        that does not fit, or energies that are too small for the other sums.

    Examples
    --------
    >>> import numpy as np, hashsolve as hs
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.normal(size=(16, 500)), rng.normal(size=(16, 4))
    >>> problem = hs.Problem.from_arrays(X, W)
    >>> bwn, bwnh = hs.solve(problem, "sign"), hs.solve(problem, "dcc")
    >>> bool((bwnh.loss <= bwn.loss).all()), bwnh.status.name
    (True, 'FIXPOINT')
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem: expected a hashsolve.Problem, got a {type(problem).__name__}")
    checks.choice(method, "method", METHODS)
    checks.choice(effort, "effort", EFFORTS)
    seed = checks.whole(seed, "seed", 0)
    if time_limit is not None:
        time_limit = checks.positive(time_limit, "time_limit", " seconds")
    if callback is not None and not callable(callback):
        raise ValueError(f"callback: must be callable, got a {type(callback).__name__}")
    if threads is not None:
        threads = checks.whole(threads, "threads", 1)
    if checkpoint is not None and method not in CHECKPOINTED:
        raise ValueError(f"checkpoint: method {method!r} keeps none; use {CHECKPOINTED[0]!r}")
    if checkpoint is not None and (problem.bases > 1 or problem.scale_group is not None):
        raise ValueError("checkpoint: not for problems with bases or scale_group, which alternate")
    begun = time.perf_counter()
    control = Control(effort, seed, time_limit, callback, threads, checkpoint)
    solution = solve_sums(problem, method, init, control)
    _check_energies(problem, solution)
    elapsed = time.perf_counter() - begun
    return replace(solution, method=method, seed=seed, wall_time=elapsed)


def solve_sums(problem: Problem, method: str, init: Any, control: Control) -> Solution:
    """`solve` for sums that no arrays may have: energies too small give losses below zero."""
    plain = problem.centred()
    start = None if init is None else _start(init, problem)
    with one_blas_thread(), control:
        if plain.bases > 1 or plain.scale_group is not None:
            solution = solve_variant(plain, method, start, _solve, control)
        else:
            solution = _solve(method, plain, start, control)
    if problem.intercept:
        # energies stay those about the mean, which optimality and errors are judged by
        noise = problem.centring_error(solution.weight)
        loss, bound = solution.loss, solution.lower_bound - noise
        if problem.free_scale:
            computed = np.minimum(loss, solution.lower_bound / 2)  # below zero where it was clipped
            bound = sound_bound(np.maximum(bound, 0.0), computed, solution.energy)
            loss = np.where((loss < 0) & (loss >= -noise), 0.0, loss)
        bound = np.minimum(bound, loss)
        solution = replace(
            solution,
            intercept=problem.intercepts(solution.codes, solution.scales),
            loss=loss,
            lower_bound=bound,
            status=_honest(solution.status, loss, bound, solution.energy),
        )
    return solution


def _check_energies(problem: Problem, solution: Solution) -> None:
    """Refuse losses below zero by more than rounding: squares sum to no such number."""
    excess = solution.loss + INCONSISTENT * solution.energy
    excess += problem.centring_error(solution.weight)
    if problem.free_scale and (excess < 0).any():
        t = int(np.argmin(excess))
        raise ValueError(
            f"{problem.name}: column {t}: codes of loss {solution.loss[t]:.6g} < 0 exist, so that "
            f"its energy {solution.energy[t]:.6g} is too small: it is to be ΣY² over the rows that "
            "gram and cross are sums over, no mean; or the sums have too few digits: use "
            "precision='double'"
        )


def _solve(name: str, problem: Problem, init: np.ndarray | None, control: Control) -> Solution:
    """Solve a plain problem, one code and one scale a column, by the method of this name."""
    method = METHODS[name]
    instance = Instance.of(problem)
    if not instance.live.any():
        return _without_inputs(problem, instance)
    start = instance.start if init is None else init[instance.live].T
    outcome = _search(method, instance, np.ascontiguousarray(start), control)
    # what is reported is computed afresh from the codes and scales themselves
    state = State(instance, outcome.codes, control, turn=method.promise != "valid")
    noise = state.noise(outcome.scales)
    if instance.free:
        state.refine(np.flatnonzero(noise > OPTIMAL_TOLERANCE * instance.energy))
    loss = state.loss(outcome.scales)
    bound, bound_name = outcome.bound, outcome.bound_name
    if bound is None:
        bound, bound_name = cheap_bounds(instance, control)
    bound = bound - instance.rounding
    computed = loss.copy()
    if instance.free:
        # more would show inconsistent sums
        loss[(loss < 0) & (loss > -np.maximum(noise, OPTIMAL_TOLERANCE * instance.energy))] = 0.0
    else:
        decisive = np.flatnonzero(loss - bound <= OPTIMAL_TOLERANCE * np.abs(loss) + 10 * noise)
        loss[decisive] = state.fixed_loss(decisive)
    if (bound > np.maximum(loss, 0.0 if instance.free else -np.inf) + noise).any():
        t = int(np.argmax(bound - loss - noise))
        raise RuntimeError(
            f"{problem.name}: column {t}: the loss {loss[t]:.6g} is below its {bound_name} bound "
            f"{bound[t]:.6g}: a defect of the bound, or sums that no inputs can have"
        )
    bound = np.minimum(bound, loss)
    if instance.free:
        bound = sound_bound(bound, computed, instance.energy)
    unit = instance.loss_unit
    return Solution(
        codes=instance.restore(state.codes),
        scales=outcome.scales * instance.scale_unit,
        loss=loss * unit * unit,
        energy=problem.energy.copy(),
        lower_bound=bound * unit * unit,
        status=_honest(outcome.status, loss, bound, instance.energy),
        bound_name=bound_name,
        sweeps=max(len(control.history) - 1, 0),
        history=tuple(control.history),
    )


def _without_inputs(problem: Problem, instance: Instance) -> Solution:
    """A quadratic programme of nothing but linear terms: each bit is the sign of its own."""
    loss = instance.energy * instance.loss_unit * instance.loss_unit
    return Solution(
        codes=instance.restore(np.empty((problem.columns, 0), dtype=np.int8)),
        scales=instance.scale_unit.copy(),
        loss=loss,
        energy=problem.energy.copy(),
        lower_bound=loss.copy(),
        status=Status.OPTIMAL,
        bound_name="separable",
        history=(Sweep(float(loss.sum()), 0),),
    )


def _search(method: Method, instance: Instance, start: np.ndarray, control: Control) -> Outcome:
    """Run a method from its start; no column ends above that, but for `sign`."""
    if method.promise == "valid":
        return method.run(instance, start, control)
    run = restarted if method.restarts else lambda run, *arguments: run(*arguments)
    state = State(instance, start, control)
    begin = Outcome(state.codes, state.scales, Status.DONE)
    del state  # before the search needs memory
    best = run(method.run, instance, start, control)
    return better(instance, begin, best, control)


def _honest(status: Status, loss: np.ndarray, bound: np.ndarray, energy: np.ndarray) -> Status:
    """The status of a search that is complete, where rounding decides what is proven."""
    optimal = proven(loss, bound, energy).all()
    if status is Status.UNPROVABLE and optimal:
        return Status.OPTIMAL
    return Status.DONE if status is Status.OPTIMAL and not optimal else status


def _start(init: Any, problem: Problem) -> np.ndarray:
    """The caller's codes, (S, T), or (M, S, T) for several bases."""
    shape: tuple[int, ...] = (problem.inputs, problem.columns)
    shape = shape if problem.bases == 1 else (problem.bases, *shape)
    codes = checks.matrix(getattr(init, "codes", init), "init", (1, 2, 3))
    if codes.ndim == 1:
        codes = codes[:, None]
    if codes.shape != shape:
        raise ValueError(f"init: must be codes of shape (S, T) = {shape}, got {codes.shape}")
    if not (np.abs(codes) == 1).all():
        raise ValueError("init: entries must be -1 or +1")
    return codes.astype(np.int8)
