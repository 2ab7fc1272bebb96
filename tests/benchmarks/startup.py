"""Imports and compilation of every method, each in new processes with an empty cache.

    python tests/benchmarks/startup.py

``first`` is the first `solve` of a small problem (its kernels are compiled), ``cached`` the same in
another process, which finds them in the cache; ``solver`` is what `hashsolve.solve` takes to be
imported after ``import hashsolve``.
"""

from __future__ import annotations

import json

import click

from hashsolve import bench
from hashsolve.methods import METHODS
from hashsolve.terminal import print_table


@click.command()
@click.option("--json", "as_json", is_flag=True)
def main(as_json: bool) -> None:
    """Measure."""
    found = [bench.first_use(method) for method in METHODS]
    result = {"help": bench.help_seconds(), "limits": bench.LIMITS["startup"], "methods": found}
    if as_json:
        print(json.dumps(result, indent=1))
        return
    keys = ("import", "solver", "first_use", "from_cache")
    rows = [
        (row["method"], *(f"{row[key]:.2f}" for key in keys), str(len(row["kernels"])))
        for row in found
    ]
    limits = ["" if key == "solver" else f"≤ {bench.LIMITS['startup'][key]:g}" for key in keys]
    rows.append(("meant to be", *limits, ""))
    print_table(("method", "import", "solver", "first", "cached", "kernels"), rows)
    print(f"hashsolve --help: {result['help']:.2f} s (meant to be ≤ {result['limits']['help']:g})")


if __name__ == "__main__":
    main()
