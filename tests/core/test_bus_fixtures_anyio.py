"""Fixtures of anyio's plugin that yield inside ``async with MessageBus()``, on each event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from amb_core import MessageBus

from tests.core._help import Collector

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.param == "trio":
        return "trio", {}
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus() as bus:
        yield bus


@pytest.fixture(scope="module")
async def shared_bus(anyio_backend: Any) -> AsyncIterator[MessageBus]:
    collector = Collector()
    async with MessageBus() as bus:
        await bus.subscribe("count", collector)
        yield bus
    assert collector.data == [1, 2]


@pytest.fixture
async def answering(bus: MessageBus) -> MessageBus:
    bus.responder("double")(lambda request: request.data * 2)
    return bus


async def test_a_bus_from_a_fixture_delivers(bus: MessageBus) -> None:
    collector = Collector()
    await bus.subscribe("t", collector)
    await bus.publish("t", 1)
    await collector.wait()


async def test_a_fixture_may_build_on_another(answering: MessageBus) -> None:
    assert (await answering.request("double", 21, timeout=5)).data == 42


@pytest.mark.parametrize("number", [1, 2])
async def test_a_shared_bus_serves_several_tests(shared_bus: MessageBus, number: int) -> None:
    await shared_bus.publish("count", number)


async def test_a_cancelled_scope_in_the_test_leaves_the_fixtures_bus_alone(bus: MessageBus) -> None:
    collector = Collector()
    await bus.subscribe("t", collector)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bus.request, "t", 1)
        await collector.wait()
        tasks.cancel_scope.cancel()
    await bus.publish("t", 2)
    await collector.wait(2)


async def test_a_test_may_disconnect_the_fixtures_bus(bus: MessageBus) -> None:
    await bus.disconnect()
