"""Dead letters keep the message and say what happened; they can be read, put back and dropped."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from amb_core import DeadLetterQueue, InMemoryBroker, Message, MessageBus
from amb_core.broker import Outgoing

from tests.core._help import DLQ, Collector, dead_letters, eventually, later, stays

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        yield bus


async def fail(bus: MessageBus, *data: Any, group: str | None = "g") -> Collector:
    """A subscription to "t" that has failed for all of `data`."""
    before, collector = bus.stats.dead_lettered, Collector(LookupError("no"), failures=len(data))
    await bus.subscribe("t", collector, group=group)
    for each in data:
        await bus.publish("t", each)
    await eventually(lambda: bus.stats.dead_lettered - before == len(data), "the dead letters")
    return collector


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_dead_letter_keeps_the_message_and_adds_what_happened(bus: MessageBus, group: str | None) -> None:
    dead, before = await dead_letters(bus), time.time()

    async def breaks(message: Message) -> None:
        raise LookupError("no such thing")

    await bus.subscribe("t", breaks, group=group, retries=2, retry_delay=0.01)
    id = await bus.publish("t", {"a": 1}, headers={"h": "1"}, sender="s", key="k", priority="high", correlation_id="c")
    (letter,) = await dead.wait()
    assert (letter.id, letter.topic, letter.data, letter.headers) == (id, "dead", {"a": 1}, {"h": "1"})
    assert (letter.sender, letter.key, letter.priority.name, letter.correlation_id) == ("s", "k", "HIGH", "c")
    info = letter.dead
    assert info is not None
    assert (info.topic, info.reason, info.attempts, info.group) == ("t", "retries exhausted", 3, group or "")
    assert info.error == "LookupError: no such thing" and info.handler.endswith("breaks")
    assert before - 1 <= info.first_time <= info.last_time <= time.time() + 1
    assert info.last_time - before >= 0.01


async def test_a_message_that_is_no_dead_letter_says_so(bus: MessageBus) -> None:
    collector = Collector()
    await bus.subscribe("t", collector)
    await bus.publish("t", 1)
    assert (await collector.wait())[0].dead is None


async def test_a_dead_letter_keeps_the_very_bytes() -> None:
    broker = InMemoryBroker()
    async with MessageBus(broker, serializer="msgpack", dead_letter_queue=DLQ) as bus:
        await bus.subscribe("t", Collector(LookupError("no")))
        await bus.publish("t", {"b": b"\xff"})
        await eventually(lambda: bus.stats.dead_lettered == 1, "the dead letter")
        (letter,) = await bus.dead_letters()
    assert letter.data == {"b": b"\xff"} and letter.body == b"\x81\xa1b\xc4\x01\xff"


async def test_wildcards_do_not_see_dead_letters_and_the_exact_topic_does(bus: MessageBus) -> None:
    wild, exact = Collector(), await dead_letters(bus)
    await bus.subscribe("#", wild)
    await fail(bus, 1)
    await exact.wait()
    await stays(lambda: len(wild.messages) == 1, "a dead letter on a wildcard", 0.05)
    assert wild.messages[0].topic == "t"


@pytest.mark.parametrize("queue", ["graves", DeadLetterQueue(topic="graves", max_retries=0, retention_days=1)])
async def test_the_queue_is_a_topic_or_an_object(queue: Any) -> None:
    async with MessageBus(dead_letter_queue=queue) as bus:
        collector = Collector()
        await bus.subscribe("graves", collector)
        await bus.subscribe("t", Collector(LookupError("no")), retries=0)
        await bus.publish("t", 1)
        await collector.wait()


async def test_a_dead_letter_outlives_the_ttl_of_its_message(bus: MessageBus, monkeypatch: pytest.MonkeyPatch) -> None:
    await bus.subscribe("t", Collector(LookupError("no")), group="g")
    await bus.publish("t", 1, ttl=60)
    await eventually(lambda: bus.stats.dead_lettered == 1, "the dead letter")
    later(monkeypatch, 61)
    dead = Collector()
    await bus.subscribe("dead", dead, group="late", start="earliest")
    await dead.wait()


async def test_a_dead_letter_expires_after_its_retention() -> None:
    queue = DeadLetterQueue("dead", max_retries=0, retention_days=0.05 / 86400)
    async with MessageBus(dead_letter_queue=queue) as bus:
        await fail(bus, 1)
        await anyio.sleep(0.1)
        dead = Collector()
        await bus.subscribe("dead", dead, group="late", start="earliest")
        await eventually(lambda: bus.stats.expired == 1, "the dead letter to be thrown away")
    assert dead.messages == []


async def test_reading_dead_letters_leaves_them_where_they_are(bus: MessageBus) -> None:
    await fail(bus, 1, 2, 3)
    for _ in range(2):
        letters = await bus.dead_letters()
        assert [letter.data for letter in letters] == [1, 2, 3]
    assert [letter.data for letter in await bus.dead_letters(limit=2)] == [1, 2]
    assert letters[0].info.topic == "t" and letters[0].info.group == "g"


async def test_a_retried_dead_letter_goes_to_the_group_that_failed_only(bus: MessageBus) -> None:
    other, single = Collector(), Collector()
    await bus.subscribe("t", other, group="other")
    await bus.subscribe("t", single)
    failing = await fail(bus, 1)
    assert await bus.retry_dead_letters() == 1
    await failing.wait(2)
    await stays(lambda: len(other.messages) == len(single.messages) == 1, "a copy for somebody else", 0.05)
    assert [message.attempt for message in failing.messages] == [1, 1]
    assert len({message.id for message in failing.messages}) == 1
    assert await bus.dead_letters() == []


async def test_single_dead_letters_are_retried_and_dropped_by_id(bus: MessageBus) -> None:
    failing = await fail(bus, 1, 2, 3)
    one, two, three = [letter.id for letter in await bus.dead_letters()]
    assert await bus.drop_dead_letters([two]) == 1
    assert await bus.retry_dead_letters([one]) == 1
    await failing.wait(4)
    assert [letter.id for letter in await bus.dead_letters()] == [three]
    assert await bus.drop_dead_letters() == 1
    assert await bus.dead_letters() == []
    assert failing.data == [1, 2, 3, 1]


async def test_dead_letters_behind_what_strangers_left_on_their_topic_are_found() -> None:
    broker = InMemoryBroker()
    async with broker.connect() as stranger, MessageBus(broker, dead_letter_queue=DLQ) as bus:
        await stranger.send([Outgoing(DLQ.topic, b"{}", {}) for _ in range(150)])
        await fail(bus, 1)
        assert await bus.drop_dead_letters() == 1


async def test_a_dead_letter_that_fails_again_becomes_a_dead_letter_again(bus: MessageBus) -> None:
    await bus.subscribe("t", Collector(LookupError("never")), group="g")
    await bus.publish("t", 1)
    for times in (1, 2, 3):
        await eventually(functools.partial(_has_buried, bus, times), "the dead letter")
        assert [letter.info.attempts for letter in await bus.dead_letters()] == [1]
        assert await bus.retry_dead_letters() == 1


def _has_buried(bus: MessageBus, times: int) -> bool:
    return bus.stats.dead_lettered == times


async def test_a_failing_handler_of_dead_letters_makes_no_loop() -> None:
    async with MessageBus(dead_letter_queue=DLQ, drain_timeout=0.1) as bus:
        reader = Collector(LookupError("reader"))
        await bus.subscribe("dead", reader, group="readers")
        await fail(bus, 1)
        await reader.wait()
        await stays(lambda: bus.stats.dead_lettered == len(reader.messages) == 1, "it at once again", 0.2)


async def test_which_dead_letters_is_asked_when_the_bus_has_no_queue() -> None:
    async with MessageBus() as bus:
        with pytest.raises(ValueError, match="topic="):
            await bus.dead_letters()
        assert await bus.dead_letters("some.topic") == []
