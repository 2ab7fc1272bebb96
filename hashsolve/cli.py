"""The hashsolve command. Modules that load numba or a framework are imported where used."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from hashsolve import __version__
from hashsolve.options import (
    DTYPE,
    LEVEL,
    PRECISION,
    PROPAGATION,
    connected,
    json_option,
    method_options,
    named,
    problem_options,
    scheduler_option,
)
from hashsolve.terminal import echo_json, print_table, progress

CERTIFICATE_FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


class _Commands(click.Group):
    """Commands whose interruption is said in one line; click would put an empty one before it."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            raise click.Abort() from None


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="hashsolve")
@click.pass_context
def cli(context: click.Context) -> None:
    """Solve binary-weight hashing problems, check solutions, binarise networks.

    \b
    hashsolve demo                                   the whole job on real digits
    hashsolve solve problem.h5 -o solution.h5        min |Y - X'BA|^2, B in {-1, +1}
    hashsolve verify problem.h5 solution.h5          is it what it claims to be?
    hashsolve binarize --network mymodels:resnet --calibration images.npy --run-dir run
    hashsolve report run                             a page with tables and pictures
    hashsolve bench                                  how fast is it here?

    Exit codes: 0 done; 1 a certificate failed; 2 unusable input, said in one line; 130 interrupted.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@problem_options
@method_options
@click.option("--time-limit", type=float, metavar="SECONDS", help="Stop with the best so far.")
@click.option("--threads", type=int, metavar="N", help="All cores where not given.")
@click.option(
    "--checkpoint", metavar="FILE", help="Keep the search of --method exact here; go on from it."
)
@click.option("-o", "--output", metavar="FILE", help="Write the solution: .h5 or .npz.")
@click.option("--save-problem", metavar="FILE", help="Write the problem's sums (.h5).")
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
        f"the same command goes on from {checkpoint}, as of its last write"
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


@cli.command()
@problem_options
@click.argument("solution")
@named("--require", LEVEL, None, "; default: what its method promises")
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
    """
    import hashsolve
    from hashsolve.levels import LEVELS, highest_local
    from hashsolve.methods import METHODS
    from hashsolve.readers import read_codes, read_problem

    p = read_problem(problem, weights, target, reference, precision)
    claims = read_codes(solution)
    if require is None:
        levels = (
            METHODS[claims.method].promise if claims.method in METHODS else "optimal",
            highest_local(p),
        )
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


@cli.command()
@click.option("--network", required=True, metavar="PACKAGE.MODULE:FACTORY", help="Makes a Network.")
@click.option("--calibration", required=True, metavar="ARRAY", help="Such as images.h5:/train.")
@click.option("--run-dir", required=True, type=click.Path(), help="Taken up where it was left.")
@click.option("--skip", multiple=True, metavar="LAYER", help="Name or glob; can be repeated.")
@method_options
@named("--propagation", PROPAGATION, "asym")
@click.option("--samples", type=int, metavar="N", help="Take the first N samples only.")
@click.option("--batch-size", default=64, show_default=True, help="Samples a forward pass.")
@named("--dtype", DTYPE, "float32", ": of cached activations")
@named("--precision", PRECISION, "double", ": in which activations are multiplied")
@click.option("--residual", is_flag=True, help="Targets make up for binarised shortcuts (asym).")
@click.option(
    "--intercept", is_flag=True, help="The best constant a filter, where one is taken up."
)
@click.option("--scale-group", type=int, help="One scale per so many inputs, not one a filter.")
@click.option("--keep-activations", is_flag=True, help="Keep the cache files.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Keep done layers.")
@scheduler_option
@click.option("--dry-run", is_flag=True, help="Only say what each layer needs of disk and memory.")
@json_option
def binarize(
    network: str,
    calibration: str,
    run_dir: str,
    samples: int | None,
    batch_size: int,
    residual: bool,
    intercept: bool,
    dry_run: bool,
    scheduler: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Binarise a network layer by layer into a run folder.

    The factory is called without arguments and returns a hashsolve.Network, such as
    torch_glue.TorchNetwork(model). Calibration is an array with samples along its first axis:
    FILE.npy, FILE.npz:NAME or FILE.h5:/NAME.

    \b
    hashsolve binarize --network mymodels:resnet --calibration images.h5:/train --run-dir run
    """
    import hashsolve
    from hashsolve.loading import Batches, call, load_object
    from hashsolve.readers import open_array

    options |= {"residual": residual and "auto", "intercept": intercept and "auto"}
    made = call(load_object(network), network)
    if not isinstance(made, hashsolve.Network):
        raise ValueError(
            f"{network}: returned a {type(made).__name__}, which is no hashsolve.Network (a torch "
            "module becomes one by torch_glue.TorchNetwork(model))"
        )
    if dry_run:
        from hashsolve.estimate import estimate

        kept = ("propagation", "method", "skip", "dtype", "residual", "keep_activations")
        chosen = {name: options[name] for name in kept}
        with open_array(calibration) as array:
            found = estimate(made, Batches(array, batch_size, samples), **chosen)
        echo_json(found.to_dict()) if as_json else click.echo(str(found))
        return
    go_on = f"the same command goes on after the layers finished in {run_dir}"
    with open_array(calibration) as array, progress(go_on) as show:
        batches = Batches(array, batch_size, samples)
        with connected(scheduler) as client:
            run = hashsolve.binarize(
                made, batches, run_dir, client=client, progress=show, **options
            )
    page = page_of(run.run_dir)
    if as_json:
        echo_json(run.report.to_dict())
    else:
        click.echo(str(run.report))
        click.echo(f"wrote {run.run_dir}: report.json, report.csv, layers/{page}")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="The page.  [default: RUN/report.html]")
@click.option(
    "--against",
    default="dcc",
    show_default=True,
    help="A method whose errors are shown too; the saved problems are solved by it. Or none.",
)
def report(runs: tuple[str, ...], output: str | None, against: str) -> None:
    """Write the HTML page of a finished run, or of two side by side.

    \b
    hashsolve report run
    hashsolve report run other-run -o both.html

    The page holds all that it shows, and needs no network. Needs pip install 'hashsolve[report]'.
    """
    from hashsolve.page import write_page
    from hashsolve.readers import check_output

    if output is None and len(runs) > 1:
        raise ValueError("--output: name the page of two runs")
    place = Path(output or Path(runs[0]) / "report.html")
    if Path(runs[0]).is_dir():
        check_output("--output", str(place), (), (".html",))
    with progress("nothing was written; start it again") as show:
        write_page(place, *runs, against=None if against == "none" else against, progress=show)
    click.echo(f"wrote {place}")


@cli.command()
@click.argument("path", type=click.Path())
@json_option
def inspect(path: str, as_json: bool) -> None:
    """Say what a file or run folder of ours holds.

    PATH is a problem, solution, cached activations, a checkpoint, an .npy or .npz, or a run folder.
    """
    from hashsolve.inspection import inspect as look

    found = look(Path(path))
    if as_json:
        echo_json(found)
        return
    text = found.pop("text", None)
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {part}" for name, part in value.items())
        click.echo(f"{key}: {value}")
    if text:
        click.echo(text)


@cli.command()
@click.option("--run-dir", default="hashsolve-demo", show_default=True, help="Its run folders.")
@click.option("--seed", default=0, show_default=True, help="Of the training.")
@json_option
def demo(run_dir: str, seed: int, as_json: bool) -> None:
    """Train a small CNN on scikit-learn's digits and binarise it, four ways.

    Needs torch and scikit-learn: pip install 'hashsolve[demo]'.
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


@cli.command()
@click.option("--inputs", default=4608, show_default=True, help="Of the layer that is swept.")
@click.option("--columns", default=512, show_default=True, help="Of it.")
@json_option
def bench(inputs: int, columns: int, as_json: bool) -> None:
    """Measure this installation: mostly ratios, which do not depend on the machine.

    A sweep of DCC over the largest layer of ResNet-18 against one GEMM of its size, the plain
    kernel and its NumPy twin; every method on a small problem; imports and compilation.
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command; every failure is one line on the error stream.

    Returns
    -------
    int
        0 done; 1 a certificate failed; 2 unusable input; 130 interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if arguments is None and not os.environ.get("HASHSOLVE_TRACEBACK"):
        # what HDF5's destructors raise after a failed write is no news; all else is caught below
        sys.excepthook = sys.unraisablehook = lambda *_: None
    try:
        return cli.main(arguments, prog_name="hashsolve", standalone_mode=False) or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "hashsolve"
        return fail(f"{error.format_message()} (see {command} --help)")
    except (click.Abort, KeyboardInterrupt) as stop:  # before RuntimeError: an Abort is one
        return fail(f"interrupted; {str(stop) or 'start it again'}", INTERRUPTED)
    except Exception as error:
        if os.environ.get("HASHSOLVE_TRACEBACK"):
            raise
        if isinstance(error, ValueError | RuntimeError | OSError | MemoryError) and str(error):
            code = fail(str(error))
            if arguments is None and isinstance(error, RuntimeError | OSError):
                os._exit(code)  # HDF5 may crash as it closes at exit, the disk being full
            return code
        from hashsolve.loading import describe

        return fail(f"{describe(error)}; HASHSOLVE_TRACEBACK=1 shows where")


def fail(message: str, code: int = UNUSABLE) -> int:
    """One line on the error stream."""
    click.echo(f"hashsolve: {' '.join(message.split())}", err=True)
    return code


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
