"""Topics that keep coming under a wildcard: what is declared as `new_topic_lag` holds, however many there are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus
from amb_kafka import KafkaBroker
from amb_kafka._connection import KafkaConnection

from tests.core._help import eventually
from tests.core._stopwatch import stopwatch

pytestmark = pytest.mark.anyio

#: Publishers at a time, and how long they go on, in units of the declared lag.
PUBLISHERS, LONG = 4, 2.5
#: A processor that is shared may be late with one of them.
GRACE = 2.0


async def test_topics_that_keep_coming_are_read_within_the_declared_lag(broker: KafkaBroker, name: str) -> None:
    lag = broker.capabilities.new_topic_lag
    accepted: dict[str, float] = {}
    shared: dict[str, float] = {}
    alone: dict[str, float] = {}

    def note(where: dict[str, float]) -> Callable[[Message], None]:
        return lambda message: where.__setitem__(message.topic, time.monotonic())

    async with stopwatch() as watch, MessageBus(broker) as bus, MessageBus(broker) as other:
        await bus.subscribe(f"{name}.#", note(alone))
        await bus.subscribe(f"{name}.#", note(shared), group="workers")
        await other.subscribe(f"{name}.#", note(shared), group="workers")
        end = time.monotonic() + LONG * lag

        async def publish(publisher: int) -> None:
            number = 0
            while time.monotonic() < end:
                topic, number = f"{name}.agent-{publisher}-{number}.said", number + 1
                await bus.publish(topic, "first", wait_for_confirmation=True)
                accepted[topic] = time.monotonic()

        async with anyio.create_task_group() as group:
            for publisher in range(PUBLISHERS):
                group.start_soon(publish, publisher)
        await eventually(lambda: accepted.keys() == shared.keys() == alone.keys(), "not all came", 15)
    for seen in (alone, shared):
        late = sorted(watch.elapsed(at, seen[topic]) for topic, at in accepted.items())
        assert late[len(late) * 9 // 10] <= lag, late
        assert late[-1] <= lag + GRACE, late


async def test_what_is_needed_at_the_same_time_is_made_at_once(broker: KafkaBroker, name: str) -> None:
    asked: list[int] = []
    async with broker.connect() as connection:
        assert isinstance(connection, KafkaConnection)
        topics: Any = connection.topics
        make = topics._admin.create_topics

        async def create(new: list[object], timeout_ms: int) -> object:
            asked.append(len(new))
            return await make(new, timeout_ms=timeout_ms)

        topics._admin.create_topics = create
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(topics.need, [f"{name}.{number}"])
        assert all(topics.known[f"{name}.{number}"] == broker.partitions for number in range(20))
    assert sum(asked) == 20
    assert len(asked) <= 2, asked
