"""FIFO queues, SNS, one queue for everything."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus, UnsupportedError
from amb_sqs import SQSBroker

from tests.core._help import Collector, eventually, stays

from .conftest import Make, Native

pytestmark = pytest.mark.anyio


async def test_fifo_keeps_the_order_of_keys_over_members(make: Make, native: Native, prefix: str) -> None:
    broker, order = make(use_fifo=True), dict[str | None, list[Any]]()

    async def work(message: Message) -> None:
        await anyio.sleep(0.002 * (message.data % 3))
        order.setdefault(message.key, []).append(message.data)

    async with MessageBus(broker) as one, MessageBus(broker) as two, MessageBus(broker) as publisher:
        for bus in (one, two):
            await bus.subscribe("log", work, group="g", ordered_by="key", concurrency=4)
        assert await native.queues() == [f"{prefix}log-_g.fifo"]
        for number in range(40):
            await publisher.publish("log", number, key=f"k{number % 4}")
        await eventually(lambda: sum(map(len, order.values())) == 40, lambda: f"{order}", 30)
    assert order == {f"k{key}": [number for number in range(40) if number % 4 == key] for key in range(4)}


async def test_fifo_keeps_the_order_of_a_topic_without_keys(make: Make) -> None:
    seen = Collector()
    async with MessageBus(make(use_fifo=True)) as bus:
        await bus.subscribe("log", seen, group="g", concurrency=1)
        for number in range(25):
            await bus.publish("log", number)
        await seen.wait(25, 30)
    assert seen.data == list(range(25))


@pytest.mark.parametrize(("by_content", "received"), [(False, [1, 2]), (True, [1])])
async def test_fifo_drops_copies(make: Make, by_content: bool, received: list[int]) -> None:
    seen = Collector()
    async with MessageBus(make(use_fifo=True, content_based_deduplication=by_content)) as bus:
        await bus.subscribe("log", seen, group="g", concurrency=1)
        await bus.publish(Message(topic="log", payload="same", id="a"))
        await bus.publish(Message(topic="log", payload="same", id="a"))
        await bus.publish(Message(topic="log", payload="same", id="b"))
        await seen.wait(len(received))
        await stays(lambda: len(seen.messages) == len(received), "a copy came", 1.0)


async def test_fifo_delays_and_retries(make: Make) -> None:
    seen, began = Collector(RuntimeError("fails on purpose"), failures=1), anyio.current_time()
    async with MessageBus(make(use_fifo=True)) as bus:
        await bus.subscribe("log", seen, group="g", retries=3, retry_delay=0.5)
        await bus.publish("log", 1, delay=2.0)
        await seen.wait(2, 20)
    assert anyio.current_time() - began > 2.5
    assert [message.attempt for message in seen.messages] == [1, 2]


async def test_standard_queues_refuse_order(broker: SQSBroker) -> None:
    with pytest.raises(UnsupportedError, match="order per key"):
        await MessageBus(broker).subscribe("log", Collector(), group="g", ordered_by="key")


@pytest.mark.parametrize("fifo", [False, True])
async def test_sns_hands_every_message_to_everybody(make: Make, fifo: bool) -> None:
    broker = make(use_sns_fanout=True, use_fifo=fifo)
    group, other, wild, exact = Collector(), Collector(), Collector(), Collector()
    async with MessageBus(broker) as bus, MessageBus(broker) as publisher:
        await bus.subscribe("orders.created", group, group="billing")
        await bus.subscribe("orders.created", other, group="shipping")
        await bus.subscribe("orders.#", wild)
        await bus.subscribe("orders.paid", exact)
        bus.responder("ask")(lambda message: message.data + 1)
        await bus.connect()
        await publisher.publish("orders.created", 1)
        await publisher.publish("orders.paid", 2)
        await publisher.publish("unrelated", 3)
        assert (await publisher.request("ask", 5, timeout=10)).data == 6
        for seen, wanted in ((group, [1]), (other, [1]), (wild, [1, 2]), (exact, [2])):
            await eventually(lambda: sorted(seen.data) == wanted, lambda: f"{seen.data}", 10)  # noqa: B023
        await stays(lambda: len(wild.messages) == 2 and group.data == [1], "more came than was asked for", 1.0)


async def test_sns_delays_by_hiding(make: Make) -> None:
    seen, began = Collector(), anyio.current_time()
    async with MessageBus(make(use_sns_fanout=True)) as bus:
        await bus.subscribe("later", seen, group="g")
        await bus.publish("later", 1, delay=1.5)
        (message,) = await seen.wait()
    assert anyio.current_time() - began > 1.5 and message.attempt == 1


async def test_one_queue_serves_every_topic(make: Make, native: Native, prefix: str) -> None:
    broker = make(queue_name=f"{prefix}all")
    left, right = Collector(), Collector()
    async with MessageBus(broker) as one, MessageBus(broker) as two:
        await one.subscribe("left.*", left)
        await two.subscribe("right.#", right)
        for number in range(10):
            await one.publish(f"left.{number}", number)
            await two.publish(f"right.{number}", number)
        await left.wait(10, 20)
        await right.wait(10, 20)
        assert await native.queues() == [f"{prefix}all"]
        two.responder("ask")(lambda message: message.data + 1)
        await two.connect()
        assert (await one.request("ask", 1, timeout=20)).data == 2
    assert sorted(left.data) == sorted(right.data) == list(range(10))


async def test_one_queue_keeps_what_nobody_here_wants(make: Make, native: Native, prefix: str) -> None:
    await native.make(f"{prefix}all")
    seen = Collector()
    async with MessageBus(make(queue_url=await native.url(f"{prefix}all"), visibility_timeout=2)) as bus:
        await bus.subscribe("mine", seen)
        await bus.publish("mine", 1)
        await bus.publish("somebody.elses", 2)
        await seen.wait()
        await stays(lambda: seen.data == [1], "it was handed to somebody else", 3.0)
    assert await native.count(f"{prefix}all") == 1
    late = Collector()
    async with MessageBus(make(queue_name=f"{prefix}all")) as bus:
        await bus.subscribe("somebody.elses", late)
        (message,) = await late.wait(1, 30)
    assert (message.data, message.attempt) == (2, 1)


async def test_one_queue_takes_foreign_messages_and_counts_attempts(make: Make, native: Native, prefix: str) -> None:
    await native.make(f"{prefix}all")
    seen = Collector(RuntimeError("fails on purpose"), failures=2)
    async with MessageBus(make(queue_name=f"{prefix}all")) as bus:
        await bus.subscribe("jobs", seen, retries=5, retry_delay=0.1)
        await native.send(f"{prefix}all", {"plain": True})
        await seen.wait(3, 20)
    assert [message.attempt for message in seen.messages] == [1, 2, 3]
    assert seen.data == [{"plain": True}] * 3
    assert await native.count(f"{prefix}all") == 0


async def test_one_fifo_queue(make: Make, native: Native, prefix: str) -> None:
    seen = Collector(RuntimeError("fails on purpose"), failures=1)
    async with MessageBus(make(queue_name=f"{prefix}all", use_fifo=True)) as bus:
        await bus.subscribe("jobs", seen, retries=3, retry_delay=0.01, concurrency=1)
        for number in range(3):
            await bus.publish("jobs", number)
        await seen.wait(4, 20)
    assert await native.queues() == [f"{prefix}all.fifo"]
    assert sorted(seen.data) == [0, 0, 1, 2]
