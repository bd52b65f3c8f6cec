"""Elections on Redis beside what the conformance kit asks of everybody."""

from __future__ import annotations

import anyio
import pytest
from amb_core import BrokerUnavailable, MessageBus
from amb_redis import RedisBroker

from tests.servers.redis import RedisCluster, RedisSentinel

pytestmark = pytest.mark.anyio


async def test_a_term_survives_a_failover_that_its_replica_saw(redis_sentinel: RedisSentinel, prefix: str) -> None:
    host, port = redis_sentinel.address
    broker = RedisBroker(
        sentinel_nodes=[f"redis://{host}:{port}"], prefix=prefix, wait_replicas=1, response_timeout=2.0
    )
    async with MessageBus(broker) as bus:
        token = await (await bus.elections()).acquire("lead", 60)
        assert token is not None
        redis_sentinel.master_process.kill()
        with anyio.fail_after(40):
            while True:
                try:
                    assert await (await bus.elections()).acquire("lead", 60) is None, "the new master knows no leader"
                    break
                except BrokerUnavailable:  # there is no master yet
                    await anyio.sleep(0.1)


async def test_a_cluster_elects_wherever_the_name_lives(redis_cluster: RedisCluster, prefix: str) -> None:
    nodes = [f"redis://{host}:{port}" for host, port in redis_cluster.nodes]
    async with MessageBus(RedisBroker(cluster_nodes=nodes, prefix=prefix)) as bus:
        elections = await bus.elections()
        for number in range(12):
            name = f"lead.{number}{{}}"
            token = await elections.acquire(name, 30)
            assert token is not None and await elections.acquire(name, 30) is None
            assert await elections.renew(name, token, 30)
            await elections.release(name, token)
            assert (await elections.acquire(name, 30) or 0) > token


async def test_a_counter_that_was_lost_gives_no_older_token(broker: RedisBroker, native: object) -> None:
    async with MessageBus(broker) as bus:
        elections = await bus.elections()
        first = await elections.acquire("lead", 30)
        assert first is not None
        native.delete(f"{broker.prefix}:{{lead}}:l", f"{broker.prefix}:{{lead}}:f")  # type: ignore[attr-defined]
        second = await elections.acquire("lead", 30)
        assert second is not None and second > first
        assert not await elections.renew("lead", first, 30)
