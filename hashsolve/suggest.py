"""What a misspelt name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: "; did you mean 'dcc'?", or nothing where no name is near.

    >>> did_you_mean("dc", ["sign", "dcc"]), did_you_mean("x", ["sign", "dcc"])
    ("; did you mean 'dcc'?", '')
    >>> did_you_mean("DCC", ["sign", "dcc"])
    "; did you mean 'dcc'?"
    """
    import difflib

    cased = {item.lower(): item for item in known}
    near = difflib.get_close_matches(str(name).lower(), cased, n=1)
    return f"; did you mean {cased[near[0]]!r}?" if near else ""
