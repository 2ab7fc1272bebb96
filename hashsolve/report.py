"""The report of a run: one row a layer, as JSON, CSV and text."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hashsolve.files import atomic, write_json

COLUMNS = (
    "layer",
    "shape",
    "groups",
    "rows",
    "relative_error_sign",
    "relative_error",
    "lower_bound",
    "flips",
    "sweeps",
    "status",
    "seconds",
    "bits_before",
    "bits_after",
    "codes_sha256",
    "calls",
    "shortcut",
    "constant",
)


@dataclass(frozen=True, repr=False)
class Report:
    """What a run did.

    Attributes
    ----------
    rows : list of dict
        One a layer, with the keys `COLUMNS`. ``relative_error_sign`` is that of sign(W) with
        mean |W|; ``calls`` counts those of one forward pass; ``shortcut`` says what the target
        also makes up for, ``constant`` what took up a constant a filter; ``flips`` counts codes
        that differ from sign(W); ``lower_bound`` is relative to the energy, as the errors are.
    summary : dict
        Settings, totals, versions, the SHA-256 of all codes. Whoever measures accuracy may add it,
        as ``accuracy``, a mapping of names to numbers, and `save` the report again.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"summary": self.summary, "layers": self.rows}

    def save(self, folder: str | PathLike) -> None:
        """Write report.json and report.csv into a folder.

        Parameters
        ----------
        folder : path
        """
        folder = Path(folder)
        write_json(folder / "report.json", self.to_dict())
        with atomic(folder / "report.csv") as part, open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(
                {**row, "shape": "x".join(map(str, row["shape"]))} for row in self.rows
            )

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        wide = max([23, *(len(row["layer"]) for row in self.rows)]) + 1
        head = f"{'layer':<{wide}}{'shape':>16}{'rows':>10}{'sign':>9}{'error':>9}{'bound':>9}"
        lines = [head + f"{'flips':>9}{'sweeps':>8}{'seconds':>9}"]
        for row in self.rows:
            shape = "x".join(map(str, row["shape"]))
            lines.append(
                f"{row['layer']:<{wide}}{shape:>16}{row['rows']:>10}{row['relative_error_sign']:>9.4f}"
                f"{row['relative_error']:>9.4f}{row['lower_bound']:>9.4f}"
                f"{row['flips']:>9}{row['sweeps']:>8}{row['seconds']:>9.2f}"
            )
        s = self.summary
        lines.append(
            f"mean relative error {s['mean_relative_error']:.4f}; "
            f"{s['bits_before'] / 8e3:.1f} kB -> {s['bits_after'] / 8e3:.1f} kB in binarised "
            f"layers; {s['seconds']:.1f} s; codes {s['codes_sha256'][:12]}"
        )
        return "\n".join([*lines, *s.get("remarks", ())])
