"""Calls a function again and again."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from math import ceil

import anyio

from ._audit import Auditor
from ._life import Work

log = logging.getLogger("amb.kernel")


def repeat(function: Callable[[], Awaitable[object]], interval: float, auditor: Auditor, agent: str) -> Work:
    """The work of calling `function` at once and then every `interval` seconds, for ever."""

    async def work() -> None:
        due = anyio.current_time()
        while True:
            try:
                await function()
            except Exception as error:
                name = getattr(function, "__qualname__", repr(function))
                log.exception("the schedule %s of agent %r failed; it is called again", name, agent)
                detail = {"schedule": name, "error": f"{type(error).__name__}: {error}"}
                await auditor.note("schedule.failed", agent, detail=detail)
            missed = ceil(max(anyio.current_time() - due, 0.0) / interval)
            due += interval * max(missed, 1)
            await anyio.sleep_until(due)

    return work
