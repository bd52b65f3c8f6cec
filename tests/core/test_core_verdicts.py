"""Verdicts whose telling is interrupted, refused, overtaken or too late."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from amb_core import AuthenticationError, DeadLetterQueue, Message, MessageBus
from amb_core.broker import Outgoing, Settlement, Token
from amb_core.errors import ConnectionLost, LeaseLost, PartialFailure, Unavailable

from tests.core._help import Collector, eventually, stays
from tests.core._scripted import ScriptedBroker, ScriptedConnection, ScriptedFeed

pytestmark = pytest.mark.anyio
DLQ = DeadLetterQueue("dead", max_retries=0)


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


@asynccontextmanager
async def connected(broker: ScriptedBroker, **options: Any) -> AsyncIterator[MessageBus]:
    given: dict[str, Any] = {"connect_timeout": 1, "publish_timeout": 2, "drain_timeout": 2, "dead_letter_queue": DLQ}
    async with MessageBus(broker, **(given | options)) as bus:
        yield bus


def hang_once(go_on: anyio.Event) -> Callable[..., Any]:
    """A hook that does not come back from its first call until `go_on`."""
    calls = 0

    async def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await go_on.wait()

    return hook


async def test_a_burial_that_was_cancelled_is_made_up_for_before_the_original_goes(broker: ScriptedBroker) -> None:
    class Line:
        """Does not come back from the first send, until that is cancelled."""

        hung = False

        async def __call__(self, connection: ScriptedConnection, batch: Sequence[Outgoing]) -> None:
            if not self.hung:
                self.hung = True
                await anyio.sleep_forever()

    broker.on_send = Line()
    async with connected(broker, publish_timeout=0.5, drain_timeout=0.1) as bus:
        await bus.subscribe("t", Collector(LookupError("no")), group="g")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await eventually(lambda: broker.on_send.hung, "the dead letter on its way")  # type: ignore[attr-defined]
    assert (token, "discard") not in feed.verdicts() or broker.topics() == ["dead"]


async def test_a_bug_while_burying_costs_no_message(broker: ScriptedBroker) -> None:
    errors: list[Exception] = [ZeroDivisionError("a bug")]

    async def buggy(connection: ScriptedConnection, batch: Sequence[Outgoing]) -> None:
        if errors:
            raise errors.pop()

    broker.on_send = buggy
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(LookupError("no")), group="g")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await eventually(lambda: any(each.settled for each in broker.feeds), "the verdict")
        verdicts = [verdict for each in broker.feeds for verdict in each.verdicts()]
    assert verdicts == [(token, "retry")] or (verdicts == [(token, "discard")] and broker.topics() == ["dead"])


async def test_a_buried_message_whose_removal_failed_is_not_buried_again(broker: ScriptedBroker) -> None:
    failures: list[Exception] = [Unavailable("busy")]
    reopen, second_fails = anyio.Event(), anyio.Event()

    async def busy(feed: ScriptedFeed, outcomes: Sequence[Settlement]) -> None:
        if failures:
            raise failures.pop()

    async def gate(*_: Any) -> None:
        if broker.feeds:
            await reopen.wait()

    async def fail(message: Message) -> None:
        if message.data == 2:
            await second_fails.wait()
        raise LookupError("no")

    broker.on_settle, broker.on_open = busy, gate
    async with connected(broker) as bus:
        await bus.subscribe("t", fail, group="g", concurrency=2)
        feed = await broker.feed()
        tokens = feed.hand(2, 1)
        await eventually(lambda: feed.left, "the end of the first feed")
        second_fails.set()
        await eventually(lambda: bus.stats.failed == 2, "the second failure")
        reopen.set()
        feed = await broker.feed(2)
        await eventually(lambda: len(feed.settled) == 2, lambda: f"two verdicts in {feed.settled}")
    assert set(feed.verdicts()) == {(token, "discard") for token in tokens}
    assert len(broker.sent) == 2


async def test_a_dead_letter_of_what_only_this_process_knows_tells_the_broker_nothing(broker: ScriptedBroker) -> None:
    collector = Collector(LookupError("no"))
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, retries=1, retry_delay=0.05)
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await eventually(lambda: broker.topics() == ["dead"], "the dead letter")
        feed.hand(2)
        await collector.wait(3)
        await stays(lambda: [one for one in broker.feeds if one.source.pattern == "t"] == [feed], "another feed", 0.2)
    assert [message.attempt for message in collector.messages[:2]] == [1, 2]
    assert feed.verdicts()[0] == (token, "ack")


async def test_giving_up_waiting_for_a_verdict_neither_cancels_nor_repeats_it(broker: ScriptedBroker) -> None:
    collector, answer = Collector(), anyio.Event()
    broker.on_settle = hang_once(answer)
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g", ack_mode="manual")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        (message,) = await collector.wait()
        with anyio.move_on_after(0.1):
            await bus.host.supervised[0].consumer.settler.told(_decided(message))
        assert feed.verdicts() == []
        answer.set()
        await eventually(lambda: feed.verdicts() == [(token, "ack")], "the acknowledgement")
    assert feed.verdicts() == [(token, "ack")]


@pytest.mark.parametrize("leave", ["disconnect", "unsubscribe"])
async def test_leaving_does_not_cancel_and_repeat_a_verdict_that_is_being_told(
    broker: ScriptedBroker, leave: str
) -> None:
    """A broker that had done half of it would do it twice: store the retry, say, and store it again."""
    asked, answer, calls = anyio.Event(), anyio.Event(), 0

    async def slow(feed: ScriptedFeed, outcomes: Sequence[Settlement]) -> None:
        nonlocal calls
        calls += 1
        asked.set()
        await answer.wait()

    broker.on_settle = slow
    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", Collector(RuntimeError("again")), group="g", retries=1, concurrency=1)
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await asked.wait()
        async with anyio.create_task_group() as group:
            group.start_soon(bus.disconnect if leave == "disconnect" else subscription.unsubscribe)
            await anyio.sleep(0.2)
            answer.set()
    assert (calls, feed.verdicts()) == (1, [(token, "retry")])


async def test_a_broker_that_does_not_answer_holds_up_who_leaves_for_seconds_only(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amb_core._settling.LAST_WORDS", 0.2)
    asked = anyio.Event()

    async def never(feed: ScriptedFeed, outcomes: Sequence[Settlement]) -> None:
        asked.set()
        await anyio.sleep_forever()

    broker.on_settle = never
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        feed = await broker.feed()
        feed.hand(1)
        await asked.wait()
        with anyio.fail_after(4.5):  # else LAST_WORDS of the way out, which is five
            await bus.disconnect()


def _decided(message: Message) -> Any:
    """The delivery, with a verdict that this task, and no worker, is about to tell the broker."""
    delivery: Any = message._delivery
    delivery.settle("ack")
    return delivery


async def test_a_verdict_stuck_on_an_old_line_reaches_the_new_feed(broker: ScriptedBroker) -> None:
    stuck, collector = anyio.Event(), Collector()

    async def slow_to_fail(feed: ScriptedFeed, outcomes: Sequence[Settlement]) -> None:
        if feed is broker.feeds[0]:
            await stuck.wait()
            raise ConnectionLost("the line was cut")

    broker.on_settle = slow_to_fail
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await collector.wait()
        await bus.subscribe("other", Collector(), group="g")
        (await broker.feed(pattern="other")).fail(ConnectionLost("the line was cut"))
        second = await broker.feed(2)
        stuck.set()
        await eventually(lambda: second.verdicts() == [(token, "ack")], lambda: f"the verdict in {second.settled}")
        assert len(broker.connections) == 2


async def test_waiting_for_a_verdict_ends_when_the_bus_stops(broker: ScriptedBroker) -> None:
    collector, refused = Collector(), anyio.Event()

    async def refuse() -> None:
        if broker.connections:
            await refused.wait()
            raise AuthenticationError("the password was changed")

    broker.on_connect = refuse
    bus = MessageBus(broker, drain_timeout=1)
    await bus.subscribe("t", collector, group="g", ack_mode="manual")
    feed = await broker.feed()
    feed.hand(1)
    (message,) = await collector.wait()
    feed.fail(ConnectionLost("the line was cut"))
    await eventually(lambda: not bus.connected, "the loss")
    with anyio.fail_after(2):
        async with anyio.create_task_group() as group:
            group.start_soon(_await, message.ack())
            await anyio.sleep(0)
            refused.set()
    with pytest.raises(AuthenticationError):
        await bus.disconnect()


async def _await(awaitable: Any) -> None:
    await awaitable


async def test_an_acknowledgement_that_came_too_late_is_not_counted(broker: ScriptedBroker) -> None:
    async def taken_back(feed: ScriptedFeed, outcomes: Sequence[Settlement]) -> None:
        raise PartialFailure({0: LeaseLost("somebody else has it")})

    broker.on_settle = taken_back
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        (await broker.feed()).hand(1)
        await eventually(lambda: bus.stats.settle_errors == 1, "the error")
    assert bus.stats.acked == 0


# --- order per key


async def test_a_lease_lost_behind_a_busy_key_does_not_block_the_key(broker: ScriptedBroker) -> None:
    collector, go_on = Collector(), anyio.Event()

    async def first_waits(message: Message) -> None:
        await collector(message)
        if message.data == 1:
            await go_on.wait()

    async with connected(broker) as bus:
        await bus.subscribe("t", first_waits, group="g", ordered_by="key", concurrency=2)
        feed = await broker.feed()
        tokens = feed.hand(1, 2, 3, key="k")
        await collector.wait()
        consumer = bus.host.supervised[0].consumer
        await eventually(lambda: len(consumer.open) == 3, "three deliveries")
        consumer.lose(consumer.open[tokens[1]])
        go_on.set()
        await collector.wait(2)
    assert collector.data == [1, 3]


async def test_what_the_broker_took_back_is_not_tried_again_here(broker: ScriptedBroker) -> None:
    collector, go_on = Collector(), anyio.Event()

    async def fail(message: Message) -> None:
        await collector(message)
        await go_on.wait()
        raise LookupError("no")

    async with connected(broker) as bus:
        await bus.subscribe("t", fail, group="g", ordered_by="key", retries=3, retry_delay=0)
        feed = await broker.feed()
        (token,) = feed.hand(1, key="k")
        await collector.wait()
        consumer = bus.host.supervised[0].consumer
        consumer.lose(consumer.open[token])
        go_on.set()
        await eventually(lambda: bus.stats.failed == 1, "the failure")
        await stays(lambda: len(collector.messages) == 1, "tried again by two", 0.2)
        assert consumer.open == {} and feed.settled == []


async def test_a_retried_key_keeps_its_order_over_a_reconnect(broker: ScriptedBroker) -> None:
    order: list[Any] = []

    async def once(message: Message) -> None:
        order.append(message.data)
        if message.data == 1 and message.attempt == 1:
            raise LookupError("no")

    async with connected(broker) as bus:
        await bus.subscribe("t", once, group="g", ordered_by="key", retries=3, retry_delay=0.3)
        feed = await broker.feed()
        feed.hand(1, 2, 3, key="k")
        await eventually(lambda: order, "the first try")
        feed.fail(ConnectionLost("the line was cut"))
        (await broker.feed(2)).hand(4, key="k")
        await eventually(lambda: len(order) == 5, lambda: f"all of {order}")
    assert order == [1, 1, 2, 3, 4]


# --- leases


@pytest.fixture
def leasing() -> ScriptedBroker:
    return ScriptedBroker(lease=0.3, extend_lease=True)


async def test_a_lease_that_could_not_be_renewed_just_now_is_not_lost(leasing: ScriptedBroker) -> None:
    failures, go_on = [PartialFailure({0: Unavailable("busy")})], anyio.Event()

    async def moody(feed: ScriptedFeed, tokens: Sequence[Token]) -> None:
        if failures:
            raise failures.pop()

    async def slow(message: Message) -> None:
        await go_on.wait()

    leasing.on_extend = moody
    async with connected(leasing) as bus:
        await bus.subscribe("t", slow, group="g")
        feed = await leasing.feed()
        (token,) = feed.hand(1)
        await eventually(lambda: feed.extended, "a later renewal")
        go_on.set()
        await eventually(lambda: feed.verdicts() == [(token, "ack")], "the acknowledgement")
    assert bus.stats.settle_errors == 0


async def test_after_the_loop_stood_still_everything_is_extended_at_once() -> None:
    """Otherwise another quarter goes by that it has not got."""
    broker, go_on, rounds = ScriptedBroker(lease=1.2, extend_lease=True), anyio.Event(), list[int]()

    async def note(feed: ScriptedFeed, tokens: Sequence[Token]) -> None:
        renewal = bus.host.supervised[0].consumer.renewal
        rounds.append(renewal.tick if renewal else 0)

    async def blocks(message: Message) -> None:
        time.sleep(0.7)
        await go_on.wait()

    broker.on_extend = note
    async with connected(broker) as bus:
        await bus.subscribe("t", blocks, group="g")
        (await broker.feed()).hand(1)
        await eventually(lambda: rounds, "a renewal")
        go_on.set()
    assert rounds[0] == 1


async def test_a_lost_lease_frees_a_place(leasing: ScriptedBroker) -> None:
    go_on, collector = anyio.Event(), Collector()

    async def gone(feed: ScriptedFeed, tokens: Sequence[Token]) -> None:
        raise PartialFailure(dict.fromkeys(range(len(tokens)), LeaseLost("somebody else has it")))

    async def slow(message: Message) -> None:
        await collector(message)
        await go_on.wait()

    leasing.on_extend = gone
    async with connected(leasing) as bus:
        await bus.subscribe("t", slow, group="g", ordered_by="key", concurrency=1)
        feed = await leasing.feed()
        feed.hand(1, 2, 3, 4, key="k")
        await eventually(lambda: bus.stats.settle_errors == 4, "four lost leases")
        go_on.set()
        feed.hand(5, key="k")
        await collector.wait(2)
    assert collector.data == [1, 5] and feed.verdicts()[0][1] == "ack"
