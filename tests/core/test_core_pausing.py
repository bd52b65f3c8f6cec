"""What a paused subscription has, others may want; and what waits while something hangs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from amb_core import CircuitBreaker, InMemoryBroker, Message, MessageBus
from amb_core.broker import Outgoing, Token
from amb_core.errors import ConnectionLost

from tests.core._help import Collector, eventually, stays
from tests.core._scripted import ScriptedBroker, ScriptedConnection, ScriptedFeed

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


@asynccontextmanager
async def connected(broker: ScriptedBroker, **options: Any) -> AsyncIterator[MessageBus]:
    async with MessageBus(broker, drain_timeout=5, **options) as bus:
        yield bus


async def test_a_paused_member_takes_nothing_from_its_group() -> None:
    paused, other = Collector(), Collector()
    broker = InMemoryBroker()
    async with MessageBus(broker) as bus, MessageBus(broker) as second:
        subscription = await bus.subscribe("t", paused, group="g")
        await eventually(lambda: bus.host.supervised[0].consumer.last_receive, "the feed")
        await anyio.sleep(0.05)
        subscription.pause()
        await second.subscribe("t", other, group="g")
        for number in range(20):
            await bus.publish("t", number)
        await other.wait(20)
        assert paused.data == []
        subscription.resume()
        await bus.publish("t", 20)
        await eventually(lambda: len(paused.data) + len(other.data) == 21, "the last one")


async def test_pausing_gives_back_what_has_not_started(broker: ScriptedBroker) -> None:
    go_on, begun = anyio.Event(), list[Any]()

    async def slow(message: Message) -> None:
        begun.append(message.data)
        await go_on.wait()

    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", slow, group="g", ordered_by="key", concurrency=2)
        feed = await broker.feed()
        tokens = feed.hand(1, 2, 3, key="k")
        await eventually(lambda: begun == [1], "the first one")
        subscription.pause()
        await eventually(lambda: len(feed.settled) == 2, "the others to be given back")
        go_on.set()
        await eventually(lambda: len(feed.settled) == 3, "the first one's end")
        subscription.resume()
        feed.hand(4, key="k")
        await eventually(lambda: begun == [1, 4], "the next one")
    assert feed.verdicts()[:3] == [(tokens[1], "release"), (tokens[2], "release"), (tokens[0], "ack")]


async def test_what_comes_just_when_a_subscription_pauses_is_given_back(broker: ScriptedBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", collector, group="g")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        subscription.pause()
        await eventually(lambda: feed.verdicts() == [(token, "release")], "the message to be given back")
        await stays(lambda: not feed.receiving, "receiving while paused", 0.1)
        subscription.resume()
        (await broker.feed()).hand(2)
        await collector.wait()
    assert collector.data == [2]


class Withdrawing(ScriptedFeed):
    """A feed whose broker goes on to answer what it was asked for."""

    withdrawals = 0

    async def withdraw(self) -> None:
        self.withdrawals += 1
        await self.broker.on_withdraw(self)


async def test_a_subscription_that_pauses_withdraws_what_it_asked_for(broker: ScriptedBroker) -> None:
    broker.feeding, collector = Withdrawing, Collector()
    async with connected(broker) as bus:
        grouped, alone = await bus.subscribe("t", collector, group="g"), await bus.subscribe("u", collector)
        feeds = [await broker.feed(), await broker.feed(pattern="u")]
        grouped.pause()
        alone.pause()
        await eventually(lambda: not any(feed.receiving for feed in feeds), "nobody receives")
        await eventually(lambda: feeds[0].withdrawals == 1, "what was asked for is withdrawn")  # type: ignore[attr-defined]
        grouped.resume()
        grouped.pause()
        grouped.resume()  # before anything could be withdrawn
        (await broker.feed()).hand(1)
        await collector.wait()
        assert [feed.withdrawals for feed in feeds] == [1, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [ConnectionLost("the line was cut"), OSError("not for the core to see")])
async def test_a_feed_that_cannot_withdraw_is_opened_again(broker: ScriptedBroker, error: Exception) -> None:
    async def fail(*_: Any) -> None:
        raise error

    broker.feeding, broker.on_withdraw, collector = Withdrawing, fail, Collector()
    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", collector, group="g")
        feed = await broker.feed()
        subscription.pause()
        await eventually(lambda: feed.left, "it gives back what it has")
        subscription.resume()
        (await broker.feed(2)).hand(1)
        await collector.wait()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_subscription_that_leaves_withdraws_while_handlers_run(broker: ScriptedBroker, fails: bool) -> None:
    """If that fails, it keeps its feed all the same: what runs is settled through it."""
    begun, go_on = anyio.Event(), anyio.Event()

    async def slow(message: Message) -> None:
        begun.set()
        await go_on.wait()

    async def fail(*_: Any) -> None:
        raise ConnectionLost("the line was cut")

    broker.feeding = Withdrawing
    if fails:
        broker.on_withdraw = fail
    async with connected(broker) as bus, anyio.create_task_group() as tasks:
        subscription = await bus.subscribe("t", slow, group="g", concurrency=2)
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await begun.wait()
        tasks.start_soon(subscription.unsubscribe)
        await eventually(lambda: feed.withdrawals == 1, "what was asked for is withdrawn")  # type: ignore[attr-defined]
        assert not feed.left
        go_on.set()
        await eventually(lambda: feed.left, "it leaves when its handler has finished")
        assert feed.verdicts() == [(token, "ack")] and len(broker.feeds) == 1


async def test_an_open_breaker_leaves_to_others_what_is_under_way(broker: ScriptedBroker) -> None:
    begun, go_on = list[Any](), anyio.Event()

    async def fail(message: Message) -> None:
        begun.append(message.data)
        await go_on.wait()
        raise RuntimeError("no")

    broker.feeding = Withdrawing
    async with connected(broker) as bus:
        breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=60)
        await bus.subscribe("t", fail, group="g", circuit_breaker=breaker, concurrency=2)
        (await broker.feed()).hand(1)
        await eventually(lambda: begun == [1], "the first one")
        feed = await broker.feed()
        go_on.set()
        await eventually(lambda: feed.withdrawals == 1, "what was asked for is withdrawn")  # type: ignore[attr-defined]
        assert not feed.receiving
        bus.host.supervised[0].consumer.breakers[0]._half_open()  # a minute later
        (await broker.feed()).hand(2)
        await eventually(lambda: begun == [1, 2], "the second one")


async def test_without_a_group_what_came_before_the_pause_is_kept(broker: ScriptedBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", collector)
        feed = await broker.feed()
        feed.hand(1)
        subscription.pause()
        await stays(lambda: not collector.messages, "a handler while paused", 0.1)
        subscription.resume()
        await collector.wait()
    assert collector.data == [1]


async def test_renewals_that_hang_do_not_pile_up() -> None:
    broker, go_on, running = ScriptedBroker(lease=0.15, extend_lease=True), anyio.Event(), 0

    async def hang(feed: ScriptedFeed, tokens: Sequence[Token]) -> None:
        nonlocal running
        running += 1
        try:
            await anyio.sleep_forever()
        finally:
            running -= 1

    async def slow(message: Message) -> None:
        await go_on.wait()

    broker.on_extend = hang
    async with connected(broker) as bus:
        await bus.subscribe("t", slow, group="g")
        (await broker.feed()).hand(1)
        await eventually(lambda: running, "a renewal")
        await stays(lambda: running <= 1, lambda: f"{running} renewals at once", 0.6)
        go_on.set()


async def test_a_cancelled_batch_is_not_sent_later(broker: ScriptedBroker, caplog: pytest.LogCaptureFixture) -> None:
    hangs, go_on = anyio.Event(), anyio.Event()

    async def hang(connection: ScriptedConnection, batch: Sequence[Outgoing]) -> None:
        hangs.set()
        await go_on.wait()

    broker.on_send = hang
    async with connected(broker) as bus, anyio.create_task_group() as group:
        group.start_soon(bus.publish, "first", 1)
        await hangs.wait()
        with anyio.move_on_after(0.1):
            await bus.publish_batch([Message("cancelled", number) for number in range(3)])
        go_on.set()
        await bus.publish("last", 1)
    assert broker.topics() == ["first", "last"]
