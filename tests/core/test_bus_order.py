"""Order per key with parallelism across keys, and priority lanes that overtake without starving anybody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from amb_core import InMemoryBroker, Message, MessageBus, MessagePriority

from tests.core._help import DLQ, Collector, dead_letters, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        yield bus


class Keyed:
    """A handler that records, per key, what came and how many ran at once."""

    def __init__(self, fail: tuple[int, ...] = ()) -> None:
        self.seen: dict[str | None, list[Any]] = defaultdict(list)
        self.running: dict[str | None, int] = defaultdict(int)
        self.most_of_key = self.most = self.count = 0
        self._fail = set(fail)

    async def __call__(self, message: Message) -> None:
        key = message.key
        self.running[key] += 1
        self.most_of_key = max(self.most_of_key, self.running[key])
        self.most = max(self.most, sum(self.running.values()))
        await anyio.sleep(0.002)
        self.running[key] -= 1
        self.seen[key].append(message.data)
        self.count += 1
        if message.data in self._fail and message.attempt == 1:
            raise LookupError("first try")


@pytest.mark.parametrize("group", [None, "g"])
async def test_messages_of_one_key_come_in_order_and_keys_run_in_parallel(bus: MessageBus, group: str | None) -> None:
    handler = Keyed()
    await bus.subscribe("t", handler, ordered_by="key", concurrency=10, group=group)
    for number in range(100):
        await bus.publish("t", number, key=f"k{number % 5}")
    await eventually(lambda: handler.count == 100, "a hundred")
    assert handler.seen == {f"k{k}": list(range(k, 100, 5)) for k in range(5)}
    assert (handler.most_of_key, handler.most) == (1, 5)


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_retry_keeps_its_place_before_what_follows_with_its_key(bus: MessageBus, group: str | None) -> None:
    handler = Keyed(fail=(0, 7))
    await bus.subscribe("t", handler, ordered_by="key", group=group, retries=2, retry_delay=0.02)
    for number in range(10):
        await bus.publish("t", number, key="even" if number % 2 == 0 else "odd")
    await eventually(lambda: handler.count == 12, "ten and two retries")
    assert handler.seen == {"even": [0, 0, 2, 4, 6, 8], "odd": [1, 3, 5, 7, 7, 9]}


async def test_a_dead_letter_lets_the_next_of_its_key_through(bus: MessageBus) -> None:
    dead, handler = await dead_letters(bus), Keyed(fail=(0,))
    await bus.subscribe("t", handler, ordered_by="key", group="g")
    await bus.publish("t", 0, key="k")
    await bus.publish("t", 1, key="k")
    await dead.wait()
    await eventually(lambda: handler.seen["k"] == [0, 1], "the next one")


async def test_members_of_a_group_keep_the_order_between_them() -> None:
    broker, handler = InMemoryBroker(), Keyed()
    async with MessageBus(broker) as one, MessageBus(broker) as two:
        for bus in (one, two):
            await bus.subscribe("t", handler, ordered_by="key", group="g", concurrency=4)
        for number in range(100):
            await one.publish("t", number, key=f"k{number % 5}")
        await eventually(lambda: handler.count == 100, "a hundred")
    assert handler.seen == {f"k{k}": list(range(k, 100, 5)) for k in range(5)}
    assert handler.most_of_key == 1


async def test_messages_without_a_key_are_not_held_up(bus: MessageBus) -> None:
    handler = Keyed()
    await bus.subscribe("t", handler, ordered_by="key", concurrency=5)
    for number in range(20):
        await bus.publish("t", number)
    await eventually(lambda: handler.count == 20, "twenty")
    assert handler.most > 1


@pytest.mark.parametrize("ordered_by", ["topic", "", True])
async def test_only_the_key_can_order(bus: MessageBus, ordered_by: Any) -> None:
    with pytest.raises(ValueError, match="'key'"):
        await bus.subscribe("t", Collector(), ordered_by=ordered_by)


async def backlog(bus: MessageBus, group: str | None) -> tuple[Any, Collector]:
    """A paused subscription with one place, so that what is published waits on the broker."""
    collector = Collector()
    subscription = await bus.subscribe("t", collector, group=group, concurrency=1)
    subscription.pause()
    return subscription, collector


@pytest.mark.parametrize("group", [None, "g"])
async def test_more_urgent_messages_overtake_the_backlog(bus: MessageBus, group: str | None) -> None:
    subscription, collector = await backlog(bus, group)
    for priority in reversed(MessagePriority):
        for number in range(2):
            await bus.publish("t", f"{priority.name} {number}", priority=priority)
    subscription.resume()
    await collector.wait(12)
    assert collector.data == [f"{priority.name} {number}" for priority in MessagePriority for number in range(2)]


@pytest.mark.parametrize("group", [None, "g"])
async def test_the_lowest_lane_still_progresses(bus: MessageBus, group: str | None) -> None:
    subscription, collector = await backlog(bus, group)
    await bus.publish("t", "background", priority=MessagePriority.BACKGROUND)
    for number in range(100):
        await bus.publish("t", number, priority=MessagePriority.CRITICAL)
    subscription.resume()
    await collector.wait(101)
    assert 10 < collector.data.index("background") < 40


@pytest.mark.parametrize("priority", ["important", 6, -1, 2.5, "", [], "HIGHEST"])
async def test_an_unknown_priority_is_refused_with_the_names_there_are(bus: MessageBus, priority: Any) -> None:
    with pytest.raises(ValueError, match="CRITICAL, URGENT"):
        await bus.publish("t", 1, priority=priority)
