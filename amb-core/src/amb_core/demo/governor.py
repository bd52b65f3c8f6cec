"""The governor: gives an order every so often, on the lane that overtakes everything that waits."""

from __future__ import annotations

from amb_core import Message, MessageBus, MessagePriority

from .messages import Order
from .rollcall import answer_as

EVERY = 20


def governor(bus: MessageBus) -> None:
    """Count the announcements; give an order with every twentieth, and one when all is announced."""
    answer_as(bus, "governor")
    announced = orders = 0

    async def give_order() -> None:
        nonlocal orders
        orders += 1
        await bus.publish("agents.work.order", Order(orders), priority=MessagePriority.CRITICAL, sender="governor")

    @bus.subscriber("agents.work.*", concurrency=1)
    async def count(message: Message) -> None:
        nonlocal announced
        if message.topic != "agents.work.order":
            announced += 1
            if announced % EVERY == 0:
                await give_order()

    @bus.subscriber("agents.reader.done")
    async def all_announced(message: Message) -> None:
        await give_order()
