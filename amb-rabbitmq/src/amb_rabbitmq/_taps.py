"""Consumers that are turned on and off: the server pushes, and still nothing ages here that others could have."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Sequence

import anyio
import msgspec
from aiormq import Channel
from aiormq.abc import DeliveredMessage
from amb_core.concurrency import Wakeup
from amb_core.errors import AmbError
from amb_core.lanes import Lanes
from pamqp.commands import Basic

from ._link import Link
from ._wire import lane

__all__ = ["Delivery", "Tap", "Taps"]

#: What nobody has asked for within this many seconds goes back to the queue, where other members find it.
_AGED = 0.25
#: Seconds that what has just been settled may take to make room.
_ROOM = 0.01
#: The most places that fit into the field of the protocol.
_MOST = 65535


class Tap(msgspec.Struct):
    """A consumer on one queue. The server pushes at most `places` deliveries that are not settled."""

    queue: str
    tag: str
    places: int
    unsettled: int = 0


class Delivery(msgspec.Struct, frozen=True):
    """A message, and where it came from."""

    tap: Tap
    tag: int
    message: DeliveredMessage


class Taps:
    """The consumers of a feed, and what they brought that has not been asked for."""

    def __init__(self, link: Link, channel: Channel, name: str, doing: str, *, gives_back: bool, ordered: bool) -> None:
        self._link, self._channel, self._name, self._doing = link, channel, name, doing
        self._gives_back, self._ordered = gives_back, ordered
        self._taps: dict[str, Tap | None] = {}
        self._serial, self._turning = itertools.count(), anyio.Lock()
        self._asked, self._watched = 0, False
        self.waiting: Lanes[Delivery] = Lanes()
        self.news = Wakeup()
        self.broken: AmbError | None = None

    def fail(self, error: AmbError) -> None:
        """Nothing more comes."""
        self.broken = self.broken or error
        self.news.set()

    def check(self) -> None:
        """Raises: AmbError, if nothing more can come."""
        self._link.check()
        if self.broken is not None:
            raise self.broken

    async def turn_on(self, queues: Sequence[str], places: int) -> None:
        """Consume from the queues. A consumer that there is makes way for one with as many places more."""
        places = min(places, _MOST)
        for queue in queues:
            old, tap = self._taps.get(queue), Tap(queue, f"{self._name}-{next(self._serial)}", places)
            await self._link.call(self._doing, self._channel.basic_qos(prefetch_count=places))
            self._taps[queue] = tap
            arrived = functools.partial(self._arrived, tap)
            await self._link.call(self._doing, self._channel.basic_consume(queue, arrived, consumer_tag=tap.tag))
            if old is not None:
                await self._link.call(self._doing, self._channel.basic_cancel(old.tag))

    async def ask(self, limit: int) -> None:
        """Make sure that as many deliveries could come. Not to be cancelled: the server would close the channel."""
        self._asked += 1
        if self.waiting or not self._lacking() or (None not in self._taps.values() and await self.comes_within(_ROOM)):
            return
        with anyio.CancelScope(shield=True):
            async with self._turning:
                await self.turn_on(self._lacking(), limit)

    def _lacking(self) -> list[str]:
        """Queues without a consumer, or where all its places are taken though the core has more."""
        return [
            queue
            for queue, tap in self._taps.items()
            if tap is None or (tap.unsettled >= tap.places and not self._ordered)
        ]

    async def comes_within(self, seconds: float) -> bool:
        """Whether a delivery comes. Raises: AmbError, when none can come any more."""
        until = time.monotonic() + seconds
        # Less than half the price of a time limit, which every message would pay that comes alone.
        alarm = asyncio.get_running_loop().call_later(seconds, self.news.set)
        try:
            while not self.waiting and time.monotonic() < until:
                self.check()
                await self.news.wait()
        finally:
            alarm.cancel()
        return bool(self.waiting)

    async def stored(self) -> bool:
        """Whether the server has something that no consumer has got."""
        with anyio.CancelScope(shield=True):
            for queue in self._taps:
                if await self._count(queue):
                    return True
        return False

    async def counted(self) -> int:
        """How much the server has that no consumer has got."""
        count = 0
        with anyio.CancelScope(shield=True):
            for queue in list(self._taps):
                count += await self._count(queue)
        return count

    async def _count(self, queue: str) -> int:
        """Not to be cancelled: the client would close the channel."""
        found = await self._link.call(self._doing, self._channel.queue_declare(queue, passive=True))
        return found.message_count or 0

    async def _arrived(self, tap: Tap, message: DeliveredMessage) -> None:
        assert isinstance(message.delivery, Basic.Deliver)
        tap.unsettled += 1
        self.waiting.push(lane(message), Delivery(tap, message.delivery.delivery_tag or 0, message))
        self.news.set()
        if self._gives_back and not self._watched:
            self._watched = True
            try:
                await self._watch()
            except AmbError as error:
                self.fail(error)
            finally:
                self._watched = False

    async def _watch(self) -> None:
        """See to it that nothing waits for long. Runs in the library's own task for the delivery that came first."""
        while self.waiting:
            asked = self._asked
            await anyio.sleep(_AGED)
            if asked == self._asked and self.waiting:
                async with self._turning:
                    await self._give_back()

    async def _give_back(self) -> None:
        for queue, tap in self._taps.items():
            if tap is not None:
                self._taps[queue] = None
                await self._link.call(self._doing, self._channel.basic_cancel(tap.tag))
        while self.waiting:
            delivery = self.waiting.pop()
            delivery.tap.unsettled -= 1
            await self._link.call(self._doing, self._channel.basic_nack(delivery.tag, requeue=True, wait=False))
