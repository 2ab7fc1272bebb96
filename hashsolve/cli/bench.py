"""hashsolve bench."""

from __future__ import annotations

import click

from hashsolve.options import json_option
from hashsolve.terminal import echo_json, print_table, progress


@click.command(short_help="Measure this installation, mostly in ratios.")
@click.option("--inputs", default=4608, show_default=True, help="Of the layer that is swept.")
@click.option("--columns", default=512, show_default=True, help="Of it.")
@json_option
def bench(inputs: int, columns: int, as_json: bool) -> None:
    """Measure this installation: mostly ratios, which do not depend on the machine.

    A sweep of DCC over the largest layer of ResNet-18 against one GEMM of its size, the plain
    kernel and its NumPy twin; every method on a small problem; imports and compilation.

    \b
    hashsolve bench
    hashsolve bench --inputs 1152 --columns 256 --json
    """
    from hashsolve.bench import measure, rows

    if inputs < 2 or columns < 2:
        raise ValueError("--inputs, --columns: must be >= 2")
    with progress("nothing was written; start it again") as show:
        found = measure(inputs, columns, show=show)
    if as_json:
        echo_json(found)
        return
    print_table(("", "measured", "meant to be"), rows(found))
