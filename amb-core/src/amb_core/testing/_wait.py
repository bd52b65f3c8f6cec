"""Waiting for a condition with a deadline, and watching that one never comes true."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

#: How often a condition is looked at, in seconds.
PACE = 0.01


async def eventually(condition: Callable[[], object], what: str | Callable[[], str], within: float = 10.0) -> float:
    """Seconds until `condition()` was true. Raises: AssertionError with `what` after `within` seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {within:g} s: {text}")
        await anyio.sleep(PACE)
    return time.monotonic() - began


async def stays(condition: Callable[[], object], what: str | Callable[[], str], seconds: float) -> None:
    """Watch for `seconds` that `condition()` stays true. Raises: AssertionError with `what` if not."""
    began = time.monotonic()
    while True:
        if not condition():
            text = what() if callable(what) else what
            raise AssertionError(f"after {time.monotonic() - began:.2f} s of {seconds:g} s: {text}")
        if time.monotonic() - began >= seconds:
            return
        await anyio.sleep(PACE)
