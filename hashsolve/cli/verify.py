"""hashsolve verify."""

from __future__ import annotations

import click

from hashsolve.options import FILE, LEVEL, json_option, named, problem_options
from hashsolve.terminal import echo_json, progress

CERTIFICATE_FAILED = 1
CUT_SHORT = ("SWEEP_LIMIT", "TIME_LIMIT", "STOPPED")  # before what the method promises


@click.command(short_help="Check a solution, and what it claims.")
@problem_options
@click.argument("solution", type=FILE)
@named("--require", LEVEL, None, "; default: what its method promises, where it ran to its end")
@json_option
def verify(
    problem: str,
    solution: str,
    weights: str | None,
    target: str | None,
    reference: str | None,
    precision: str,
    require: str | None,
    as_json: bool,
) -> None:
    """Check a solution: recompute its loss, look for better scales and bits.

    PROBLEM as in solve; SOLUTION is a file that solve wrote, or an .npz with codes and scales.
    Exits with 1 where the certificate fails.

    \b
    hashsolve verify layer.h5 solution.h5
    hashsolve verify X.npy --weights W.npy codes.npz --require one_flip
    """
    import hashsolve
    from hashsolve.levels import LEVELS, highest_local
    from hashsolve.methods import METHODS
    from hashsolve.readers import read_codes, read_problem

    p = read_problem(problem, weights, target, reference, precision)
    claims = read_codes(solution)
    if require is None:
        promise = METHODS[claims.method].promise if claims.method in METHODS else "optimal"
        if claims.status in CUT_SHORT:
            promise = "valid"
        levels = (promise, highest_local(p))
        require = min(levels, key=LEVELS.index)
    with progress("nothing was written; start it again") as show:
        show("", 0, 0, f"verifying {p!r}")
        certificate = hashsolve.verify(
            p,
            claims.codes,
            claims.scales,
            require=require,
            claimed_loss=claims.loss,
            claimed_bound=claims.lower_bound,
            intercept=claims.intercept,
        )
    if as_json:
        echo_json(certificate.to_dict())
    else:
        click.echo(str(certificate))
    if not certificate.ok:
        raise click.exceptions.Exit(CERTIFICATE_FAILED)
