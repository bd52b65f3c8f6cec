"""The governor: gives an order every so often, on the lane that overtakes everything that waits."""

from __future__ import annotations

import msgspec

from amb_core import Message, MessageBus, MessagePriority

from .messages import Done, Order
from .rollcall import answer_as

EVERY = 20


def governor(bus: MessageBus) -> None:
    """Give an order with every twentieth announcement and one when all are made; say how many there were."""
    answer_as(bus, "governor")
    announced: set[str] = set()
    orders, total = 0, -1

    async def look() -> None:
        nonlocal orders
        due = len(announced) // EVERY + (len(announced) == total)
        while orders < due:
            orders += 1
            await bus.publish("agents.work.order", Order(orders), priority=MessagePriority.CRITICAL, sender="governor")
        if len(announced) == total:
            await bus.publish("agents.governor.done", Done(orders), sender="governor")

    @bus.subscriber("agents.work.*", concurrency=1)
    async def count(message: Message) -> None:
        if message.topic != "agents.work.order":
            announced.add(message.id)
            await look()

    @bus.subscriber("agents.reader.done")
    async def all_announced(message: Message) -> None:
        nonlocal total
        total = msgspec.convert(message.data, Done).total
        await look()
