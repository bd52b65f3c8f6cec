"""What a feed is told to expect: no more than there will be places, and only by who asks for it next."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from amb_core import AckMode, CircuitBreaker, Message, MessageBus, Subscription

from tests.core._help import Collector, eventually
from tests.core._scripted import ScriptedBroker

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


@asynccontextmanager
async def connected(broker: ScriptedBroker) -> AsyncIterator[MessageBus]:
    async with MessageBus(broker, drain_timeout=1) as bus:
        yield bus


async def test_the_place_that_a_verdict_frees_is_expected_to_be_filled(broker: ScriptedBroker) -> None:
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g", concurrency=1)
        feed = await broker.feed()
        for number in range(3):
            feed.hand(number)
            await eventually(lambda: len(feed.settled) > number and feed.receiving, "the next request")  # noqa: B023
        assert feed.expected == [1, 1, 1] and feed.limits == [1, 1, 1, 1]


async def test_places_of_handlers_that_run_are_not(broker: ScriptedBroker) -> None:
    go_on = anyio.Event()

    async def handler(message: Message) -> None:
        if message.data:
            await go_on.wait()

    async with connected(broker) as bus:
        await bus.subscribe("t", handler, group="g", concurrency=3)
        feed = await broker.feed()
        feed.hand(1)
        await eventually(lambda: feed.limits == [3, 2], "a request for the other places")
        feed.hand(0)
        await eventually(lambda: len(feed.limits) == 3, "the next request")
        assert feed.expected == [2] and feed.limits == [3, 2, 2]
        go_on.set()


async def test_a_verdict_in_the_middle_of_a_handler_frees_no_place(broker: ScriptedBroker) -> None:
    told, go_on = anyio.Event(), anyio.Event()

    async def handler(message: Message) -> None:
        await message.ack()
        told.set()
        await go_on.wait()

    async with connected(broker) as bus:
        await bus.subscribe("t", handler, group="g", ack_mode=AckMode.MANUAL, concurrency=1)
        feed = await broker.feed()
        feed.hand(1)
        await told.wait()
        assert feed.verdicts() != [] and feed.expected == []
        go_on.set()


async def test_nothing_is_expected_by_a_subscription_that_pauses(broker: ScriptedBroker) -> None:
    subscription: Subscription

    async def handler(message: Message) -> None:
        subscription.pause()

    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", handler, group="g")
        feed = await broker.feed()
        feed.hand(1)
        await eventually(lambda: len(feed.settled) == 1, "its verdict")
        assert feed.expected == []


async def test_nothing_is_expected_by_a_breaker_that_opens(broker: ScriptedBroker) -> None:
    async def handler(message: Message) -> None:
        raise OSError("down")

    async with connected(broker) as bus:
        await bus.subscribe("t", handler, group="g", circuit_breaker=CircuitBreaker(failure_threshold=1))
        feed = await broker.feed()
        feed.hand(1)
        await eventually(lambda: len(feed.settled) == 1, "its verdict")
        assert feed.expected == []


async def test_nothing_is_expected_by_a_bus_that_ends(broker: ScriptedBroker) -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def handler(message: Message) -> None:
        begun.set()
        await go_on.wait()

    bus = MessageBus(broker, drain_timeout=1)
    await bus.connect()
    await bus.subscribe("t", handler, group="g")
    feed = await broker.feed()
    feed.hand(1)
    await begun.wait()
    async with anyio.create_task_group() as group:
        group.start_soon(bus.disconnect)
        await eventually(lambda: bus.host.supervised[0].consumer.stopping, "the end to begin")
        go_on.set()
    assert len(feed.settled) == 1 and feed.expected == []
