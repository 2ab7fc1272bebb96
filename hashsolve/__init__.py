"""hashsolve: the solver for binary-weight hashing, min ‖Y − X̂ᵀBA‖² over B ∈ {−1,+1}."""

from hashsolve.binarize import LayerResult as LayerResult
from hashsolve.binarize import Run as Run
from hashsolve.binarize import binarize as binarize
from hashsolve.geometry import Geometry as Geometry
from hashsolve.network import Layer as Layer
from hashsolve.network import Network as Network
from hashsolve.problem import Problem as Problem
from hashsolve.solution import Solution as Solution
from hashsolve.solution import Status as Status
from hashsolve.solution import Sweep as Sweep
from hashsolve.solve import solve as solve
from hashsolve.verify import Certificate as Certificate
from hashsolve.verify import verify as verify

__version__ = "0.1.0"
