"""A place where the wire can be seen: the memory broker, which carries what it is given, unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from amb_core import InMemoryBroker
from amb_core.broker import Connection, Feed, Incoming, Source

__all__ = ["Wire"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Wire:
    """A client that knows nothing but the wire: no bus, no serializer."""

    def __init__(self, connection: Connection, feed: Feed) -> None:
        self.connection, self._feed = connection, feed

    async def next(self) -> Incoming:
        """The next message that travels on any topic."""
        with anyio.fail_after(10):
            [incoming] = await self._feed.receive(1)
        return incoming


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


@pytest.fixture
async def wire(broker: InMemoryBroker) -> AsyncIterator[Wire]:
    async with _wire(broker) as wire:
        yield wire


@asynccontextmanager
async def _wire(broker: InMemoryBroker) -> AsyncIterator[Wire]:
    async with broker.connect() as connection, connection.open(Source(id="wire", pattern="#")) as feed:
        yield Wire(connection, feed)
