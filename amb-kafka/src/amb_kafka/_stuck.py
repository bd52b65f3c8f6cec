"""Notices that a member asks for nothing: all of its handlers are busy, and have been for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Stuck"]

#: Seconds without a question after which a member is busy, if it is asked.
_BUSY = 0.1
#: Seconds after which it says so by itself. Each time doubles them, so that handlers that take a little longer than
#: this do not keep the group dealing.
_FIRST, _LAST = 1.0, 60.0


class Stuck:
    """A watch on `Feed.receive`."""

    def __init__(self, matters: Callable[[], bool], tell: Callable[[], None]) -> None:
        self._matters, self._tell = matters, tell
        self._loop = asyncio.get_running_loop()
        #: When the last question was answered; 0: one is being answered.
        self._since = 0.0
        self._patience = _FIRST
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> bool:
        """Whether the member is busy."""
        return self._since > 0 and self._loop.time() - self._since > _BUSY

    @contextmanager
    def not_now(self) -> Iterator[None]:
        """While a question is answered, it is not."""
        self._since = 0.0
        try:
            yield
        finally:
            self._since = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_later(self._patience, self._look)

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if not self._since:
            return
        left = self._since + self._patience - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._matters():
            self._patience = min(2 * self._patience, _LAST)
            self._tell()
