"""Feeds and connections that come and go, at the worst moment."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus
from amb_core.broker import Settlement, Source
from amb_core.errors import ConnectionLost, LeaseLost, PartialFailure, Unavailable

from tests.core._help import Collector, eventually, stays
from tests.core._scripted import ScriptedBroker, ScriptedConnection, ScriptedFeed
from tests.core._stopwatch import stopwatch

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


@asynccontextmanager
async def connected(broker: ScriptedBroker, **options: Any) -> AsyncIterator[MessageBus]:
    given: dict[str, Any] = {"connect_timeout": 1, "publish_timeout": 2, "drain_timeout": 2}
    async with MessageBus(broker, **(given | options)) as bus:
        yield bus


async def test_a_feed_that_is_slow_to_leave_does_not_cost_the_next_connection(broker: ScriptedBroker) -> None:
    async def slowly(feed: ScriptedFeed) -> None:
        if feed.source.pattern == "slow":
            await anyio.sleep(0.3)

    broker.on_leave = slowly
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        await bus.subscribe("slow", Collector(), group="g")
        (await broker.feed()).fail(ConnectionLost("the line was cut"))
        await broker.feed(2)
        await stays(lambda: len(broker.connections) == 2, lambda: f"{len(broker.connections)} connections", 1.0)


async def test_a_late_complaint_about_an_old_connection_does_not_cost_the_new_one(broker: ScriptedBroker) -> None:
    hanging = anyio.Event()

    async def send(connection: ScriptedConnection, batch: Sequence[Any]) -> None:
        if connection is broker.connections[0]:
            await hanging.wait()
            raise ConnectionLost("the line was cut")

    broker.on_send = send
    async with connected(broker) as bus, anyio.create_task_group() as group:
        await bus.subscribe("t", Collector(), group="g")
        group.start_soon(bus.publish, "t", 1)
        (await broker.feed()).fail(ConnectionLost("the line was cut"))
        await broker.feed(2)
        hanging.set()
        await eventually(lambda: broker.sent, "the message on the second connection")
        await stays(lambda: len(broker.connections) == 2, lambda: f"{len(broker.connections)} connections", 0.3)


async def test_a_feed_that_hangs_is_left_when_its_connection_is_lost(broker: ScriptedBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g")
        await bus.subscribe("other", Collector(), group="g")
        await broker.feed()
        (await broker.feed(pattern="other")).fail(ConnectionLost("the line was cut"))
        (await broker.feed(2)).hand("again")
        await collector.wait()


async def test_a_feed_that_hangs_while_it_is_left_holds_up_its_successor_for_a_moment_only(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amb_core._leaving.LAST_WORDS", 0.2)

    async def for_ever(feed: ScriptedFeed) -> None:
        if feed is broker.feeds[0]:
            await anyio.sleep_forever()

    broker.on_leave = for_ever
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        (await broker.feed()).fail(Unavailable("the queue moved"))
        await broker.feed(2)


async def test_a_subscription_that_came_too_late_leaves_no_feed_behind(broker: ScriptedBroker) -> None:
    answered = anyio.Event()

    async def slow_open(connection: ScriptedConnection, source: Source) -> None:
        await answered.wait()

    broker.on_open = slow_open
    async with connected(broker, connect_timeout=0.2) as bus:
        begin = time.monotonic()
        with pytest.raises(Unavailable, match=r"'t' was not live within 0\.2 s"):
            await bus.subscribe("t", Collector(), group="g")
        assert time.monotonic() - begin < 2
        answered.set()
        await stays(lambda: all(feed.left for feed in broker.feeds), "a feed that nobody reads", 0.2)


async def test_unsubscribing_during_an_outage_is_final(broker: ScriptedBroker) -> None:
    repaired = anyio.Event()

    async def down(*_: Any) -> None:
        if broker.connections:
            await repaired.wait()

    broker.on_connect = down
    async with connected(broker, connect_timeout=5, drain_timeout=20) as bus:
        subscription = await bus.subscribe("t", Collector(), group="g")
        (await broker.feed()).fail(ConnectionLost("the line was cut"))
        await eventually(lambda: not bus.connected, "the loss")
        async with stopwatch() as watch:
            begin = time.monotonic()
            with anyio.fail_after(4.5):
                await subscription.unsubscribe()
            assert watch.elapsed(begin) < 1
        repaired.set()
        await eventually(lambda: bus.connected, "the new connection")
        await stays(lambda: len(broker.feeds) == 1, "a feed for nobody", 0.2)


async def test_cancelling_subscribe_leaves_no_subscription(broker: ScriptedBroker) -> None:
    answered, collector = anyio.Event(), Collector()

    async def slow_open(connection: ScriptedConnection, source: Source) -> None:
        await answered.wait()

    broker.on_open = slow_open
    async with connected(broker) as bus:
        with anyio.move_on_after(0.1):
            await bus.subscribe("t", collector, group="g")
        answered.set()
        await stays(lambda: all(feed.left for feed in broker.feeds), "a feed for nobody", 0.3)
        assert (await bus.health()).subscriptions == []
        assert await bus.publish("t", 1)


async def test_a_backend_that_fails_to_disconnect_is_connected_again(
    broker: ScriptedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        if len(broker.connections) == 1:
            raise OSError("reset by peer")

    broker.on_disconnect = broken
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        (await broker.feed()).fail(ConnectionLost("the line was cut"))
        await broker.feed(2)
        assert bus.connected
    assert "reset by peer" in caplog.text


async def test_a_backend_that_fails_to_reconnect_with_a_bug_is_asked_again(
    broker: ScriptedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [ZeroDivisionError("a bug")]

    async def broken() -> None:
        if broker.connections and errors:
            raise errors.pop()

    broker.on_connect = broken
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        (await broker.feed()).fail(ConnectionLost("the line was cut"))
        await broker.feed(2)
    assert "ZeroDivisionError" in caplog.text


async def test_a_feed_that_fails_again_and_again_was_lost_once(broker: ScriptedBroker) -> None:
    events, failures = list[str](), [Unavailable("not yet")] * 3

    async def moody(connection: ScriptedConnection, source: Source) -> None:
        if broker.feeds and failures:
            raise failures.pop()

    broker.on_open = moody
    async with connected(broker) as bus:
        bus.on("subscription.lost")(lambda _: events.append("lost"))
        bus.on("subscription.restored")(lambda _: events.append("restored"))
        await bus.subscribe("t", Collector(), group="g")
        (await broker.feed()).fail(Unavailable("gone"))
        await broker.feed(2)
        await eventually(lambda: "restored" in events, "the event")
    assert events == ["lost", "restored"]


async def test_messages_that_came_while_unsubscribing_are_given_back(broker: ScriptedBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", collector, group="g")
        feed = await broker.feed()
        tokens = feed.hand(1, 2, 3)  # the receiver is awake, but has not run yet
        await subscription.unsubscribe()
    assert collector.data == [] and feed.verdicts() == [(token, "release") for token in tokens]


async def test_a_handler_that_begins_as_the_subscription_ends_is_not_cancelled(broker: ScriptedBroker) -> None:
    ended: list[str] = []

    async def slow(message: Message) -> None:
        try:
            await anyio.sleep(0.1)
            ended.append("returned")
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", slow)
        feed = await broker.feed()
        feed.hand(1)
        await subscription.unsubscribe()
    assert ended in ([], ["returned"])
    assert bus.stats.failed == 0


async def test_verdicts_of_before_a_reconnect_are_told_to_the_next_feed(broker: ScriptedBroker) -> None:
    go_on, collector = anyio.Event(), Collector()

    async def wait(message: Message) -> None:
        await collector(message)
        await go_on.wait()

    async def no_new_settlements(feed: ScriptedFeed, outcomes: Sequence[Settlement]) -> None:
        assert feed is not broker.feeds[0]

    broker.on_settle = no_new_settlements
    async with connected(broker) as bus:
        await bus.subscribe("t", wait, group="g", concurrency=2)
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await collector.wait()
        feed.fail(ConnectionLost("the line was cut"))
        second = await broker.feed(2)
        go_on.set()
        await eventually(lambda: second.verdicts() == [(token, "ack")], lambda: f"the verdict in {second.settled}")


async def test_what_an_older_feed_handed_over_without_a_group_is_nobodys_loss(broker: ScriptedBroker) -> None:
    go_on, collector = anyio.Event(), Collector()

    async def wait(message: Message) -> None:
        await collector(message)
        await go_on.wait()

    async def strange(feed: ScriptedFeed, outcomes: Sequence[Settlement]) -> None:
        if feed is not broker.feeds[0]:
            raise PartialFailure({0: LeaseLost("never heard of it")})

    broker.on_settle = strange
    async with connected(broker) as bus:
        await bus.subscribe("t", wait)
        feed = await broker.feed()
        feed.hand(1)
        await collector.wait()
        feed.fail(ConnectionLost("the line was cut"))
        await broker.feed(2)
        go_on.set()
        await eventually(lambda: bus.stats.acked == 1, "the acknowledgement")
    assert bus.stats.settle_errors == 0


async def test_publishing_does_not_wait_for_somebody_elses_subscription(broker: ScriptedBroker) -> None:
    answered = anyio.Event()

    async def slow_open(connection: ScriptedConnection, source: Source) -> None:
        await answered.wait()

    broker.on_open = slow_open
    async with connected(broker, connect_timeout=60) as bus, anyio.create_task_group() as group:
        group.start_soon(bus.subscribe, "t", Collector())
        await eventually(lambda: bus.host.supervised, "the attempt to subscribe")
        async with stopwatch() as watch:
            begin = time.monotonic()
            with anyio.fail_after(10):
                await bus.publish("u", 1)
            assert watch.elapsed(begin) < 1
        assert not bus.host.supervised[0].ever_live
        answered.set()
