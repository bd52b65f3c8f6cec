"""The page of ``agent_os.amb`` (requirement text 000): the bus, its brokers, its configuration.

Here are Redis and memory. Its other brokers are in `test_000_kafka`, `test_000_nats` and `test_000_sqs`, its variables
in `test_000_environment`, its extras in `test_000_installation`. Which block of the page is where says ``README.md``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from amb_core import InMemoryBroker, Message, MessageBus, RedisBroker

from tests.core._help import Collector, eventually
from tests.servers.redis import RedisCluster, SecureRedis

from ._run import run

BASICS = """
from agent_os.amb import MessageBus

# Create a message bus with default settings (in-memory for development)
bus = MessageBus()
first = bus # added

# Create with explicit broker configuration
bus = MessageBus(
    broker="redis",
    broker_url="redis://localhost:6379",
    serializer="json"
)
second = bus # added

# Async context manager for proper resource cleanup
async with MessageBus(broker="redis") as bus:
    await bus.publish("topic.name", {"data": "value"})

# Manual lifecycle management
bus = MessageBus(broker="redis")
await bus.connect()
connected = bus.connected # added
# ... use the bus ...
await bus.disconnect()
"""


@pytest.mark.asyncio
async def test_message_bus_basics(other: MessageBus) -> None:
    collector = Collector()
    await other.subscribe("topic.name", collector)
    names = await run(BASICS, {})
    assert type(names["first"].broker) is InMemoryBroker
    assert type(names["second"].broker) is RedisBroker
    assert names["connected"] and not names["bus"].connected
    assert (await collector.wait())[0].data == {"data": "value"}


@pytest.mark.asyncio
@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_every_core_method_has_its_documented_arguments(redis_url: str, broker: str) -> None:
    received: list[Any] = []
    async with MessageBus(broker=broker) as bus:

        async def handler(message: Message) -> None:
            received.append(message.data)

        async def answer(message: Message) -> None:
            await bus.reply(message.id, {"doubled": message.data * 2})

        topic, message, timeout = "core.topic", {"n": 1}, 5.0
        await bus.subscribe(topic, handler)
        await bus.subscribe("core.service", answer)
        await bus.publish(topic, message)
        assert (await bus.request("core.service", 21, timeout)).data == {"doubled": 42}
        await bus.unsubscribe(topic)
        await bus.publish(topic, message)
    assert received == [{"n": 1}]


REDIS_BASIC = """
from agent_os.amb import MessageBus, RedisBroker

# Basic Redis configuration
bus = MessageBus(
    broker="redis",
    broker_url="redis://localhost:6379/0"
)
"""

REDIS_ADVANCED = """
from agent_os.amb import MessageBus, RedisBroker # added

# Advanced Redis configuration with Streams for persistence
bus = MessageBus(
    broker=RedisBroker(
        url="redis://localhost:6379",
        db=0,
        use_streams=True, # Use Redis Streams for persistence
        stream_max_len=10000, # Max messages per stream
        consumer_group="my-agents", # Consumer group for load balancing
        pool_size=10, # Connection pool size
        ssl=True, # Enable SSL/TLS
        password="secret"
    )
)
"""

REDIS_CLUSTER = """
from agent_os.amb import MessageBus, RedisBroker # added

# Redis Cluster support
bus = MessageBus(
    broker=RedisBroker(
        cluster_nodes=[
            "redis://node1:6379",
            "redis://node2:6379",
            "redis://node3:6379"
        ]
    )
)
"""


@pytest.mark.asyncio
async def test_basic_redis_configuration(redis_url: str) -> None:
    names, collector = await run(REDIS_BASIC, {}), Collector()
    async with names["bus"] as bus:
        await bus.subscribe("basic.redis", collector)
        await bus.publish("basic.redis", 1)
        await collector.wait()


@pytest.mark.asyncio
async def test_advanced_redis_configuration_over_tls_and_with_a_group_of_its_own(secure_redis: SecureRedis) -> None:
    text = REDIS_ADVANCED.replace("localhost:6379", f"{secure_redis.host}:{secure_redis.port}")
    text = text.replace('password="secret"', f"password={secure_redis.password!r}, username={secure_redis.username!r}, "
                                             f"ssl_ca_certs={secure_redis.ca!r}")  # fmt: skip
    names, one, two = await run(text, {}), Collector(), Collector()
    async with names["bus"] as bus:
        await bus.subscribe("advanced.redis", one)
        await bus.subscribe("advanced.redis", two)
        for number in range(20):
            await bus.publish("advanced.redis", number)
        # What a group has not taken when its last member leaves stays in the stream.
        await eventually(lambda: len(one.data) + len(two.data) >= 20, lambda: f"{one.data} {two.data}", 10)
    assert sorted(one.data + two.data) == list(range(20))


@pytest.mark.asyncio
async def test_redis_cluster_support(redis_cluster: RedisCluster) -> None:
    text = REDIS_CLUSTER
    for number, (host, port) in enumerate(redis_cluster.nodes, 1):
        text = text.replace(f"node{number}:6379", f"{host}:{port}")
    names, collector = await run(text, {}), Collector()
    async with names["bus"] as bus:
        for number in range(10):
            await bus.subscribe(f"cluster.t{number}", collector)
            await bus.publish(f"cluster.t{number}", number)
        await collector.wait(10)
    assert sorted(collector.data) == list(range(10))


MEMORY = """
from agent_os.amb import MessageBus, InMemoryBroker

# Default: automatically uses InMemory in test environments
bus = MessageBus() # Detects pytest and uses InMemory
default = bus # added

# Explicit InMemory for testing
bus = MessageBus(broker="memory")
explicit = bus # added

# InMemory with simulated latency for realistic testing
bus = MessageBus(
    broker=InMemoryBroker(
        latency_ms=10, # Simulate network latency
        failure_rate=0.01, # 1% random failures for chaos testing
        max_queue_size=10000 # Backpressure simulation
    )
)
"""


@pytest.mark.asyncio
async def test_in_memory_backends() -> None:
    names = await run(MEMORY, {})
    assert type(names["default"].broker) is type(names["explicit"].broker) is InMemoryBroker
    async with names["bus"] as bus:
        collector, failed = Collector(), 0
        await bus.subscribe("t", collector)
        for number in range(20):
            try:
                await bus.publish("t", number)
            except ConnectionError:
                failed += 1
        await collector.wait(20 - failed)


FIXTURE = """
import asyncio # added
from agent_os.amb import MessageBus, InMemoryBroker # added
import pytest

# Pytest fixture example
@pytest.fixture
async def message_bus():
    async with MessageBus(broker="memory") as bus:
        yield bus

async def test_publish_subscribe(message_bus):
    received = []
    await message_bus.subscribe("test.topic", lambda msg: received.append(msg))
    await message_bus.publish("test.topic", {"value": 42})
    await asyncio.sleep(0.1) # Allow message delivery
    assert received == [{"value": 42}]
"""
PLUGINS = {
    "pytest-asyncio": ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"],
    "anyio": ["-o", "anyio_mode=auto", "-p", "no:asyncio", "-k", "not trio"],  # the example says asyncio.sleep
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_pytest_fixture_example_passes_under_each_plugin(tmp_path: Path, plugin: str) -> None:
    # The page's tenth of a second is a guess about the machine that it runs on.
    (tmp_path / "test_example.py").write_text(FIXTURE.replace("asyncio.sleep(0.1)", "asyncio.sleep(2)"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGINS[plugin], "test_example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
