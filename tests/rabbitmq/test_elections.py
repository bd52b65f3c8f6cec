"""Elections on RabbitMQ beside what the conformance kit asks of everybody."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from aio_pika.abc import AbstractChannel
from amb_core import MessageBus, UnsupportedError
from amb_core.errors import NotFound
from amb_rabbitmq import RabbitMQBroker

pytestmark = pytest.mark.anyio


async def test_a_name_is_held_for_as_long_each_time(broker: RabbitMQBroker) -> None:
    async with MessageBus(broker) as bus:
        elections = await bus.elections()
        token = await elections.acquire("lead", 5)
        assert token is not None
        assert await elections.renew("lead", token, 1)
        with pytest.raises(UnsupportedError, match=r"'lead'.*5 s each time.*not for 6 s"):
            await elections.renew("lead", token, 6)


async def test_what_is_over_is_not_made_anew_by_who_had_it(broker: RabbitMQBroker, native: AbstractChannel) -> None:
    """Nor is the one of a successor deleted."""
    queue = f"{broker.exchange}.election/lead"
    async with MessageBus(broker) as bus:
        elections = await bus.elections()
        first = await elections.acquire("lead", 30)
        assert first is not None
        await native.queue_delete(queue)
        assert not await elections.renew("lead", first, 30)
        async with MessageBus(broker) as another:
            successor = await (await another.elections()).acquire("lead", 30)
            assert successor is not None and successor > first
            await elections.release("lead", first)
            assert not await elections.renew("lead", first, 30)
            assert await elections.acquire("lead", 30) is None


async def test_where_nothing_may_be_made_the_missing_queue_is_named(make: Callable[..., RabbitMQBroker]) -> None:
    async with MessageBus(make()):
        pass  # makes the exchanges
    async with MessageBus(make(auto_create=False)) as bus:
        elections = await bus.elections()
        for _ in range(2):  # and the name is not held for that
            with pytest.raises(NotFound, match=rf"{make().exchange}\.elections"):
                await elections.acquire("lead", 30)
