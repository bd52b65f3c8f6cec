"""Counts sends against rate limits, exactly."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from ._rulebook import Bound


class Limiter:
    """Remembers when each agent sent under each limited rule, for as long as that counts.

    In any stretch of ``rate.seconds`` no more than ``rate.count`` sends get through. Nothing here awaits: however
    many tasks send at once, each is counted before the next one is looked at.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent: dict[tuple[str, int, str], deque[float]] = {}

    def take(self, bounds: Sequence[Bound], name: str) -> tuple[Bound, float] | None:
        """Count one send under all of `bounds`, or under none: then returns the rule that has no room, and the
        seconds until it has."""
        now = self._clock()
        windows: list[deque[float]] = []
        for bound in bounds:
            assert bound.rate is not None
            window = self._sent.setdefault((bound.policy, bound.number, name), deque())
            while window and window[0] <= now - bound.rate.seconds:
                window.popleft()
            if len(window) >= bound.rate.count:
                return bound, window[0] + bound.rate.seconds - now
            windows.append(window)
        for window in windows:
            window.append(now)
        return None
