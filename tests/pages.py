"""The README and the pages of the documentation, as tests read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str) -> list[str]:
    """A page's blocks of code in a language, by its path from the root."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def run(page: str, names: dict) -> dict:
    """Execute a page's Python, block after block, in one namespace."""
    code = blocks(page, "python")
    assert code, f"{page}: no Python"
    for number, block in enumerate(code, start=1):
        exec(compile(block, f"<{page}, block {number}>", "exec"), names)
    return names


def commands(page: str) -> list[list[str]]:
    """The arguments of the `hashsolve` commands in a page's bash blocks that work on files."""
    return [
        line.split("#")[0].split()[1:]
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if re.match(r"hashsolve (solve|verify|inspect)", line)
    ]
