"""A live connection: publishing, subscribing and health."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from amb_core.broker import Connection, Feed, Outgoing, Source, is_inbox
from amb_core.concurrency import require_asyncio
from amb_core.errors import AmbError, NotFound, PartialFailure

from ._client import Aws, aws
from ._elections import Elections
from ._feed import SqsFeed
from ._names import EXPRESS
from ._poll import Lane, Polls
from ._queues import Queues
from ._routes import Routes

if TYPE_CHECKING:
    from .broker import SQSBroker

__all__ = ["connect"]

logger = logging.getLogger("amb.sqs")

#: What leaving a feed may take, and what polls may take to end when the connection does, seconds.
_LEAVING, _ENDING = 3.0, 2.0


@asynccontextmanager
async def connect(options: SQSBroker) -> AsyncIterator[Connection]:
    """See `amb_core.broker.Broker.connect`."""
    require_asyncio("SQSBroker")
    async with aws(options) as clients:
        connection = SqsConnection(options, clients)
        await connection.start()
        try:
            yield connection
        finally:
            with anyio.move_on_after(_LEAVING, shield=True):
                await connection.polls.close()


class SqsConnection:
    """`Connection`, `Elects` and `ReportsHealth` on SQS."""

    def __init__(self, options: SQSBroker, clients: Aws) -> None:
        self._options, self._aws = options, clients
        self._queues = Queues(options, clients)
        self._topic: str | None = None
        self._routes = Routes(options, clients, self._queues, None)
        self.polls = Polls(clients, min(_ENDING, options.wait_time_seconds))
        elections = Elections(options, clients, self._queues)
        #: See `amb_core.broker.Elects`.
        self.acquire, self.renew, self.release = elections.acquire, elections.renew, elections.release

    async def start(self) -> None:
        """Ask for what the options need. Raises: AmbError."""
        if self._options.use_sns_fanout:
            self._topic = await self._find_topic()
            self._routes = Routes(self._options, self._aws, self._queues, self._topic)
        await self.ping()

    async def _find_topic(self) -> str:
        name = f"{self._options.sns_topic_prefix}messages{'.fifo' if self._options.use_fifo else ''}"
        if self._options.auto_create:
            return await self._aws.create_topic(name, self._options.use_fifo)
        found = await self._aws.find_topic(name)
        if found is None:
            raise NotFound(f"there is no SNS topic {name!r}: make it, or let AMB do it (auto_create=True)")
        return found

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """See `amb_core.broker.Connection.send`."""
        errors = await self._routes.send(batch)
        if errors:
            if len(errors) == len(batch) and len({type(error) for error in errors.values()}) == 1:
                raise errors[min(errors)]
            raise PartialFailure(errors)

    @asynccontextmanager
    async def open(self, source: Source) -> AsyncIterator[Feed]:
        """See `amb_core.broker.Connection.open`."""
        lanes, name = await self._lanes(source)
        subscription = None
        if self._topic is not None and not is_inbox(source.pattern):
            subscription = await self._aws.subscribe(self._topic, lanes[-1].url)
        if name is not None:
            await self._queues.known(name)
        feed = SqsFeed(self._options, self._aws, self._queues, self.polls, source, lanes)
        try:
            yield feed
        finally:
            with anyio.move_on_after(_LEAVING, shield=True):
                await feed.stop()
                if source.group is None and not feed.broken:
                    await self._remove(lanes, subscription)

    async def _lanes(self, source: Source) -> tuple[list[Lane], str | None]:
        """The queues of the source, which exist; and the name by which publishers must find the last of them."""
        if is_inbox(source.pattern):
            return [Lane(await self._queues.by_name(await self._queues.inbox(source.pattern)), 3)], None
        if self._options.one_queue:
            return [Lane(await self._queues.the_one(True), 3)], None
        if source.group is not None:
            name = await self._queues.group(source.pattern, source.group)
        else:
            name = await self._queues.alone(source.pattern, source.id)
        lanes = [Lane(await self._queues.by_name(name), 3)]
        if self._options.priority_lanes:
            lanes.insert(0, Lane(await self._queues.by_name(name + EXPRESS), 0))
        return lanes, name

    async def _remove(self, lanes: Sequence[Lane], subscription: str | None) -> None:
        try:
            if subscription is not None:
                await self._aws.unsubscribe(subscription)
            for lane in lanes:
                self._queues.forget(lane.url.rpartition("/")[2])
                await self._aws.delete_queue(lane.url)
        except AmbError as error:
            logger.warning("a queue without a subscriber is left behind, for an hour: %s", error)

    async def ping(self) -> Mapping[str, str]:
        """See `amb_core.broker.ReportsHealth.ping`."""
        began = time.perf_counter()
        if self._options.one_queue:
            await self._aws.queue_arn(await self._queues.the_one())
        else:
            await self._queues.listening("amb.health", now=True)
        facts = {"region": self._options.region or "the AWS configuration's"}
        return facts | {"latency": f"{(time.perf_counter() - began) * 1000:.1f} ms"}
