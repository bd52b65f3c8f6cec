"""A broker around a broker, that does something to what passes: for tests of faults and of liars.

Everything that is not overridden goes straight through, optional abilities included.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from ..broker import Broker, Capabilities, Connection, Feed, Incoming, Outgoing, Settlement, Source, Token

__all__ = ["TamperedBroker"]

Send = Callable[[Connection, Sequence[Outgoing]], Awaitable[None]]
Receive = Callable[[Feed, int, bool], Awaitable[Sequence[Incoming]]]
Settle = Callable[[Feed, Sequence[Settlement]], Awaitable[None]]
Extend = Callable[[Feed, Sequence[Token]], Awaitable[None]]


async def _send(connection: Connection, batch: Sequence[Outgoing]) -> None:
    await connection.send(batch)


async def _receive(feed: Feed, limit: int, wait: bool) -> Sequence[Incoming]:
    return await feed.receive(limit, wait)


async def _settle(feed: Feed, outcomes: Sequence[Settlement]) -> None:
    await feed.settle(outcomes)


class TamperedBroker:
    """`inner`, with a function in the way of some of its verbs."""

    def __init__(
        self,
        inner: Broker,
        *,
        send: Send = _send,
        receive: Receive = _receive,
        settle: Settle = _settle,
        extend: Extend | None = None,
        capabilities: Capabilities | None = None,
        source: Callable[[Source], Source] = lambda source: source,
    ) -> None:
        self.inner, self.capabilities = inner, capabilities or inner.capabilities
        self._send, self._receive, self._settle, self._extend, self._source = send, receive, settle, extend, source

    def __repr__(self) -> str:
        return f"TamperedBroker({self.inner!r})"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """As the inner broker's."""
        async with self.inner.connect() as connection:
            yield _Connection(self, connection)

    def opens(self, connection: Connection, source: Source) -> AbstractAsyncContextManager[Feed]:
        """A feed whose verbs are tampered with."""
        return self._open(connection, source)

    @asynccontextmanager
    async def _open(self, connection: Connection, source: Source) -> AsyncIterator[Feed]:
        async with connection.open(self._source(source)) as feed:
            yield _Feed(feed, self._receive, self._settle, self._extend)

    async def sends(self, connection: Connection, batch: Sequence[Outgoing]) -> None:
        """A send that is tampered with."""
        await self._send(connection, batch)


def _borrow(wrapper: object, inner: object, *names: str) -> None:
    # As attributes of the instance, because that is where isinstance() with a protocol looks.
    for name in names:
        if hasattr(inner, name):
            setattr(wrapper, name, getattr(inner, name))


class _Connection:
    def __init__(self, broker: TamperedBroker, inner: Connection) -> None:
        self._broker, self._inner = broker, inner
        _borrow(self, inner, "replay", "inbox", "ping", "acquire", "renew", "release")

    async def send(self, batch: Sequence[Outgoing]) -> None:
        await self._broker.sends(self._inner, batch)

    def open(self, source: Source) -> AbstractAsyncContextManager[Feed]:
        return self._broker.opens(self._inner, source)


class _Feed:
    def __init__(self, inner: Feed, receive: Receive, settle: Settle, extend: Extend | None) -> None:
        self._inner, self._receive, self._settle = inner, receive, settle
        _borrow(self, inner, "extend", "last_consumer")
        if extend is not None:
            self.extend = functools.partial(extend, inner)

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        return await self._receive(self._inner, limit, wait)

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        await self._settle(self._inner, outcomes)


class NoDial:
    """Has a broker's capabilities, and proves that nobody tried to reach it."""

    def __init__(self, inner: Broker) -> None:
        self._inner = inner

    @property
    def capabilities(self) -> Capabilities:
        """As the inner broker's."""
        return self._inner.capabilities

    def connect(self) -> AbstractAsyncContextManager[Any]:
        """Never to be called."""
        raise AssertionError("the bus connected before it refused what the broker does not declare")
