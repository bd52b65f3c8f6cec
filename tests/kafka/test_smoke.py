"""What everybody does first, on a real Kafka."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import anyio
import pytest
from amb_core import DeadLetterQueue, Message, MessageBus
from amb_kafka import KafkaBroker

from tests.core._help import eventually

pytestmark = pytest.mark.anyio


async def test_publish_and_subscribe(broker: KafkaBroker, name: str) -> None:
    seen: list[Message] = []
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{name}.a", seen.append)
        for number in range(50):
            await bus.publish(f"{name}.a", {"n": number}, headers={"h": "v"}, key="k")
        await eventually(lambda: len(seen) == 50, "not all came", 15)
    assert sorted(one.data["n"] for one in seen) == list(range(50))
    first = seen[0]
    assert (first.topic, first.key, first.headers["h"], first.attempt) == (f"{name}.a", "k", "v", 1)


async def test_a_group_shares_and_keeps(broker: KafkaBroker, name: str) -> None:
    one: list[Any] = []
    two: list[Any] = []
    async with MessageBus(broker) as bus, MessageBus(broker) as other:
        await bus.subscribe(f"{name}.jobs", lambda message: one.append(message.data), group="workers")
        await other.subscribe(f"{name}.jobs", lambda message: two.append(message.data), group="workers")
        for number in range(100):
            await bus.publish(f"{name}.jobs", number)
        await eventually(lambda: len(one) + len(two) >= 100, "not all came", 15)
    assert sorted(one + two) == list(range(100))
    async with MessageBus(broker) as bus:
        await bus.publish(f"{name}.jobs", "while away")
        late: list[Any] = []
        await bus.subscribe(f"{name}.jobs", lambda message: late.append(message.data), group="workers")
        await eventually(lambda: bool(late), "not all came", 15)
    assert late == ["while away"]


async def test_a_request_is_answered(broker: KafkaBroker, name: str) -> None:
    async with MessageBus(broker) as bus, MessageBus(broker) as caller:

        @bus.responder(f"{name}.add")
        def add(message: Message) -> int:
            return int(message.data["a"]) + int(message.data["b"])

        await bus.connect()
        assert (await caller.request(f"{name}.add", {"a": 2, "b": 4}, timeout=10)).data == 6


async def test_a_retry_comes_later_and_a_dead_letter_at_last(broker: KafkaBroker, name: str) -> None:
    calls: list[tuple[int, float]] = []
    dead: list[Message] = []

    def fail(message: Message) -> None:
        calls.append((message.attempt, time.monotonic()))
        raise RuntimeError("fails on purpose")

    async with MessageBus(broker, dead_letter_queue=DeadLetterQueue(f"{name}.dead")) as bus:
        await bus.subscribe(f"{name}.dead", dead.append)
        await bus.subscribe(f"{name}.jobs", fail, group="workers", retries=2, retry_delay=0.3)
        await bus.publish(f"{name}.jobs", "poison")
        await eventually(lambda: bool(dead), "not all came", 15)
    assert [attempt for attempt, _ in calls] == [1, 2, 3]
    assert all(later - earlier >= 0.3 for (_, earlier), (_, later) in pairwise(calls))
    assert dead[0].data == "poison"


async def test_a_wildcard_sees_the_first_message_of_a_new_topic(broker: KafkaBroker, name: str) -> None:
    alone: list[str] = []
    shared: list[str] = []
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{name}.#", lambda message: alone.append(message.topic))
        await bus.subscribe(f"{name}.#", lambda message: shared.append(message.topic), group="workers")
        for number in range(5):
            await bus.publish(f"{name}.new.{number}", number)
        await eventually(lambda: len(alone) >= 5 and len(shared) >= 5, "not all came", 15)
        await anyio.sleep(0.3)
    expected = [f"{name}.new.{number}" for number in range(5)]
    assert (sorted(alone), sorted(shared)) == (expected, expected)
