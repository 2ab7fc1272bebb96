"""hashsolve: the solver for binary-weight hashing, min ‖Y − X̂ᵀBA‖² over B ∈ {−1,+1}."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashsolve.certificate import Certificate as Certificate
    from hashsolve.certificate import verify as verify
    from hashsolve.driver import Run as Run
    from hashsolve.driver import binarize as binarize
    from hashsolve.geometry import Geometry as Geometry
    from hashsolve.layer_run import LayerResult as LayerResult
    from hashsolve.network import Layer as Layer
    from hashsolve.network import Network as Network
    from hashsolve.problem import Problem as Problem
    from hashsolve.refitting import refit as refit
    from hashsolve.retrieval import InnerProductIndex as InnerProductIndex
    from hashsolve.solution import Solution as Solution
    from hashsolve.solution import Status as Status
    from hashsolve.solution import Sweep as Sweep
    from hashsolve.solver import solve as solve

__version__ = "0.1.0"

_WHERE = {
    "Certificate": "certificate",
    "Geometry": "geometry",
    "InnerProductIndex": "retrieval",
    "Layer": "network",
    "LayerResult": "layer_run",
    "Network": "network",
    "Problem": "problem",
    "Run": "driver",
    "Solution": "solution",
    "Status": "solution",
    "Sweep": "solution",
    "binarize": "driver",
    "refit": "refitting",
    "solve": "solver",
    "verify": "certificate",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that ``hashsolve --help`` need not load numba."""
    if name not in _WHERE:
        raise AttributeError(f"module 'hashsolve' has no attribute {name!r}")
    value = getattr(_import_module(f"hashsolve.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
