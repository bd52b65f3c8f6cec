"""A circuit breaker that is half open: exactly as many probes as were asked for, and never none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from amb_core import CircuitBreaker, Message, MessageBus

from tests.core._help import Collector, eventually, stays
from tests.core._scripted import ScriptedBroker

pytestmark = pytest.mark.anyio
AT_ONCE = CircuitBreaker(failure_threshold=1, recovery_timeout=0.1)


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


@asynccontextmanager
async def connected(broker: ScriptedBroker, **options: Any) -> AsyncIterator[MessageBus]:
    async with MessageBus(broker, drain_timeout=1, **options) as bus:
        yield bus


async def test_unsettled_manual_messages_do_not_keep_the_breaker_from_trying(broker: ScriptedBroker) -> None:
    collector = Collector()

    async def handler(message: Message) -> None:
        await collector(message)
        if message.data == "fails":
            raise LookupError("no")

    async with connected(broker) as bus:
        await bus.subscribe("t", handler, group="g", ack_mode="manual", circuit_breaker=AT_ONCE)
        feed = await broker.feed()
        feed.hand("left open")
        await collector.wait()
        feed.hand("fails")
        await collector.wait(2)
        await eventually(lambda: bus.host.supervised[0].consumer.breakers[0].state == "half_open", "half open")
        feed.hand("probe")
        await collector.wait(3)


async def test_subscriptions_that_share_a_breaker_share_its_probes(broker: ScriptedBroker) -> None:
    running, go_on = list[str](), anyio.Event()

    async def handler(message: Message) -> None:
        if message.data == "fails":
            raise LookupError("no")
        running.append(message.data)
        await go_on.wait()

    async with connected(broker, circuit_breaker=AT_ONCE) as bus:
        await bus.subscribe("t", handler, group="a")
        await bus.subscribe("t", handler, group="b")
        first, second = await broker.feed(1), await broker.feed(2)
        first.hand("fails")
        await eventually(lambda: bus.breaker("t").state == "half_open", "half open")
        first.hand("a")
        second.hand("b")
        await eventually(lambda: running, "a probe")
        await stays(lambda: len(running) == 1, "a second probe", 0.2)
        go_on.set()
        await eventually(lambda: len(running) == 2, "the other one, when the breaker has closed")


async def test_a_probe_that_is_filtered_out_leaves_its_place_to_another_subscription(broker: ScriptedBroker) -> None:
    collector = Collector()

    async def fail(message: Message) -> None:
        raise LookupError("no")

    def only_failures(message: Message) -> bool:
        return bool(message.data == "fails")

    async with connected(broker, circuit_breaker=AT_ONCE) as bus:
        await bus.subscribe("t", fail, group="a", filter=only_failures)
        await bus.subscribe("t", collector, group="b")
        first, second = await broker.feed(1), await broker.feed(2)
        first.hand("fails")
        await eventually(lambda: bus.breaker("t").state == "half_open", "half open")
        first.hand("filtered")
        second.hand("probe")
        await collector.wait()
        assert bus.breaker("t").state == "closed"


async def test_a_subscription_that_ends_leaves_the_breaker_to_the_others(broker: ScriptedBroker) -> None:
    collector, go_on = Collector(), anyio.Event()

    async def handler(message: Message) -> None:
        if message.data == "fails":
            raise LookupError("no")
        await go_on.wait()

    async with connected(broker, circuit_breaker=AT_ONCE) as bus, anyio.create_task_group() as group:
        ending = await bus.subscribe("t", handler, group="a")
        await bus.subscribe("t", collector, group="b")
        first, second = await broker.feed(1), await broker.feed(2)
        first.hand("fails")
        await eventually(lambda: bus.breaker("t").state == "half_open", "half open")
        first.hand("probe")
        await eventually(lambda: bus.stats.delivered == 2, "the probe")
        second.hand("waits")
        await stays(lambda: not collector.messages, "a second probe", 0.1)
        group.start_soon(ending.unsubscribe)
        go_on.set()
        await collector.wait()
