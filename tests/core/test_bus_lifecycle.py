"""Connecting and leaving: from any task, any number of times, and with nothing touched before."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest
from amb_core import BusClosed, Message, MessageBus

from tests.core._help import Collector, eventually

pytestmark = pytest.mark.anyio


def test_building_a_bus_touches_no_event_loop() -> None:
    bus = MessageBus()
    bus.subscriber("t")(Collector())
    bus.responder("r")(Collector())
    bus.on("message.dropped")(print)
    assert not bus.connected


def test_one_bus_works_in_one_event_loop_after_another() -> None:
    bus, collector = MessageBus(), Collector()
    bus.subscriber("t")(collector)

    async def main(number: int) -> None:
        async with bus:
            await bus.publish("t", number)

    for number in range(3):
        asyncio.run(main(number))
    assert collector.data == [0, 1, 2]


async def test_a_bus_connects_when_it_is_first_used() -> None:
    bus = MessageBus()
    assert await bus.publish("t", 1)
    assert bus.connected
    await bus.disconnect()


async def test_a_subscriber_declared_before_connecting_gets_the_first_message() -> None:
    bus, collector = MessageBus(), Collector()
    bus.subscriber("t")(collector)
    await bus.publish("t", 1)
    await bus.disconnect()
    assert collector.data == [1]


async def test_connecting_and_disconnecting_twice_is_harmless() -> None:
    bus = MessageBus()
    await bus.connect()
    await bus.connect()
    await bus.disconnect()
    await bus.disconnect()
    assert not bus.connected


async def test_disconnecting_a_bus_that_was_never_connected_is_harmless() -> None:
    await MessageBus().disconnect()


async def test_twenty_tasks_may_connect_and_disconnect_at_once() -> None:
    bus = MessageBus()
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(bus.connect)
    assert bus.connected
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(bus.disconnect)
    assert not bus.connected


async def test_a_bus_may_be_connected_in_one_task_and_disconnected_in_another() -> None:
    bus, collector = MessageBus(), Collector()
    async with anyio.create_task_group() as group:
        group.start_soon(bus.connect)
    await bus.subscribe("t", collector)
    async with anyio.create_task_group() as group:
        group.start_soon(bus.publish, "t", 1)
    async with anyio.create_task_group() as group:
        group.start_soon(bus.disconnect)
    assert collector.data == [1]


async def test_the_task_that_connected_may_be_cancelled_without_ending_the_bus() -> None:
    bus, collector = MessageBus(), Collector()
    async with anyio.create_task_group() as group:

        async def connect_and_linger() -> None:
            await bus.connect()
            await anyio.sleep_forever()

        group.start_soon(connect_and_linger)
        await eventually(lambda: bus.connected, "the connection")
        group.cancel_scope.cancel()
    await bus.subscribe("t", collector)
    await bus.publish("t", 1)
    await bus.disconnect()
    assert collector.data == [1]


async def test_a_disconnected_bus_says_what_to_do() -> None:
    bus = MessageBus()
    async with bus:
        pass
    with pytest.raises(BusClosed, match=r"connect\(\)"):
        await bus.publish("t", 1)
    with pytest.raises(BusClosed):
        await bus.subscribe("t", Collector())
    with pytest.raises(BusClosed):
        await bus.request("t", 1)


async def test_declared_subscribers_live_again_after_reconnecting_and_others_do_not() -> None:
    bus, declared, direct = MessageBus(), Collector(), Collector()
    bus.subscriber("t")(declared)
    async with bus:
        await bus.subscribe("t", direct)
        await bus.publish("t", 1)
    async with bus:
        await bus.publish("t", 2)
    assert (declared.data, direct.data) == ([1, 2], [1])


async def test_leaving_waits_for_a_handler_that_runs() -> None:
    finished = []

    async def slow(message: Message) -> None:
        await anyio.sleep(0.2)
        finished.append(message.data)

    async with MessageBus() as bus:
        await bus.subscribe("t", slow)
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.delivered, "the delivery")
    assert finished == [1]


async def test_what_handlers_publish_while_the_bus_drains_is_handled_too() -> None:
    last = Collector()
    async with MessageBus() as bus:

        async def first(message: Message) -> None:
            await anyio.sleep(0.05)
            await bus.publish("second", message.data)

        await bus.subscribe("first", first)
        await bus.subscribe("second", last)
        await bus.publish("first", 1)
    assert last.data == [1]


async def test_leaving_gives_up_on_a_hanging_handler_after_the_grace_time() -> None:
    async def hang(message: Message) -> None:
        await anyio.sleep_forever()

    bus = MessageBus(drain_timeout=0.2)
    await bus.subscribe("t", hang)
    await bus.publish("t", 1)
    await eventually(lambda: bus.stats.delivered, "the delivery")
    begin = time.monotonic()
    await bus.disconnect()
    assert 0.15 < time.monotonic() - begin < 3


async def test_what_never_started_goes_to_another_member_without_spending_an_attempt() -> None:
    from amb_core import InMemoryBroker

    broker, held, other = InMemoryBroker(), anyio.Event(), Collector()

    async def slow(message: Message) -> None:
        await held.wait()

    async with MessageBus(broker) as stays:
        leaving = MessageBus(broker)
        await leaving.subscribe("work", slow, group="g", concurrency=2)
        for number in range(6):
            await stays.publish("work", number)
        await eventually(lambda: leaving.stats.delivered == 2, "two started")
        await stays.subscribe("work", other, group="g")
        async with anyio.create_task_group() as group:
            group.start_soon(leaving.disconnect)
            await other.wait(4)
            held.set()
    assert sorted(other.data) == [2, 3, 4, 5]
    assert {message.attempt for message in other.messages} == {1}


async def test_an_error_inside_the_context_leaves_it_unchanged() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with MessageBus():
            raise LookupError("mine")


async def test_cancelling_the_context_still_drains() -> None:
    collector = Collector()
    with anyio.move_on_after(5) as scope:
        async with MessageBus() as bus:
            await bus.subscribe("t", collector, group="g")
            for number in range(10):
                await bus.publish("t", number)
            scope.cancel()
            await anyio.sleep_forever()
    assert sorted(collector.data) == list(range(10))


async def test_run_forever_ends_when_somebody_disconnects() -> None:
    bus, collector = MessageBus(), Collector()
    bus.subscriber("t")(collector)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(bus.run_forever)
            await eventually(lambda: bus.connected, "the connection")
            await bus.publish("t", 1)
            await bus.disconnect()
    assert collector.data == [1]


async def test_two_buses_over_one_broker_object_talk_and_over_two_objects_do_not() -> None:
    from amb_core import InMemoryBroker

    broker, same, other = InMemoryBroker(), Collector(), Collector()
    async with MessageBus(broker) as one, MessageBus(broker) as two, MessageBus(InMemoryBroker()) as three:
        await two.subscribe("t", same)
        await three.subscribe("t", other)
        await one.publish("t", 1)
        await same.wait()
    assert (same.data, other.data) == ([1], [])
