"""The governor: gives an order every so often, on the lane that overtakes everything that waits."""

from __future__ import annotations

import secrets

import msgspec

from amb_core import Message, MessageBus, MessagePriority

from .messages import Done, Order
from .rollcall import answer_as
from .tell import tell

EVERY = 20


def governor(bus: MessageBus) -> None:
    """Give an order with every twentieth announcement and one when all are made; say how many there were."""
    answer_as(bus, "governor")
    announced: set[str] = set()
    run, orders, total = secrets.token_hex(4), 0, -1

    async def look() -> None:
        nonlocal orders
        due = len(announced) // EVERY + (len(announced) == total)
        while orders < due:
            orders += 1
            await say("agents.work.order", Order(orders), f"order-{orders}", MessagePriority.CRITICAL)
        if len(announced) == total:
            await say("agents.governor.done", Done(orders), "done", MessagePriority.NORMAL)

    async def say(topic: str, data: Order | Done, name: str, priority: MessagePriority) -> None:
        await tell(bus, Message(topic, data, id=f"{run}-{name}", priority=priority, sender="governor"))

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
