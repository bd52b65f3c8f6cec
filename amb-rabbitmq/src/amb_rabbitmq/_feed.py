"""A feed: consumers on the queues of one source, and what they have been handed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiormq.abc import AbstractChannel, DeliveredMessage
from amb_core.broker import Incoming, Settlement, Source
from amb_core.concurrency import Wakeup, bounded
from amb_core.errors import AmbError, LeaseLost, PartialFailure, Unavailable
from amb_core.lanes import Lanes

from ._errors import NATIVE, translate
from ._link import Link
from ._publisher import Parcel, Publisher
from ._topology import Topology
from ._wire import Names, again, from_native, lane

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["QueueFeed"]

#: A receive returns empty after this, seconds, having heard from the server.
_WAIT = 4.0
_serial = itertools.count()


class QueueFeed:
    """`Feed` on RabbitMQ. The server pushes, but never more than the core has said that it will hold."""

    def __init__(
        self,
        options: RabbitMQBroker,
        link: Link,
        topology: Topology,
        publisher: Publisher,
        names: Names,
        source: Source,
    ) -> None:
        self._options, self._link, self._topology, self._names = options, link, topology, names
        self._publisher, self._source = publisher, source
        self._doing = f"receive from {source.pattern!r}"
        # A delivery tag means nothing on another channel, so it is told apart by the feed's number.
        self._number = next(_serial)
        self._channel: AbstractChannel | None = None
        self._broken: AmbError | None = None
        self._news = Wakeup()
        self._waiting: Lanes[DeliveredMessage] = Lanes()
        self._held: dict[int, DeliveredMessage] = {}
        self._queues: dict[str, str] = {}

    async def start(self) -> None:
        """Declare, bind and consume; returns when the server has answered all of it."""
        doing = f"subscribe to {self._source.pattern!r}"
        self._link.watchers.add(self._news.set)
        self._channel = channel = await self._link.channel(doing)
        channel.closing.add_done_callback(self._closed)
        channel.on_consumer_cancel_callbacks.add(self._deleted)
        queues = await self._topology.queues(channel, self._source, doing)
        await self._link.call(doing, channel.basic_qos(prefetch_count=min(self._source.max_in_flight, 65535)))
        for queue in queues:
            tag = f"amb-{self._number}-{len(self._queues)}"
            self._queues[tag] = queue
            await self._link.call(doing, channel.basic_consume(queue, self._arrived, consumer_tag=tag))

    async def stop(self) -> None:
        """Close the channel: the server gives what was not settled to the others."""
        self._link.watchers.discard(self._news.set)
        channel = self._channel
        if channel is None or channel.is_closed:
            return
        await self._link.call(self._doing, channel.close())

    def _closed(self, closing: asyncio.Future[object]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self._break(translate(error, self._doing) if error else Unavailable(f"{self._doing}: the channel was closed"))

    def _deleted(self, _: object) -> None:
        self._break(Unavailable(f"{self._doing}: the queue was deleted; it is made again"))

    def _break(self, error: AmbError) -> None:
        self._broken = self._broken or error
        self._news.set()

    async def _arrived(self, message: DeliveredMessage) -> None:
        self._waiting.push(lane(message), message)
        self._news.set()

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        if not self._waiting:
            self._check()
            if wait:
                await self._more()
        return [self._hold(self._waiting.pop()) for _ in range(min(limit, len(self._waiting)))]

    def _check(self) -> None:
        self._link.check()
        if self._broken is not None:
            raise self._broken

    async def _more(self) -> None:
        try:
            await bounded(self._news.wait(), _WAIT)
        except TimeoutError:
            await self._link.pulse()
        if not self._waiting:
            self._check()

    def _hold(self, message: DeliveredMessage) -> Incoming:
        tag = message.delivery.delivery_tag
        assert tag is not None
        self._held[tag] = message
        return from_native(message, (self._number, tag))

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`. What is to come again is stored first."""
        errors: dict[int, AmbError] = {}
        known: dict[int, DeliveredMessage] = {}
        for i, outcome in enumerate(outcomes):
            if (message := self._find(outcome, errors, i)) is not None:
                known[i] = message
        copies = {i: self._copy(message, outcomes[i]) for i, message in known.items() if outcomes[i].verdict == "retry"}
        # What is done does not wait for what has to be stored: that may take as long as publishing does.
        rest = [i for i in known if i not in copies]
        await self._answer(outcomes, known, rest, errors)
        if copies:
            failed = await self._store(copies)
            errors.update(failed)
            await self._answer(outcomes, known, [i for i in copies if i not in failed], errors)
        if errors:
            raise PartialFailure(dict(errors))

    def _find(self, outcome: Settlement, errors: dict[int, AmbError], i: int) -> DeliveredMessage | None:
        number, tag = outcome.token if isinstance(outcome.token, tuple) else (None, None)
        if number != self._number or self._broken is not None:
            errors[i] = LeaseLost(f"{self._doing}: the server took the delivery back when the connection broke")
            return None
        return self._held.get(tag) if isinstance(tag, int) else None

    def _copy(self, message: DeliveredMessage, outcome: Settlement) -> Parcel:
        tag = message.delivery.consumer_tag or ""
        queue = self._queues[tag]
        parcel = Parcel(self._names.back, queue, message.body, again(message, outcome.attempt), self._source.pattern)
        parcel.delay = outcome.delay
        return parcel

    async def _store(self, copies: dict[int, Parcel]) -> dict[int, AmbError]:
        try:
            async with asyncio.timeout(self._options.response_timeout):
                return await self._publisher.send(copies)
        except TimeoutError:
            error: AmbError = Unavailable(f"{self._doing}: a retry could not be stored in time; it is tried again")
        except AmbError as failed:
            error = failed
        return dict.fromkeys(copies, error)

    async def _answer(
        self,
        outcomes: Sequence[Settlement],
        known: dict[int, DeliveredMessage],
        chosen: Sequence[int],
        errors: dict[int, AmbError],
    ) -> None:
        assert self._channel is not None
        for i in chosen:
            tag = known[i].delivery.delivery_tag
            assert tag is not None
            try:
                last = i == chosen[-1]
                if outcomes[i].verdict == "release":
                    await self._channel.basic_nack(tag, requeue=True, wait=last)
                else:
                    await self._channel.basic_ack(tag, wait=last)
            except NATIVE as error:
                errors[i] = translate(error, self._doing)
            except asyncio.CancelledError as error:
                failed = self._link.cancelled(self._doing, error)
                if failed is error:
                    raise
                errors[i] = translate(error, self._doing)
            else:
                self._held.pop(tag, None)
