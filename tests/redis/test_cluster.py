"""Three masters that share the slots: everything goes by key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import msgspec
import pytest
import redis
from amb_core import Message, MessageBus
from amb_core.broker import Connection, Elects
from amb_core.errors import Unavailable
from amb_core.testing import Child
from amb_redis import RedisBroker

from tests.core._help import Collector, eventually, stays
from tests.servers.redis import RedisCluster

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker(redis_cluster: RedisCluster, prefix: str) -> RedisBroker:
    return RedisBroker(
        cluster_nodes=[f"redis://{host}:{port}" for host, port in redis_cluster.nodes], prefix=prefix, lease=30.0
    )


@pytest.fixture
def native(redis_cluster: RedisCluster) -> Iterator[redis.RedisCluster]:
    host, port = redis_cluster.nodes[0]
    client = redis.RedisCluster(host=host, port=port)
    try:
        yield client
    finally:
        client.close()


def _topics(prefix: str, client: Any, count: int) -> list[str]:
    """Topics whose keys lie on three nodes."""
    topics, nodes = [f"work.{number}" for number in range(count)], set[Any]()
    for topic in topics:
        nodes.add(client.get_node_from_key(f"{prefix}:{{{topic}}}:s").name)
    assert len(nodes) == 3
    return topics


async def test_one_node_is_enough_to_find_the_others(broker: RedisBroker, native: Any) -> None:
    topics = _topics(broker.prefix, native, 30)
    one = msgspec.structs.replace(broker, cluster_nodes=["redis://127.0.0.1:1", *broker.cluster_nodes[:1]])
    async with MessageBus(one) as bus:
        seen = Collector()
        for topic in topics:
            await bus.subscribe(topic, seen, group="g")
        for topic in topics:
            await bus.publish(topic, topic)
        await seen.wait(30)
        assert sorted(seen.data) == sorted(topics)
        assert (await bus.health()).details["mode"] == "cluster"


async def test_a_batch_goes_to_all_nodes(broker: RedisBroker, native: Any) -> None:
    from amb_core import Message

    topics = _topics(broker.prefix, native, 30)
    async with MessageBus(broker) as bus:
        await bus.publish_batch([Message(topic, 1) for topic in topics])
    assert all(native.xlen(f"{broker.prefix}:{{{topic}}}:s") == 1 for topic in topics)


async def test_a_wildcard_group_shares_topics_of_all_nodes_old_and_new(broker: RedisBroker, native: Any) -> None:
    topics = _topics(broker.prefix, native, 40)
    first, second = Collector(), Collector()
    async with MessageBus(broker) as bus, MessageBus(broker) as other:
        for topic in topics[:10]:
            await bus.publish(topic, "before")
        await bus.subscribe("work.*", first, group="g")
        await other.subscribe("work.*", second, group="g")
        for topic in topics:
            await bus.publish(topic, topic)
        await eventually(lambda: len(first.data) + len(second.data) >= 40, "40 handled", 15)
        await anyio.sleep(0.5)
    assert sorted(first.data + second.data) == sorted(topics)


async def test_requests_and_wildcard_listeners(broker: RedisBroker) -> None:
    async with MessageBus(broker) as bus, MessageBus(broker) as caller:
        seen = Collector()

        async def double(data: int) -> int:
            return 2 * data

        bus.responder("double.it", group="doublers")(double)
        await bus.connect()
        await caller.subscribe("double.#", seen)
        replies = [(await caller.request("double.it", number, timeout=10)).data for number in range(10)]
        assert replies == [2 * number for number in range(10)]
        await seen.wait(10)


async def test_what_a_killed_member_held_comes_again(broker: RedisBroker) -> None:
    broker = msgspec.structs.replace(broker, lease=3.0)
    async with MessageBus(broker) as bus:
        async with Child.running(broker, "jobs.#", {"group": "g", "then": "hang"}) as child:
            await child.event("ready", within=30)
            for number in range(5):
                await bus.publish(f"jobs.{number}", number)
            await child.event("got", 5)
            child.kill()
        seen = Collector()
        await bus.subscribe("jobs.#", seen, group="g")
        await seen.wait(5, broker.lease + 5)
        assert sorted(seen.data) == list(range(5))
        assert {message.attempt for message in seen.messages} == {2}


async def test_delays_and_retries(broker: RedisBroker) -> None:
    async with MessageBus(broker) as bus:
        seen = Collector(RuntimeError("once"), failures=1)
        await bus.subscribe("late.#", seen, group="g", retries=1, retry_delay=0.2)
        await bus.publish("late.x", 1, delay=0.2)
        await seen.wait(2)
        assert [message.attempt for message in seen.messages] == [1, 2]


async def test_a_slot_that_moves_is_followed(broker: RedisBroker, native: Any, redis_cluster: RedisCluster) -> None:
    """Also between two of its steps; and nothing that is made then stands in the way of the next one."""
    seen, wild, alone, sent = Collector(), Collector(), Collector(), set[int]()
    async with MessageBus(broker) as bus:
        await bus.subscribe("moving", seen, group="g")
        await bus.subscribe("moving.#", wild, group="w")
        await bus.subscribe("moving", alone)

        async def five() -> None:
            for number in range(len(sent), len(sent) + 5):
                await bus.publish("moving", number)
                sent.add(number)
            await eventually(lambda: set(seen.data) == set(wild.data) == sent, "all arrive", 15)

        for step in _mover(native, redis_cluster, f"{broker.prefix}:{{moving}}:s"):
            await five()
            await anyio.to_thread.run_sync(step)
        await five()
        await eventually(lambda: set(alone.data) == sent, lambda: f"without a group: {alone.data}", 15)


async def test_what_runs_while_its_slot_moves_stays_ours(
    broker: RedisBroker, native: Any, redis_cluster: RedisCluster
) -> None:
    broker, handled, go_on = msgspec.structs.replace(broker, lease=2.0), list[tuple[int, int]](), anyio.Event()
    async with MessageBus(broker) as bus, MessageBus(broker) as other:

        async def handler(message: Message) -> None:
            handled.append((message.data, message.attempt))
            await go_on.wait()

        for member in (bus, other):
            await member.subscribe("running", handler, group="g")
        await bus.publish("running", 0)
        await eventually(lambda: handled, "the first one")
        for step in _mover(native, redis_cluster, f"{broker.prefix}:{{running}}:s"):
            await anyio.to_thread.run_sync(step)
            await stays(lambda: handled == [(0, 1)], lambda: f"twice: {handled}", 2.5)
        go_on.set()
        await eventually(lambda: bus.stats.acked + other.stats.acked == 1, "its end")


async def test_a_leader_whose_slot_moves_stays_the_only_one(
    broker: RedisBroker, native: Any, redis_cluster: RedisCluster
) -> None:
    async with broker.connect() as one, broker.connect() as two:
        leader, rival = _elections(one), _elections(two)
        token = await leader.acquire("moving", 60)
        assert token is not None
        for step in _mover(native, redis_cluster, f"{broker.prefix}:{{moving}}:l"):
            await anyio.to_thread.run_sync(step)
            assert await rival.acquire("moving", 60) is None
            assert await leader.renew("moving", token, 60)
        await leader.release("moving", token)
        later = await rival.acquire("moving", 60)
        assert later is not None and later > token


def _elections(connection: Connection) -> Elects:
    assert isinstance(connection, Elects)
    return connection


def _mover(client: Any, cluster: RedisCluster, key: str) -> Iterator[Callable[[], None]]:
    """Steps that move the slot of a key to another node."""
    slot = client.keyslot(key)
    source = client.get_node_from_key(key)
    nodes = {port: redis.Redis(port=port) for _, port in cluster.nodes}
    ids = {port: node.execute_command("CLUSTER", "MYID").decode() for port, node in nodes.items()}  # type: ignore[no-untyped-call]
    target = next(port for port in nodes if port != source.port)

    def tell(port: int, *words: object) -> None:
        nodes[port].execute_command("CLUSTER", "SETSLOT", slot, *words)  # type: ignore[no-untyped-call]

    def begin() -> None:
        tell(target, "IMPORTING", ids[source.port])
        tell(source.port, "MIGRATING", ids[target])

    def move() -> None:
        keys = nodes[source.port].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)  # type: ignore[no-untyped-call]
        nodes[source.port].execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)  # type: ignore[no-untyped-call]

    def end() -> None:
        for port in (target, source.port, *nodes):
            tell(port, "NODE", ids[target])
        for node in nodes.values():
            node.close()

    yield begin
    yield move
    yield end


async def test_a_cluster_that_is_not_there(broker: RedisBroker) -> None:
    nowhere = msgspec.structs.replace(broker, cluster_nodes=["redis://127.0.0.1:1"])
    with pytest.raises(Unavailable):
        async with nowhere.connect():
            pass


async def test_pubsub_on_a_cluster(broker: RedisBroker) -> None:
    plain = msgspec.structs.replace(broker, use_streams=False)
    async with MessageBus(plain) as bus, MessageBus(plain) as other:
        seen, wild = Collector(), Collector()
        await bus.subscribe("live.x", seen)
        await other.subscribe("live.#", wild)
        for number in range(20):
            await bus.publish("live.x", number)
        await seen.wait(20)
        await wild.wait(20)
        assert seen.data == wild.data == list(range(20))
