"""Fixtures of pytest-asyncio that yield inside ``async with MessageBus()``: set-up and tear-down are other tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from amb_core import MessageBus

from tests.core._help import Collector, eventually

pytestmark = pytest.mark.asyncio
handled: list[Any] = []


@pytest_asyncio.fixture
async def message_bus() -> AsyncIterator[MessageBus]:
    async with MessageBus(broker="memory") as bus:
        yield bus


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared_bus() -> AsyncIterator[MessageBus]:
    async with MessageBus() as bus:
        yield bus
    assert handled == [1, 2]


async def test_a_bus_from_a_fixture_delivers(message_bus: MessageBus) -> None:
    received: list[Any] = []
    await message_bus.subscribe("test.topic", lambda msg: received.append(msg))
    await message_bus.publish("test.topic", {"value": 42})
    await eventually(lambda: received, "the message")
    assert received == [{"value": 42}]


async def test_a_bus_from_a_fixture_is_fresh(message_bus: MessageBus) -> None:
    collector = Collector()
    await message_bus.subscribe("test.topic", collector, group="g", start="earliest")
    assert [message async for message in message_bus.replay("#")] == collector.messages == []


async def test_a_bus_from_a_fixture_answers_requests_from_another_task(message_bus: MessageBus) -> None:
    message_bus.responder("r")(lambda request: request.data + 1)
    async with asyncio.TaskGroup() as group:
        one = group.create_task(message_bus.request("r", 1, timeout=5))
        two = group.create_task(message_bus.request("r", 2, timeout=5))
    assert (one.result().data, two.result().data) == (2, 3)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("number", [1, 2])
async def test_a_shared_bus_serves_several_tests(shared_bus: MessageBus, number: int) -> None:
    async def handler(message: Any) -> None:
        handled.append(message.data)

    await shared_bus.subscribe(f"t{number}", handler)
    await shared_bus.publish(f"t{number}", number)


async def test_wait_for_may_cancel_a_publish_that_waits(message_bus: MessageBus) -> None:
    await message_bus.subscribe("silent", Collector())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await message_bus.request("silent", 1, timeout=60)
    assert await message_bus.publish("silent", 1)
