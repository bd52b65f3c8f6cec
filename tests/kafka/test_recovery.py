"""Servers that restart, die and freeze, and consumers that die."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
from amb_core import Message, MessageBus
from amb_core.errors import BrokerUnavailable
from amb_core.testing import Child
from amb_kafka import KafkaBroker

from tests.core._help import Collector, eventually, stays
from tests.servers.kafka import KafkaServer
from tests.servers.process import Server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]
Make = Callable[..., KafkaBroker]


@pytest.fixture
def server(own_kafka_server: KafkaServer) -> Iterator[Server]:
    """A server that may be hurt; it runs again afterwards."""
    yield own_kafka_server.process
    own_kafka_server.process.thaw()


@pytest.fixture
def fragile(own_kafka_server: KafkaServer) -> KafkaBroker:
    return KafkaBroker(
        own_kafka_server.address, partitions=2, discovery_interval=0.3, session_timeout_ms=4000,
        heartbeat_interval_ms=300, response_timeout=2.0,
    )  # fmt: skip


async def arrives(bus: MessageBus, topic: str, seen: Collector, within: float) -> float:
    """Publish until something newly published is handled; the seconds it took."""
    began = time.monotonic()
    while True:
        marker = f"probe-{time.monotonic_ns()}"
        try:
            await bus.publish(topic, marker)
        except BrokerUnavailable:
            await anyio.sleep(0.05)
        with anyio.move_on_after(0.3):
            await eventually(lambda: marker in seen.data, "", 60)  # noqa: B023
            return time.monotonic() - began
        assert time.monotonic() - began < within, f"nothing arrives within {within:g} s"


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_a_server_that_comes_back_is_used_again(
    fragile: KafkaBroker, name: str, server: Server, how: str
) -> None:
    alone, shared, wild = Collector(), Collector(), Collector()
    async with MessageBus(fragile) as bus:
        await bus.subscribe(f"{name}.a", alone)
        await bus.subscribe(f"{name}.a", shared, group="workers")
        await bus.subscribe(f"{name}.*", wild)

        @bus.responder(f"{name}.echo")
        def echo(message: Message) -> Any:
            return message.data

        for number in range(20):
            await bus.publish(f"{name}.a", number, wait_for_confirmation=True)
        await shared.wait(20)
        await anyio.to_thread.run_sync(server.stop if how == "restart" else server.kill)
        await anyio.to_thread.run_sync(server.start)
        for seen in (shared, alone, wild):
            await arrives(bus, f"{name}.a", seen, 20.0)
        with anyio.fail_after(20):  # the responder has no group: what is published while it is away is not for it
            while (await bus.health()).status != "healthy":
                await anyio.sleep(0.05)
        assert (await bus.request(f"{name}.echo", 6, timeout=20)).data == 6
    assert set(range(20)) <= set(shared.data)


async def test_what_was_confirmed_before_a_kill_is_there_after_it(
    fragile: KafkaBroker, name: str, server: Server
) -> None:
    sent: list[str] = []
    async with MessageBus(fragile, publish_timeout=3.0) as bus:
        await bus.unsubscribe(await bus.subscribe(f"{name}.jobs", Collector(), group="workers"))
        for number in range(100):
            sent += [await bus.publish(f"{name}.jobs", number, wait_for_confirmation=True)]
        await anyio.to_thread.run_sync(server.kill)
        with pytest.raises(BrokerUnavailable) as caught:
            await bus.publish(f"{name}.jobs", "nobody there")
        assert "\n" not in str(caught.value)
        await anyio.to_thread.run_sync(server.start)
        seen = Collector()
        await bus.subscribe(f"{name}.jobs", seen, group="workers")
        await eventually(
            lambda: {m.id for m in seen.messages} >= set(sent),
            lambda: f"{sorted(set(range(100)) - set(seen.data))} of 100 are lost, {(bus.stats)}",
            20,
        )


async def test_a_frozen_server_is_noticed_and_forgiven(fragile: KafkaBroker, name: str, server: Server) -> None:
    seen = Collector()
    async with MessageBus(fragile, publish_timeout=4.0) as bus:
        await bus.subscribe(f"{name}.jobs", seen, group="workers")
        await arrives(bus, f"{name}.jobs", seen, 10.0)
        server.freeze()
        began = time.monotonic()
        with pytest.raises((BrokerUnavailable, TimeoutError)):
            await bus.publish(f"{name}.jobs", "into the ice")
        assert time.monotonic() - began < 10
        server.thaw()
        await arrives(bus, f"{name}.jobs", seen, 20.0)


async def test_leaving_while_the_server_is_away_takes_seconds(fragile: KafkaBroker, name: str, server: Server) -> None:
    bus = MessageBus(fragile, drain_timeout=1.0)
    await bus.subscribe(f"{name}.jobs", Collector(), group="workers")
    await bus.subscribe(f"{name}.jobs", Collector())
    server.freeze()
    began = time.monotonic()
    await bus.disconnect()
    assert time.monotonic() - began < 12
    server.thaw()


async def test_a_killed_consumer_leaves_exactly_what_it_held(make: Make, name: str) -> None:
    held, seen = 5, Collector()
    broker = make(session_timeout_ms=4000, heartbeat_interval_ms=200)
    async with MessageBus(broker) as bus:
        options: dict[str, Any] = {"group": "workers", "concurrency": held, "then": "hang"}
        async with Child.running(broker, f"{name}.jobs", options) as child:
            await child.event("ready", within=30)
            for number in range(held):
                await bus.publish(f"{name}.jobs", number)
            await child.event("got", held)
            await bus.subscribe(f"{name}.jobs", seen, group="workers")
            await bus.publish(f"{name}.jobs", "fresh")
            await seen.wait()
            await stays(lambda: seen.data == ["fresh"], "what a living member holds was taken", 1.0)
            child.kill()
            await seen.wait(held + 1, 20)
            await stays(lambda: len(seen.data) == held + 1, "something came twice", 1.0)
    assert sorted(map(str, seen.data)) == sorted([*map(str, range(held)), "fresh"])
