"""A master that dies, and the replica that a Sentinel makes the master."""

from __future__ import annotations

import anyio
import anyio.to_thread
import msgspec
import pytest
from amb_core import MessageBus
from amb_core.errors import BrokerUnavailable, PublishUnknown, Unavailable
from amb_redis import RedisBroker

from tests.core._help import Collector, eventually
from tests.servers.redis import RedisSentinel

pytestmark = pytest.mark.anyio


def _broker(sentinel: RedisSentinel, prefix: str) -> RedisBroker:
    host, port = sentinel.address
    return RedisBroker(
        sentinel_nodes=["redis://127.0.0.1:1", f"redis://{host}:{port}"], prefix=prefix, lease=30.0, wait_replicas=1,
        response_timeout=2.0,
    )  # fmt: skip


async def test_a_failover_loses_nothing_that_was_confirmed_on_the_replica(
    redis_sentinel: RedisSentinel, prefix: str
) -> None:
    broker, seen = _broker(redis_sentinel, prefix), Collector()
    async with MessageBus(broker, publish_timeout=5) as bus:
        await bus.subscribe("work", seen, group="g")
        await bus.subscribe("work.#", wild := Collector(), group="w")
        for number in range(20):
            await bus.publish("work", number, wait_for_confirmation=True)
        held = Collector()
        await bus.unsubscribe(await bus.subscribe("kept", held, group="g"))
        for number in range(20):
            await bus.publish("kept", number, wait_for_confirmation=True)
        await anyio.to_thread.run_sync(redis_sentinel.master_process.kill)
        with anyio.fail_after(40):
            while "after" not in seen.data:
                try:
                    await bus.publish("work", "after")
                    with anyio.move_on_after(0.5):
                        await seen.wait(len(seen.data) + 1)
                except (BrokerUnavailable, PublishUnknown):
                    await anyio.sleep(0.1)
        await bus.subscribe("kept", held, group="g")
        await held.wait(20)
        assert sorted(held.data) == list(range(20))
        await eventually(lambda: set(range(20)) <= set(wild.data), "the wildcard has all", 5)
        with anyio.fail_after(5):
            while (await bus.health()).status != "healthy":
                await anyio.sleep(0.05)


async def test_a_service_that_the_sentinel_does_not_know(redis_sentinel: RedisSentinel, prefix: str) -> None:
    stranger = msgspec.structs.replace(_broker(redis_sentinel, prefix), sentinel_service="other")
    with pytest.raises(Unavailable, match="other"):
        async with stranger.connect():
            pass
