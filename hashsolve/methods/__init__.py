"""The registry of methods: one solver a file, each ``method(instance, start, control)``.

A method gets an `hashsolve.instance.Instance`, start codes (T, S) and a
`hashsolve.control.Control`; it returns an `Outcome`. To add one, write its file and a line in
`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hashsolve.methods.auto import auto
from hashsolve.methods.babai import babai
from hashsolve.methods.beam import beam
from hashsolve.methods.dcc import dcc
from hashsolve.methods.exact import exact
from hashsolve.methods.one_flip import one_flip
from hashsolve.methods.sign import sign
from hashsolve.methods.tabu import tabu


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes
    ----------
    run : callable
    promise : str
        The level of `hashsolve.levels.LEVELS` that its result meets.
    restarts : bool
        Whether ``effort="thorough"`` runs it from perturbed starts too.
    """

    run: Callable
    promise: str
    restarts: bool = True


METHODS = {
    "sign": Method(sign, promise="valid", restarts=False),
    "dcc": Method(dcc, promise="dcc"),
    "one_flip": Method(one_flip, promise="one_flip"),
    "babai": Method(babai, promise="one_flip", restarts=False),
    "beam": Method(beam, promise="one_flip", restarts=False),
    "tabu": Method(tabu, promise="one_flip", restarts=False),
    "exact": Method(exact, promise="one_flip", restarts=False),
    "auto": Method(auto, promise="one_flip", restarts=False),
}
