"""What the command shows: JSON, tables, and a progress line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click


def echo_json(value: Any) -> None:
    """Print JSON, strictly."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table; one row without more than its first cell heads those after it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*row, style=None if any(row[1:]) else "bold")
    Console(soft_wrap=True).print(table)


@contextmanager
def progress(go_on: str) -> Iterator[Callable[[str, int, int, str], None]]:
    """A progress line on the error stream, where that is a terminal; how to go on after Ctrl-C."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def show(layer: str, index: int, count: int, what: str) -> None:
            where = f"{layer} ({index + 1}/{count}): " if layer else ""
            bar.update(task, description=where + what, completed=index, total=count or None)

        try:
            yield show
        except KeyboardInterrupt:
            raise click.Abort(go_on) from None
