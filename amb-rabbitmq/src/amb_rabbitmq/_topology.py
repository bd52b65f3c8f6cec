"""Exchanges, queues and delay levels: what is made, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar

import anyio
from aiormq import Channel
from amb_core.broker import Source
from amb_core.errors import Unavailable
from pamqp.common import FieldValue

from ._errors import translate
from ._link import Link
from ._wire import EXPRESS, Names
from .broker import LEVELS, UNIT

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["Topology"]

T = TypeVar("T")

#: Seconds until the library has noted down why a channel was closed.
_REASON = 1.0
_QUORUM = {"x-queue-type": "quorum"}


class Topology:
    """Declares on a link. Everything is durable and stays, but for the queues of ungrouped sources."""

    def __init__(self, options: RabbitMQBroker, link: Link, names: Names) -> None:
        self._options, self._link, self.names = options, link, names
        self._levels, self._lock = 0, anyio.Lock()
        self._channel: Channel | None = None

    async def start(self) -> None:
        """Make the exchanges."""
        maker = await self._maker(f"make the exchange {self.names.normal!r}")
        await maker.exchange(self.names.normal, "topic")
        await maker.exchange(self.names.express, "topic")
        await maker.exchange(self.names.back, "direct")
        await maker.done()

    async def _maker(self, doing: str) -> Maker:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._link.channel(doing)
        return Maker(self._link, self._channel, doing, self._options.auto_create)

    async def queues(self, channel: Channel, source: Source) -> list[str]:
        """The queues of a source, bound: one, or an express queue and a normal one."""
        names, pattern = self.names, source.pattern
        doing = f"subscribe to {pattern!r}"
        if source.group is None:
            maker = Maker(self._link, channel, doing, True)
            # Nobody else's, gone with the connection, and with real priorities.
            queue = await maker.private_queue({"x-max-priority": 5})
            for exchange in (names.normal, names.express):
                await maker.bind(queue, exchange, pattern)
            await maker.done()
            return [queue]
        maker = Maker(self._link, channel, doing, self._options.auto_create)
        ordered = source.ordered_by is not None
        queue = names.queue(source.group, pattern, ordered)
        if ordered:
            # One queue, one member at a time: an express queue would let a key's messages overtake each other.
            await self._group(maker, queue, pattern, [names.normal, names.express], ordered)
            await maker.done()
            return [queue]
        await self._group(maker, queue + EXPRESS, pattern, [names.express], ordered)
        await self._group(maker, queue, pattern, [names.normal], ordered)
        await maker.done()
        return [queue + EXPRESS, queue]

    async def _group(self, maker: Maker, queue: str, pattern: str, exchanges: list[str], ordered: bool) -> None:
        # The core counts attempts; RabbitMQ 4 would drop a message after 20 of its own counting.
        arguments: dict[str, FieldValue] = {**_QUORUM, "x-delivery-limit": 1_000_000}
        if self._options.replicas:
            arguments["x-quorum-initial-group-size"] = self._options.replicas
        if ordered:
            arguments["x-single-active-consumer"] = True
        await maker.queue(queue, arguments)
        for exchange in exchanges:
            await maker.bind(queue, exchange, pattern)
        await maker.bind(queue, self.names.back, queue)

    async def delays(self, units: int) -> str:
        """Make the levels that a delay needs; returns the exchange of the highest.

        A message waits in each level whose bit is set in its key, from the highest down, and then leaves."""
        highest = units.bit_length() - 1
        async with self._lock:
            if self._levels <= highest:
                maker = await self._maker("make delay levels")
                if not self._levels:
                    await self._exits(maker)
                for number in range(self._levels, highest + 1):
                    await self._level(maker, number)
                await maker.done()
                self._levels = highest + 1
        return self.names.level(highest)

    async def _level(self, maker: Maker, number: int) -> None:
        name = self.names.level(number)
        below = self.names.level(number - 1) if number else self.names.delayed
        arguments: dict[str, FieldValue] = {
            **_QUORUM,
            "x-message-ttl": round(UNIT * 1000) * 2**number,
            "x-dead-letter-exchange": below,
            # Without both of these RabbitMQ dead-letters at most once.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        await maker.exchange(name, "topic")
        await maker.queue(name, arguments)
        before = "_amb.*." + "*." * (LEVELS - 1 - number)
        await maker.bind(name, name, f"{before}1.#" if number else f"{before}1")
        await maker.join(below, name, f"{before}0.#" if number else f"{before}0")

    async def _exits(self, maker: Maker) -> None:
        names = self.names
        await maker.exchange(names.delayed, "topic")
        for exchange in (names.normal, names.express, names.back):
            await maker.join(exchange, names.delayed, f"_amb.{names.exit(exchange)}.#")


class Maker:
    """Makes things that last on a channel or, where it may not, sees that they are there. Nothing is sure before
    `done`: the server is told everything in one go."""

    def __init__(self, link: Link, channel: Channel, doing: str, may: bool) -> None:
        self._link, self._channel, self._doing, self._may = link, channel, doing, may

    async def exchange(self, name: str, kind: str) -> None:
        """An exchange."""
        await self._ask(
            self._channel.exchange_declare(name, exchange_type=kind, durable=True, passive=not self._may, nowait=True)
        )

    async def queue(self, name: str, arguments: dict[str, FieldValue]) -> None:
        """A queue that stays."""
        await self._ask(
            self._channel.queue_declare(name, durable=True, arguments=arguments, passive=not self._may, nowait=True)
        )

    async def private_queue(self, arguments: dict[str, FieldValue]) -> str:
        """A queue that ends with the connection; returns the name that the server gives it."""
        declaring = self._channel.queue_declare("", exclusive=True, auto_delete=True, arguments=arguments)
        return str((await self._ask(declaring)).queue)

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        """What `exchange` gets with such a key goes into `queue`."""
        if self._may:
            await self._ask(self._channel.queue_bind(queue, exchange, key, nowait=True))

    async def join(self, exchange: str, source: str, key: str) -> None:
        """What `source` gets with such a key goes on to `exchange`."""
        if self._may:
            await self._ask(self._channel.exchange_bind(exchange, source, key, nowait=True))

    async def done(self) -> None:
        """Return when the server has done all of it. Raises: AmbError."""
        await self._ask(self._channel.basic_qos(prefetch_count=1))

    async def _ask(self, request: Awaitable[T]) -> T:
        try:
            return await self._link.call(self._doing, request)
        except Unavailable:
            # The server may have closed the channel over something that it was told before.
            closing = self._channel.closing
            await asyncio.wait([closing], timeout=_REASON)
            if closing.done() and not closing.cancelled() and (reason := closing.exception()) is not None:
                raise translate(reason, self._doing) from reason
            raise
