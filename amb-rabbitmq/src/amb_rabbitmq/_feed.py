"""A feed: what the consumers of one source bring, and what became of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
from aiormq import Channel
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelInvalidStateError
from amb_core.broker import Backlog, Incoming, Settlement, Source
from amb_core.errors import AmbError, LeaseLost, PartialFailure, Unavailable
from pamqp.commands import Basic

from ._errors import translate
from ._link import Link
from ._publisher import Parcel, Publisher
from ._taps import Delivery, Tap, Taps
from ._topology import Topology
from ._wire import again, from_native

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["QueueFeed"]

#: A receive returns empty after this, seconds, having heard from the server.
_WAIT = 4.0
#: How long what the server has may take to arrive.
_ON_ITS_WAY = 1.0
_serial = itertools.count()


class QueueFeed:
    """`Feed` and `TellsBacklog` on RabbitMQ."""

    def __init__(
        self,
        options: RabbitMQBroker,
        link: Link,
        channel: Channel,
        topology: Topology,
        publisher: Publisher,
        source: Source,
    ) -> None:
        self._options, self._link, self._channel, self._topology = options, link, channel, topology
        self._publisher, self._source = publisher, source
        self._doing = f"receive from {source.pattern!r}"
        # A delivery tag means nothing on another channel, so it is told apart by the feed's number.
        self._number = next(_serial)
        ordered = source.ordered_by is not None
        # Nobody else could have what an ungrouped source gives back, and its queue goes with its consumer. An ordered
        # one that stopped consuming would hand its keys to the next member, with messages of theirs still here.
        gives_back = source.group is not None and not ordered
        name = f"amb-{self._number}"
        self._taps = Taps(link, channel, name, self._doing, gives_back=gives_back, ordered=ordered)
        self._held: dict[int, Delivery] = {}

    async def start(self) -> None:
        """Declare, bind and consume; returns when the server has answered all of it."""
        self._link.watchers.add(self._taps.news.set)
        self._channel.closing.add_done_callback(self._closed)
        self._channel.on_consumer_cancel_callbacks.add(self._deleted)
        queues = await self._topology.queues(self._channel, self._source)
        await self._taps.turn_on(queues, self._source.max_in_flight)

    async def stop(self) -> None:
        """Close the channel: the server gives what was not settled to the others."""
        self._link.watchers.discard(self._taps.news.set)
        if not self._channel.is_closed:
            await self._link.call(self._doing, self._channel.close())

    def _closed(self, closing: asyncio.Future[object]) -> None:
        error = None if closing.cancelled() else closing.exception()
        closed = Unavailable(f"{self._doing}: the channel was closed")
        self._taps.fail(closed if error is None else translate(error, self._doing))

    def _deleted(self, _: object) -> None:
        self._taps.fail(Unavailable(f"{self._doing}: the queue was deleted or has moved; it is opened again"))

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        taps = self._taps
        await taps.ask(limit)
        if not taps.waiting:
            taps.check()
            if wait:
                if not await taps.comes_within(_WAIT):
                    await self._link.pulse()
            elif await taps.stored():
                await taps.comes_within(_ON_ITS_WAY)
            if not taps.waiting:
                taps.check()
        return [self._hold(taps.waiting.pop()) for _ in range(min(limit, len(taps.waiting)))]

    def _hold(self, delivery: Delivery) -> Incoming:
        self._held[delivery.tag] = delivery
        return from_native(delivery.message, (self._number, delivery.tag))

    async def backlog(self) -> Backlog:
        """See `amb_core.broker.TellsBacklog`. The server does not say how much its consumers hold."""
        return Backlog(waiting=await self._taps.counted())

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`. What is to come again is stored first."""
        errors: dict[int, AmbError] = {}
        known = {i: found for i, outcome in enumerate(outcomes) if (found := self._find(outcome, errors, i))}
        copies = {i: self._copy(known[i], outcomes[i]) for i in known if outcomes[i].verdict == "retry"}
        # What is done does not wait for what has to be stored: that may take as long as publishing does.
        await self._answer({i: found for i, found in known.items() if i not in copies}, outcomes, errors)
        if copies:
            failed = await self._store(copies)
            errors.update(failed)
            await self._answer({i: known[i] for i in copies if i not in failed}, outcomes, errors)
        if errors:
            raise PartialFailure(dict(errors))

    def _find(self, outcome: Settlement, errors: dict[int, AmbError], i: int) -> Delivery | None:
        number, tag = outcome.token if isinstance(outcome.token, tuple) else (None, None)
        if number != self._number or self._taps.broken is not None:
            errors[i] = LeaseLost(f"{self._doing}: the server took the delivery back when the connection broke")
            return None
        return self._held.get(tag) if isinstance(tag, int) else None

    def _copy(self, delivery: Delivery, outcome: Settlement) -> Parcel:
        properties = again(delivery.message, outcome.attempt)
        body, pattern = delivery.message.body, self._source.pattern
        return Parcel(self._topology.names.back, delivery.tap.queue, body, properties, pattern, outcome.delay)

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
        self, chosen: dict[int, Delivery], outcomes: Sequence[Settlement], errors: dict[int, AmbError]
    ) -> None:
        if not chosen:
            return
        # The same one may be among them twice.
        telling = {one.tag: (one.tap, outcomes[i].verdict == "release") for i, one in chosen.items()}
        try:
            # What was written halfway must not be written again: the server would close the channel.
            with anyio.CancelScope(shield=True):
                await self._link.call(self._doing, self._tell(telling))
        except AmbError as error:
            errors.update(dict.fromkeys(chosen, error))

    async def _tell(self, telling: dict[int, tuple[Tap, bool]]) -> None:
        """Answer deliveries, in one piece. Returns when it is written."""
        channel = self._channel
        if channel.is_closed:
            raise ChannelInvalidStateError(f"channel {channel.number} was closed")
        answers = [
            Basic.Nack(tag, requeue=True) if release else Basic.Ack(tag) for tag, (_, release) in telling.items()
        ]
        written = channel.create_future()
        try:
            await channel.write_queue.put(ChannelFrame.marshall(channel.number, answers, written))
            for tag, (tap, _) in telling.items():
                tap.unsettled -= 1
                del self._held[tag]
            await written
        finally:
            written.cancel()
