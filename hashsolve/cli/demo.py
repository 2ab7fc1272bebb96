"""hashsolve demo."""

from __future__ import annotations

from pathlib import Path

import click

from hashsolve.cli.report import page_of
from hashsolve.options import json_option
from hashsolve.terminal import echo_json, progress


@click.command(short_help="Train a small CNN on digits and binarise it.")
@click.option("--run-dir", default="hashsolve-demo", show_default=True, help="Its run folders.")
@click.option("--seed", default=0, show_default=True, help="Of the training.")
@json_option
def demo(run_dir: str, seed: int, as_json: bool) -> None:
    """Train a small CNN on scikit-learn's digits and binarise it, four ways.

    Needs torch and scikit-learn: pip install 'hashsolve[demo]'.

    \b
    hashsolve demo --run-dir digits
    """
    from hashsolve.loading import load_object

    run_demo = load_object("torch_glue.demo:run_demo")
    with progress("the same command starts it anew") as show:
        result = run_demo(Path(run_dir), seed, show)
        pages = [page_of(Path(row.run_dir), "dcc") for row in result.rows]
    if as_json:
        echo_json(result.to_dict())
        return
    click.echo(str(result))
    if all(pages):
        click.echo(f"\nA page of each run is in its folder; {run_dir}/auto-asym/report.html")
