"""hashsolve binarize."""

from __future__ import annotations

from typing import Any

import click

from hashsolve.cli.report import page_of
from hashsolve.options import (
    DTYPE,
    FILE,
    PRECISION,
    PROPAGATION,
    connected,
    json_option,
    method_options,
    named,
    scheduler_option,
)
from hashsolve.terminal import echo_json, progress


@click.command()
@click.option("--network", required=True, metavar="PACKAGE.MODULE:FACTORY", help="Makes a Network.")
@click.option(
    "--calibration", required=True, metavar="ARRAY", type=FILE, help="Such as images.h5:/train."
)
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
@click.option("--dry-run", is_flag=True, help="Only say what layers need of disk, memory, time.")
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
    hashsolve binarize --network mymodels:resnet --calibration images.npy --run-dir run \\
        --skip conv1 --skip 'layer4.*' --method dcc --dry-run
    """
    import hashsolve
    from hashsolve.loading import Batches, call, load_object
    from hashsolve.network import what_lacks
    from hashsolve.readers import open_array

    options |= {"residual": residual and "auto", "intercept": intercept and "auto"}
    made = call(load_object(network), network)
    lacking = what_lacks(made)
    if lacking:
        raise ValueError(f"{network}: {lacking}")
    go_on = f"the same command goes on after the layers finished in {run_dir}"
    with open_array(calibration) as array, progress(go_on) as show:
        batches = Batches(array, batch_size, samples)
        with connected(scheduler) as client:
            if dry_run:
                from hashsolve.estimate import estimate

                found = estimate(made, batches, run_dir, timed=True, **options)
                echo_json(found.to_dict()) if as_json else click.echo(str(found))
                return
            run = hashsolve.binarize(
                made, batches, run_dir, client=client, progress=show, **options
            )
    page = page_of(run.run_dir)
    if as_json:
        echo_json(run.report.to_dict())
    else:
        click.echo(str(run.report))
        click.echo(f"wrote {run.run_dir}: report.json, report.csv, layers/{page}")
