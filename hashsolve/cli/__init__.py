"""The hashsolve command, one file a command; what loads numba or a framework is imported late."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import click

from hashsolve import __version__
from hashsolve.cli.bench import bench
from hashsolve.cli.binarize import binarize
from hashsolve.cli.completion import completion
from hashsolve.cli.demo import demo
from hashsolve.cli.inspect import inspect
from hashsolve.cli.report import report
from hashsolve.cli.solve import solve
from hashsolve.cli.verify import verify
from hashsolve.suggest import did_you_mean

UNUSABLE, INTERRUPTED, UNREAD = 2, 130, 141


class _Commands(click.Group):
    """Commands whose interruption is said in one line; click would put an empty one before it."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            raise click.Abort() from None

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        name = arguments[0]
        if name not in self.commands and not name.startswith("-"):
            context.fail(f"no command {name!r}{did_you_mean(name, self.commands)}")
        return super().resolve_command(context, arguments)


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
    hashsolve inspect solution.h5                    what is in that file?
    hashsolve bench                                  how fast is it here?

    Exit codes: 0 done; 1 a certificate failed; 2 unusable input, said in one line; 130 interrupted;
    141 nobody reads the output.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (bench, binarize, completion, demo, inspect, report, solve, verify):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; every failure is one line on the error stream.

    Returns
    -------
    int
        0 done; 1 a certificate failed; 2 unusable input; 130 interrupted; 141 output not read.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if arguments is None and not os.environ.get("HASHSOLVE_TRACEBACK"):
        # what HDF5's destructors raise after a failed write is no news; all else is caught below
        sys.excepthook = lambda *_: None
        sys.unraisablehook = lambda _: None
    stdout = sys.stdout
    try:
        return cli.main(arguments, prog_name="hashsolve", standalone_mode=False) or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except SystemExit:
        if sys.stdout is stdout:
            raise
        return UNREAD  # click's, which has replaced it: the pipe is closed
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "hashsolve"
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
