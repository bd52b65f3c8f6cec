"""Health tells "connected" from "consuming", per subscription; statistics count what happened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus
from amb_core.errors import Unavailable

from tests.core._faulty import FaultyBroker
from tests.core._help import DLQ, Collector, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def broker() -> AsyncIterator[FaultyBroker]:
    faulty = FaultyBroker()
    async with faulty.inner.connect():
        yield faulty


async def test_an_unconnected_bus_is_unhealthy_and_asking_does_not_connect_it() -> None:
    bus = MessageBus()
    bus.subscriber("t")(Collector())
    health = await bus.health()
    assert (health.status, health.connected, health.broker) == ("unhealthy", False, "InMemoryBroker")
    assert [(each.pattern, each.consuming) for each in health.subscriptions] == [("t", False)]
    assert not bus.connected


async def test_a_working_bus_is_healthy_and_gives_facts() -> None:
    async with MessageBus() as bus:
        subscription = await bus.subscribe("a.*", Collector(), group="g")
        health = await bus.health()
    assert (health.status, health.connected) == ("healthy", True)
    (each,) = health.subscriptions
    assert (each.id, each.pattern, each.group, each.consuming, each.error) == (subscription, "a.*", "g", True, None)
    assert float(health.details["latency_ms"]) < 3000 and health.details["broker"] == "memory"


async def test_running_handlers_and_deliveries_in_flight_are_counted() -> None:
    go_on = anyio.Event()

    async def slow(message: Message) -> None:
        await go_on.wait()

    async with MessageBus() as bus:
        subscription = await bus.subscribe("t", slow, group="g", concurrency=3)
        for number in range(5):
            await bus.publish("t", number)
        await eventually(lambda: subscription.health().running == 3, "three running")
        health = subscription.health()
        assert (health.in_flight, health.running, health.consuming, health.paused) == (3, 3, True, False)
        go_on.set()
        await eventually(lambda: bus.stats.acked == 5, "the end")
        assert subscription.health().in_flight == 0


async def test_connected_but_not_consuming_is_degraded_and_says_why(broker: FaultyBroker) -> None:
    async with MessageBus(broker) as bus:
        await bus.subscribe("fine", Collector())
        await bus.subscribe("t", Collector())
        broker.receive_errors = [Unavailable("this queue is being moved")]
        broker.open_errors = [Unavailable("this queue is being moved")] * 1000
        await bus.publish("t", "wakes the feed")
        await bus.publish("t", "so that it asks again")
        await eventually(lambda: not all(s.consuming for s in map(_health, bus._live)), "the feed to be lost")
        health = await bus.health()
    assert (health.status, health.connected) == ("degraded", True)
    (broken,) = [each for each in health.subscriptions if not each.consuming]
    assert broken.error == "this queue is being moved"


def _health(subscription: Any) -> Any:
    return subscription.health()


async def test_a_lost_broker_is_unhealthy_and_healthy_when_it_is_back(broker: FaultyBroker) -> None:
    async with MessageBus(broker) as bus:
        subscription = await bus.subscribe("t", Collector())
        broker.cut()
        await eventually(lambda: not bus.connected, "the loss to be noticed")
        assert (await bus.health()).status == "unhealthy"
        assert subscription.health().error
        broker.mend()
        await eventually(lambda: bus.connected and subscription.health().consuming, "the recovery")
        assert (await bus.health()).status == "healthy"


async def test_a_paused_subscription_consumes_nothing_and_is_not_ill() -> None:
    async with MessageBus() as bus:
        subscription = await bus.subscribe("t", Collector())
        subscription.pause()
        (each,) = (await bus.health()).subscriptions
        assert each.paused and (await bus.health()).status == "healthy"


async def test_statistics_add_up() -> None:
    async with MessageBus(dead_letter_queue=DLQ) as bus:

        async def handler(message: Message) -> None:
            if message.data == "bad" or (message.data == "once" and message.attempt == 1):
                raise LookupError("no")

        await bus.subscribe("t", handler, group="g", retries=1, retry_delay=0, filter=lambda m: m.data != "filtered")
        for data in ("fine", "once", "bad", "filtered"):
            await bus.publish("t", data)
        await eventually(lambda: bus.stats.acked == 3 and bus.stats.dead_lettered == 1, lambda: f"{bus.stats}")
        stats = bus.stats
    assert (stats.published, stats.delivered, stats.acked, stats.retried) == (4, 6, 3, 2)
    assert (stats.failed, stats.dead_lettered, stats.filtered, stats.dropped, stats.expired) == (3, 1, 1, 0, 0)
