"""Servers that stop, freeze, lose what they had, and answers that never come."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import anyio
import anyio.to_thread
import msgspec
import pytest
from amb_core import MessageBus
from amb_core.broker import Outgoing, Settlement, Source
from amb_core.errors import BrokerUnavailable, PublishUnknown
from amb_core.testing import FaultProxy
from amb_sqs import SQSBroker

from tests.conformance.rig_sqs import broker_for
from tests.core._help import Collector
from tests.servers.process import Server
from tests.servers.sqs import SqsServer

from .conftest import Make, Native

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(own_sqs_server: SqsServer) -> Iterator[Server]:
    """A server that may be hurt."""
    process = own_sqs_server.process
    try:
        yield process
    finally:
        process.thaw()


@pytest.fixture
def fragile(own_sqs_server: SqsServer, prefix: str) -> SQSBroker:
    return msgspec.structs.replace(broker_for(own_sqs_server.url), queue_prefix=prefix, response_timeout=1.5)


async def _arrives(bus: MessageBus, topic: str, seen: Collector, within: float = 15.0) -> None:
    """Publish until something newly published is handled."""
    with anyio.fail_after(within):
        while True:
            marker = f"probe-{time.monotonic_ns()}"
            try:
                await bus.publish(topic, marker)
            except BrokerUnavailable:
                continue
            with anyio.move_on_after(0.5):
                while marker not in seen.data:
                    await anyio.sleep(0.02)
                return


async def test_a_server_that_lost_everything_gets_its_queues_again(server: Server, fragile: SQSBroker) -> None:
    shared, alone = Collector(), Collector()
    async with MessageBus(fragile) as bus, MessageBus(fragile) as publisher:
        await bus.subscribe("jobs", shared, group="g")
        await bus.subscribe("jobs", alone)
        bus.responder("ask")(lambda message: message.data + 1)
        await bus.connect()
        assert (await publisher.request("ask", 1, timeout=10)).data == 2
        await anyio.to_thread.run_sync(server.kill)
        await anyio.to_thread.run_sync(server.start)
        await _arrives(publisher, "jobs", shared)
        await _arrives(publisher, "jobs", alone)
        with anyio.fail_after(20):
            while True:
                try:
                    assert (await publisher.request("ask", 5, timeout=1.0)).data == 6
                    break
                except (TimeoutError, BrokerUnavailable):
                    continue


async def test_what_a_stopped_server_kept_is_handled(server: Server, fragile: SQSBroker) -> None:
    seen = Collector()
    async with MessageBus(fragile) as bus:
        await bus.unsubscribe(await bus.subscribe("jobs", seen, group="g"))
        for number in range(20):
            await bus.publish("jobs", number)
        await anyio.to_thread.run_sync(server.restart)
        await bus.subscribe("jobs", seen, group="g")
        await seen.wait(20, 20)
    assert sorted(seen.data) == list(range(20))


async def test_a_frozen_server_is_unknown_and_then_works_again(server: Server, fragile: SQSBroker) -> None:
    seen = Collector()
    async with MessageBus(fragile, publish_timeout=3.0) as bus:
        await bus.subscribe("jobs", seen, group="g")
        await bus.publish("jobs", "before")
        server.freeze()
        assert (await bus.health()).status == "unhealthy"
        with pytest.raises(BrokerUnavailable):
            await bus.publish("jobs", "frozen")
        server.thaw()
        await _arrives(bus, "jobs", seen)


async def test_an_answer_that_is_cut_off_leaves_the_outcome_open(make: Make, sqs_server: SqsServer) -> None:
    async with FaultProxy.to(sqs_server.host, sqs_server.port) as proxy:
        broker = make(endpoint_url=f"http://{proxy.host}:{proxy.port}", response_timeout=1.0, discovery_interval=60.0)
        async with MessageBus(make(discovery_interval=0.0)) as bus:
            await bus.subscribe("jobs", Collector(), group="g")
            async with MessageBus(broker, publish_timeout=5.0) as publisher:
                await publisher.publish("jobs", 1)
                proxy.black_hole("down")
                with pytest.raises(PublishUnknown, match="the answer never came"):
                    await publisher.publish("jobs", 2)
                proxy.restore()


async def test_a_queue_deleted_under_a_subscriber(broker: SQSBroker, native: Native, prefix: str) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("jobs", seen, group="g")
        await native.sqs.delete_queue(QueueUrl=await native.url(f"{prefix}jobs-_g"))
        await _arrives(bus, "jobs", seen)


async def test_what_a_failed_feed_had_handed_over_does_not_come_twice(make: Make) -> None:
    broker = make(visibility_timeout=2)
    source = Source(id=secrets.token_hex(8), pattern="news")
    async with broker.connect() as publisher:
        async with broker.connect() as connection, connection.open(source) as feed:
            await publisher.send([Outgoing("news", b"1", {}, confirm=True)])
            with anyio.fail_after(10):
                while not (got := await feed.receive(1)):
                    continue
            # As after a receive that failed: the handler goes on, and the core opens the source again.
            feed.broken = True  # type: ignore[attr-defined]
        async with broker.connect() as connection, connection.open(source) as feed:
            with anyio.move_on_after(3.0):  # longer than the lease
                while True:
                    assert not await feed.receive(1)
            await feed.settle([Settlement(got[0].token, "ack")])
