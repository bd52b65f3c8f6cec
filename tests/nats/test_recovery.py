"""Servers that restart or die, consumers that die, links that break."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, takewhile

import anyio
import msgspec
import pytest
from amb_core import Message, MessageBus
from amb_core.errors import BrokerUnavailable
from amb_core.testing import FaultProxy
from amb_nats import NatsBroker

from tests.core._help import Collector, eventually
from tests.servers.nats import NatsServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def durable(own_nats_server: NatsServer) -> NatsBroker:
    return NatsBroker(own_nats_server.url, jetstream=True, lease=2.0)


async def _publish(bus: MessageBus, numbers: Iterable[int], accepted: list[int]) -> None:
    for number in numbers:
        try:
            await bus.publish("jobs", number, wait_for_confirmation=True)
            accepted.append(number)
        except BrokerUnavailable:
            continue
        await anyio.sleep(0.001)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_what_was_confirmed_survives_the_server(
    own_nats_server: NatsServer, durable: NatsBroker, how: str
) -> None:
    """Three restarts while messages flow: none that was confirmed is lost, and it goes on within 5 s."""
    process, seen, accepted, enough = own_nats_server.process, Collector(), list[int](), anyio.Event()
    numbers = takewhile(lambda _: not enough.is_set(), count())
    async with MessageBus(durable) as bus, MessageBus(durable) as publisher:
        await bus.subscribe("jobs", seen, group="g")
        async with anyio.create_task_group() as group:
            group.start_soon(_publish, publisher, numbers, accepted)
            for round in range(1, 4):
                await eventually(lambda: len(seen.data) >= 100 * round, "nothing comes", 20)  # noqa: B023
                await anyio.to_thread.run_sync(getattr(process, how))
                await anyio.to_thread.run_sync(process.start)
                before = len(seen.data)
                await eventually(lambda: len(seen.data) > before, "not consuming after the restart", 5)  # noqa: B023
            enough.set()
        await eventually(lambda: set(accepted) <= set(seen.data), "some were lost", 20)
    assert accepted[-1] + 1 - len(accepted) < 100, "too many were refused"


async def test_core_subscriptions_live_again_after_a_restart(own_nats_server: NatsServer) -> None:
    process = own_nats_server.process
    async with MessageBus(NatsBroker(own_nats_server.url)) as bus:
        seen, shared = Collector(), Collector()
        await bus.subscribe("a.#", seen)
        await bus.subscribe("a.*", shared, group="g")
        bus.responder("ask")(lambda message: message.data)
        await bus.connect()
        await anyio.to_thread.run_sync(process.restart)
        with anyio.fail_after(10):
            while not (seen.data and shared.data):
                await bus.publish("a.b", 1)
                await anyio.sleep(0.05)
            assert (await bus.request("ask", 2, timeout=5)).data == 2


async def test_a_link_that_is_cut_again_and_again(own_nats_server: NatsServer, durable: NatsBroker) -> None:
    async with FaultProxy.to(own_nats_server.host, own_nats_server.port) as proxy:
        through = msgspec.structs.replace(durable, url=f"nats://{proxy.host}:{proxy.port}")
        seen, accepted = Collector(), list[int]()
        async with MessageBus(through) as bus, MessageBus(durable) as publisher:
            await bus.subscribe("jobs", seen, group="g")
            async with anyio.create_task_group() as group:
                group.start_soon(_publish, publisher, range(300), accepted)
                for round in range(1, 4):
                    await eventually(lambda: len(seen.data) >= 50 * round, "nothing comes", 20)  # noqa: B023
                    proxy.reset()
            await eventually(lambda: set(accepted) <= set(seen.data), "some were lost", 20)


async def test_a_link_that_is_silent_is_given_up(own_nats_server: NatsServer, durable: NatsBroker) -> None:
    quick = msgspec.structs.replace(durable, response_timeout=2.0)
    async with MessageBus(quick, publish_timeout=4.0) as bus:
        seen = Collector()
        await bus.subscribe("jobs", seen, group="g")
        await bus.publish("jobs", 1)
        await seen.wait()
        own_nats_server.process.freeze()
        try:
            with pytest.raises((BrokerUnavailable, TimeoutError)):
                await bus.publish("jobs", 2)
            assert (await bus.health()).status == "unhealthy"
        finally:
            own_nats_server.process.thaw()
        with anyio.fail_after(20):
            while 3 not in seen.data:
                try:
                    await bus.publish("jobs", 3)
                except BrokerUnavailable:
                    continue
                await anyio.sleep(0.05)


async def test_poison_and_only_poison_becomes_dead(durable: NatsBroker) -> None:
    """One in a hundred fails always: the dead letters are exactly those, the rest is handled once."""

    async def work(message: Message) -> None:
        if message.data % 100 == 0:
            raise ValueError("poison")
        handled.append(message.data)

    handled: list[int] = []
    dead, patient = Collector(), msgspec.structs.replace(durable, lease=30.0)
    async with MessageBus(patient, dead_letter_queue="dead") as bus:
        await bus.subscribe("dead", dead, group="undertaker")
        await bus.subscribe("jobs", work, group="g", retries=2, retry_delay=0.05)
        await bus.publish_batch([Message("jobs", number) for number in range(2000)])
        await dead.wait(20, 30)
        await eventually(lambda: len(handled) == 1980, "not all were handled", 30)
    assert sorted(dead.data) == list(range(0, 2000, 100))
    assert sorted(handled) == [number for number in range(2000) if number % 100]
