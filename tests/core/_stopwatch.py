"""How long others took: without what this process stood still, because the machine had no time for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

#: It looks this often, seconds; what is shorter than that is not a standstill.
STEP = 0.05


class Stopwatch:
    """Notes when this event loop was late and did not compute: what it computes is ours, and counts."""

    def __init__(self) -> None:
        self._stood: list[tuple[float, float, float]] = []
        self._due, self._computed = time.monotonic(), time.process_time()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            self._look()
            self._due = time.monotonic() + STEP
            await anyio.sleep(STEP)

    def elapsed(self, since: float, until: float | None = None) -> float:
        """Seconds from one moment to another, or to now, less those that this process stood still."""
        self._look()
        end = time.monotonic() if until is None else until
        inside = [min(stood, min(last, end) - max(first, since)) for first, last, stood in self._stood]
        return end - since - sum(stood for stood in inside if stood > 0)

    def _look(self) -> None:
        now, computed = time.monotonic(), time.process_time()
        if now < self._due:
            return
        stood = now - self._due - (computed - self._computed)
        if stood > STEP:
            self._stood.append((self._due, now, stood))
        self._due, self._computed = now, computed


@asynccontextmanager
async def stopwatch() -> AsyncIterator[Stopwatch]:
    """Runs while the block does."""
    watch = Stopwatch()
    async with anyio.create_task_group() as group:
        group.start_soon(watch.run)
        yield watch
        group.cancel_scope.cancel()
