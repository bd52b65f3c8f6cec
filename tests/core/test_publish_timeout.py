"""Publishing waits for room at most as long as the bus was told."""

from __future__ import annotations

import anyio
import pytest
from amb_core import InMemoryBroker, Message, MessageBus
from amb_core.errors import BackpressureError, PublishUnknown

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])]


async def full_bus() -> MessageBus:
    bus = MessageBus(InMemoryBroker(max_queue_size=4, backpressure_delay=0), publish_timeout=0.2, drain_timeout=0.1)
    running = anyio.Event()

    async def stuck(message: Message) -> None:
        running.set()
        await anyio.sleep_forever()

    await bus.subscribe("jobs", stuck, group="workers", concurrency=1)
    await bus.publish("jobs", 0)
    await running.wait()
    for number in range(1, 5):
        await bus.publish("jobs", number)
    return bus


async def test_a_publish_into_a_full_queue_ends_with_the_publish_timeout() -> None:
    bus = await full_bus()
    began = anyio.current_time()  # whole milliseconds on uvloop
    with anyio.fail_after(5), pytest.raises(BackpressureError, match=r"'jobs'.*0\.2 s"):
        await bus.publish("jobs", "too much")
    assert round(anyio.current_time() - began, 3) >= 0.2
    with pytest.raises(BackpressureError):
        await bus.request("jobs", "too much", timeout=5)
    assert bus.stats.published == 5
    await bus.disconnect()


async def test_a_batch_that_finds_no_room_says_that_part_of_it_may_be_through() -> None:
    bus = await full_bus()
    with anyio.fail_after(5), pytest.raises(PublishUnknown, match="2 message"):
        await bus.publish_batch([Message("jobs", 1), Message("jobs", 2)])
    await bus.disconnect()


async def test_a_publish_that_waits_goes_through_when_there_is_room() -> None:
    bus = MessageBus(InMemoryBroker(max_queue_size=4, backpressure_delay=0), publish_timeout=20)
    got: list[int] = []

    async def work(message: Message) -> None:
        got.append(message.data)

    subscription = await bus.subscribe("jobs", work, group="workers")
    subscription.pause()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(bus.publish, "jobs", number)
            await anyio.sleep(0.05)
            subscription.resume()
        await bus.disconnect()
    assert sorted(got) == list(range(10))
