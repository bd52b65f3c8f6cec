"""Reading a topic with ``async for``: live with `stream`, from the past with `replay`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from amb_core import InMemoryBroker, MessageBus, UnsupportedError

from tests.core._help import Collector, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus() as bus:
        yield bus


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_stream_yields_what_is_published_and_acknowledges_when_the_next_is_asked_for(
    bus: MessageBus, group: str | None
) -> None:
    seen: list[Any] = []
    async with bus.stream("t", group=group) as stream:
        for number in range(5):
            await bus.publish("t", number)
        async for message in stream:
            seen.append(message.data)
            assert bus.stats.acked <= message.data
            if message.data == 4:
                break
    assert seen == [0, 1, 2, 3, 4]


async def test_what_a_reader_broke_off_at_is_given_back(bus: MessageBus) -> None:
    keeper = MessageBus(bus.broker)
    async with keeper:
        async with bus.stream("t", group="g") as stream:
            for number in range(3):
                await bus.publish("t", number)
            async for message in stream:
                if message.data == 1:
                    break
        rest = Collector()
        await keeper.subscribe("t", rest, group="g")
        await rest.wait(2)
    assert rest.data == [1, 2] and [message.attempt for message in rest.messages] == [1, 1]


async def test_an_exception_in_the_body_gives_the_message_back(bus: MessageBus) -> None:
    async with MessageBus(bus.broker) as keeper:
        with pytest.raises(LookupError):
            await _read_and_fail(bus)
        rest = Collector()
        await keeper.subscribe("t", rest, group="g")
        await rest.wait()


async def _read_and_fail(bus: MessageBus) -> None:
    async with bus.stream("t", group="g") as stream:
        await bus.publish("t", 1)
        async for _ in stream:
            raise LookupError("mine")


async def test_a_streamed_message_can_be_settled_by_hand(bus: MessageBus) -> None:
    attempts: list[int] = []
    async with bus.stream("t", group="g", ack_mode="manual") as stream:
        await bus.publish("t", 1)
        async for message in stream:
            attempts.append(message.attempt)
            if message.attempt == 2:
                await message.ack()
                break
            message.nack()
    assert attempts == [1, 2] and bus.stats.acked == 1


async def test_a_closed_stream_ends_its_iteration(bus: MessageBus) -> None:
    stream = bus.stream("t")
    seen: list[Any] = []
    async with stream, anyio.create_task_group() as group:

        async def read() -> None:
            async for message in stream:
                seen[:] = [*seen, message.data]

        group.start_soon(read)
        await bus.publish("t", 1)
        await eventually(lambda: seen == [1], "the message")
        await stream.aclose()
    assert seen == [1]
    assert [message async for message in stream] == []


async def test_a_slow_reader_slows_the_publisher() -> None:
    async with MessageBus(InMemoryBroker(max_queue_size=10, backpressure_delay=0)) as bus:
        published = 0

        async def publish() -> None:
            nonlocal published
            for number in range(50):
                await bus.publish("t", number)
                published += 1

        async with bus.stream("t") as stream, anyio.create_task_group() as group:
            group.start_soon(publish)
            await eventually(lambda: published >= 10, "a full queue")
            await anyio.sleep(0.05)
            assert published <= 12
            async for message in stream:
                if message.data == 49:
                    break
    assert published == 50


async def test_replay_yields_the_past_up_to_now_and_ends(bus: MessageBus) -> None:
    for number in range(5):
        await bus.publish("a.b", number, headers={"n": str(number)})
    messages = [message async for message in bus.replay("a.b")]
    assert [message.data for message in messages] == [0, 1, 2, 3, 4]
    assert [message.headers["n"] for message in messages] == list("01234")


async def test_replay_takes_patterns_and_keeps_the_order_across_topics(bus: MessageBus) -> None:
    for number, topic in enumerate(["a.b", "a.c", "b.b", "a.b"]):
        await bus.publish(topic, number)
    assert [message.data async for message in bus.replay("a.*")] == [0, 1, 3]
    assert [message.data async for message in bus.replay("#")] == [0, 1, 2, 3]
    assert [message.data async for message in bus.replay("nothing")] == []


async def test_replay_starts_after_a_position_and_between_times(bus: MessageBus) -> None:
    await bus.publish("t", "early")
    await anyio.sleep(0.02)
    middle = time.time()
    await anyio.sleep(0.02)
    await bus.publish("t", "late")
    first, _ = [message async for message in bus.replay("t")]
    assert [message.data async for message in bus.replay("t", since=first.position)] == ["late"]
    assert [message.data async for message in bus.replay("t", since=middle)] == ["late"]
    assert [message.data async for message in bus.replay("t", until=middle)] == ["early"]


async def test_replay_disturbs_no_group(bus: MessageBus) -> None:
    collector = Collector()
    await bus.subscribe("t", collector, group="g")
    await bus.publish("t", 1)
    await collector.wait()
    assert [message.data async for message in bus.replay("t")] == [1]
    assert len(collector.messages) == 1


async def test_a_group_may_begin_at_the_beginning(bus: MessageBus) -> None:
    for number in range(3):
        await bus.publish("t", number)
    early, late = Collector(), Collector()
    await bus.subscribe("t", early, group="early", start="earliest")
    await bus.subscribe("t", late, group="late")
    await bus.publish("t", 3)
    await early.wait(4)
    await late.wait()
    assert (early.data, late.data) == ([0, 1, 2, 3], [3])


async def test_the_history_is_bounded() -> None:
    async with MessageBus(InMemoryBroker(history=3)) as bus:
        for number in range(10):
            await bus.publish("t", number)
        assert [message.data async for message in bus.replay("t")] == [7, 8, 9]


async def test_a_broker_without_history_refuses_to_replay_before_any_io() -> None:
    bus = MessageBus(InMemoryBroker(history=0))
    with pytest.raises(UnsupportedError, match="InMemoryBroker does not support replay"):
        [message async for message in bus.replay("t")]
    with pytest.raises(UnsupportedError):
        await bus.subscribe("t", Collector(), group="g", start="earliest")
    assert not bus.connected
