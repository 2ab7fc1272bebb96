"""The ways to sum a convolution, chosen by name."""

from __future__ import annotations

from unittest import mock

from hashsolve import activations
from hashsolve.lags import Plan

WAYS = ("patches", "lags", "spectra")


def by(way: str):
    """Sum by "lags", "spectra" or "patches", whatever is faster."""

    def made(geometry, spatial, channels, targets, samples, shifted):
        if way == "patches":
            return None
        plan = Plan(geometry, spatial, samples)
        plan.spectral = way == "spectra"
        return plan

    return mock.patch.object(activations, "plan_of", made)
