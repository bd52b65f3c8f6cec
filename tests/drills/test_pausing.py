"""A member that pauses or leaves keeps nothing from its group: the others need not wait for its leases."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from amb_core import MessageBus

from tests.core._help import Collector
from tests.kernel._candidates import BROKERS, settings_on

pytestmark = pytest.mark.anyio
#: Kafka's partitions stay with their member.
SHARED = sorted(BROKERS.keys() - {"kafka"})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("broker", SHARED)
async def test_others_have_what_a_paused_member_had_asked_for(
    broker: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Any = request.getfixturevalue(BROKERS[broker][0])
    for name, value in settings_on(broker, server).items():
        monkeypatch.setenv(name, value)
    paused, other = Collector(), Collector()
    async with MessageBus() as first, MessageBus() as second:
        assert first.broker is not None
        capabilities = first.broker.capabilities
        assert capabilities.lease is None or capabilities.lease >= 30, "a lease that runs out would do as well"
        subscription = await first.subscribe("jobs", paused, group="g", concurrency=5)
        await first.publish("jobs", "before", wait_for_confirmation=True)
        await paused.wait()
        await anyio.sleep(0.2)  # so that it has asked for more
        subscription.pause()
        for number in range(5):
            await second.publish("jobs", number, wait_for_confirmation=True)
        await anyio.sleep(0.2)
        await second.subscribe("jobs", other, group="g", concurrency=5)
        await other.wait(5, 10)
        assert sorted(other.data) == [*range(5)] and len(paused.data) == 1
        if capabilities.return_unstarted:
            assert {message.attempt for message in other.messages} == {1}
        subscription.resume()
        with anyio.fail_after(10):
            while len(paused.data) == 1:
                await second.publish("jobs", "after", wait_for_confirmation=True)


@pytest.mark.parametrize("broker", SHARED)
async def test_others_have_what_a_leaving_member_had_asked_for(
    broker: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Any = request.getfixturevalue(BROKERS[broker][0])
    for name, value in settings_on(broker, server).items():
        monkeypatch.setenv(name, value)
    started, leaves, may_end, other = anyio.Event(), anyio.Event(), anyio.Event(), Collector()

    async def long(_: object) -> None:
        started.set()
        await may_end.wait()

    async def leave() -> None:
        leaves.set()
        await subscription.unsubscribe()

    async with MessageBus() as first, MessageBus() as second, anyio.create_task_group() as tasks:
        assert first.broker is not None
        subscription = await first.subscribe("jobs", long, group="g", concurrency=5)
        await first.publish("jobs", "before", wait_for_confirmation=True)
        await started.wait()
        await anyio.sleep(0.2)  # so that it has asked for more
        tasks.start_soon(leave)
        await leaves.wait()
        for number in range(5):
            await second.publish("jobs", number, wait_for_confirmation=True)
        await anyio.sleep(0.2)
        await second.subscribe("jobs", other, group="g", concurrency=5)
        await other.wait(5, 10)
        assert sorted(other.data) == [*range(5)]
        if first.broker.capabilities.return_unstarted:
            assert {message.attempt for message in other.messages} == {1}
        may_end.set()
