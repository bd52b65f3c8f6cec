"""The deliveries of one source."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
from amb_core.broker import Incoming, Settlement, Source, Token
from amb_core.concurrency import Wakeup
from amb_core.errors import LeaseLost, PartialFailure

from ._spool import SILENCE, Queue, translated
from .broker import AcmeBroker

#: The longest that `receive` waits.
PATIENCE = 2.0


class AcmeFeed:
    """Implements `amb_core.broker.Feed` and `ExtendsLease`."""

    def __init__(self, queue: Path, broker: AcmeBroker, source: Source) -> None:
        self._folder, self._poll = queue, broker.poll
        self._queue = Queue(queue, broker.lease if source.group is not None else None)
        self._private = source.group is None
        self._renew = time.time() + SILENCE / 3
        self._held: set[str] = set()
        # Settling twice is a no-op: the core repeats what it got no answer to.
        self._settled: deque[str] = deque(maxlen=1000)
        #: Set when this process has published something.
        self.news = Wakeup()

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        deadline = time.monotonic() + PATIENCE
        await anyio.lowlevel.checkpoint()
        while True:
            with translated(self._folder):
                taken = self._take(limit)
            if taken or not wait or time.monotonic() > deadline:
                return taken
            with anyio.move_on_after(self._poll):
                await self.news.wait()

    def _take(self, limit: int) -> list[Incoming]:
        if self._private and time.time() > self._renew:
            self._queue.alive()
            self._renew = time.time() + SILENCE / 3
        taken = self._queue.take(limit)
        self._held.update(str(one.token) for one in taken)
        return taken

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        await anyio.lowlevel.checkpoint()
        self._each(
            [str(outcome.token) for outcome in outcomes], lambda index, token: self._carry_out(outcomes[index], token)
        )

    def _carry_out(self, outcome: Settlement, token: str) -> None:
        if token in self._settled:
            return
        self._held.discard(token)
        if outcome.verdict in ("ack", "discard"):
            self._queue.remove(token)
        else:
            self._queue.give_back(token, started=outcome.verdict == "retry")
        self._settled.append(token)

    async def extend(self, tokens: Sequence[Token]) -> None:
        self._each([str(token) for token in tokens], lambda _, token: self._queue.extend(token))

    def _each(self, tokens: Sequence[str], change: Callable[[int, str], None]) -> None:
        errors: dict[int, Exception] = {}
        with translated(self._folder):
            for index, token in enumerate(tokens):
                try:
                    change(index, token)
                except LeaseLost as error:
                    errors[index] = error
        if errors:
            raise PartialFailure(errors)

    def leave(self) -> None:
        """Give back what was not settled."""
        for token in self._held:
            try:
                self._queue.give_back(token, started=True)
            except LeaseLost:
                continue
