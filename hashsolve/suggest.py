"""What a misspelt name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: "; did you mean 'dcc'?", or nothing where no name is near.

    >>> did_you_mean("dc", ["sign", "dcc"]), did_you_mean("x", ["sign", "dcc"])
    ("; did you mean 'dcc'?", '')
    """
    import difflib

    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
