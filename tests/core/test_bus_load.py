"""Many messages, many topics, many at once: nothing lost, nothing shared, nothing spinning."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest
from amb_core import InMemoryBroker, Message, MessageBus, RequestTimeout

from tests.core._help import Collector, eventually

pytestmark = pytest.mark.anyio


async def test_five_thousand_concurrent_publishes_are_handled_once_each() -> None:
    async with MessageBus() as bus:
        collector = Collector()
        await bus.subscribe("load.topic", collector)
        async with anyio.create_task_group() as group:
            for number in range(5000):
                group.start_soon(bus.publish, "load.topic", number)
        await collector.wait(5000)
    assert sorted(collector.data) == list(range(5000))


async def test_five_thousand_concurrent_publishes_wait_for_room_in_a_small_queue() -> None:
    broker = InMemoryBroker(max_queue_size=100, backpressure_delay=0)
    async with MessageBus(broker) as bus:
        collector = Collector()
        await bus.subscribe("load.topic", collector, group="workers")
        async with anyio.create_task_group() as group:
            for number in range(5000):
                group.start_soon(bus.publish, "load.topic", number)
        await collector.wait(5000)
    assert sorted(collector.data) == list(range(5000))


@pytest.mark.parametrize("group", [None, "workers"])
async def test_fifty_publishes_are_handled_when_the_context_is_left(group: str | None) -> None:
    collector = Collector()
    async with MessageBus() as bus:
        await bus.subscribe("fifty", collector, group=group)
        for number in range(50):
            await bus.publish("fifty", number)
    assert sorted(collector.data) == list(range(50))


async def test_fifty_slow_messages_are_handled_when_the_context_is_left() -> None:
    handled: list[int] = []

    async def slow(message: Message) -> None:
        await anyio.sleep(0.01)
        handled.append(message.data)

    async with MessageBus() as bus:
        await bus.subscribe("fifty", slow, group="g", concurrency=3)
        for number in range(50):
            await bus.publish("fifty", number)
    assert sorted(handled) == list(range(50))


async def test_a_timed_out_request_calls_its_slow_responder_once() -> None:
    calls, given_up = list[str](), anyio.Event()
    async with MessageBus() as bus:

        async def slow(request: Message) -> str:
            calls.append(request.id)
            await given_up.wait()
            return "too late"

        bus.responder("slow.service", group="workers", retries=3, retry_delay=0.01)(slow)
        with pytest.raises(RequestTimeout, match=r"slow\.service"):
            await bus.request("slow.service", "hurry", timeout=1)
        given_up.set()
        await eventually(lambda: bus.stats.late_replies, "the late reply to arrive")
    assert len(calls) == 1


async def test_two_hundred_used_topics_at_rest_use_no_cpu() -> None:
    async with MessageBus() as bus:
        collector = Collector()
        for number in range(200):
            await bus.subscribe(f"rest.t{number}", collector, group="g" if number % 2 else None)
            await bus.publish(f"rest.t{number}", number)
        await collector.wait(200)
        await anyio.sleep(0.1)
        begin = time.process_time()
        await anyio.sleep(2)
        used = time.process_time() - begin
    assert used < 0.02, f"{used * 1000:.1f} ms of CPU in 2 s at rest"


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
async def test_subscribers_do_not_share_mutable_payloads(serializer: str) -> None:
    seen: list[list[Any]] = []

    async def spoil(message: Message) -> None:
        seen.append(list(message.data["items"]))
        message.data["items"].append("mine")
        message.headers["spoilt"] = "yes"

    async with MessageBus(serializer=serializer) as bus:
        await bus.subscribe("shared", spoil)
        await bus.subscribe("shared", spoil)
        await bus.subscribe("#", spoil, group="g")
        original: dict[str, list[Any]] = {"items": [1]}
        await bus.publish("shared", original)
        original["items"].append("publisher's")
    assert seen == [[1], [1], [1]]


async def test_headers_and_metadata_belong_to_one_delivery() -> None:
    seen: list[tuple[dict[str, str], dict[str, Any]]] = []

    async def spoil(message: Message) -> None:
        seen.append((dict(message.headers), dict(message.metadata)))
        message.headers["spoilt"] = "yes"
        message.metadata["spoilt"] = True

    async with MessageBus() as bus:
        await bus.subscribe("shared", spoil)
        await bus.subscribe("shared", spoil)
        await bus.publish("shared", None, headers={"a": "b"}, metadata={"n": 1})
    assert seen == [({"a": "b"}, {"n": 1})] * 2
