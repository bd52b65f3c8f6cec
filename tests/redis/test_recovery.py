"""Consumers that die, servers that restart, freeze, lose their data or are not there yet."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
import redis
from amb_core import Message, MessageBus
from amb_core.errors import BrokerUnavailable, PublishUnknown
from amb_core.testing import Child
from amb_redis import RedisBroker

from tests.core._help import Collector, eventually
from tests.servers.process import Server
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.anyio
Make = Callable[..., RedisBroker]


@pytest.fixture
def server(own_redis_server: RedisServer) -> Iterator[Server]:
    """A server that may be hurt; it runs again afterwards."""
    process = own_redis_server.process
    assert process is not None
    try:
        yield process
    finally:
        process.thaw()
        process.restart()


@pytest.fixture
def fragile(own_redis_server: RedisServer, prefix: str) -> RedisBroker:
    """A broker on it that notices silence within a second."""
    return RedisBroker(own_redis_server.url, prefix=prefix, lease=1.0, response_timeout=1.0)


@pytest.fixture
async def hurt(own_redis_server: RedisServer) -> AsyncIterator[redis.Redis]:
    with redis.Redis(port=own_redis_server.port) as client:
        yield client


async def _arrives(bus: MessageBus, topic: str, seen: Collector, within: float = 10.0) -> float:
    """Publish until something newly published is handled; the seconds it took."""
    began, number = time.monotonic(), 0
    while True:
        number += 1
        marker = f"probe-{time.monotonic_ns()}"
        try:
            await bus.publish(topic, marker)
        except BrokerUnavailable:
            await anyio.sleep(0.05)
        with anyio.move_on_after(0.3):
            await eventually(lambda: marker in seen.data, "", 60)  # noqa: B023
            return time.monotonic() - began
        assert time.monotonic() - began < within, f"nothing arrives within {within:g} s"


async def test_a_killed_consumer_leaves_exactly_what_it_held(make: Make) -> None:
    broker, held, seen = make(lease=3.0), 7, Collector()
    async with MessageBus(broker) as bus:
        options: dict[str, Any] = {"group": "workers", "concurrency": held, "then": "hang"}
        async with Child.running(broker, "jobs", options) as child:
            await child.event("ready", within=30)
            await bus.publish_batch([_message(number) for number in range(held)])
            await child.event("got", held)
            await bus.subscribe("jobs", seen, group="workers")
            await bus.publish("jobs", "fresh")
            await seen.wait()
            assert seen.data == ["fresh"], "what a living member holds was taken"
            child.kill()
            await seen.wait(1 + held, broker.lease + 5)
        await anyio.sleep(2 * broker.lease)
    again = [message for message in seen.messages if message.data != "fresh"]
    assert sorted(message.data for message in again) == list(range(held))
    assert {message.attempt for message in again} == {2}


def _message(number: int) -> Message:
    return Message("jobs", number)


async def test_three_restarts_during_three_thousand_messages(server: Server, fragile: RedisBroker) -> None:
    total, seen = 3000, Collector()
    async with MessageBus(fragile, publish_timeout=20) as publisher, MessageBus(fragile) as consumer:
        await consumer.subscribe("work", seen, group="workers", concurrency=50)
        numbers, accepted, unknown, pauses = count(), list[int](), list[int](), list[float]()

        async def publish() -> None:
            while len(accepted) < total or len(pauses) < 3:
                number = next(numbers)
                try:
                    await publisher.publish("work", number, wait_for_confirmation=True)
                    accepted.append(number)
                except PublishUnknown:
                    unknown.append(number)

        async def restart() -> None:
            for share in (1, 2, 3):
                await eventually(lambda: len(accepted) >= share * total // 4, "progress", 60)  # noqa: B023
                await anyio.to_thread.run_sync(server.restart)
                before, began = len(seen.data), time.monotonic()
                await eventually(lambda: len(seen.data) > before, "consuming again", 10)  # noqa: B023
                pauses.append(time.monotonic() - began)

        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(publish)
            group.start_soon(restart)
        await eventually(lambda: set(accepted) <= set(seen.data), "what was accepted arrives", 20)
    assert set(seen.data) <= set(accepted) | set(unknown)
    assert max(pauses) < 5, f"consuming again after {pauses}"
    # A handler that was running when the link broke keeps its lease: hardly anything comes twice.
    assert len(seen.data) - len(set(seen.data)) <= 3 * 50
    assert len(unknown) <= 3 * 30


async def test_a_frozen_server_shows_in_health_and_is_used_again_when_it_thaws(
    server: Server, fragile: RedisBroker
) -> None:
    seen = Collector()
    async with MessageBus(fragile, publish_timeout=1) as bus:
        await bus.subscribe("work", seen, group="workers")
        await _arrives(bus, "work", seen)
        server.freeze()
        with pytest.raises((BrokerUnavailable, TimeoutError)):
            await bus.publish("work", "lost?", wait_for_confirmation=True)
        await eventually_status(bus, "unhealthy", 8)
        server.thaw()
        await _arrives(bus, "work", seen)
        await eventually_status(bus, "healthy", 8)


async def eventually_status(bus: MessageBus, status: str, within: float) -> None:
    with anyio.fail_after(within):
        while (await bus.health()).status != status:
            await anyio.sleep(0.05)


async def test_a_server_that_is_down_at_start(server: Server, fragile: RedisBroker) -> None:
    server.stop()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1"):
        await MessageBus(fragile, connect_timeout=0.5).connect()
    assert time.monotonic() - began < 3
    bus, seen = MessageBus(fragile, connect_timeout=20), Collector()
    async with anyio.create_task_group() as group:
        group.start_soon(bus.connect)
        await anyio.sleep(0.3)
        await anyio.to_thread.run_sync(server.start)
    await bus.subscribe("work", seen)
    await bus.publish("work", 1)
    await seen.wait()
    await bus.disconnect()


async def test_connections_killed_again_and_again_lose_nothing(make: Make, native: redis.Redis, prefix: str) -> None:
    seen = Collector()
    broker = make(client_options={"client_name": prefix})
    async with MessageBus(broker) as bus:
        await bus.subscribe("work", seen, group="workers")
        await bus.subscribe("other.#", Collector(), group="workers")
        done, unknown = set[int](), set[int]()
        for number in range(300):
            if number % 60 == 30:
                for client in native.client_list():
                    if client["name"] == prefix:
                        native.client_kill_filter(_id=client["id"])
            try:
                await bus.publish("work", number)
                done.add(number)
            except PublishUnknown:
                unknown.add(number)
        await eventually(lambda: done <= set(seen.data), "what was accepted arrives", 15)
        assert len(unknown) <= 5
        assert bus.stats.reconnects or seen.data, "nothing was killed"


@pytest.mark.parametrize("pattern", ["work", "work.#", "#"])
async def test_data_lost_under_a_live_group_is_said_and_survived(
    server: Server, fragile: RedisBroker, hurt: redis.Redis, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    # A link that counted as dead while this process stood still would be made again, and the groups with it, unsaid.
    patient, seen = msgspec.structs.replace(fragile, response_timeout=10.0), Collector()
    async with MessageBus(patient) as bus:
        await bus.subscribe(pattern, seen, group="workers")
        await _arrives(bus, "work", seen)
        with caplog.at_level(logging.WARNING, "amb.redis"):
            hurt.flushall()
            assert await _arrives(bus, "work", seen) < 8
        assert "was gone" in caplog.text
        bus.stats.acked, before = 0, len(seen.data)
        await bus.publish("work", "after")
        await eventually(lambda: len(seen.data) > before and bus.stats.acked > 0, "it is settled too", 5)


@pytest.mark.parametrize("pattern", ["work", "work.#"])
@pytest.mark.parametrize("group", ["workers", None])
async def test_what_came_after_the_loss_and_before_the_reconnect_is_delivered(
    server: Server, fragile: RedisBroker, hurt: redis.Redis, prefix: str, pattern: str, group: str | None
) -> None:
    seen, own = Collector(), msgspec.structs.replace(fragile, client_options={"client_name": prefix}, lease=30.0)
    async with MessageBus(own) as bus:
        await bus.subscribe(pattern, seen, group=group)
        await bus.publish("work", "before")
        await seen.wait()
        # Without giving the loop a chance in between: the server restarts empty, and others publish first.
        for client in hurt.client_list():
            if client["name"] == prefix:
                hurt.client_kill_filter(_id=client["id"])
        hurt.flushall()
        hurt.sadd(f"{prefix}:{{topics}}", "work")
        hurt.xadd(f"{prefix}:{{work}}:s", {"body": '"meanwhile"'})
        await seen.wait(2)
        assert seen.data == ["before", "meanwhile"]


@pytest.mark.parametrize("group", ["workers", None])
async def test_a_first_topic_that_came_before_the_reconnect_is_read_from_its_beginning(
    make: Make, native: redis.Redis, prefix: str, group: str | None
) -> None:
    seen = Collector()
    async with MessageBus(make(client_options={"client_name": prefix})) as bus:
        await bus.subscribe("work.*", seen, group=group)
        # Without giving the loop a chance in between: so far the pattern has matched nothing.
        for client in native.client_list():
            if client["name"] == prefix:
                native.client_kill_filter(_id=client["id"])
        native.sadd(f"{prefix}:{{topics}}", "work.first")
        native.xadd(f"{prefix}:{{work.first}}:s", {"body": '"meanwhile"'})
        await seen.wait()
        assert seen.data == ["meanwhile"]


async def test_a_server_that_forgot_the_scripts_is_taught_again(broker: RedisBroker, native: redis.Redis) -> None:
    seen = Collector(RuntimeError("once"), failures=1)
    async with MessageBus(broker) as bus:
        await bus.subscribe("work", seen, group="workers", retries=1, retry_delay=0.1)
        native.script_flush()
        await bus.publish("work", 1)
        await seen.wait(2)
        native.script_flush()
        await bus.publish("work", 2, delay=0.1)
        await seen.wait(3)


async def test_a_reading_that_was_cancelled_loses_nothing(broker: RedisBroker) -> None:
    from amb_core.broker import Outgoing, Settlement, Source

    async with broker.connect() as connection, connection.open(Source(id="s", pattern="jobs", group="g")) as feed:
        got = list[bytes]()
        for number in range(40):
            async with anyio.create_task_group() as group:
                with anyio.move_on_after(0.002 * (number % 5)):
                    await feed.receive(1)
                    raise AssertionError("there was nothing to receive")
                group.start_soon(connection.send, [Outgoing("jobs", b"%d" % number, {})])
            with anyio.fail_after(5):
                (incoming,) = await feed.receive(1)
            got.append(incoming.body)
            assert incoming.attempt == 1
            await feed.settle([Settlement(incoming.token, "ack")])
        assert got == [b"%d" % number for number in range(40)]


async def test_what_is_handled_when_the_link_breaks_is_not_handled_twice(
    make: Make, native: redis.Redis, prefix: str
) -> None:
    release, running = anyio.Event(), list[Any]()

    async def slow(message: Message) -> None:
        running.append(message.data)
        await release.wait()

    async with (
        MessageBus(make(client_options={"client_name": prefix}, lease=3.0)) as bus,
        MessageBus(make(lease=3.0)) as publisher,
    ):
        await bus.subscribe("work", slow, group="workers", concurrency=5)
        for number in range(3):
            await publisher.publish("work", number)
        await eventually(lambda: len(running) == 3, "three run", 5)
        for client in native.client_list():
            if client["name"] == prefix:
                native.client_kill_filter(_id=client["id"])
        await publisher.publish("work", 3)
        await eventually(lambda: len(running) == 4, "the fourth runs", 10)
        await anyio.sleep(2 * 3.0)  # twice the lease: nobody may take them back meanwhile
        release.set()
        await eventually(lambda: bus.stats.acked == 4, "all are settled", 5)
        assert sorted(running) == [0, 1, 2, 3]
    assert native.xpending(f"{prefix}:{{work}}:s", "workers@work")["pending"] == 0


async def test_a_later_broker_with_another_lease_takes_over(broker: RedisBroker) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        async with Child.running(broker, "jobs", {"group": "workers", "then": "hang"}) as child:
            await child.event("ready", within=30)
            await bus.publish("jobs", 1)
            await child.event("got")
            child.kill()
        await bus.unsubscribe(await bus.subscribe("nothing", seen))
    async with MessageBus(msgspec.structs.replace(broker, lease=0.5)) as bus:
        await bus.subscribe("jobs", seen, group="workers")
        await seen.wait(1, 5)
        assert seen.messages[0].attempt == 2
