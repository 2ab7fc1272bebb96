"""The hashsolve command. Modules that load numba or a framework are imported where used."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from hashsolve import __version__

CERTIFICATE_FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hashsolve")
def cli() -> None:
    """Solve binary-weight hashing problems, check solutions, binarise networks.

    \b
    hashsolve demo                                   the whole job on real digits
    hashsolve solve problem.h5 -o solution.h5        min |Y - X'BA|^2, B in {-1, +1}
    hashsolve verify problem.h5 solution.h5          is it what it claims to be?
    """


def json_option(command: Callable) -> Callable:
    """--json, for machines."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def problem_options(command: Callable) -> Callable:
    """The source of a problem, for commands that take one."""
    for option in (
        click.option("--reference", metavar="X", help="Array X: the target is Y = X'W (asym)."),
        click.option("--target", metavar="Y", help="Array Y (N, T): the target itself."),
        click.option("--weights", metavar="W", help="Array W (S, T): PROBLEM is then X (S, N)."),
        click.argument("problem"),
    ):
        command = option(command)
    return command


def method_options(command: Callable) -> Callable:
    """Method, effort and seed; checked where they are used, which can name the nearest."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Of perturbed starts."),
        click.option("--effort", default="default", show_default=True, help="fast, thorough."),
        click.option("--method", default="auto", show_default=True, help="sign, dcc, one_flip."),
    ):
        command = option(command)
    return command


@cli.command()
@problem_options
@method_options
@click.option("--time-limit", type=float, metavar="SECONDS", help="Stop with the best so far.")
@click.option("-o", "--output", metavar="FILE", help="Write the solution: .h5 or .npz.")
@click.option("--save-problem", metavar="FILE", help="Write the problem's sums (.h5).")
@json_option
def solve(
    problem: str,
    weights: str | None,
    target: str | None,
    reference: str | None,
    method: str,
    effort: str,
    seed: int,
    time_limit: float | None,
    output: str | None,
    save_problem: str | None,
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
    from hashsolve.readers import read_problem, write_solution

    for path in (output, save_problem):
        if path is not None and not Path(path).parent.is_dir():
            raise ValueError(f"{path}: its folder does not exist")
    p = read_problem(problem, weights, target, reference)
    if save_problem:
        p.save(save_problem)
    with progress() as show:
        show("", 0, 0, f"solving {p!r}")
        s = hashsolve.solve(p, method, effort, seed, time_limit)
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
@click.option("--require", help="valid, dcc or one_flip; default: what its method promises.")
@json_option
def verify(
    problem: str,
    solution: str,
    weights: str | None,
    target: str | None,
    reference: str | None,
    require: str | None,
    as_json: bool,
) -> None:
    """Check a solution: recompute its loss, look for better scales and bits.

    PROBLEM as in solve; SOLUTION is a file that solve wrote, or an .npz with codes and scales.
    Exits with 1 where the certificate fails.
    """
    import hashsolve
    from hashsolve.methods import METHODS
    from hashsolve.readers import read_codes, read_problem

    p = read_problem(problem, weights, target, reference)
    codes, scales, loss, method = read_codes(solution)
    if require is None:
        require = METHODS[method].promise if method in METHODS else "one_flip"
    certificate = hashsolve.verify(p, codes, scales, require=require, claimed_loss=loss)
    if as_json:
        echo_json(certificate.to_dict())
    else:
        click.echo(str(certificate))
    if not certificate.ok:
        raise click.exceptions.Exit(CERTIFICATE_FAILED)


@cli.command()
@click.option("--network", required=True, metavar="PACKAGE.MODULE:FACTORY", help="Makes a Network.")
@click.option("--calibration", required=True, metavar="ARRAY", help="FILE.npy or FILE.h5:/NAME.")
@click.option("--run-dir", required=True, type=click.Path(), help="Taken up where it was left.")
@click.option("--skip", multiple=True, metavar="LAYER", help="Name or glob; can be repeated.")
@method_options
@click.option("--propagation", default="asym", show_default=True, help="asym, symfp, symqt.")
@click.option("--samples", type=int, metavar="N", help="Take the first N samples only.")
@click.option("--batch-size", default=64, show_default=True, help="Samples a forward pass.")
@click.option("--dtype", default="float32", show_default=True, help="Of cached activations.")
@click.option("--keep-activations", is_flag=True, help="Keep the cache files.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Keep done layers.")
@json_option
def binarize(
    network: str,
    calibration: str,
    run_dir: str,
    samples: int | None,
    batch_size: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Binarise a network layer by layer into a run folder.

    The factory is called without arguments and returns a hashsolve.Network, such as
    torch_glue.TorchNetwork(model). Calibration is an array with samples along its first axis.

    \b
    hashsolve binarize --network mymodels:resnet --calibration images.h5:/train --run-dir run
    """
    import hashsolve
    from hashsolve.readers import open_array

    factory = load_object(network)
    made = factory() if callable(factory) else factory
    if not isinstance(made, hashsolve.Network):
        raise ValueError(
            f"{network}: returned a {type(made).__name__}, which is no hashsolve.Network (a torch "
            "module becomes one by torch_glue.TorchNetwork(model))"
        )
    with open_array(calibration) as array, progress() as show:
        run = hashsolve.binarize(
            made, Batches(array, batch_size, samples), run_dir, progress=show, **options
        )
    if as_json:
        echo_json(run.report.to_dict())
    else:
        click.echo(str(run.report))
        click.echo(f"wrote {run.run_dir}: report.json, report.csv, layers/")


@cli.command()
@click.argument("path", type=click.Path(exists=True))
@json_option
def inspect(path: str, as_json: bool) -> None:
    """Say what a file or run folder of ours holds."""
    from hashsolve.inspection import inspect as look

    found = look(Path(path))
    if as_json:
        echo_json(found)
        return
    text = found.pop("text", None)
    for key, value in found.items():
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
    run_demo = load_object("torch_glue.demo:run_demo")
    with progress() as show:
        result = run_demo(Path(run_dir), seed, show)
    click.echo(json.dumps(result.to_dict(), indent=1) if as_json else str(result))


class Batches:
    """An array cut along its first axis, as often as one likes."""

    def __init__(self, array: Any, size: int, samples: int | None = None):
        if size < 1 or (samples is not None and samples < 1):
            raise ValueError("--batch-size and --samples must be >= 1")
        self.array, self.size = array, size
        self.count = min(len(array), samples or len(array))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self.count, self.size):
            yield self.array[start : min(start + self.size, self.count)]


def load_object(spec: str) -> Any:
    """The object that PACKAGE.MODULE:NAME names, the current folder being on the path."""
    import importlib

    module, colon, name = spec.partition(":")
    if not colon or not name:
        raise ValueError(f"{spec}: write PACKAGE.MODULE:NAME")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        extra = {"torch": "torch", "sklearn": "demo"}.get(error.name or "")
        hint = f"; pip install 'hashsolve[{extra}]'" if extra else ""
        raise ValueError(f"{spec}: {error}{hint}") from error
    except AttributeError:
        raise ValueError(f"{spec}: module {module} has no {name!r}") from None
    finally:
        sys.path.remove("")


def echo_json(value: Any) -> None:
    """Print JSON, strictly."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


@contextmanager
def progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """A progress line on the error stream, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def show(layer: str, index: int, count: int, what: str) -> None:
            where = f"{layer} ({index + 1}/{count}): " if layer else ""
            bar.update(task, description=where + what, completed=index, total=count or None)

        yield show


def main(arguments: list[str] | None = None) -> int:
    """Run the command; every failure is one line on the error stream.

    Returns
    -------
    int
        0 done; 1 a certificate failed; 2 unusable input; 130 interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return cli.main(arguments, prog_name="hashsolve", standalone_mode=False) or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "hashsolve"
        return fail(f"{error.format_message()} (see {command} --help)")
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        return fail(str(error) or type(error).__name__)
    except (click.Abort, KeyboardInterrupt):
        click.echo(
            "hashsolve: interrupted; nothing is half-written: the same command goes on with a run "
            "folder's finished layers, and starts anything else anew",
            err=True,
        )
        return INTERRUPTED


def fail(message: str) -> int:
    """One line on the error stream."""
    click.echo(f"hashsolve: {' '.join(message.split())}", err=True)
    return UNUSABLE


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
