"""A node that restarts, dies or freezes, connections that it closes, publishers that it blocks."""

from __future__ import annotations

import secrets
import time
from functools import partial

import anyio
import anyio.to_thread
import msgspec
import pytest
from amb_core import Message, MessageBus, Request
from amb_core.errors import BackpressureError, BrokerUnavailable, MessageTooLarge, PartialFailure
from amb_core.testing import FaultProxy
from amb_rabbitmq import RabbitMQBroker

from tests.core._help import Collector, eventually, stays
from tests.core._stopwatch import stopwatch
from tests.servers.rabbitmq import RabbitServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker(node: RabbitServer) -> RabbitMQBroker:
    return RabbitMQBroker(node.url, exchange=f"t{secrets.token_hex(4)}", response_timeout=2.0, connect_timeout=2.0)


async def _ctl(node: RabbitServer, *arguments: str) -> str:
    return await anyio.to_thread.run_sync(lambda: node.process.ctl(*arguments))


async def _comes(bus: MessageBus, topic: str, *seen: Collector, within: float = 10.0) -> None:
    """Publish until each has got something new."""
    before = [len(one.data) for one in seen]
    with anyio.fail_after(within):
        while not all(len(one.data) > had for one, had in zip(seen, before, strict=True)):
            try:
                await bus.publish(topic, "probe")
            except BrokerUnavailable:
                continue
            await anyio.sleep(0.05)


@pytest.mark.parametrize("how", ["stop", "kill", "close_all_connections"])
async def test_every_subscription_consumes_again(node: RabbitServer, broker: RabbitMQBroker, how: str) -> None:
    """And what was being handled, is; what was confirmed and not handled comes; a group's unsettled return."""
    grouped, ordered, loose, wild = Collector(), Collector(), Collector(), Collector()
    begun, free = Collector(), anyio.Event()

    async def slow(message: Message) -> None:
        await begun(message)
        await free.wait()

    async with MessageBus(broker) as bus, MessageBus(broker) as publisher:
        await bus.subscribe("jobs.x", grouped, group="g")
        await bus.subscribe("jobs.x", ordered, group="o", ordered_by="key")
        await bus.subscribe("jobs.x", loose)
        await bus.subscribe("#", wild)
        await bus.subscribe("slow.x", slow, group="s", concurrency=2)

        @bus.responder("ask")
        async def answer(request: Request) -> object:
            return request.data

        await bus.connect()
        for number in range(4):
            await publisher.publish("slow.x", number)
        await begun.wait(2)
        # A queue that is younger than that does not come back from a kill: RabbitMQ notes down late where it is kept.
        await stays(lambda: len(begun.data) == 2, "more than two at once", 1.5)
        if how == "close_all_connections":
            await _ctl(node, how, "an operator's wish")
        else:
            await anyio.to_thread.run_sync(getattr(node.process, how))
            await anyio.to_thread.run_sync(node.process.start)
        async with stopwatch() as watch:
            began = time.monotonic()
            await _comes(publisher, "jobs.x", grouped, ordered, loose, wild)
            assert watch.elapsed(began) < 5, "not consuming within 5 s"
        with anyio.fail_after(20):  # the responder has no group: what is published while it is away is not for it
            while (await bus.health()).status != "healthy":
                await anyio.sleep(0.05)
        assert (await publisher.request("ask", 1, timeout=5)).data == 1
        free.set()
        await eventually(lambda: set(begun.data) == {0, 1, 2, 3}, lambda: f"came: {begun.data}", 10)
        assert (await bus.health()).status == "healthy"


async def test_a_frozen_node_is_noticed_and_used_again(node: RabbitServer, broker: RabbitMQBroker) -> None:
    seen = Collector()
    async with MessageBus(broker, publish_timeout=1.0) as bus:
        await bus.subscribe("jobs.x", seen, group="g")
        await _comes(bus, "jobs.x", seen)
        node.process.freeze()
        try:
            with pytest.raises(BrokerUnavailable):
                await bus.publish("jobs.x", 2)
            # The second asks first whether anybody is there.
            await eventually(lambda: not bus.connected, "still connected to a frozen node", 12)
            assert (await bus.health()).status == "unhealthy"
        finally:
            node.process.thaw()
        await _comes(bus, "jobs.x", seen)


async def test_a_bus_that_only_publishes_notices_a_dead_link(node: RabbitServer, broker: RabbitMQBroker) -> None:
    """A publish without an answer makes the next one ask; heartbeats would take a minute and a half."""
    async with FaultProxy.to(node.host, node.port) as proxy:
        through = msgspec.structs.replace(broker, url=f"amqp://guest:guest@{proxy.host}:{proxy.port}/")
        async with MessageBus(through, publish_timeout=0.5) as bus:
            with anyio.fail_after(15):
                while not await _accepted(bus):
                    pass
            accepted = proxy.accepted
            proxy.black_hole()
            with anyio.fail_after(8):
                while proxy.accepted == accepted:
                    with pytest.raises(BrokerUnavailable):
                        await bus.publish("jobs.x", 2)
            proxy.restore()
            with anyio.fail_after(8):
                while not await _accepted(bus):
                    pass


async def _accepted(bus: MessageBus) -> bool:
    try:
        await bus.publish("jobs.x", "after")
    except BrokerUnavailable:
        return False
    return True


async def test_a_blocked_connection_is_backpressure(node: RabbitServer, broker: RabbitMQBroker) -> None:
    """Publishing waits, says why after the publish timeout, and goes on; consuming does not stop."""
    seen = Collector()
    async with MessageBus(broker) as bus, MessageBus(broker, publish_timeout=1.5) as publisher:
        await bus.subscribe("jobs.x", seen, group="g", concurrency=1)
        subscription = await bus.subscribe("jobs.later", seen, group="g")
        subscription.pause()
        await publisher.publish("jobs.later", "stored")
        await _ctl(node, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            # The server blocks who publishes: the first message is on its way, and nobody knows how far.
            with pytest.raises(BrokerUnavailable):
                await publisher.publish("jobs.x", "first")
            began = time.monotonic()
            with pytest.raises(BackpressureError, match="low on memory or disk"):
                await publisher.publish("jobs.x", "second")
            assert 1.0 < time.monotonic() - began < 5.0
            health = await publisher.health()
            assert health.status == "healthy" and "blocked" in health.details["publishing"]
            subscription.resume()
            await eventually(lambda: "stored" in seen.data, "consuming stopped", 5)
            patient = MessageBus(broker, publish_timeout=30.0)
            async with anyio.create_task_group() as group:
                group.start_soon(patient.publish, "jobs.x", "patient")
                await stays(lambda: "patient" not in seen.data, "it was not blocked", 0.5)
                await _ctl(node, "set_vm_memory_high_watermark", "0.4")
            await eventually(lambda: "patient" in seen.data, "what waited was not published", 5)
            await patient.disconnect()
        finally:
            await _ctl(node, "set_vm_memory_high_watermark", "0.4")
        await _comes(publisher, "jobs.x", seen)
        assert "second" not in seen.data


async def test_the_servers_own_limit_for_handlers(node: RabbitServer, broker: RabbitMQBroker) -> None:
    """`consumer_timeout` closes the channel: the message comes again, the late verdict is a lost lease."""
    for name, milliseconds in (("consumer_timeout", 1000), ("channel_tick_interval", 300)):
        await _ctl(node, "eval", f"application:set_env(rabbit, {name}, {milliseconds}).")
    attempts, late = list[int](), anyio.Event()

    async def work(message: Message) -> None:
        attempts.append(message.attempt)
        if len(attempts) == 1:
            await anyio.sleep(2.5)
            late.set()

    try:
        async with MessageBus(broker) as bus:
            seen = Collector()
            await bus.subscribe("jobs.x", work, group="g")
            await bus.subscribe("other.x", seen, group="g")
            await bus.publish("jobs.x", 1)
            await eventually(lambda: len(attempts) == 2, "it did not come again", 10)
            with anyio.fail_after(5):
                await late.wait()
            await bus.publish("other.x", 1)
            await seen.wait()
            await stays(lambda: len(attempts) == 2, "it was settled, and came again", 0.5)
    finally:
        await _ctl(node, "eval", "application:set_env(rabbit, consumer_timeout, 1800000).")


async def test_a_queue_that_does_not_answer_disturbs_nobody_else(node: RabbitServer, broker: RabbitMQBroker) -> None:
    """As one whose leader is lost: its subscription is tried again until there is an answer."""
    pid = (
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{broker.exchange}.group/g/stuck.x">>)), '
        "{Name, _} = amqqueue:get_pid(Q)"
    )
    seen, late, events = Collector(), Collector(), list[str]()
    async with MessageBus(broker, connect_timeout=90) as bus:  # asking the server's tool takes its time
        bus.on("subscription.lost")(events.append)
        await bus.subscribe("jobs.x", seen, group="g")
        await bus.unsubscribe(await bus.subscribe("stuck.x", late, group="g"))
        await _ctl(node, "eval", f"{pid}, sys:suspend(whereis(Name)).")
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(partial(bus.subscribe, "stuck.x", late, group="g"))
                await anyio.sleep(2 * broker.response_timeout + 0.5)
                await _comes(bus, "jobs.x", seen, within=10.0)
                await _ctl(node, "eval", f"{pid}, sys:resume(whereis(Name)).")
        finally:
            await _ctl(node, "eval", f"{pid}, sys:resume(whereis(Name)).")
        await _comes(bus, "stuck.x", late, within=20.0)
        assert bus.stats.reconnects == 0


async def test_a_server_that_takes_little(node: RabbitServer, broker: RabbitMQBroker) -> None:
    await _ctl(node, "eval", "application:set_env(rabbit, max_message_size, 2000).")
    try:
        async with MessageBus(broker) as bus:
            seen = Collector()
            await bus.subscribe("jobs.x", seen, group="g")
            with pytest.raises(PartialFailure) as caught:
                await bus.publish_batch([Message("jobs.x", text) for text in ("first", "x" * 3000, "last")])
            assert isinstance(caught.value.errors.pop(1), MessageTooLarge)
            assert set(caught.value.errors) <= {0}
            await seen.wait(2)
        assert set(seen.data) == {"first", "last"}
    finally:
        await _ctl(node, "eval", "application:set_env(rabbit, max_message_size, 134217728).")


async def test_a_member_that_dies_leaves_its_messages_to_the_others(broker: RabbitMQBroker) -> None:
    """As the same attempt: it was never told that they failed."""
    async with FaultProxy.to(*_address(broker)) as proxy:
        through = msgspec.structs.replace(broker, url=f"amqp://guest:guest@{proxy.host}:{proxy.port}/")
        held, other, free = Collector(), Collector(), anyio.Event()

        async def hold(message: Message) -> None:
            await held(message)
            await free.wait()

        async with MessageBus(broker) as bus, MessageBus(through, drain_timeout=0.1) as dying:
            await dying.subscribe("jobs.x", hold, group="g", concurrency=3)
            for number in range(3):
                await bus.publish("jobs.x", number)
            await held.wait(3)
            proxy.refuse()
            await bus.subscribe("jobs.x", other, group="g")
            await other.wait(3)
            free.set()
    assert sorted(other.data) == [0, 1, 2]


def _address(broker: RabbitMQBroker) -> tuple[str, int]:
    host, _, port = broker.url.rpartition("@")[2].rstrip("/").partition(":")
    return host, int(port)
