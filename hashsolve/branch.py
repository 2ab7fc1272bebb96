"""Branch and bound for one column: over the semidefinite dual, sphere decoding below.

A subproblem fixes some codes. Where the scale is free, the fixed codes act as one code: their rows
are added up with their signs, and what is left is a smaller problem of the same kind. (At a fixed
scale they go into the linear term.) Every subproblem gets its own diagonals (`hashsolve.dual`)
and decision orders; the pair whose tree of the sphere decoder is estimated to be the smallest is
searched, or, where even that is too large, split in two at the first code of its order.

Subproblems are taken from a stack, ``ROUND`` at a time, all with the incumbent the round began
with: the answer is the same for any number of threads. A `Search` is all there is between rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dtrtrs

from hashsolve import lapack
from hashsolve.dual import (
    UNIT_ROUNDOFF,
    certified_bounds,
    cholesky_error,
    factorise,
    improve_diagonal,
)
from hashsolve.kernels.estimate import estimate
from hashsolve.kernels.order import decision_order
from hashsolve.kernels.sphere import sphere
from hashsolve.kernels.twofold import fixed_loss, precise
from hashsolve.problem import cancelling

Array = NDArray[np.float64]
Codes = NDArray[np.int8]

ROUND = 8
# The barrier stays this heavy: a diagonal nearer to the relaxation's optimum bounds the root
# better, but makes the matrix nearly singular and the tree below larger.
BARRIER = 1e-2
ENERGY_SHARES = (0.5, 0.25, 0.75)  # of the decision order
PROBE_NODES = 200_000  # searched before any estimate is made
SPLIT_NODES = 4_000_000  # a tree estimated to be larger is split
WIDTH = 500  # samples a level
SUBPROBLEM_NODES = 10_000  # what a subproblem itself takes of the budget, so that it always ends


TOLERANCE = 5e-10
"""Share of its size (energy) by which codes must be better to be looked for."""


class Search(NamedTuple):
    """The state of a search: what is proven, and what is left to do."""

    codes: Codes  # (S,) the incumbent
    loss: float
    open_codes: Codes  # (K, S) subproblems left, 0 where a code is not fixed
    open_diagonal: Array  # (K, S) their diagonals to start from
    open_bound: Array  # (K,) their proven lower bounds
    size: float  # what tolerances are relative to
    squared_scale: float  # no codes worth finding have a larger one
    nodes: int = 0  # of the sphere searches
    subproblems: int = 0
    passed: float = np.inf  # no codes that were reached, taken or passed over, lose less

    @property
    def work(self) -> int:
        """What has been spent of a node budget."""
        return self.nodes + SUBPROBLEM_NODES * self.subproblems

    def lower_bound(self) -> float:
        """What no codes can go below."""
        floor = min(self.loss - TOLERANCE * self.size, self.passed)
        return min(floor, self.open_bound.min()) if len(self.open_bound) else floor


def out_of_reach(search: Search, node_budget: int) -> bool:
    """Whether what is left is estimated to take more than the budget: of every two subproblems that
    are open, the tree of the one that they come from was estimated at more than `SPLIT_NODES`."""
    return search.work + SPLIT_NODES * (len(search.open_bound) // 2) > node_budget


def cancels(gram: Array, cross: Array, codes: Codes) -> bool:
    """Whether bᵀHb counts as 0, so that codes are passed over."""
    return bool(precise(gram, cross, codes.astype(np.float64))[1] <= cancelling(gram))


def column_loss(gram: Array, cross: Array, energy: float, codes: Codes, free: bool) -> float:
    """The loss of one column, at its best scale where the scale is free."""
    bits = codes.astype(np.float64)
    if not free:
        return float(fixed_loss(gram, cross, energy, bits))
    p, q = precise(gram, cross, bits)
    return float(energy - p * p / q) if q > cancelling(gram) else float(energy)


def start_search(
    gram: Array, cross: Array, energy: float, codes: Codes, start: Array, free: bool
) -> Search:
    """The search before its first step: one subproblem with, for a free scale, one code fixed.

    ``codes`` is the incumbent, ``start`` of `hashsolve.dual.starting_diagonal`.
    """
    inputs = len(cross)
    diagonal, _ = improve_diagonal(gram, cross[None], energy, start, free, BARRIER)
    root = np.zeros((1, inputs), dtype=np.int8)
    if free:
        root[0, np.argmax(np.diag(gram))] = 1
    loss = column_loss(gram, cross, energy, codes, free)
    squared_scale = scale_limit(gram, cross, energy, diagonal, loss) if free else 1.0
    size = abs(energy) if free else max(abs(energy), abs(loss))
    bound = np.array([-np.inf])
    return Search(codes.copy(), loss, root, diagonal[None], bound, size, squared_scale)


def search_column(
    gram: Array,
    cross: Array,
    energy: float,
    search: Search,
    free: bool,
    node_budget: int,
    threads: int = 1,
    callback: Callable[[Search], bool] | None = None,
) -> Search:
    """Go on with a search until it is finished or its budget is spent.

    The incumbent is optimal to within ``TOLERANCE * size``, size being the energy (at a fixed
    scale: the larger of |energy| and the first |loss|), when no subproblem is open. Rounding is
    accounted for: no subproblem is dropped unless it cannot hold codes better than that.

    Parameters
    ----------
    node_budget : of `Search.work`, counted from the search's start; checked between rounds.
    callback : called after every round; the search stops when it returns True.
    """
    margin = TOLERANCE * search.size
    if not np.isfinite(search.squared_scale):
        return search  # rounding cannot be bounded, so nothing can be proven

    def solve(item: tuple[Codes, Array, float]) -> _Outcome:
        return _subproblem(
            gram, cross, energy, free, search.loss, margin, search.squared_scale, *item
        )

    with ThreadPoolExecutor(threads) as pool:
        while len(search.open_bound) and search.work < node_budget:
            taken = slice(max(0, len(search.open_bound) - ROUND), None)
            kept = slice(0, taken.start)
            outcomes = list(
                pool.map(
                    solve,
                    zip(
                        search.open_codes[taken],
                        search.open_diagonal[taken],
                        search.open_bound[taken],
                        strict=True,
                    ),
                )
            )
            codes, loss = search.codes, search.loss
            for outcome in outcomes:
                if outcome.codes is not None:
                    reached = column_loss(gram, cross, energy, outcome.codes, free)
                    if reached < loss:
                        codes, loss = outcome.codes, reached
            search = Search(
                codes,
                loss,
                np.concatenate([search.open_codes[kept], *(o.open_codes for o in outcomes)]),
                np.concatenate([search.open_diagonal[kept], *(o.open_diagonal for o in outcomes)]),
                np.concatenate([search.open_bound[kept], *(o.open_bound for o in outcomes)]),
                search.size,
                search.squared_scale,
                search.nodes + sum(o.nodes for o in outcomes),
                search.subproblems + len(outcomes),
                min(search.passed, *(o.passed for o in outcomes)),
            )
            if callback is not None and callback(search):
                break
    return search


class _Outcome(NamedTuple):
    """What became of a subproblem: at most one better codes, at most two subproblems."""

    nodes: int
    codes: Codes | None
    open_codes: Codes
    open_diagonal: Array
    open_bound: Array
    passed: float = np.inf


class _Tree(NamedTuple):
    """One way to search a subproblem: the arguments of the sphere kernel, and their origin."""

    lower: Array
    target: Array
    offset: float
    order: NDArray[np.int64]
    diagonal: Array


def _subproblem(
    gram: Array,
    cross: Array,
    energy: float,
    free: bool,
    loss: float,
    margin: float,
    squared_scale: float,
    fixed: Codes,
    diagonal: Array,
    bound: float,
) -> _Outcome:
    """Bound a subproblem, search it, or split it."""
    inputs = len(cross)
    nothing = np.empty((0, inputs))
    done = _Outcome(0, None, nothing.astype(np.int8), nothing, np.empty(0))
    unfixed = np.flatnonzero(fixed == 0)
    if bound >= loss - margin:
        return done
    if len(unfixed) == 0:
        if free and cancels(gram, cross, fixed):
            return done._replace(passed=bound)
        return done._replace(codes=fixed)
    small_gram, small_cross, small_energy = contract(gram, cross, energy, fixed, free)
    inherited = diagonal[unfixed]
    if free:
        inherited = np.concatenate([[diagonal[fixed != 0].sum()], inherited])
    problem = (small_gram, small_cross, small_energy)
    found, _ = improve_diagonal(
        small_gram, small_cross[None], small_energy, inherited, free, BARRIER, 6, loss, BARRIER
    )
    own_bounds, found = certified_bounds(
        small_gram, small_cross[None], np.array([small_energy]), found, inherited, free
    )
    # those are of the smaller problem's sums, which were rounded in being formed
    gram_size = float(np.abs(gram).sum())
    size = abs(energy) + (0.0 if free else 2.0 * float(np.abs(cross).sum()))
    forming = _relative(inputs) * (size + squared_scale * gram_size)
    bound = max(bound, float(own_bounds[0]) - forming)
    if bound >= loss - margin:
        return done

    nodes, better, passed = 0, None, np.inf

    def search(tree: _Tree, limit: int) -> bool:
        """Whether the tree was searched completely; keeps the best codes met."""
        nonlocal nodes, better, loss, passed
        explained = float(tree.target @ tree.target)
        terms = size if free else size + abs(small_energy) + explained
        still, moving = _rounding(inputs, terms, gram_size, small_gram, tree.diagonal, free)
        rounding = still + squared_scale * moving
        codes = np.zeros(len(found), dtype=np.int8)
        visited, reached, complete, lowest = sphere(
            tree.lower,
            tree.target,
            tree.offset,
            loss - margin + rounding,
            rounding - margin,
            free,
            limit,
            still if free else rounding,
            moving,
            squared_scale,
            codes,
        )
        nodes += visited
        if reached < np.inf:
            signs = np.empty_like(codes)
            signs[tree.order] = codes
            met = fixed.copy()
            met[unfixed] = signs[1:] if free else signs
            met_loss = column_loss(gram, cross, energy, met, free)
            if met_loss < loss:
                better, loss = met, met_loss
            # codes reached may be passed over; what they cut off is not below them
            passed = min(passed, lowest, reached - margin)
        return complete

    tree = _plant(*problem, found, free, ENERGY_SHARES[0])
    if tree is not None and search(tree, PROBE_NODES):
        return done._replace(nodes=nodes, codes=better, passed=passed)

    sharper, _ = improve_diagonal(
        small_gram, small_cross[None], small_energy, found, free, BARRIER / 4, 6, loss, BARRIER / 4
    )
    planted = [
        _plant(*problem, candidate, free, share)
        for candidate in (inherited, found, sharper)
        for share in ENERGY_SHARES
    ]
    trees = [tree for tree in planted if tree is not None]
    # The smallest of many estimates is likely one that is too small: the best are estimated anew.
    for keep, width in ((2, WIDTH), (1, 3 * WIDTH)):
        sizes = [
            estimate(tree.lower, tree.target, tree.offset, loss, free, width, width)
            for tree in trees
        ]
        best = np.argsort(sizes, kind="stable")[:keep]
        trees = [trees[i] for i in best]
    if trees:
        tree = trees[0]
        if sizes[best[0]] <= SPLIT_NODES and search(tree, 2 * SPLIT_NODES):
            return done._replace(nodes=nodes, codes=better, passed=passed)
    else:  # no diagonal could be proven: nothing to do but split
        tree = _Tree(nothing, nothing, 0.0, np.arange(len(found)), inherited)

    first = tree.order[1 if free else 0]
    children = np.stack([fixed, fixed])
    children[:, unfixed[first - 1 if free else first]] = (-1, 1)
    passed_on = np.zeros(inputs)
    passed_on[unfixed] = tree.diagonal[1:] if free else tree.diagonal
    if free:
        passed_on[np.argmax(fixed != 0)] = tree.diagonal[0]
    diagonals, bounds = np.stack([passed_on, passed_on]), np.array([bound, bound])
    return _Outcome(nodes, better, children, diagonals, bounds, passed)


def _plant(
    gram: Array, cross: Array, energy: float, diagonal: Array, free: bool, share: float
) -> _Tree | None:
    """Order and factorise ``gram + diag(diagonal)``."""
    factor = factorise(gram, diagonal)
    if factor is None:
        return None
    lapack.invert(factor)
    inverse = np.tril(factor)
    inverse += np.tril(inverse, -1).T
    matrix = gram + np.diag(diagonal)
    order = np.empty(len(cross), dtype=np.int64)
    decision_order(matrix, np.ascontiguousarray(inverse), int(free), share, order)
    backward = order[::-1]
    factor = factorise(matrix[np.ix_(backward, backward)], 0.0)
    if factor is None:
        return None
    target, _ = dtrtrs(factor, cross[backward], lower=1)
    offset = energy - target @ target - (0.0 if free else diagonal.sum())
    # Row k of lower involves the first k + 1 codes of the order.
    lower = np.ascontiguousarray(np.tril(factor).T[::-1, ::-1])
    return _Tree(lower, np.ascontiguousarray(target[::-1]), float(offset), order, diagonal)


def _relative(inputs: int) -> float:
    """What rounding may do to sums over so many inputs, relative to their terms."""
    return 16 * (inputs + 4) * UNIT_ROUNDOFF


def _rounding(
    inputs: int, terms: float, gram_size: float, small_gram: Array, diagonal: Array, free: bool
) -> tuple[float, float]:
    """(still, moving): what rounding may add to the loss of any codes in a tree, at a scale α, is
    still + α² moving.

    ``terms`` is how large what does not depend on α is, ``gram_size`` = Σ|H|. With
    (sum_j sqrt(M_jj))^2 >= b'|L||L'|b for the factor L of M, as in the usual error analysis of
    the factorisation and of the row sums. A diagonal whose sum is not zero costs that much more.
    """
    size = np.sqrt(gram_size) + np.sqrt(np.abs(np.diag(small_gram)) + np.abs(diagonal)).sum()
    moving = _relative(inputs) * size**2 + (max(diagonal.sum(), 0.0) if free else 0.0)
    return _relative(inputs) * terms, float(moving)


def contract(
    gram: Array, cross: Array, energy: float, fixed: Codes, free: bool
) -> tuple[Array, Array, float]:
    """The problem that is left when some codes are fixed.

    For a free scale its first code, +1, stands for all those fixed.
    """
    unfixed = np.flatnonzero(fixed == 0)
    bits = fixed.astype(np.float64)
    products = gram @ bits
    rest = gram[np.ix_(unfixed, unfixed)]
    if not free:
        rest_energy = energy - 2.0 * (cross @ bits) + bits @ products
        return rest, cross[unfixed] - products[unfixed], float(rest_energy)
    small = np.empty((len(unfixed) + 1, len(unfixed) + 1))
    small[0, 0] = bits @ products
    small[0, 1:] = small[1:, 0] = products[unfixed]
    small[1:, 1:] = rest
    return small, np.concatenate([[cross @ bits], cross[unfixed]]), energy


def scale_limit(gram: Array, cross: Array, energy: float, diagonal: Array, loss: float) -> float:
    """An upper bound on the squared scale of any codes with at most this loss, or inf.

    With M = gram + diag(d), sum(d) == 0 and M - tI positive definite, the certificate of M - tI
    says loss >= energy - c'(M - tI)^-1 c + squared scale * S t.
    """
    centred = diagonal - diagonal.mean()
    centred -= 8 * UNIT_ROUNDOFF * np.abs(centred).max()  # the sum is below zero
    factor = factorise(gram, centred)
    if factor is None:
        return np.inf
    lapack.invert(factor)
    shift = 0.5 / np.trace(factor)  # at most half the least eigenvalue
    factor = factorise(gram, centred - shift - 2.0 * cholesky_error(gram, centred))
    if factor is None:
        return np.inf
    explained = cross @ lapack.solve(factor, cross[None])[0]
    return float(max(0.0, 1.01 * (loss - energy + explained) / (len(gram) * shift)))
