"""binarize: the layer-by-layer driver, on cached activations, with a run folder to resume from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from hashsolve.files import digest
from hashsolve.layer_run import LayerResult, do_layer, layer_batches, same_inputs
from hashsolve.network import Network, units, what_lacks
from hashsolve.plan import Plan, make_plan
from hashsolve.report import Report
from hashsolve.runfolder import RunFolder
from hashsolve.spectra import kept_memory

logger = logging.getLogger("hashsolve")


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run.

    Attributes
    ----------
    layers : list of LayerResult
        In order of execution.
    report : Report
    run_dir : Path
        Its folder.
    """

    layers: list[LayerResult]
    report: Report
    run_dir: Path

    @property
    def relative_errors(self) -> dict[str, float]:
        """Σloss / Σenergy of each layer, by name."""
        return {result.name: result.relative_error for result in self.layers}

    @property
    def codes_sha256(self) -> str:
        """The SHA-256 of all codes."""
        return self.report.summary["codes_sha256"]

    def __repr__(self) -> str:
        error = self.report.summary["mean_relative_error"]
        return f"Run({self.run_dir}, {len(self.layers)} layers, mean relative error {error:.4f})"

    def apply(self, network: Network) -> None:
        """Write every layer's codes × scales (and constants) into a network, or none of them.

        Parameters
        ----------
        network : Network
            The one that was binarised, or a copy in full precision.

        Raises
        ------
        ValueError
            For what is no network.
        """
        if lacking := what_lacks(network):
            raise ValueError(f"network: {lacking}")
        written = []
        try:
            for result in self.layers:
                written.append(result)
                result.write(network)
        except BaseException:
            for result in written:
                for name in (result.name, *result.sharers):
                    network.write(name, network.weight(name))
            raise


def binarize(
    network: Network,
    calibration: Iterable[Any],
    run_dir: str | PathLike,
    method: str = "auto",
    effort: str = "default",
    propagation: str = "asym",
    resume: bool = True,
    *,
    skip: Iterable[str] = (),
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "double",
    residual: str | bool = False,
    intercept: str | bool = False,
    scale_group: int | None = None,
    fixed_scales: float | None = None,
    keep_activations: bool = False,
    client: Any = None,
    progress: Callable[[str, int, int, str], Any] | None = None,
) -> Run:
    """Binarise a network layer by layer: extract activations, sum, solve, write back.

    Parameters
    ----------
    network : Network
        An adapter; the network is rewritten in place. After an error its weights are restored.
    calibration : iterable of batches
        Gone through once a layer, so it must give the same batches each time.
    run_dir : path
        The run folder; an interrupted run in it is taken up where it was.
    method, effort : str
        As in `solve`.
    propagation : {"asym", "symfp", "symqt"}
        "asym": targets from the full-precision network, inputs from the binarised prefix (BWNH,
        section 3.3); "symfp": full-precision inputs on both sides; "symqt": inputs from the
        binarised prefix on both sides.
    resume : bool
        Keep the layers that the folder holds; else start over.
    skip : iterable of str
        Layers to leave in full precision: whole dotted names or globs.
    seed : int
        As in `solve`.
    dtype : {"float32", "float16", "float64"}
        Storage of the cached activations.
    precision : {"double", "single"}
        Of the products of which sums are made, which are float64: "single" takes about half the
        time for linear layers and convolutions that are summed by patches (``hashsolve.sums``).
    residual : {"auto", True, False}
        Whether a layer whose output is added to a shortcut also makes up for what the binarised
        shortcut lacks: its target is Y + (shortcut − binarised shortcut), in units of Y. "auto":
        with asym, wherever the network shows a shortcut (`ResidualNetwork`); True: an error where
        there is none. The report says which layers do.
    intercept : {False, "auto", True}
        Whether each filter also gets the best constant, in closed form, which the layer's bias or
        the normalisation behind it takes up. "auto": wherever something does; True: an error where
        nothing does.
    scale_group : int, optional
        One scale per so many consecutive inputs of a filter, instead of one a filter.
    fixed_scales : float, optional
        A scale that all filters are given instead (1: none at all, the paper's ablation).
    keep_activations : bool
        Keep each layer's cache file in ``run_dir/activations``.
    client : distributed.Client, optional
        Sum and solve on its workers (`hashsolve.cluster`), which must see ``run_dir``; not a bit
        differs.
    progress : callable, optional
        Called with (layer, index, count, what is being done).

    Returns
    -------
    Run

    Raises
    ------
    ValueError
        For settings, calibration or layers that cannot be used, or a run folder of another run.
    RuntimeError
        Where a method ends worse than sign(W) with its best scale.
    """
    plan = make_plan(
        network,
        calibration,
        method,
        effort,
        propagation,
        skip=skip,
        seed=seed,
        dtype=dtype,
        precision=precision,
        residual=residual,
        intercept=intercept,
        scale_group=scale_group,
        fixed_scales=fixed_scales,
    )
    begun = time.perf_counter()
    results: list[LayerResult] = []
    with RunFolder(run_dir) as folder, kept_memory():
        folder.begin(plan.fingerprints, plan.settings, resume)
        try:
            for result in _layer_results(
                network,
                calibration,
                plan,
                folder,
                keep_activations,
                client,
                progress,
            ):
                results.append(result)  # before the write: what it may leave half done is restored
                result.write(network)
                if digest(network.weight(result.name)) != plan.weights[result.name]:
                    raise ValueError(
                        f"layer {result.name}: after write(), weight() is another; it is to stay "
                        "the full-precision one, of which targets are made"
                    )
            seconds = time.perf_counter() - begun
            rows = [result.row for result in results]
            summary = _summary(results, plan, seconds)
            summary["remarks"] = list(getattr(network, "remarks", ()))
            if residual and not plan.settings["residual"]:
                found = "no layer showed a shortcut to make up for"
                if propagation != "asym":
                    found = f"without effect with propagation {propagation!r}"
                summary["remarks"].append(f"residual: {found}")
            if intercept and not plan.settings["intercept"]:
                summary["remarks"].append("intercept: no layer had what takes up a constant")
            last = results[-1]
            if len(results) > 1 and same_inputs(
                network, network, last.layer, next(iter(calibration))
            ):
                summary["remarks"].append(
                    f"{last.name}: its inputs are the same whether the layers before it are "
                    "binarised or not; where it comes after them, write() has no effect"
                )
            report = Report(rows, summary)
            report.save(folder.path)
        except BaseException:
            # whatever happened, a half-binarised network is of no use to anyone
            for result in results:
                result.restore(network)
            raise
    return Run(results, report, folder.path)


def _layer_results(
    network: Network,
    calibration: Iterable[Any],
    plan: Plan,
    folder: RunFolder,
    keep_activations: bool,
    client: Any,
    progress: Callable[[str, int, int, str], Any] | None,
) -> Iterator[LayerResult]:
    """Each layer, done or taken up; it must be written into the network before the next."""
    prefix = ""
    together = units(plan.layers)
    for index, unit in enumerate(together):
        layer = unit[0]
        say = partial(progress or (lambda *_: None), layer.name, index, len(together))
        found = folder.load_layer(layer.name, prefix)
        if isinstance(found, str):
            if found:
                logger.warning("%s; layer %s is done again", found, layer.name)
            maps = layer_batches(network, calibration, plan.data, unit, plan.settings, index > 0)
            result = do_layer(
                network, maps, unit, folder, plan.settings, prefix, keep_activations, client, say
            )
        else:
            say("resumed")
            sharers = tuple(member.name for member in unit[1:])
            result = LayerResult(layer, found[0], found[1]["row"], sharers)
        yield result
        solution = result.solution
        written = [solution.codes, solution.scales]
        if solution.intercept is not None:
            written.append(solution.intercept)
        prefix = digest(prefix, *written)


def _summary(
    results: list[LayerResult],
    plan: Plan,
    seconds: float,
) -> dict[str, Any]:
    return {
        **plan.settings,
        "layers": len(results),
        "mean_relative_error": float(np.mean([result.relative_error for result in results])),
        "bits_before": sum(result.row["bits_before"] for result in results),
        "bits_after": sum(result.row["bits_after"] for result in results),
        "seconds": round(seconds, 3),
        "codes_sha256": digest([result.row["codes_sha256"] for result in results]),
        "fingerprints": plan.fingerprints,
        "versions": {
            package: version(package) for package in ("hashsolve", "numpy", "scipy", "numba")
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
