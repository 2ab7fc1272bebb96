"""hashsolve inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hashsolve.options import json_option
from hashsolve.terminal import echo_json


@click.command()
@click.argument("path", type=click.Path())
@json_option
def inspect(path: str, as_json: bool) -> None:
    """Say what a file or run folder of ours holds.

    PATH is a problem, solution, cached activations, the checkpoint of an exact search, a packed
    checkpoint, an index, an exported network, arrays (.npy, .npz, .h5), or a run folder.

    \b
    hashsolve inspect solution.h5
    hashsolve inspect run --json
    """
    from hashsolve.inspection import inspect as look

    found = look(Path(path))
    if as_json:
        echo_json(found)
        return
    text = found.pop("text", None)
    for key, value in found.items():
        click.echo(f"{key}: {_short(value)}")
    if text:
        click.echo(text)


def _short(value: Any, inside: bool = False) -> str:
    """A value in one line; what those in it hold themselves, in brackets."""
    if isinstance(value, dict):
        parts = ", ".join(f"{name} {_short(part, True)}" for name, part in value.items())
        return f"({parts})" if inside else parts or "none"
    if isinstance(value, list):
        parts = ", ".join(_short(part, True) for part in value)
        return f"({parts})" if inside else parts or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
