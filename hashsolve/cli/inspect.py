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
    checkpoint, an index, an exported network, an .npy or .npz, or a run folder.

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
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_short(part)}" for name, part in value.items())
        click.echo(f"{key}: {value}")
    if text:
        click.echo(text)


def _short(value: Any) -> str:
    """A value in a line of several; what it holds itself, in brackets."""
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {part}" for name, part in value.items()) + ")"
    return str(value)
