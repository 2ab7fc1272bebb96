"""Solution and Status: what a solver found, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from os import PathLike
from typing import Any, NamedTuple

import h5py
import numpy as np

from hashsolve import checks
from hashsolve.files import attribute, check_h5_target, digest, open_h5, write_attributes, write_h5
from hashsolve.packing import combine, read_packed, write_packed

OPTIMAL_TOLERANCE = 1e-9
"""A column is proven optimal when loss − lower bound is at most this share of its energy."""


class Status(Enum):
    """How a solve ended; the value says what to do about it."""

    DONE = "the method ran to its end"
    FIXPOINT = "no further step of the method changes any bit"
    OPTIMAL = "every column is proven optimal"
    SWEEP_LIMIT = (
        "stopped at the effort's sweep limit before a fixpoint; use a higher effort to go on"
    )
    UNPROVABLE = (
        "no search can prove the rest: codes can all but cancel on these inputs, so that nothing "
        "limits the scale: rows are too few or too alike, or inputs add up to nothing"
    )
    NODE_LIMIT = (
        "stopped at the effort's node budget with some columns unproven; the bounds hold, a higher "
        "effort goes on"
    )
    TIME_LIMIT = (
        "stopped by time_limit, so the result may differ from run to run; raise it, or lower effort"
    )
    STOPPED = "stopped by the callback"


class Sweep(NamedTuple):
    """One step of a method's history.

    Attributes
    ----------
    loss : float
        Σloss after it, in the problem's units.
    flips : int
        Bits flipped.
    """

    loss: float
    flips: int


def proven(loss: np.ndarray, bound: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Which columns a bound proves optimal, to `OPTIMAL_TOLERANCE` of their energy, (T,)."""
    return loss - bound <= OPTIMAL_TOLERANCE * np.maximum(np.abs(energy), np.abs(loss))


def sound_bound(bound: np.ndarray, loss: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """A bound (T,) on sums of squares, given losses as they were computed: where one is below zero,
    the sums are off by as much, and no proof is closer."""
    return np.where(loss < -OPTIMAL_TOLERANCE * energy, np.minimum(bound, 2 * loss), bound)


@dataclass(frozen=True, eq=False)
class Solution:
    """Codes and scales with their loss, and a bound on the best possible loss.

    Attributes
    ----------
    codes : int8 array (S, T)
        B, entries −1 and +1; (M, S, T) for M bases.
    scales : float64 array (T,)
        The diagonal of A, >= 0; (M, T) for M bases, (S / g, T) for a scale per g inputs.
    loss : float64 array (T,)
        e − 2α cᵀb + α² bᵀHb, recomputed from the final codes and scales.
    energy : float64 array (T,)
        ‖Y_t‖² of the problem; about the mean of Y_t, where the problem asks for an intercept.
    lower_bound : float64 array (T,)
        No codes and scale whatever have a smaller loss; ``bound_name`` says how it was found.
    status : Status
    method : str
    sweeps : int
        Sweeps (or stages) made over the columns.
    history : tuple of Sweep
        The start, then one entry a sweep.
    seed : int
    wall_time : float
        Seconds.
    intercept : float64 array (T,) or None
        The constant beside the codes, where the problem asked for one.
    """

    codes: np.ndarray
    scales: np.ndarray
    loss: np.ndarray
    energy: np.ndarray
    lower_bound: np.ndarray
    status: Status = Status.DONE
    method: str = ""
    bound_name: str = ""
    sweeps: int = 0
    history: tuple[Sweep, ...] = field(default=(), repr=False)
    seed: int = 0
    wall_time: float = 0.0
    intercept: np.ndarray | None = None

    @property
    def weight(self) -> np.ndarray:
        """The weights (S, T) that codes and scales stand for."""
        return combine(self.codes, self.scales)

    @property
    def relative_error(self) -> float:
        """Σloss / Σenergy; NaN for a quadratic programme, which has no energy."""
        total = float(self.energy.sum())
        return float(self.loss.sum()) / total if total > 0 else float("nan")

    @property
    def gap(self) -> np.ndarray:
        """(loss − lower bound) / |loss| per column; 0 where nothing is left to gain."""
        slack = np.maximum(self.loss - self.lower_bound, 0.0)
        slack[self.optimal] = 0.0
        return np.divide(slack, np.abs(self.loss), out=np.zeros_like(slack), where=slack > 0)

    @property
    def optimal(self) -> np.ndarray:
        """Which columns are proven optimal, to `OPTIMAL_TOLERANCE` of their energy."""
        return proven(self.loss, self.lower_bound, self.energy)

    @property
    def message(self) -> str:
        """What the status means, and what to do about it."""
        return self.status.value

    @property
    def codes_sha256(self) -> str:
        """A fingerprint of the codes, one column (filter) after the other."""
        return digest(np.ascontiguousarray(self.codes.T))

    def __repr__(self) -> str:
        size, columns = self.codes.shape[-2:]
        quality = (
            f"relative error {self.relative_error:.4g}"
            if self.energy.any()
            else f"loss {self.loss.sum():.6g}"
        )
        return (
            f"Solution({self.method}, S={size}, T={columns}, {quality}, "
            f"{int(self.optimal.sum())} of {columns} proven optimal, {self.status.name})"
        )

    @classmethod
    def join(cls, parts: list[Solution]) -> Solution:
        """The columns of several solutions of equal fan-in side by side (a layer's groups).

        Parameters
        ----------
        parts : list of Solution
        """
        if len(parts) == 1:
            return parts[0]
        worst = max(parts, key=lambda part: list(Status).index(part.status))
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=-1)
            for name in ("codes", *cls._ARRAYS, *cls._OPTIONAL)
            if getattr(parts[0], name) is not None
        }
        return cls(
            **arrays,
            status=worst.status,
            method=parts[0].method,
            bound_name=worst.bound_name,
            sweeps=max(part.sweeps for part in parts),
            seed=parts[0].seed,
            wall_time=sum(part.wall_time for part in parts),
        )

    def select(self, columns: slice | np.ndarray) -> Solution:
        """The solution of some columns only.

        Parameters
        ----------
        columns : slice, or array of indices or bool
        """
        kept = {
            name: getattr(self, name)[..., columns]
            for name in ("codes", *self._ARRAYS, *self._OPTIONAL)
            if getattr(self, name) is not None
        }
        return replace(self, **kept, history=())

    _ARRAYS = ("scales", "loss", "energy", "lower_bound")
    _OPTIONAL = ("intercept",)
    _TEXT = ("method", "bound_name")
    _NUMBERS = ("sweeps", "seed", "wall_time")

    def write(self, file: h5py.Group) -> None:
        """Write the solution into an open HDF5 group; codes take one bit each.

        Parameters
        ----------
        file : h5py.Group
        """
        write_packed(file, "codes", self.codes)
        for name in self._ARRAYS:
            file.create_dataset(name, data=getattr(self, name), fletcher32=True)
        for name in self._OPTIONAL:
            if getattr(self, name) is not None:
                file.create_dataset(name, data=getattr(self, name), fletcher32=True)
        file.create_dataset("history", data=np.array(self.history).reshape(-1, 2))
        write_attributes(file, {name: getattr(self, name) for name in self._TEXT + self._NUMBERS})
        write_attributes(file, {"status": self.status.name, "sha256": self._fingerprint()})

    def save(self, path: str | PathLike) -> None:
        """Write the solution to an HDF5 file; the file appears whole or not at all.

        Parameters
        ----------
        path : path

        Raises
        ------
        ValueError
            For a folder, or a name of another kind of file.
        """
        check_h5_target(path)
        with write_h5(path) as file:
            self.write(file)

    @classmethod
    def load(cls, path: str | PathLike) -> Solution:
        """Read a solution.

        Parameters
        ----------
        path : path

        Raises
        ------
        ValueError
            Where the file is damaged or is not a solution; it names the file.
        """
        with open_h5(path) as file:
            if "codes" not in file or "status" not in file.attrs:
                raise ValueError(f"{path}: not a solution file; it holds {sorted(file)}")
            steps = checks.finite(file["history"][()], f"{path}: damaged: history")
            history = tuple(Sweep(float(loss), int(flips)) for loss, flips in steps)
            fields: dict[str, Any] = {
                **{name: file[name][()] for name in cls._ARRAYS},
                **{name: file[name][()] for name in cls._OPTIONAL if name in file},
                **{name: str(attribute(file, name)) for name in cls._TEXT},
                **{name: attribute(file, name).item() for name in cls._NUMBERS},
            }
            solution = cls(
                codes=read_packed(file["codes"], str(path)),
                **fields,
                status=Status[attribute(file, "status")],
                history=history,
            )
            if solution._fingerprint() != attribute(file, "sha256"):
                raise ValueError(f"{path}: damaged: its contents do not match its SHA-256")
            return solution

    def _fingerprint(self) -> str:
        """Of all that the file holds."""
        history = np.array(self.history, dtype=float).reshape(-1, 2)
        return digest(vars(self) | {"status": self.status.name, "history": history})
