"""A live connection: publishing, subscribing and health."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from amb_core.broker import Connection, Feed, Outgoing, Source, is_inbox
from amb_core.concurrency import require_asyncio
from amb_core.errors import AccessDenied, AmbError, NotFound, PartialFailure
from azure.servicebus import ServiceBusMessage

from ._client import Client
from ._elections import Elections
from ._entities import Entities
from ._feed import SubscriptionFeed
from ._publisher import Publisher
from ._sessions import SessionsFeed
from ._wire import session_of, sessions_of, to_native

if TYPE_CHECKING:
    from .broker import AzureServiceBusBroker

__all__ = ["connect"]

#: What leaving a feed may take, seconds.
_LEAVING = 6.0


@asynccontextmanager
async def connect(options: AzureServiceBusBroker) -> AsyncIterator[Connection]:
    """See `amb_core.broker.Broker.connect`."""
    require_asyncio("AzureServiceBusBroker")
    # It reports every lost link with a traceback; what matters is in the errors it raises.
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    async with AsyncExitStack() as stack:
        connection = ServiceBusConnection(options, Client(options, stack))
        stack.push_async_callback(connection.stop)
        await connection.start()
        yield connection


class ServiceBusConnection:
    """`Connection`, `Elects` and `ReportsHealth` on Service Bus. Each link is a connection of its own."""

    def __init__(self, options: AzureServiceBusBroker, client: Client) -> None:
        self._options, self._client = options, client
        self._entities = Entities(options, client)
        self._publisher = Publisher(options, client)
        self._spread = itertools.count()
        self._resting: dict[str, SubscriptionFeed] = {}
        self._elections = Elections(options, client, self._entities)
        #: See `amb_core.broker.Elects`.
        self.acquire, self.renew = self._elections.acquire, self._elections.renew
        self.release = self._elections.release

    async def start(self) -> None:
        """Open the sender. Raises: AmbError."""
        try:
            await self._publisher.open()
        except AccessDenied:
            return  # who may only listen finds out when it publishes
        except NotFound:
            if not self._options.auto_create:
                raise
            await self._entities.make_topic()
            await self._publisher.open()

    async def stop(self) -> None:
        """Close the sender, and leave the sessions of elections."""
        try:
            await self._elections.stop()
        finally:
            await self._publisher.close()

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """See `amb_core.broker.Connection.send`. Every publish is confirmed."""
        spread = next(self._spread)
        messages: dict[int, ServiceBusMessage] = {}
        for i, message in enumerate(batch):
            key = None if is_inbox(message.topic) else message.key
            session = session_of(key, self._options.sessions, spread)
            messages[i] = to_native(message, session, self._options.duplicate_detection > 0)
        doing = f"publish to {batch[0].topic!r}" + (f" and {len(batch) - 1} more" if len(batch) > 1 else "")
        errors = await self._publisher.send(messages, doing)
        if errors:
            first = next(iter(errors.values()))
            if len(errors) == len(batch) and all(type(error) is type(first) for error in errors.values()):
                raise first
            raise PartialFailure(dict(errors))

    @asynccontextmanager
    async def open(self, source: Source) -> AsyncIterator[Feed]:
        """See `amb_core.broker.Connection.open`."""
        # A feed that broke knows what is still being handled, and its locks outlive the link.
        feed: SubscriptionFeed | SessionsFeed | None = self._resting.pop(source.id, None)
        if feed is None or feed.source != source:
            feed = self._feed(source)
        try:
            await feed.start()
            yield feed
        finally:
            if feed.broken and isinstance(feed, SubscriptionFeed):
                self._resting[source.id] = feed
            with anyio.move_on_after(_LEAVING, shield=True):
                await self._left(feed)

    def _feed(self, source: Source) -> SubscriptionFeed | SessionsFeed:
        if sessions_of(source):
            return SessionsFeed(self._options, self._entities, source)
        return SubscriptionFeed(self._options, self._entities, self._publisher, source)

    async def _left(self, feed: SubscriptionFeed | SessionsFeed) -> None:
        try:
            await feed.stop()
        except AmbError as error:
            logging.getLogger("amb.azure").warning("leaving: %s", error)

    async def ping(self) -> Mapping[str, str]:
        """See `amb_core.broker.ReportsHealth.ping`."""
        began = time.perf_counter()
        await self._publisher.pulse()
        return {"latency": f"{(time.perf_counter() - began) * 1000:.2f} ms"}
