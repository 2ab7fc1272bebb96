"""Options that several commands of hashsolve share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.shell_completion import CompletionItem

FILE = click.Path(readable=False)
"""FILE, FILE:NAME or FILE.h5:/NAME; read later, but completed as a path."""


class OneOf(click.ParamType):
    """A name out of a few. They are listed here, so that --help need not load numba."""

    name = "name"

    def __init__(self, *names: str):
        self.names = names

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself; a usage error that says the nearest where it is unknown."""
        from hashsolve.checks import choice

        try:
            return choice(value, _name_of(param) if param else self.name, self.names)
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from None

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so."""
        return [CompletionItem(name) for name in self.names if name.startswith(incomplete)]

    def __str__(self) -> str:
        return f"{', '.join(self.names[:-1])} or {self.names[-1]}"


def _name_of(param: click.Parameter) -> str:
    """As it is written: --option, ARGUMENT."""
    return param.opts[-1] if isinstance(param, click.Option) else param.opts[-1].upper()


METHOD = OneOf("sign", "dcc", "one_flip", "babai", "beam", "tabu", "exact", "auto")
EFFORT = OneOf("fast", "default", "thorough")
LEVEL = OneOf("valid", "dcc", "one_flip", "two_flip", "optimal")
PROPAGATION = OneOf("asym", "symfp", "symqt")
PRECISION = OneOf("double", "single")
DTYPE = OneOf("float16", "float32", "float64")


def json_option(command: Callable) -> Callable:
    """--json, for machines."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def problem_options(command: Callable) -> Callable:
    """The source of a problem, for commands that take one."""

    def array(name: str, letter: str, text: str) -> Callable:
        return click.option(name, metavar=letter, type=FILE, help=text)

    for option in (
        named("--precision", PRECISION, "double", ", in which arrays are multiplied"),
        array("--reference", "X", "Array X: the target is Y = X'W (asym)."),
        array("--target", "Y", "Array Y (N, T): the target itself."),
        array("--weights", "W", "Array W (S, T): PROBLEM is then X (S, N)."),
        click.argument("problem", type=FILE),
    ):
        command = option(command)
    return command


def scheduler_option(command: Callable) -> Callable:
    """--scheduler, for work on a cluster."""
    text = "Sum and solve on a dask.distributed cluster."
    return click.option("--scheduler", metavar="ADDRESS", help=text)(command)


@contextmanager
def connected(scheduler: str | None) -> Iterator[Any]:
    """A client of that scheduler; None where none is named."""
    if scheduler is None:
        yield None
        return
    from hashsolve.cluster import connect

    with connect(scheduler) as client:
        yield client


def named(option: str, names: OneOf, default: str | None, what: str = "") -> Callable:
    """An option that takes one of a few names, all told by its help."""
    return click.option(
        option,
        type=names,
        default=default,
        show_default=default is not None,
        metavar="NAME",
        help=f"{names}{what}.",
    )


def method_options(command: Callable) -> Callable:
    """Method, effort and seed."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Of all random choices."),
        named("--effort", EFFORT, "default", ", a budget of counted work"),
        named("--method", METHOD, "auto"),
    ):
        command = option(command)
    return command
