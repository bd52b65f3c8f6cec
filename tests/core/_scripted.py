"""A broker that does what a test tells it, step by step: for interleavings that no real broker can be asked for.

It holds no semantics. What is published is recorded and goes nowhere; feeds yield what a test hands them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgspec
from amb_core import Capabilities
from amb_core.broker import Connection, Feed, Incoming, Outgoing, Settlement, Source, Token
from amb_core.concurrency import Future, new_future
from amb_core.errors import ConnectionLost

from tests.core._help import eventually

Hook = Callable[..., Awaitable[None]]
_tokens = count(1)


async def nothing(*_: Any) -> None:
    """What happens where a test has nothing to say."""


class ScriptedFeed:
    """Yields what `hand` was given; waits for ever otherwise, as a dead line does."""

    def __init__(self, broker: ScriptedBroker, source: Source) -> None:
        self.broker, self.source = broker, source
        self.left = False
        self.settled: list[Settlement] = []
        self.limits: list[int] = []
        self.expected: list[int] = []
        self.extended: list[Token] = []
        self._coming: deque[Incoming] = deque()
        self._error: Exception | None = None
        self._waiter: Future[None] | None = None

    def hand(self, *data: Any, **fields: Any) -> list[Token]:
        """Deliver one message per item; returns their tokens. Wakes the receiver in this very step."""
        batch = [incoming(self.source.pattern, each, **fields) for each in data]
        self._coming.extend(batch)
        self._wake()
        return [each.token for each in batch]

    def fail(self, error: Exception) -> None:
        """The next ``receive``, or the one that waits, raises."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def receiving(self) -> bool:
        return self._waiter is not None

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        self.limits.append(limit)
        while not self._coming and self._error is None:
            if not wait:
                return []
            self._waiter = new_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error
        return [self._coming.popleft() for _ in range(min(limit, len(self._coming)))]

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        assert outcomes, "an empty batch"
        await self.broker.on_settle(self, outcomes)
        self.settled.extend(outcomes)

    async def extend(self, tokens: Sequence[Token]) -> None:
        await self.broker.on_extend(self, tokens)
        self.extended.extend(tokens)

    def expect(self, limit: int) -> None:
        self.expected.append(limit)

    def verdicts(self) -> list[tuple[Token, str]]:
        return [(each.token, each.verdict) for each in self.settled]


class ScriptedConnection:
    def __init__(self, broker: ScriptedBroker) -> None:
        self.broker = broker
        self.left = False

    async def send(self, batch: Sequence[Outgoing]) -> None:
        assert batch, "an empty batch"
        await self.broker.on_send(self, batch)
        self.broker.sent.extend(batch)

    @asynccontextmanager
    async def open(self, source: Source) -> AsyncIterator[Feed]:
        await self.broker.on_open(self, source)
        feed = self.broker.feeding(self.broker, source)
        self.broker.feeds.append(feed)
        try:
            yield feed
        finally:
            await self.broker.on_leave(feed)
            feed.left = True


class ScriptedBroker:
    """Its hooks run before the step they are named for, and may wait or raise."""

    def __init__(self, **capabilities: Any) -> None:
        declared: dict[str, Any] = {
            "groups": True,
            "redelivery": "broker",
            "delay": "native",
            "order": "key",
            "delivery_count": "native",
            "durable_groups": True,
            "return_unstarted": True,
        }
        self.capabilities = Capabilities(**(declared | capabilities))
        #: What it is made of: something with optional abilities, for a test of theirs.
        self.connecting = ScriptedConnection
        self.feeding = ScriptedFeed
        self.on_connect: Hook = nothing
        self.on_disconnect: Hook = nothing
        self.on_open: Hook = nothing
        self.on_leave: Hook = nothing
        self.on_send: Hook = nothing
        self.on_settle: Hook = nothing
        self.on_extend: Hook = nothing
        self.on_withdraw: Hook = nothing
        self.connections: list[ScriptedConnection] = []
        self.feeds: list[ScriptedFeed] = []
        self.sent: list[Outgoing] = []

    def __repr__(self) -> str:
        return "ScriptedBroker()"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        await self.on_connect()
        connection = self.connecting(self)
        self.connections.append(connection)
        try:
            yield connection
        finally:
            await self.on_disconnect()
            connection.left = True

    async def feed(self, number: int = 1, pattern: str = "t") -> ScriptedFeed:
        """The `number`-th feed on `pattern`, as soon as somebody receives from it."""

        def found() -> list[ScriptedFeed]:
            return [feed for feed in self.feeds if feed.source.pattern == pattern]

        await eventually(
            lambda: len(found()) >= number and found()[number - 1].receiving,
            lambda: f"a receiver on feed {number} of {pattern!r}; there are {len(found())}",
            5,
        )
        return found()[number - 1]

    def topics(self) -> list[str]:
        return [outgoing.topic for outgoing in self.sent]


def incoming(topic: str, data: Any, headers: dict[str, str] | None = None, **fields: Any) -> Incoming:
    """A delivery as AMB's own publisher would have made it."""
    token = fields.pop("token", None) or f"token-{next(_tokens)}"
    names = {"amb-id": f"id-{token}", "content-type": "application/json"}
    return Incoming(topic, msgspec.json.encode(data), names | (headers or {}), token, **fields)


class Line:
    """What a test cuts: raises `ConnectionLost` where it is a hook, from the moment it is cut."""

    def __init__(self) -> None:
        self.cut = False

    async def __call__(self, *_: Any) -> None:
        if self.cut:
            self.cut = False
            raise ConnectionLost("the line was cut")
