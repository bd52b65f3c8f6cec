"""A live connection: publishing, subscribing, the inbox and health."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from aiormq.abc import DeliveredMessage
from amb_core.broker import Connection, Feed, Incoming, Outgoing, Source
from amb_core.concurrency import require_asyncio
from amb_core.errors import AmbError

from ._elections import Elections
from ._feed import QueueFeed
from ._link import Link, link
from ._publisher import Parcel, Publisher, raise_partial
from ._topology import Topology
from ._wire import Names, from_native

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["connect"]

#: What leaving a feed may take, seconds.
_LEAVING = 3.0


@asynccontextmanager
async def connect(options: RabbitMQBroker) -> AsyncIterator[Connection]:
    """See `amb_core.broker.Broker.connect`."""
    require_asyncio("RabbitMQBroker")
    async with link(options, "consuming") as consuming, link(options, "publishing") as publishing:
        connection = RabbitConnection(options, consuming, publishing)
        await connection.start()
        yield connection


class RabbitConnection:
    """`Connection`, `NativeRequests`, `Elects` and `ReportsHealth` on RabbitMQ.

    Publishing has a link of its own: one that the server blocks can settle nothing."""

    def __init__(self, options: RabbitMQBroker, consuming: Link, publishing: Link) -> None:
        self._options, self._consuming, self._publishing = options, consuming, publishing
        self._names = Names(options.exchange)
        self._topology = Topology(options, consuming, self._names)
        self._publisher = Publisher(options, publishing, self._topology, self._names)
        elections = Elections(options, consuming, self._publisher, self._names)
        #: See `amb_core.broker.Elects`.
        self.acquire, self.renew, self.release = elections.acquire, elections.renew, elections.release
        # Whichever breaks, the core makes both anew.
        consuming.watchers.add(lambda: publishing.lose(consuming.lost()))
        publishing.watchers.add(lambda: consuming.lose(publishing.lost()))

    async def start(self) -> None:
        """Make the exchanges. Raises: AmbError."""
        await self._topology.start()

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """See `amb_core.broker.Connection.send`. Every publish is confirmed."""
        now = time.time()
        errors: dict[int, AmbError] = {}
        parcels: dict[int, Parcel] = {}
        for i, message in enumerate(batch):
            try:
                parcels[i] = self._publisher.parcel(message, now)
            except AmbError as error:
                errors[i] = error
        if parcels:
            errors.update(await self._publisher.send(parcels))
        if errors:
            raise_partial(batch, errors)

    @asynccontextmanager
    async def open(self, source: Source) -> AsyncIterator[Feed]:
        """See `amb_core.broker.Connection.open`."""
        link = self._consuming
        channel = await link.channel(f"subscribe to {source.pattern!r}")
        feed = QueueFeed(self._options, link, channel, self._topology, self._publisher, source)
        try:
            await feed.start()
            yield feed
        finally:
            with anyio.move_on_after(_LEAVING, shield=True):
                await feed.stop()

    @asynccontextmanager
    async def inbox(self, address: str, deliver: Callable[[Incoming], None]) -> AsyncIterator[None]:
        """See `amb_core.broker.NativeRequests.inbox`. A queue of our own, reached by its name."""
        doing = "open the inbox for replies"

        async def arrived(message: DeliveredMessage) -> None:
            deliver(from_native(message, 0))

        channel = await self._consuming.channel(doing)
        call = self._consuming.call
        try:
            await call(doing, channel.queue_declare(address, exclusive=True, auto_delete=True))
            await call(doing, channel.basic_consume(address, arrived, no_ack=True))
            yield
        finally:
            if not channel.is_closed:
                with anyio.move_on_after(_LEAVING, shield=True):
                    await call(doing, channel.close())

    async def ping(self) -> Mapping[str, str]:
        """See `amb_core.broker.ReportsHealth.ping`."""
        began = time.perf_counter()
        await self._consuming.pulse()
        facts = self._consuming.native.server_properties
        blocked = self._publishing.blocked()
        if not blocked:
            await self._publishing.pulse()
        return {
            "version": f"RabbitMQ {_text(facts.get('version'))}",
            "cluster": _text(facts.get("cluster_name")),
            "latency": f"{(time.perf_counter() - began) * 1000:.2f} ms",
            "publishing": "blocked by the server: it is low on memory or disk" if blocked else "open",
        }


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
