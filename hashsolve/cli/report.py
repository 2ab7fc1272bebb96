"""hashsolve report."""

from __future__ import annotations

from pathlib import Path

import click

from hashsolve.options import METHOD, OneOf, json_option, named
from hashsolve.terminal import echo_json, progress

AGAINST = OneOf(*METHOD.names, "none")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="The page.  [default: RUN/report.html]")
@named("--against", AGAINST, "dcc", ": a method whose errors are shown too")
@json_option
def report(runs: tuple[str, ...], output: str | None, against: str, as_json: bool) -> None:
    """Write the HTML page of a finished run, or of two side by side.

    \b
    hashsolve report run
    hashsolve report run other-run -o both.html

    The page holds all that it shows, and needs no network; the saved problems are solved by the
    other method. Needs pip install 'hashsolve[report]'.
    """
    from hashsolve.page import write_page
    from hashsolve.readers import check_output

    if len(runs) > 2:
        raise ValueError(f"RUNS: one run folder or two, got {len(runs)}")
    if output is None and len(runs) > 1:
        raise ValueError("--output: name the page of two runs, as in -o both.html")
    place = Path(output or Path(runs[0]) / "report.html")
    if Path(runs[0]).is_dir():
        check_output("--output", str(place), (), (".html",))
    with progress("nothing was written; start it again") as show:
        write_page(place, *runs, against=None if against == "none" else against, progress=show)
    if as_json:
        echo_json({"output": str(place), "runs": list(runs), "bytes": place.stat().st_size})
    else:
        click.echo(f"wrote {place}")


def page_of(run_dir: Path, against: str | None = None) -> str:
    """Write the page of a run into its folder; what to say of that, nothing without the extra."""
    from importlib.util import find_spec

    if find_spec("jinja2") is None or find_spec("matplotlib") is None:
        return ""
    from hashsolve.page import write_page

    try:
        write_page(run_dir / "report.html", run_dir, against=against)
    except (OSError, ValueError) as error:  # the run itself is done
        click.echo(f"hashsolve: no page was written: {error}", err=True)
        return ""
    return ", report.html"
