"""Did you mean …?"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that says what could have been meant, or what there is; empty if there is nothing."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": it has {', '.join(names)}" if names else ""
