"""Where the data for measuring and testing are: not part of the product."""

from __future__ import annotations

import os
from pathlib import Path


def shared_data(name: str) -> Path:
    """A file under the folder that HASHSOLVE_DATA names, else under ../shared/data.

    Raises FileNotFoundError where it is not there.
    """
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("HASHSOLVE_DATA", default)) / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; name its folder in HASHSOLVE_DATA")
    return path
