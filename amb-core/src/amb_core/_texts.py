"""Texts that come from anywhere, made fit to be sent anywhere."""

from __future__ import annotations

LONGEST = 1000


def describe(error: BaseException) -> str:
    """What `error` says of itself, whatever that costs it."""
    try:
        return str(error)
    except Exception as failure:
        return f"(no text: its __str__ raised {type(failure).__name__})"


def header(text: str) -> str:
    """`text` as the headers of every broker take it: one line, whole characters, and not too long."""
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
