"""Unsubscribing and disconnecting while something else is going on: nobody waits for ever, nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from amb_core import AuthenticationError, BusClosed, InMemoryBroker, Message, MessageBus
from amb_core.broker import INBOX_PREFIX, Outgoing, Source
from amb_core.errors import ConnectionLost, Unavailable

from tests.core._help import Collector, eventually, stays
from tests.core._scripted import ScriptedBroker, ScriptedConnection, ScriptedFeed

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


@asynccontextmanager
async def connected(broker: ScriptedBroker, **options: Any) -> AsyncIterator[MessageBus]:
    given: dict[str, Any] = {"connect_timeout": 1, "publish_timeout": 2, "drain_timeout": 5}
    async with MessageBus(broker, **(given | options)) as bus:
        yield bus


class Slow:
    """A handler that runs until it is let go."""

    def __init__(self) -> None:
        self.begun, self.ended = list[Any](), list[str]()
        self.go_on = anyio.Event()

    async def __call__(self, message: Message) -> None:
        self.begun.append(message.data)
        try:
            await self.go_on.wait()
            self.ended.append("returned")
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise

    async def running(self) -> None:
        await eventually(lambda: self.begun, "the handler to run")


async def outage(broker: ScriptedBroker, feed: ScriptedFeed, bus: MessageBus) -> None:
    """The connection is lost and does not come back."""

    async def down(*_: Any) -> None:
        await anyio.sleep_forever()

    broker.on_connect = down
    feed.fail(ConnectionLost("the line was cut"))
    await eventually(lambda: not bus.connected, "the loss")


# --- unsubscribing


async def test_unsubscribing_and_disconnecting_at_once_both_end(broker: ScriptedBroker) -> None:
    slow, begin = Slow(), time.monotonic()
    bus = MessageBus(broker, drain_timeout=20)
    subscription = await bus.subscribe("t", slow, group="g")
    (await broker.feed()).hand(1)
    await slow.running()
    async with anyio.create_task_group() as group:
        group.start_soon(subscription.unsubscribe)
        await anyio.sleep(0.05)
        group.start_soon(bus.disconnect)
        await anyio.sleep(0.05)
        slow.go_on.set()
    assert time.monotonic() - begin < 5 and slow.ended == ["returned"]


async def test_a_bus_that_drains_takes_nothing_for_a_subscription_that_ends() -> None:
    slow = Slow()
    async with MessageBus(InMemoryBroker(), drain_timeout=5) as bus, anyio.create_task_group() as group:
        subscription = await bus.subscribe("t", slow, concurrency=1)
        for number in range(3):
            await bus.publish("t", number)
        await slow.running()
        group.start_soon(subscription.unsubscribe)
        await anyio.sleep(0.05)
        group.start_soon(bus.disconnect)
        await anyio.sleep(0.05)
        slow.go_on.set()
    assert slow.begun == [0]


async def test_cancelling_unsubscribe_ends_the_subscription_all_the_same(broker: ScriptedBroker) -> None:
    slow = Slow()
    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", slow, group="g")
        feed = await broker.feed()
        feed.hand(1)
        await slow.running()
        with anyio.move_on_after(0.05):
            await subscription.unsubscribe()
        slow.go_on.set()
        await eventually(lambda: feed.left, "the end of the feed")
    assert slow.ended == ["returned"]


async def test_no_retry_begins_after_its_subscription_has_ended(broker: ScriptedBroker) -> None:
    begun, go_on = list[Any](), anyio.Event()

    async def handler(message: Message) -> None:
        begun.append(message.data)
        if message.data == "fails":
            raise LookupError("no")
        await go_on.wait()

    async with connected(broker) as bus, anyio.create_task_group() as group:
        subscription = await bus.subscribe("t", handler, retries=5, retry_delay=60)
        feed = await broker.feed()
        feed.hand("fails", "waits")
        consumer = bus.host.supervised[0].consumer
        await eventually(lambda: len(begun) == 2 and consumer.held, "both, and the retry to come")
        group.start_soon(subscription.unsubscribe)
        await eventually(lambda: consumer.stopping, "its end")
        [again] = consumer.held._waiting
        consumer.held._due(again)  # a minute later
        await stays(lambda: len(begun) == 2, lambda: f"another try: {begun}", 0.2)
        go_on.set()


async def test_a_handler_may_unsubscribe_itself_and_finish(broker: ScriptedBroker) -> None:
    ended: list[str] = []

    async with connected(broker) as bus:

        async def once(message: Message) -> None:
            await subscription.unsubscribe()
            await anyio.sleep(0.05)
            ended.append("returned")

        subscription = await bus.subscribe("t", once, group="g")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await eventually(lambda: feed.left, "the end of the feed")
    assert ended == ["returned"] and feed.verdicts() == [(token, "ack")]


async def test_a_thousand_subscriptions_leave_nothing_with_their_circuit_breaker(broker: ScriptedBroker) -> None:
    from amb_core import CircuitBreaker

    async with connected(broker, circuit_breaker=CircuitBreaker()) as bus:
        for _ in range(20):
            subscription = await bus.subscribe("t", Collector(), group="g")
            await subscription.unsubscribe()
        assert bus.breaker("t").members == []


# --- disconnecting


async def test_leaving_during_an_outage_lets_handlers_finish(broker: ScriptedBroker) -> None:
    slow = Slow()
    bus = MessageBus(broker, drain_timeout=5)
    await bus.subscribe("t", slow, group="g")
    feed = await broker.feed()
    feed.hand(1)
    await slow.running()
    await bus.subscribe("other", Collector(), group="g")
    await outage(broker, await broker.feed(pattern="other"), bus)
    async with anyio.create_task_group() as group:
        group.start_soon(bus.disconnect)
        await anyio.sleep(0.1)
        slow.go_on.set()
    assert slow.ended == ["returned"]


@pytest.mark.parametrize("what", ["bus", "subscription"])
async def test_what_runs_while_it_leaves_is_settled_although_the_line_is_cut(broker: ScriptedBroker, what: str) -> None:
    """Or it would run again elsewhere, however long it took."""
    slow = Slow()
    async with connected(broker) as bus, anyio.create_task_group() as tasks:
        subscription = await bus.subscribe("t", slow, group="g", concurrency=2)
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await slow.running()
        tasks.start_soon(bus.disconnect if what == "bus" else subscription.unsubscribe)
        await eventually(lambda: not feed.receiving, "it has begun to leave")
        bus.host.suspect(ConnectionLost("the line was cut"), broker.connections[0])
        await eventually(lambda: len(broker.feeds) == 2, "the next feed", 5)
        await bus.publish("answers", 1)
        slow.go_on.set()
        second = broker.feeds[1]
        await eventually(lambda: second.left, "it has left")
        assert second.verdicts() == [(token, "ack")] and not second.limits, "it received more"
    assert slow.ended == ["returned"]


@pytest.mark.parametrize("comes_back", [True, False])
async def test_what_was_decided_in_an_outage_is_told_if_that_ends_in_time(
    broker: ScriptedBroker, comes_back: bool, caplog: pytest.LogCaptureFixture
) -> None:
    slow, back = Slow(), anyio.Event()

    async def down(*_: Any) -> None:
        await back.wait()

    async with connected(broker, drain_timeout=10 if comes_back else 1) as bus:
        await bus.subscribe("t", slow, group="g")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await slow.running()
        broker.on_connect = down
        bus.host.suspect(ConnectionLost("the line was cut"), broker.connections[0])
        await eventually(lambda: feed.left, "the outage")
        slow.go_on.set()
        await eventually(lambda: slow.ended, "the handler's end")
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.disconnect)
            await eventually(lambda: bus.host.state == "stopping", "it has begun to leave")
            if comes_back:
                await stays(lambda: bus.host.state == "stopping", "waiting for the broker", 0.2)
                back.set()
        took = time.monotonic() - began
    if comes_back:
        assert broker.feeds[1].verdicts() == [(token, "ack")] and took < 9
    else:
        assert len(broker.feeds) == 1 and 0.9 < took < 3
        assert "1 message(s) for 't' were handled, and come again" in caplog.text


async def test_leaving_does_not_wait_for_an_attempt_to_connect(broker: ScriptedBroker) -> None:
    bus = MessageBus(broker, connect_timeout=20)
    await bus.subscribe("t", Collector(), group="g")
    await outage(broker, await broker.feed(), bus)
    with anyio.fail_after(3):
        await bus.disconnect()


async def test_leaving_before_the_first_connection_is_made_ends_both(broker: ScriptedBroker) -> None:
    errors: list[BaseException] = []

    async def connect() -> None:
        try:
            await bus.connect()
        except BusClosed as error:
            errors.append(error)

    async def down(*_: Any) -> None:
        await anyio.sleep_forever()

    broker.on_connect = down
    bus = MessageBus(broker, connect_timeout=20)
    with anyio.fail_after(3):
        async with anyio.create_task_group() as group:
            group.start_soon(connect)
            await eventually(lambda: bus.host.state == "starting", "the attempt")
            await bus.disconnect()
    assert len(errors) == 1


@pytest.mark.parametrize("verb", ["publish", "request", "subscribe", "publish_batch"])
async def test_what_waits_for_the_connection_hears_that_there_will_be_none(broker: ScriptedBroker, verb: str) -> None:
    bus, errors = MessageBus(broker, connect_timeout=20), list[BaseException]()

    async def use() -> None:
        verbs: dict[str, Any] = {
            "publish": lambda: bus.publish("t", 1),
            "request": lambda: bus.request("t", 1),
            "subscribe": lambda: bus.subscribe("t", Collector()),
            "publish_batch": lambda: bus.publish_batch([Message("t", 1)]),
        }
        try:
            await verbs[verb]()
        except BusClosed as error:
            errors.append(error)

    async def down(*_: Any) -> None:
        await anyio.sleep_forever()

    broker.on_connect = down
    with anyio.fail_after(3):
        async with anyio.create_task_group() as group:
            group.start_soon(use)
            await anyio.sleep(0.05)
            await bus.disconnect()
    assert len(errors) == 1


async def test_a_request_that_waits_when_the_bus_ends_during_an_outage_hears_of_it(broker: ScriptedBroker) -> None:
    bus = MessageBus(broker, drain_timeout=1)
    await bus.subscribe("t", Collector(), group="g")
    feed = await broker.feed()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                with pytest.raises(BusClosed):
                    await bus.request("r", 1, timeout=60)

            group.start_soon(ask)
            await eventually(lambda: "r" in broker.topics(), "the request")
            await outage(broker, feed, bus)
            await bus.disconnect()


async def test_a_publisher_that_waits_out_an_outage_hears_that_the_bus_ended(broker: ScriptedBroker) -> None:
    bus = MessageBus(broker, drain_timeout=1, publish_timeout=60)
    await bus.subscribe("t", Collector(), group="g")
    await outage(broker, await broker.feed(), bus)
    with anyio.fail_after(3):
        async with anyio.create_task_group() as group:

            async def publish() -> None:
                with pytest.raises((BusClosed, ConnectionError), match="disconnected"):
                    await bus.publish("u", 1)

            group.start_soon(publish)
            await anyio.sleep(0.05)
            await bus.disconnect()


async def test_what_stopped_the_bus_is_said_by_the_next_verb_and_by_disconnecting(broker: ScriptedBroker) -> None:
    async def refuse() -> None:
        if broker.connections:
            raise AuthenticationError("the password was changed")

    broker.on_connect = refuse
    bus = MessageBus(broker)
    await bus.subscribe("t", Collector(), group="g")
    (await broker.feed()).fail(ConnectionLost("the line was cut"))
    await eventually(lambda: bus.host.state == "closed", "the end")
    with pytest.raises(BusClosed, match="the password was changed"):
        await bus.publish("t", 1)
    with pytest.raises(AuthenticationError):
        await bus.disconnect()
    await bus.disconnect()


async def test_a_bus_that_could_not_connect_may_be_used_again(broker: ScriptedBroker) -> None:
    async def down() -> None:
        raise Unavailable("not yet")

    broker.on_connect = down
    bus = MessageBus(broker, connect_timeout=0.1)
    for _ in range(2):
        with pytest.raises(Unavailable, match="not yet"):
            await bus.publish("t", 1)
    broker.on_connect = ScriptedBroker().on_connect
    assert await bus.publish("t", 1)
    await bus.disconnect()


async def test_connecting_while_the_bus_drains_gives_a_bus_that_works(broker: ScriptedBroker) -> None:
    slow = Slow()
    bus = MessageBus(broker, drain_timeout=5)
    await bus.subscribe("t", slow, group="g")
    (await broker.feed()).hand(1)
    await slow.running()
    async with anyio.create_task_group() as group:
        group.start_soon(bus.disconnect)
        await eventually(lambda: bus.host.state == "stopping", "the drain")
        group.start_soon(bus.connect)
        await anyio.sleep(0.05)
        slow.go_on.set()
    assert await bus.publish("t", 1)
    await bus.disconnect()


async def test_subscribing_while_the_bus_drains_is_refused(broker: ScriptedBroker) -> None:
    errors: list[BaseException] = []
    go_on = anyio.Event()

    async def handler(message: Message) -> None:
        await go_on.wait()
        try:
            await bus.subscribe("u", Collector(), group="g")
        except BusClosed as error:
            errors.append(error)

    bus = MessageBus(broker, drain_timeout=5)
    await bus.subscribe("t", handler, group="g")
    (await broker.feed()).hand(1)
    async with anyio.create_task_group() as group:
        await eventually(lambda: bus.stats.delivered, "the delivery")
        group.start_soon(bus.disconnect)
        await eventually(lambda: bus.host.state == "stopping", "the drain")
        go_on.set()
    assert len(errors) == 1 and "'u'" in str(errors[0])


async def test_a_subscription_of_a_bus_that_was_left_says_so(broker: ScriptedBroker) -> None:
    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", Collector(), group="g")
    for verb in (subscription.pause, subscription.resume, lambda: subscription.set_concurrency(3)):
        with pytest.raises(BusClosed, match="'t'"):
            verb()
    assert subscription.health().error == "the bus is not connected"


async def test_a_handler_may_disconnect_the_bus(broker: ScriptedBroker) -> None:
    slow = Slow()
    bus = MessageBus(broker, drain_timeout=20)

    async def last(message: Message) -> None:
        await bus.disconnect()

    await bus.subscribe("t", last, group="g")
    await bus.subscribe("u", slow, group="g")
    feed, other = await broker.feed(), await broker.feed(pattern="u")
    other.hand(1)
    await slow.running()
    (token,) = feed.hand(1)
    await eventually(lambda: bus.host.state == "stopping", "the drain")
    slow.go_on.set()
    await eventually(lambda: bus.host.state == "closed", "the end", 5)
    assert feed.verdicts() == [(token, "ack")] and slow.ended == ["returned"]


# --- the inbox for replies


async def test_requests_use_the_new_inbox_when_the_old_one_hangs(broker: ScriptedBroker) -> None:
    async def answer(connection: ScriptedConnection, batch: Sequence[Outgoing]) -> None:
        for outgoing in batch:
            if outgoing.topic == "r":
                inbox = [feed for feed in broker.feeds if feed.source.pattern.startswith(INBOX_PREFIX)][-1]
                inbox.hand("reply", headers={"amb-request": outgoing.headers["amb-request"]})

    broker.on_send = answer
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        assert (await bus.request("r", 1, timeout=2)).data == "reply"
        (await broker.feed()).fail(ConnectionLost("the line was cut"))
        await broker.feed(2)
        assert (await bus.request("r", 1, timeout=2)).data == "reply"
        inboxes = [feed for feed in broker.feeds if feed.source.pattern.startswith(INBOX_PREFIX)]
        assert [feed.left for feed in inboxes] == [True, False]


async def test_a_bug_in_the_backends_inbox_does_not_end_the_bus(
    broker: ScriptedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [ZeroDivisionError("a bug")]

    async def buggy(connection: ScriptedConnection, source: Source) -> None:
        if source.pattern.startswith(INBOX_PREFIX) and errors:
            raise errors.pop()

    broker.on_open = buggy
    async with connected(broker) as bus, anyio.create_task_group() as tasks:
        tasks.start_soon(bus.request, "r")
        await eventually(lambda: "r" in broker.topics(), "the request, once the inbox is open")
        assert bus.connected
        tasks.cancel_scope.cancel()
    assert "ZeroDivisionError" in caplog.text


async def test_the_inbox_is_cleared_away_when_the_bus_leaves(broker: ScriptedBroker) -> None:
    cleared: list[str] = []

    async def clear(feed: ScriptedFeed) -> None:
        await anyio.sleep(0.05)
        cleared.append(feed.source.pattern)

    broker.on_leave = clear
    async with connected(broker) as bus:
        with pytest.raises(TimeoutError):
            await bus.request("r", 1, timeout=0.1)
    assert len(cleared) == 1 and cleared[0].startswith(INBOX_PREFIX)


# --- streams


async def test_a_stream_ends_with_its_bus() -> None:
    bus, seen = MessageBus(), list[Any]()
    await bus.connect()
    with anyio.fail_after(3):
        async with anyio.create_task_group() as group:

            async def read() -> None:
                async for message in bus.stream("t"):
                    seen.append(message.data)

            group.start_soon(read)
            await eventually(lambda: bus.host.supervised, "the stream")
            await bus.publish("t", 1)
            await eventually(lambda: seen, "the message")
            await bus.disconnect()
    assert seen == [1]


async def test_a_stream_that_was_dropped_half_way_ends_its_subscription(broker: ScriptedBroker) -> None:
    async with connected(broker) as bus, anyio.create_task_group() as group:

        async def hand() -> None:
            (await broker.feed()).hand(1)

        group.start_soon(hand)
        async for _ in bus.stream("t", group="g"):
            break
        await eventually(lambda: broker.feeds[0].left, "the end of the feed")
        assert (await bus.health()).subscriptions == []
    assert [verdict for _, verdict in broker.feeds[0].verdicts()] == ["release"]


async def test_what_was_given_back_is_not_read_any_more(broker: ScriptedBroker) -> None:
    async with connected(broker, drain_timeout=0.1) as bus:
        stream = bus.stream("t", group="g", concurrency=2)
        async with stream:
            feed = await broker.feed()
            tokens = feed.hand(1, 2)
            first = await anext(stream)
            await eventually(lambda: bus.stats.delivered == 2, "both")
            await bus.disconnect()
            rest = [message.data async for message in stream]
    assert first.data == 1 and rest == []
    assert set(feed.verdicts()) == {(token, "release") for token in tokens}


# --- from inside a handler, and from what it began


async def test_what_a_handler_began_waits_for_the_bus_to_end(broker: ScriptedBroker) -> None:
    slow, states, begun = Slow(), list[str](), anyio.Event()
    bus = MessageBus(broker, drain_timeout=5)

    async with anyio.create_task_group() as group:

        async def leave() -> None:
            await begun.wait()
            await bus.disconnect()
            states.append(bus.host.state)

        async def first(message: Message) -> None:
            group.start_soon(leave)  # in the context of this handler, but not in it

        await bus.subscribe("t", first, group="g")
        await bus.subscribe("u", slow, group="g")
        feed, other = await broker.feed(), await broker.feed(pattern="u")
        other.hand(1)
        await slow.running()
        feed.hand(1)
        await eventually(lambda: bus.stats.acked == 1, "the end of the first handler")
        begun.set()
        await eventually(lambda: bus.host.state == "stopping", "the drain")
        slow.go_on.set()
    assert states == ["closed"]


async def test_a_batch_handler_may_disconnect_the_bus(broker: ScriptedBroker) -> None:
    bus, ended = MessageBus(broker, drain_timeout=20), list[str]()

    async def last(messages: list[Message]) -> None:
        await bus.disconnect()
        ended.append("returned")

    await bus.subscribe("t", last, group="g", ack_mode="batch", batch_size=2, batch_timeout=0.05)
    feed = await broker.feed()
    feed.hand(1)
    await eventually(lambda: bus.host.state == "closed", "the end", 5)
    assert ended == ["returned"] and [verdict for _, verdict in feed.verdicts()] == ["ack"]


async def test_what_a_batch_handler_publishes_continues_no_strangers_trace(broker: ScriptedBroker) -> None:
    async with connected(broker) as bus:

        async def single(message: Message) -> None:
            await bus.subscribe("batches", batch, group="g", ack_mode="batch", batch_size=1, concurrency=1)

        async def batch(messages: list[Message]) -> None:
            await bus.publish("out", 1)

        await bus.subscribe("t", single, group="g")
        (await broker.feed()).hand(1, headers={"amb-trace-id": "strange"})
        (await broker.feed(pattern="batches")).hand(1)
        await eventually(lambda: "out" in broker.topics(), "the message")
    (out,) = [outgoing for outgoing in broker.sent if outgoing.topic == "out"]
    assert "amb-trace-id" not in out.headers


async def test_subscribing_when_the_bus_ends_says_that(broker: ScriptedBroker) -> None:
    bus = MessageBus(broker, connect_timeout=20)
    await bus.subscribe("t", Collector(), group="g")
    await outage(broker, await broker.feed(), bus)
    with anyio.fail_after(3):
        async with anyio.create_task_group() as group:

            async def subscribe() -> None:
                with pytest.raises(BusClosed, match="'u'"):
                    await bus.subscribe("u", Collector(), group="g")

            group.start_soon(subscribe)
            await eventually(lambda: len(bus.host.supervised) == 2, "the attempt")
            await bus.disconnect()


async def test_a_feed_that_fails_to_leave_ends_all_the_same(
    broker: ScriptedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(feed: ScriptedFeed) -> None:
        raise Unavailable("the queue cannot be removed")

    broker.on_leave = broken
    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", Collector(), group="g")
        await broker.feed()
        await subscription.unsubscribe()
        assert bus.host.supervised == []
    assert "the queue cannot be removed" in caplog.text and "trying again" not in caplog.text


async def test_a_request_outlives_a_bus_that_is_restarted_under_it(broker: ScriptedBroker) -> None:
    hung, outcomes = anyio.Event(), list[str]()

    async def hang(*_: Any) -> None:
        if not hung.is_set():
            hung.set()
            await anyio.sleep_forever()

    async def ask() -> None:
        try:
            await bus.request("r", 1, timeout=0.2)
        except (BusClosed, TimeoutError, Unavailable) as error:
            outcomes.append(type(error).__name__)

    broker.on_connect = hang
    bus = MessageBus(broker, connect_timeout=20)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)
            await hung.wait()
            await anyio.sleep(0.01)
            group.start_soon(_restart, bus)
        await bus.disconnect()
    assert len(outcomes) == 10


async def _restart(bus: MessageBus) -> None:
    await bus.disconnect()
    await bus.connect()
