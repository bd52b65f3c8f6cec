"""A broker that fails when told to: for the core's reconnecting, not in place of any backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec
from amb_core import Capabilities, InMemoryBroker
from amb_core.broker import Connection, Feed, Incoming, Outgoing, Settlement, Source
from amb_core.errors import AccessDenied, ConnectionLost, PartialFailure, Unavailable


class FaultyBroker:
    """The memory broker behind a line that can be cut. Claims to be reached over a network."""

    def __init__(self) -> None:
        self.inner = InMemoryBroker()
        self.up = True
        #: Raised instead of connecting; `hangs`: never answers.
        self.refuses: Exception | None = None
        self.hangs = False
        #: Raised by the next sends, opens, receives and settles, one each; None: that one goes well.
        self.send_errors: list[Exception | None] = []
        self.open_errors: list[Exception | None] = []
        self.receive_errors: list[Exception | None] = []
        self.settle_errors: list[Exception | None] = []
        #: Indexes in the next batch that are refused for good.
        self.refused: set[int] = set()
        self.attempts = 0
        self._lines: set[_Line] = set()

    def __repr__(self) -> str:
        return "FaultyBroker()"

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(self.inner.capabilities, single_process=False, no_responders=False)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        self.attempts += 1
        if self.hangs:
            await anyio.sleep_forever()
        if self.refuses is not None:
            raise self.refuses
        if not self.up:
            raise Unavailable("the line is cut")
        async with self.inner.connect() as connection:
            line = _Line(self, connection)
            self._lines.add(line)
            try:
                yield line
            finally:
                self._lines.discard(line)

    def cut(self, stay_down: bool = True) -> None:
        """Every connection is lost, and none can be made until `mend`."""
        self.up = not stay_down
        for line in self._lines:
            line.cut()

    def mend(self) -> None:
        self.up = True


class _Line:
    """A connection that can be cut."""

    def __init__(self, broker: FaultyBroker, connection: Connection) -> None:
        self.broker, self._connection = broker, connection
        self._cut = False
        self.waiting: set[anyio.CancelScope] = set()

    def cut(self) -> None:
        self._cut = True
        for scope in self.waiting:
            scope.cancel()

    def check(self, errors: list[Exception | None]) -> None:
        if self._cut:
            raise ConnectionLost("the line was cut")
        error = errors.pop(0) if errors else None
        if error is not None:
            raise error

    async def send(self, batch: Sequence[Outgoing]) -> None:
        await anyio.sleep(0)
        self.check(self.broker.send_errors)
        refused, self.broker.refused = self.broker.refused, set()
        await self._connection.send([outgoing for index, outgoing in enumerate(batch) if index not in refused])
        if refused:
            raise PartialFailure(dict.fromkeys(refused, AccessDenied("not this one")))

    @asynccontextmanager
    async def open(self, source: Source) -> AsyncIterator[Feed]:
        self.check(self.broker.open_errors)
        async with self._connection.open(source) as feed:
            yield _Feed(self, feed)


class _Feed:
    def __init__(self, line: _Line, feed: Feed) -> None:
        self._line, self._feed = line, feed

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        self._line.check(self._line.broker.receive_errors)
        with anyio.CancelScope() as scope:
            self._line.waiting.add(scope)
            try:
                return await self._feed.receive(limit, wait)
            finally:
                self._line.waiting.discard(scope)
        raise ConnectionLost("the line was cut")

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        self._line.check(self._line.broker.settle_errors)
        await self._feed.settle(outcomes)
