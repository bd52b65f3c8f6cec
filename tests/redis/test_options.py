"""Every option of the broker does what it says."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import pytest
import redis
from amb_core import DeadLetterQueue, MessageBus, UnsupportedError
from amb_core.errors import ConfigurationError, PublishUnknown, Unavailable
from amb_redis import RedisBroker

from tests.core._help import Collector, eventually
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.anyio
Make = Callable[..., RedisBroker]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"url": "http://localhost"}, "redis://host:6379/0"),
        ({"url": "redis://localhost:port"}, "port"),
        ({"cluster_nodes": ["localhost:6379"]}, "cluster_nodes must look like"),
        ({"sentinel_nodes": ["localhost:26379"]}, "sentinel_nodes must look like"),
        ({"cluster_nodes": ["redis://a:1"], "sentinel_nodes": ["redis://b:1"]}, "not both"),
        ({"cluster_nodes": ["redis://a:1"], "db": 1}, "database 0"),
        ({"prefix": "a{b}"}, "prefix"),
        ({"prefix": ""}, "prefix"),
        ({"stream_max_len": 0}, "stream_max_len"),
        ({"pool_size": 0}, "pool_size"),
        ({"lease": 0.01}, "lease"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"use_streams": False, "consumer_group": "g"}, "consumer_group"),
        ({"client_options": {"decode_responses": True}}, "decode_responses"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options: dict[str, object], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        RedisBroker(**options)  # type: ignore[arg-type]


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="max_len"):
        RedisBroker(max_len=3)  # type: ignore[call-arg]


def test_no_secret_in_the_repr() -> None:
    shown = repr(
        RedisBroker(
            "redis://me:hidden@localhost",
            password="hidden",
            sentinel_nodes=["redis://me:hidden@localhost:26379"],
            client_options={"credential_password": "hidden"},
        )
    )
    assert "hidden" not in shown
    assert "localhost" in shown


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "URL": "redis://elsewhere:7000/2", "USE_STREAMS": "no", "STREAM_MAX_LEN": "50", "POOL_SIZE": "3",
        "CLUSTER_NODES": "", "PREFIX": "other", "SSL": "yes", "LEASE": "2.5", "PASSWORD": "p",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AMB_REDIS_{name}", value)
    assert MessageBus("redis").broker == RedisBroker(
        "redis://elsewhere:7000/2", use_streams=False, stream_max_len=50, pool_size=3, prefix="other", ssl=True,
        lease=2.5, password="p",
    )  # fmt: skip


def test_options_come_from_the_url() -> None:
    bus = MessageBus("redis://host:7000/1?stream_max_len=5&cluster_nodes=redis://a:1,redis://b:2&use_streams=off")
    assert bus.broker == RedisBroker(
        "redis://host:7000/1", stream_max_len=5, cluster_nodes=["redis://a:1", "redis://b:2"], use_streams=False
    )


async def test_db_wins_over_the_url(redis_server: RedisServer, make: Make, prefix: str) -> None:
    async with MessageBus(make(url=f"{redis_server.url.rpartition('/')[0]}/2", db=3)) as bus:
        await bus.publish("a.b", 1)
    for db, expected in ((0, 0), (2, 0), (3, 1)):
        with redis.Redis(port=redis_server.port, db=db) as client:
            assert client.exists(f"{prefix}:{{a.b}}:s") == expected


async def test_a_socket_instead_of_a_port(own_redis_server: RedisServer) -> None:
    async with MessageBus(RedisBroker(f"unix://{own_redis_server.socket}")) as bus:
        seen = Collector()
        await bus.subscribe("by.socket", seen)
        await bus.publish("by.socket", 1)
        await seen.wait()


async def test_pool_size_bounds_the_connections_for_publishing(make: Make, native: Any, prefix: str) -> None:
    broker = make(pool_size=2, client_options={"client_name": prefix})
    async with MessageBus(broker) as bus, anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(bus.publish, f"pool.{number % 7}", number)
        await eventually(lambda: bus.stats.published == 200, "200 published", 10)
        mine = [client for client in native.client_list() if client["name"] == prefix]
        assert 1 <= len(mine) <= 2, f"{len(mine)} connections"


async def test_a_client_option_that_redis_py_does_not_know_is_named(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="no_such_thing"):
        await MessageBus(make(client_options={"no_such_thing": 1})).connect()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_another_event_loop_than_asyncio_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="asyncio only"):
        await MessageBus(RedisBroker()).connect()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
async def test_on_uvloop(broker: RedisBroker) -> None:
    async with MessageBus(broker) as bus:
        seen = Collector()
        await bus.subscribe("uv.#", seen, group="g")
        await bus.publish("uv.x", 1)
        await seen.wait()


async def test_prefixes_keep_systems_apart(make: Make, prefix: str) -> None:
    for use_streams in (True, False):
        one, other = make(use_streams=use_streams), make(use_streams=use_streams, prefix=f"{prefix}x")
        async with MessageBus(one) as bus, MessageBus(other) as stranger:
            mine, theirs = Collector(), Collector()
            await bus.subscribe("#", mine)
            await stranger.subscribe("#", theirs)
            await bus.publish("a.b", "mine")
            await stranger.publish("a.b", "theirs")
            await mine.wait()
            await theirs.wait()
            assert (mine.data, theirs.data) == (["mine"], ["theirs"])


async def test_consumer_group_is_the_group_of_those_that_name_none(make: Make, native: Any, prefix: str) -> None:
    broker, first, second = make(consumer_group="my-agents"), Collector(), Collector()
    async with MessageBus(broker) as bus, MessageBus(broker) as other:
        await bus.subscribe("shared.work", first)
        await other.subscribe("shared.work", second)
        for number in range(40):
            await bus.publish("shared.work", number)
        await eventually(lambda: len(first.data) + len(second.data) >= 40, "40 handled", 10)
        assert sorted(first.data + second.data) == list(range(40))
    groups = native.xinfo_groups(f"{prefix}:{{shared.work}}:s")
    assert [group["name"] for group in groups] == [b"my-agents@shared.work"]


async def test_dead_letter_queue_is_the_topic_of_buses_that_name_none(make: Make, native: Any, prefix: str) -> None:
    async with MessageBus(make(dead_letter_queue="dlq:agent-messages")) as bus:
        assert bus.dead_letter_queue == DeadLetterQueue("dlq:agent-messages")
        await bus.subscribe("work", Collector(RuntimeError("no")), group="g", retries=0)
        await bus.publish("work", {"a": 1})
        await eventually(lambda: bus.stats.dead_lettered == 1, "a dead letter", 10)
    ((_, fields),) = native.xrange(f"{prefix}:{{dlq:agent-messages}}:s")
    assert fields[b"body"] == b'{"a":1}'
    assert msgspec.json.decode(fields[b"headers"])["amb-dead-topic"] == "work"


async def test_without_streams_nothing_is_stored_and_groups_are_refused(make: Make, native: Any, prefix: str) -> None:
    async with MessageBus(make(use_streams=False)) as bus:
        seen = Collector()
        await bus.subscribe("plain.#", seen)
        await bus.publish("plain.x", 1)
        await seen.wait()
        with pytest.raises(UnsupportedError, match="group"):
            await bus.subscribe("plain.x", seen, group="g")
        with pytest.raises(UnsupportedError, match="delay"):
            await bus.publish("plain.x", 1, delay=1)
    assert list(native.scan_iter(f"{prefix}:*", count=10000)) == []


async def test_connect_timeout_bounds_a_server_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}"):
            async with RedisBroker(f"redis://127.0.0.1:{port}", connect_timeout=0.3).connect():
                pass
        assert time.monotonic() - began < 4  # without it, five


async def test_response_timeout_bounds_a_server_that_stops_answering(own_redis_server: RedisServer) -> None:
    assert own_redis_server.process is not None
    async with MessageBus(RedisBroker(own_redis_server.url, response_timeout=1.0)) as bus:
        await bus.publish("frozen", 1)
        own_redis_server.process.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(PublishUnknown):
                await bus.publish("frozen", 2, wait_for_confirmation=True)
            assert time.monotonic() - began < 3
        finally:
            own_redis_server.process.thaw()


async def test_wait_replicas_says_when_too_few_have_the_message(make: Make) -> None:
    broker = make(wait_replicas=1, response_timeout=1.5)
    assert broker.capabilities.confirm == "replicated"
    async with MessageBus(broker) as bus:
        await bus.publish("copied", 1)
        with pytest.raises(PublishUnknown, match="0 of 1"):
            await bus.publish("copied", 2, wait_for_confirmation=True)


class TestStreamMaxLen:
    async def test_caps_what_nobody_needs(self, make: Make, native: Any, prefix: str) -> None:
        async with MessageBus(make(stream_max_len=100)) as bus:
            for start in range(0, 2000, 50):
                async with anyio.create_task_group() as group:
                    for number in range(start, start + 50):
                        group.start_soon(bus.publish, "capped", number)
        assert 100 <= native.xlen(f"{prefix}:{{capped}}:s") <= 200

    @pytest.mark.parametrize("pattern", ["kept", "kept.#", "#"])
    async def test_keeps_what_a_group_has_not_read_and_says_so(
        self, make: Make, native: Any, prefix: str, caplog: pytest.LogCaptureFixture, pattern: str
    ) -> None:
        broker, seen, number = make(stream_max_len=50), Collector(), 0
        async with MessageBus(broker) as bus:
            await bus.unsubscribe(await bus.subscribe(pattern, seen, group="slow"))
            with caplog.at_level(logging.WARNING, "amb.redis"):
                for number in range(600):
                    await bus.publish("kept", number)
            assert native.xlen(f"{prefix}:{{kept}}:s") == 600
            warnings = [record for record in caplog.records if "stream_max_len=50" in record.getMessage()]
            assert len(warnings) == 1, "one warning per topic"
            details = (await bus.health()).details
            assert any("stream_max_len" in name for name in details), details
            await bus.subscribe(pattern, seen, group="slow", concurrency=50)
            await seen.wait(600, 20)
            assert sorted(seen.data) == list(range(600))
            await eventually(lambda: bus.stats.acked == 600, "600 settled", 10)
            for _ in range(10):
                await bus.publish("kept", "later")
            await eventually(lambda: native.xlen(f"{prefix}:{{kept}}:s") <= 200, "it is trimmed when read", 10)

    async def test_keeps_what_is_not_settled(self, make: Make, native: Any, prefix: str) -> None:
        release, held = anyio.Event(), list[object]()

        async def hold_the_first(data: int) -> None:
            if data == 0:
                held.append(data)
                await release.wait()

        async with MessageBus(make(stream_max_len=50)) as bus:
            await bus.subscribe("held", hold_the_first, group="g", concurrency=20)
            await bus.publish("held", 0)
            await eventually(lambda: held == [0], "the first is held", 10)
            for number in range(1, 400):
                await bus.publish("held", number)
            first = native.xrange(f"{prefix}:{{held}}:s", count=1)
            assert first[0][1][b"body"] == b"0", "what is being handled was trimmed"
            release.set()
