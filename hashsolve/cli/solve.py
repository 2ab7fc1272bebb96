"""hashsolve solve."""

from __future__ import annotations

import click

from hashsolve.options import (
    FILE,
    connected,
    json_option,
    method_options,
    problem_options,
    scheduler_option,
)
from hashsolve.terminal import echo_json, progress


@click.command()
@problem_options
@method_options
@click.option("--time-limit", type=float, metavar="SECONDS", help="Stop with the best so far.")
@click.option("--threads", type=int, metavar="N", help="All cores where not given.")
@click.option(
    "--checkpoint", metavar="FILE", help="Keep the search of --method exact here; go on from it."
)
@click.option("-o", "--output", metavar="FILE", type=FILE, help="Write the solution: .h5 or .npz.")
@click.option("--save-problem", metavar="FILE", type=FILE, help="Write the problem's sums (.h5).")
@scheduler_option
@json_option
def solve(
    problem: str,
    weights: str | None,
    target: str | None,
    reference: str | None,
    precision: str,
    method: str,
    effort: str,
    seed: int,
    time_limit: float | None,
    threads: int | None,
    checkpoint: str | None,
    output: str | None,
    save_problem: str | None,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Solve a hashing problem and say how good the answer is.

    PROBLEM is a file of sums (FILE.h5, FILE.h5:/group, or FILE.npz with gram, cross, energy), an
    .npz with X and W, or an array X (FILE.npy, FILE.npz:NAME, FILE.h5:/NAME) beside --weights or
    --target.

    \b
    hashsolve solve layer.h5 -o solution.h5
    hashsolve solve X.npy --weights W.npy --method dcc -o codes.npz
    """
    import hashsolve
    from hashsolve.readers import check_output, read_problem, write_solution
    from hashsolve.solver import CHECKPOINTED

    sources = (problem, weights, target, reference)
    check_output("--output", output, sources, (".h5", ".hdf5", ".npz"))
    check_output("--save-problem", save_problem, (*sources, output), (".h5", ".hdf5"))
    check_output("--checkpoint", checkpoint, (*sources, output, save_problem))
    if checkpoint and method not in CHECKPOINTED:
        raise ValueError(f"--checkpoint: method {method!r} keeps none; use {CHECKPOINTED[0]!r}")
    if scheduler and (checkpoint or time_limit or threads):
        raise ValueError("--scheduler: not with --checkpoint, --time-limit or --threads")
    p = read_problem(problem, weights, target, reference, precision)
    if save_problem:
        p.save(save_problem)
    go_on = (
        f"the same command goes on from {checkpoint}, as of its last write, if it has come to one"
        if checkpoint
        else "no solution was written; --time-limit SECONDS ends with the best so far, "
        "--method exact --checkpoint FILE keeps the search"
    )
    with progress(go_on) as show, connected(scheduler) as client:
        show("", 0, 0, f"solving {p!r}")
        if client is not None:
            from hashsolve import cluster

            (s,) = cluster.solve(client, [p], method, effort, seed)
        else:
            s = hashsolve.solve(
                p, method, effort, seed, time_limit, threads=threads, checkpoint=checkpoint
            )
    if output:
        write_solution(s, output)
    if as_json:
        echo_json(
            {
                "problem": problem,
                "inputs": p.inputs,
                "columns": p.columns,
                "loss": s.loss.tolist(),
                "lower_bound": s.lower_bound.tolist(),
                "relative_error": s.relative_error if p.free_scale else None,
                "optimal": int(s.optimal.sum()),
                "status": s.status.name,
                "method": s.method,
                "sweeps": s.sweeps,
                "seed": s.seed,
                "wall_time": s.wall_time,
                "codes_sha256": s.codes_sha256,
                "output": output,
            }
        )
        return
    click.echo(repr(s))
    click.echo(f"loss {s.loss.sum():.9g}, at least {s.lower_bound.sum():.9g} ({s.bound_name})")
    click.echo(f"{s.status.name}: {s.message}; {s.sweeps} sweeps, {s.wall_time:.2f} s")
    click.echo(f"wrote {output}" if output else "nothing written: add -o FILE to keep the codes")
