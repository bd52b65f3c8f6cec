"""How much waits in the broker, and how much is not settled: asked of real servers, while metrics are on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus
from amb_core.observability import metrics
from amb_core.testing._wait import eventually
from amb_redis import RedisBroker
from prometheus_client import CollectorRegistry

from tests.servers.redis import RedisCluster

from ._brokers import SERVERS, broker, new_word

pytestmark = pytest.mark.anyio
#: Of each broker: whether it says how much waits, and how much is not settled.
TELLS = {
    "memory": (True, True),
    "redis": (True, True),
    "nats": (True, True),
    "kafka": (False, True),
    "rabbitmq": (True, False),
    "sqs": (True, True),
    "azure": (False, False),
}
SYSTEMS = {"sqs": "aws_sqs", "azure": "servicebus"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def told(registry: CollectorRegistry, name: str, topic: str) -> tuple[float | None, float | None]:
    """The depth and the lag of the group."""
    labels = {"system": SYSTEMS.get(name, name), "topic": topic, "group": "g"}
    return registry.get_sample_value("amb_queue_depth", labels), registry.get_sample_value("amb_lag", labels)


def known(name: str, depth: int, lag: int) -> tuple[float | None, float | None]:
    says_depth, says_lag = TELLS[name]
    return (depth if says_depth else None), (lag if says_lag else None)


async def becomes(what: Callable[[], Any], wanted: Any) -> None:
    await eventually(lambda: what() == wanted, lambda: f"{wanted}, got {what()}", 20)


@pytest.mark.parametrize("name", TELLS)
async def test_depth_and_lag_are_those_of_the_group(name: str, request: pytest.FixtureRequest) -> None:
    assert TELLS.keys() == {"memory", *SERVERS}
    topic, gate, handled = new_word(), anyio.Event(), list[Any]()

    async def wait(message: Message) -> None:
        await gate.wait()
        if message.data == 0 and message.attempt == 1:
            raise ValueError("once more")
        handled.append(message.data)

    registry = metrics.registry(backlog_interval=0.1)
    async with MessageBus("memory" if name == "memory" else broker(name, request)) as bus:
        await bus.subscribe(topic, wait, group="g", concurrency=1, retries=1, retry_delay=0.01)
        now = functools.partial(told, registry, name, topic)
        await becomes(now, known(name, 0, 0))
        for number in range(5):
            await bus.publish(topic, number)
        await becomes(now, known(name, 4, 5))
        gate.set()
        await eventually(lambda: bus.stats.acked == 5, "all of them")
        await becomes(now, known(name, 0, 0))
    assert sorted(handled) == list(range(5))


@pytest.mark.parametrize("name", ["redis", "kafka", "nats"])
async def test_they_are_sums_over_topics_and_members(name: str, request: pytest.FixtureRequest) -> None:
    word, gate, running = new_word(), anyio.Event(), list[Any]()

    async def wait(message: Message) -> None:
        running.append(message.data)
        await gate.wait()

    registry = metrics.registry(backlog_interval=0.1)
    made = broker(name, request)
    async with MessageBus(made) as bus, MessageBus(made) as other:
        for topic in ("a", "b"):
            await bus.publish(f"{word}.{topic}", "before")  # no topic is found later than the group begins
        for member in (bus, other):
            await member.subscribe(f"{word}.*", wait, group="g", concurrency=1)
        for number in range(3):
            for topic in ("a", "b"):
                await bus.publish(f"{word}.{topic}", number)
        members = 1 if name == "kafka" else 2
        await eventually(lambda: len(running) >= members, "the members at work")
        await becomes(lambda: told(registry, name, f"{word}.*"), known(name, 6 - len(running), 6))
        gate.set()
        await becomes(lambda: told(registry, name, f"{word}.*"), known(name, 0, 0))


async def test_a_cluster_is_asked_on_every_node(redis_cluster: RedisCluster) -> None:
    word, gate = new_word(), anyio.Event()

    async def wait(_: Message) -> None:
        await gate.wait()

    registry = metrics.registry(backlog_interval=0.1)
    made = RedisBroker(cluster_nodes=[f"redis://{host}:{port}" for host, port in redis_cluster.nodes], prefix=word)
    async with MessageBus(made) as bus:
        await bus.subscribe("orders.*", wait, group="g", concurrency=1)
        for number in range(12):  # enough for three nodes
            await bus.publish(f"orders.o{number}", number)
        await becomes(lambda: told(registry, "redis", "orders.*"), (11, 12))
        gate.set()
        await becomes(lambda: told(registry, "redis", "orders.*"), (0, 0))


async def test_nobody_is_asked_unless_somebody_wants_to_know() -> None:
    for turn_on in (lambda: None, lambda: metrics.registry(backlog_interval=None)):
        turn_on()
        async with MessageBus() as bus:
            await bus.subscribe("t", print, group="g")
            await anyio.wait_all_tasks_blocked()
            assert [each.consumer.backlog for each in bus.host.supervised] == [None]
    registry = metrics.registry()
    async with MessageBus() as bus:
        await bus.subscribe("t", print, group="g")
        await anyio.wait_all_tasks_blocked()
        assert told(registry, "memory", "t") == (0, 0)


@pytest.mark.parametrize("interval", [0, -1, float("inf"), float("nan")])
def test_an_interval_that_is_none_is_refused(interval: float) -> None:
    with pytest.raises(ValueError, match="backlog_interval"):
        metrics.registry(backlog_interval=interval)
