"""Links that are opened and closed together, as each takes its second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusReceiver, ServiceBusSender


@asynccontextmanager
async def opened(*links: ServiceBusSender | ServiceBusReceiver) -> AsyncIterator[None]:
    """They are open for as long as the block lasts."""
    try:
        await asyncio.gather(*(link.__aenter__() for link in links))
        yield
    finally:
        await asyncio.gather(*(link.close() for link in links))


async def refusals(*links: ServiceBusSender | ServiceBusReceiver) -> list[BaseException | None]:
    """Why each of them could not be opened."""
    tried = await asyncio.gather(*(link.__aenter__() for link in links), return_exceptions=True)
    await asyncio.gather(*(link.close() for link in links))
    return [result if isinstance(result, BaseException) else None for result in tried]


async def one(receiver: ServiceBusReceiver, within: float = 10) -> ServiceBusReceivedMessage:
    """The next message. Raises: AssertionError if none comes."""
    found = await receiver.receive_messages(1, max_wait_time=within)
    assert len(found) == 1
    return found[0]


async def texts(receiver: ServiceBusReceiver, count: int) -> list[str]:
    """The bodies of that many messages, completed, and of what comes after them unasked."""
    found: list[str] = []
    while len(found) < count:
        some = await receiver.receive_messages(count, max_wait_time=5)
        assert some, f"only {found} came"
        for message in some:
            await receiver.complete_message(message)
        found += [str(message) for message in some]
    return found + [str(message) for message in await receiver.receive_messages(max_wait_time=0.1)]
