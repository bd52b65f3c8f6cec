"""Elections on Service Bus beside what the conformance kit asks of everybody."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from amb_azure import AzureServiceBusBroker
from amb_core import MessageBus
from amb_core.errors import NotFound
from azure.servicebus.aio.management import ServiceBusAdministrationClient

pytestmark = pytest.mark.anyio
Make = Callable[..., AzureServiceBusBroker]


async def test_a_queue_that_was_deleted_gives_no_older_token(
    make: Make, topic: str, admin: ServiceBusAdministrationClient
) -> None:
    async with MessageBus(make(topic_name=topic)) as bus:
        elections = await bus.elections()
        first = await elections.acquire("lead", 30)
        await admin.delete_queue(f"{topic}.elections")
        second = await elections.acquire("lead", 30)
        assert first is not None and second is not None and second > first
        assert not await elections.renew("lead", first, 30)


async def test_without_the_right_to_make_it_the_missing_queue_is_named(make: Make, topic: str) -> None:
    async with MessageBus(make(topic_name=topic)):
        pass  # makes the topic
    async with MessageBus(make(topic_name=topic, auto_create=False)) as bus:
        with pytest.raises(NotFound, match=rf"{topic}.elections.*sessions.*5 seconds"):
            await (await bus.elections()).acquire("lead", 30)
