"""What the command shows: JSON, tables, and a progress line."""

from __future__ import annotations

import json
import sys
import time
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


class TimeLeft:
    """How long it will take, judged by the layers that are done.

    Parameters
    ----------
    now : callable
        A clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.now = now
        self.layer, self.begun = -1, now()
        self.done: list[float] = []

    def __call__(self, index: int, count: int, what: str = "") -> tuple[float, float] | None:
        """Seconds left of layer ``index``, and of all; None before a layer was done.

        Layers that an earlier run has done take no time, and are not counted.
        """
        at = self.now()
        if index != self.layer:
            if self.layer >= 0:
                self.done.append(at - self.begun)
            self.layer, self.begun = index, at
        if what == "resumed":
            self.layer = -1
        if not self.done:
            return None
        each = sum(self.done) / len(self.done)
        layer = max(0.0, each - (at - self.begun))
        return layer, layer + each * (count - index - 1)


def _left(layer: float, whole: float) -> str:
    return f"left: layer {_clock(layer)}, all {_clock(whole)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def progress(go_on: str) -> Iterator[Callable[[str, int, int, str], None]]:
    """A progress line on the error stream, where that is a terminal; how to go on after Ctrl-C."""
    try:
        if not sys.stderr.isatty():
            yield lambda *_: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        left_of = TimeLeft()
        with Progress(
            *columns,
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            transient=True,
        ) as bar:
            task = bar.add_task("", total=None, left="")

            def show(layer: str, index: int, count: int, what: str) -> None:
                where = f"{layer} ({index + 1}/{count}): " if layer else ""
                seconds = left_of(index, count, what) if layer else None
                bar.update(
                    task,
                    description=where + what,
                    completed=index,
                    total=count or None,
                    left=_left(*seconds) if seconds else "",
                )

            yield show
    except KeyboardInterrupt:
        raise click.Abort(go_on) from None
