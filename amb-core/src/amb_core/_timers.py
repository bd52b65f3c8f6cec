"""Callbacks that are due later: one sorted heap, and one task that sleeps until the first of them."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from itertools import count

import anyio

from .concurrency import Wakeup


class Timer:
    """A callback that can still be cancelled."""

    __slots__ = ("_timers", "callback")

    def __init__(self, timers: Timers, callback: Callable[[], None]) -> None:
        self._timers = timers
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Never call it. Harmless when it was called already."""
        if self.callback is not None:
            self.callback = None
            self._timers.forget_one()


class Timers:
    """Runs callbacks at their time, on the event loop's thread, while `run` runs."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = count()
        self._wakeup = Wakeup()
        self._cancelled = 0

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call `callback`, which neither blocks nor raises, in `delay` seconds."""
        timer = Timer(self, callback)
        entry = (time.monotonic() + delay, next(self._count), timer)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._wakeup.set()
        return timer

    def forget_one(self) -> None:
        """A timer was cancelled: drop cancelled ones when they are the larger part, so that a busy
        requester does not collect a heap of timeouts that never fire."""
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    async def run(self) -> None:
        """Call what falls due, until cancelled."""
        while True:
            delay = self._fire()
            if delay is None:
                await self._wakeup.wait()
            else:
                with anyio.move_on_after(delay):
                    await self._wakeup.wait()

    def _fire(self) -> float | None:
        now = time.monotonic()
        while self._heap:
            due, _, timer = self._heap[0]
            if timer.callback is not None and due > now:
                return due - now
            heapq.heappop(self._heap)
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled -= 1
            else:
                callback()
        return None
