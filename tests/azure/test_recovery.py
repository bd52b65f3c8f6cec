"""Links that are detached, services that restart, freeze and are not there yet."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import anyio
import anyio.to_thread
import msgspec
import pytest
from amb_azure import AzureServiceBusBroker
from amb_azure._entities import Entities
from amb_azure._wire import subscription
from amb_core import Message, MessageBus
from amb_core.broker import Outgoing, Source
from amb_core.errors import BrokerUnavailable, Unavailable
from amb_core.testing.proxy import FaultProxy
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from tests.core._help import Collector, eventually
from tests.servers.azure import ServiceBus
from tests.servers.process import Server

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(own_servicebus: ServiceBus) -> Iterator[Server]:
    try:
        yield own_servicebus.process
    finally:
        own_servicebus.process.thaw()


@pytest.fixture
def fragile(own_servicebus: ServiceBus) -> AzureServiceBusBroker:
    """Notices silence within a second."""
    return AzureServiceBusBroker(
        own_servicebus.connection_string, lock_duration=2.0, response_timeout=1.0, connect_timeout=2.0
    )


async def _arrives(bus: MessageBus, topic: str, seen: Collector, within: float) -> float:
    """Publish until something newly published is handled; the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        marker = f"probe-{time.monotonic_ns()}"
        try:
            await bus.publish(topic, marker)
        except BrokerUnavailable:
            continue
        with anyio.move_on_after(1.0):
            await eventually(lambda: marker in seen.data, "", 60)  # noqa: B023
            return time.monotonic() - began
    raise AssertionError(f"nothing arrived within {within:g} s")


@pytest.mark.parametrize("kill", [False, True], ids=["restart", "kill"])
async def test_a_service_that_comes_back_is_used_again_and_nothing_confirmed_is_lost(
    fragile: AzureServiceBusBroker, server: Server, kill: bool
) -> None:
    seen, live = Collector(), Collector()
    async with MessageBus(fragile) as bus:
        await bus.subscribe("a", seen, group="g")
        await bus.subscribe("a", live)
        for n in range(20):
            await _published(bus, "a", n)
        await anyio.to_thread.run_sync(server.kill if kill else server.stop)
        await anyio.to_thread.run_sync(server.start)
        assert await _arrives(bus, "a", seen, 20) < 10
        await eventually(lambda: set(range(20)) <= set(seen.data), lambda: f"all 20, got {seen.data}", 15)
        await eventually(lambda: set(range(20)) <= set(live.data), lambda: f"all 20, got {live.data}", 15)


async def test_a_service_that_does_not_answer_is_noticed_and_used_again(
    fragile: AzureServiceBusBroker, server: Server
) -> None:
    seen = Collector()
    async with MessageBus(fragile, publish_timeout=2.0) as bus:
        await bus.subscribe("a", seen, group="g")
        await _arrives(bus, "a", seen, 10)
        server.freeze()
        with pytest.raises(BrokerUnavailable):
            await bus.publish("a", 1)
        with anyio.fail_after(15):
            while (await bus.health()).status == "healthy":
                await anyio.sleep(0.1)
        server.thaw()
        await _arrives(bus, "a", seen, 20)
        with anyio.fail_after(15):
            while (await bus.health()).status != "healthy":
                await anyio.sleep(0.1)


async def test_a_detached_link_is_opened_again_and_a_deleted_subscription_is_made_again(
    broker: AzureServiceBusBroker, admin: ServiceBusAdministrationClient, topic: str
) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(topic, seen, group="g")
        await _arrives(bus, topic, seen, 10)
        await admin.delete_subscription(broker.topic_name, subscription(Source(id="", pattern=topic, group="g")))
        await _arrives(bus, topic, seen, 15)


async def test_a_handler_that_outlives_its_link_still_settles(fragile: AzureServiceBusBroker, server: Server) -> None:
    """The lock is not the link's: nothing is delivered twice."""
    calls: list[object] = []

    async def slow(message: Message) -> None:
        calls.append(message.data)
        if message.data == "slow":
            await anyio.sleep(4)

    async with MessageBus(msgspec.structs.replace(fragile, lock_duration=30.0, response_timeout=10.0)) as bus:
        await bus.subscribe("a", slow, group="g")
        await bus.publish("a", "slow")
        await eventually(lambda: calls == ["slow"], "the call")
        await anyio.to_thread.run_sync(server.stop)
        await anyio.sleep(1)  # it is opened again too early meanwhile, and more than once
        await anyio.to_thread.run_sync(server.start)
        await eventually(lambda: bus.stats.acked == 1, "the acknowledgement", 15)
    assert calls == ["slow"]


@pytest.fixture
async def cable(own_servicebus: ServiceBus) -> AsyncIterator[tuple[FaultProxy, AzureServiceBusBroker]]:
    """A proxy before the service, and the broker behind it."""
    here = f"{own_servicebus.host}:{own_servicebus.port}"
    async with FaultProxy.to(own_servicebus.host, own_servicebus.port) as proxy:
        there = own_servicebus.connection_string.replace(here, f"{proxy.host}:{proxy.port}")
        yield proxy, AzureServiceBusBroker(there, lock_duration=3.0, response_timeout=1.0, connect_timeout=2.0)


@pytest.mark.parametrize("ordered_by", [None, "key"], ids=["unordered", "ordered"])
async def test_a_link_that_breaks_while_every_handler_is_busy_is_opened_again(
    cable: tuple[FaultProxy, AzureServiceBusBroker], ordered_by: str | None
) -> None:
    """Nobody receives then, so only what settles and renews can notice."""
    (proxy, broker), finish, calls = cable, anyio.Event(), list[object]()

    async def wait(message: Message) -> None:
        calls.append(message.data)
        await finish.wait()

    async with MessageBus(broker) as bus:
        await bus.subscribe("a", wait, group="g", concurrency=1, ordered_by=ordered_by)
        await _published(bus, "a", "first")
        await eventually(lambda: calls == ["first"], "the call")
        assert proxy.reset() > 0
        finish.set()
        await eventually(lambda: bus.stats.acked >= 1, lambda: f"the acknowledgement; {calls}", 20)
        await _published(bus, "a", "second")
        await eventually(lambda: "second" in calls, lambda: f"the next message, got {calls}", 20)


async def test_a_handler_keeps_its_lock_over_a_broken_link(cable: tuple[FaultProxy, AzureServiceBusBroker]) -> None:
    (proxy, given), calls = cable, list[object]()
    broker = msgspec.structs.replace(given, lock_duration=4.0, response_timeout=10.0)

    async def slow(message: Message) -> None:
        calls.append(message.data)
        await anyio.sleep(3 * broker.lock_duration)

    async with MessageBus(broker) as bus:
        await bus.subscribe("a", slow, group="g", concurrency=1)
        await bus.publish("a", "slow")
        await eventually(lambda: calls == ["slow"], "the call")
        assert proxy.reset() > 0
        await eventually(lambda: bus.stats.acked == 1, lambda: f"the acknowledgement; {calls}", 25)
    assert calls == ["slow"]


async def _published(bus: MessageBus, topic: str, data: object) -> None:
    """Once the service has answered in time, and the publisher, too, has noticed if its link broke. May come twice."""
    with anyio.fail_after(20):
        while True:
            with suppress(BrokerUnavailable):
                await bus.publish(topic, data, key="k")
                return


async def test_replies_come_again_after_a_restart(fragile: AzureServiceBusBroker, server: Server) -> None:
    async with MessageBus(fragile) as bus:

        @bus.responder("double")
        async def double(message: Message) -> int:
            return int(message.data) * 2

        async def doubled(number: int) -> object:
            with anyio.fail_after(20):
                while True:
                    try:
                        return (await bus.request("double", number, timeout=2)).data
                    except (BrokerUnavailable, TimeoutError):
                        continue

        assert await doubled(2) == 4
        await anyio.to_thread.run_sync(server.stop)
        await anyio.to_thread.run_sync(server.start)
        assert await doubled(4) == 8


async def test_what_waits_for_a_subscriber_without_a_group_outlives_attempts_that_fail(
    cable: tuple[FaultProxy, AzureServiceBusBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its subscription is deleted when it ends, and not when it could not be opened again."""
    proxy, given = cable
    # The link is reset, which shows at once: nothing here is to be noticed by its silence.
    broker = msgspec.structs.replace(given, response_timeout=10.0, connect_timeout=10.0)
    source = Source(id="waits", pattern="waits")

    async def refused(*_: object) -> None:
        raise Unavailable("not yet")

    async with broker.connect() as connection:
        async with connection.open(source) as feed:
            assert not await feed.receive(1, wait=False)
            proxy.reset()
            with pytest.raises(BrokerUnavailable):
                await feed.receive(1)
        async with broker.connect() as other:
            await other.send([Outgoing("waits", b"1", {})])
        with monkeypatch.context() as patch:
            patch.setattr(Entities, "make_subscription", refused)
            with pytest.raises(Unavailable, match="not yet"):
                await connection.open(source).__aenter__()
        async with connection.open(source) as feed:
            assert [each.body for each in await feed.receive(1)] == [b"1"]
