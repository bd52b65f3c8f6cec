"""Exchanges, queues and delay levels: what is declared, and when."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiormq.abc import AbstractChannel
from amb_core.broker import Source

from ._link import Link
from ._wire import EXPRESS, Names
from .broker import LEVELS, UNIT

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["Topology"]

_QUORUM = {"x-queue-type": "quorum"}


class Topology:
    """Declares on a link. Everything is durable and stays, but for the queues of ungrouped sources."""

    def __init__(self, options: RabbitMQBroker, link: Link, names: Names) -> None:
        self._options, self._link, self._names = options, link, names
        self._levels, self._lock = 0, asyncio.Lock()

    async def start(self) -> None:
        """Make the exchanges."""
        doing = f"make the exchange {self._names.normal!r}"
        channel = await self._link.channel(doing)
        for name, kind in ((self._names.normal, "topic"), (self._names.express, "topic"), (self._names.back, "direct")):
            await self._link.call(doing, channel.exchange_declare(name, exchange_type=kind, durable=True))
        await self._link.call(doing, channel.close())

    async def queues(self, channel: AbstractChannel, source: Source, doing: str) -> list[str]:
        """The queues of a source, bound: one, or an express queue and a normal one."""
        call, names = self._link.call, self._names
        if source.group is None:
            # Nobody else's, gone with the connection, and with real priorities.
            made = await call(
                doing, channel.queue_declare(exclusive=True, auto_delete=True, arguments={"x-max-priority": 5})
            )
            queue = str(made.queue)
            for exchange in (names.normal, names.express):
                await call(doing, channel.queue_bind(queue, exchange, source.pattern))
            return [queue]
        ordered = source.ordered_by is not None
        queue = names.queue(source.group, source.pattern, ordered)
        if ordered:
            # One queue, one member at a time: an express queue would let a key's messages overtake each other.
            await self._group(channel, queue, source.pattern, [names.normal, names.express], ordered, doing)
            return [queue]
        await self._group(channel, queue + EXPRESS, source.pattern, [names.express], ordered, doing)
        await self._group(channel, queue, source.pattern, [names.normal], ordered, doing)
        return [queue + EXPRESS, queue]

    async def _group(
        self, channel: AbstractChannel, queue: str, pattern: str, exchanges: list[str], ordered: bool, doing: str
    ) -> None:
        # The core counts attempts; RabbitMQ 4 would drop a message after 20 of its own counting.
        arguments: dict[str, object] = {**_QUORUM, "x-delivery-limit": 1_000_000}
        if self._options.replicas:
            arguments["x-quorum-initial-group-size"] = self._options.replicas
        if ordered:
            arguments["x-single-active-consumer"] = True
        await self._link.call(doing, channel.queue_declare(queue, durable=True, arguments=arguments))
        for exchange in exchanges:
            await self._link.call(doing, channel.queue_bind(queue, exchange, pattern))
        await self._link.call(doing, channel.queue_bind(queue, self._names.back, queue))

    async def delays(self, units: int) -> str:
        """Make the levels that a delay needs; returns the exchange of the highest.

        A message waits in each level whose bit is set in its key, from the highest down, and then leaves."""
        highest = units.bit_length() - 1
        async with self._lock:
            if self._levels <= highest:
                channel = await self._link.channel("make delay levels")
                while self._levels <= highest:
                    await self._level(channel, self._levels)
                    self._levels += 1
                await self._link.call("make delay levels", channel.close())
        return self._names.level(highest)

    async def _level(self, channel: AbstractChannel, number: int) -> None:
        call, doing, name = self._link.call, f"make delay level {number}", self._names.level(number)
        await call(doing, channel.exchange_declare(name, exchange_type="topic", durable=True))
        done = f"{self._names.normal}.delayed"
        if number == 0:
            await self._exits(channel, done)
        below = self._names.level(number - 1) if number else done
        arguments: dict[str, object] = {
            **_QUORUM,
            "x-message-ttl": round(UNIT * 1000) * 2**number,
            "x-dead-letter-exchange": below,
            # Without both of these RabbitMQ dead-letters at most once.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        await call(doing, channel.queue_declare(name, durable=True, arguments=arguments))
        before = "_amb.*." + "*." * (LEVELS - 1 - number)
        await call(doing, channel.queue_bind(name, name, f"{before}1.#" if number else f"{before}1"))
        await call(doing, channel.exchange_bind(below, name, f"{before}0.#" if number else f"{before}0"))

    async def _exits(self, channel: AbstractChannel, done: str) -> None:
        names, doing = self._names, "make delay levels"
        await self._link.call(doing, channel.exchange_declare(done, exchange_type="topic", durable=True))
        for exchange in (names.normal, names.express, names.back):
            key = f"_amb.{names.exit(exchange)}.#"
            await self._link.call(doing, channel.exchange_bind(exchange, done, key))
