"""Laws that any solver of hashing problems can be held to, and strategies that look for breaches.

Needs hypothesis (``pip install hypothesis``). A solver is any callable
``solver(problem) -> (codes, scales)``; codes (S, T) of −1 and +1, scales (T,) >= 0.

Examples
--------
>>> import hashsolve as hs
>>> from hashsolve.testing import check_solver
>>> def mine(problem):
...     s = hs.solve(problem, "one_flip")
...     return s.codes, s.scales
>>> check_solver(mine, laws=("valid", "best_scale", "one_flip"), examples=20)
>>> check_solver(lambda p: (0 * mine(p)[0], mine(p)[1]), ("valid",), free_scale_only=True)
... # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
hashsolve.testing.laws.LawBroken: law 'valid': column 0: code 0 is 0; 1 entries are not -1 or +1
To see it again:
    import numpy as np, hashsolve as hs
    problem = hs.Problem(
        gram=np.array([[...]]),
        ...
    )
    codes, scales = solver(problem)
...
"""

try:
    import hypothesis as _  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "hashsolve.testing needs Hypothesis: pip install 'hashsolve[testing]'", name="hypothesis"
    ) from None

from hashsolve.testing.laws import LAWS as LAWS
from hashsolve.testing.laws import STANDARD as STANDARD
from hashsolve.testing.laws import LawBroken as LawBroken
from hashsolve.testing.laws import check_solver as check_solver
from hashsolve.testing.laws import check_sums as check_sums
from hashsolve.testing.strategies import Case as Case
from hashsolve.testing.strategies import cases as cases
from hashsolve.testing.strategies import fixed_scales as fixed_scales
from hashsolve.testing.strategies import problems as problems
from hashsolve.testing.strategies import quadratics as quadratics
