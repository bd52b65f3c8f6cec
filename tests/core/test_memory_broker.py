"""The memory broker against the contract, without a bus: routing, groups, leases, order, replay."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus
from amb_core.broker import (
    INBOX_PREFIX,
    Connection,
    ExtendsLease,
    Feed,
    Incoming,
    KnowsPeers,
    NativeRequests,
    Outgoing,
    Replays,
    ReportsHealth,
    Settlement,
    Source,
    Verdict,
)  # fmt: skip
from amb_core.errors import ConfigurationError, ConnectionLost, LeaseLost, NoResponders, PartialFailure, Unavailable
from amb_core.memory import InMemoryBroker

from tests.core._help import eventually
from tests.core._stopwatch import stopwatch

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.param == "trio":
        return "trio", {}
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
async def bus() -> AsyncIterator[Connection]:
    async with InMemoryBroker().connect() as connection:
        yield connection


def message(topic: str = "a.b", body: str = "x", **fields: Any) -> Outgoing:
    return Outgoing(topic, body.encode(), fields.pop("headers", {"amb-id": body}), **fields)


def source(pattern: str = "a.b", group: str | None = "g", **fields: Any) -> Source:
    return Source(id=f"{group}/{pattern}", pattern=pattern, group=group, **fields)


def bodies(deliveries: Sequence[Incoming]) -> list[str]:
    return [delivery.body.decode() for delivery in deliveries]


async def take(feed: Feed, limit: int = 100) -> list[str]:
    """The bodies of what is there, left unsettled."""
    return bodies(await feed.receive(limit, wait=False))


async def settle(feed: Feed, deliveries: Sequence[Incoming], verdict: Verdict = "ack", delay: float = 0.0) -> None:
    await feed.settle([Settlement(each.token, verdict, delay, each.attempt) for each in deliveries])


async def publish(bus: Connection, *names: str, topic: str = "a.b", **fields: Any) -> None:
    await bus.send([message(topic, name, **fields) for name in names])


async def waits(feed: Feed, limit: int = 100, within: float = 5.0) -> list[Incoming]:
    with anyio.fail_after(within):
        return list(await feed.receive(limit))


@asynccontextmanager
async def feeds(bus: Connection, *sources: Source) -> AsyncIterator[list[Feed]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(bus.open(each)) for each in sources]


# --- options


def test_options_that_cannot_work_are_refused_by_name() -> None:
    cannot: dict[str, Any] = {"max_queue_size": 0, "failure_rate": 2.0, "history": -1, "lease": 0.0, "latency_ms": -1.0}
    cannot |= {"backpressure_threshold": 0.0, "backpressure_delay": -0.1}
    for name, value in cannot.items():
        with pytest.raises(ConfigurationError, match=name):
            InMemoryBroker(**{name: value})
    wrong: Any = "often"
    with pytest.raises(ConfigurationError, match="overflow"):
        InMemoryBroker(overflow=wrong)


def test_a_broker_is_a_value() -> None:
    assert InMemoryBroker(history=5) == InMemoryBroker(history=5) != InMemoryBroker()
    assert hash(InMemoryBroker(history=5)) == hash(InMemoryBroker(history=5))
    assert "history=5" in repr(InMemoryBroker(history=5))


def test_capabilities_follow_the_options() -> None:
    assert InMemoryBroker(lease=None).capabilities.lease is None
    assert not InMemoryBroker(lease=None).capabilities.extend_lease
    assert InMemoryBroker(lease=2.5).capabilities.lease == 2.5
    assert InMemoryBroker(history=0).capabilities.replay == "none"
    assert InMemoryBroker().capabilities.replay == "time"


async def test_every_optional_ability_is_there(bus: Connection) -> None:
    assert isinstance(bus, Replays) and isinstance(bus, NativeRequests) and isinstance(bus, ReportsHealth)
    async with bus.open(source()) as feed:
        assert isinstance(feed, ExtendsLease) and isinstance(feed, KnowsPeers)


# --- routing


async def test_what_is_published_arrives_unchanged(bus: Connection) -> None:
    async with bus.open(source()) as feed:
        await bus.send([Outgoing("a.b", b"\x00\xff", {"content-type": "x", "ü": "✓"}, "key")])
        (delivery,) = await waits(feed)
        assert (delivery.topic, delivery.body, delivery.headers, delivery.key) == (
            "a.b",
            b"\x00\xff",
            {"content-type": "x", "ü": "✓"},
            "key",
        )
        assert delivery.attempt == 1 and delivery.position == "1"


async def test_every_ungrouped_source_gets_every_message_and_a_group_shares_them(bus: Connection) -> None:
    async with feeds(bus, source(group=None), source(group=None), source(), source(), source(group="h")) as (
        one,
        two,
        member,
        other,
        alone,
    ):
        await publish(bus, *"abcd")
        assert await take(one) == await take(two) == await take(alone) == list("abcd")
        assert await take(member, 3) + await take(other) == list("abcd")


async def test_patterns_are_matched_and_groups_of_one_name_on_two_patterns_are_two(bus: Connection) -> None:
    async with feeds(bus, source("a.*"), source("a.#"), source("#", None)) as (word, words, everything):
        for topic in ("a", "a.b", "a.b.c", "_amb.secret"):
            await publish(bus, topic, topic=topic)
        assert await take(word) == ["a.b"]
        assert await take(words) == await take(everything) == ["a", "a.b", "a.b.c"]


async def test_what_a_handler_writes_into_headers_reaches_nobody_else(bus: Connection) -> None:
    sent = {"amb-id": "1"}
    async with feeds(bus, source(), source(group=None)) as (feed, other):
        await publish(bus, "x", headers=sent)
        (delivery,) = await waits(feed)
        delivery.headers["amb-id"] = "changed"
        await settle(feed, [delivery], "retry")
        for again in (*await waits(feed), *await waits(other)):
            assert again.headers == {"amb-id": "1"}
    assert sent == {"amb-id": "1"}


async def test_higher_priorities_leave_first(bus: Connection) -> None:
    async with bus.open(source()) as feed:
        for priority in (5, 3, 0, 4):
            await publish(bus, f"p{priority}", priority=priority)
        assert await take(feed) == ["p0", "p3", "p4", "p5"]


async def test_an_ungrouped_source_leaves_nothing_behind_and_a_group_keeps_collecting(bus: Connection) -> None:
    async with feeds(bus, source(), source(group=None)):
        pass
    await publish(bus, "while away")
    async with feeds(bus, source(), source(group=None)) as (grouped, ungrouped):
        assert await take(grouped) == ["while away"]
        assert await take(ungrouped) == []


async def test_a_new_group_begins_where_it_asks_to(bus: Connection) -> None:
    await publish(bus, "old", topic="a.x")
    await publish(bus, "older", topic="b")
    async with feeds(bus, source("a.*", "all", start="earliest"), source("a.*", "new")) as (everything, new):
        await publish(bus, "fresh", topic="a.y")
        assert await take(everything) == ["old", "fresh"]
        assert await take(new) == ["fresh"]


async def test_a_mandatory_message_needs_a_live_consumer(bus: Connection) -> None:
    with pytest.raises(NoResponders, match=r"'a\.b'"):
        await bus.send([message(mandatory=True)])
    async with bus.open(source()) as feed:
        await bus.send([message(body="heard", mandatory=True)])
        assert await take(feed) == ["heard"]
    with pytest.raises(NoResponders):  # the group's queue is there, but nobody reads it
        await bus.send([message(mandatory=True)])
    with pytest.raises(PartialFailure) as failure:
        await bus.send([message(body="fine"), message(mandatory=True), message(body="too")])
    assert list(failure.value.errors) == [1]
    async with bus.open(source()) as feed:
        assert await take(feed) == ["heard", "fine", "too"]


async def test_an_inbox_is_pushed_to_inside_send(bus: Connection) -> None:
    assert isinstance(bus, NativeRequests)
    address, got = INBOX_PREFIX + "1", list[Incoming]()
    async with bus.inbox(address, got.append):
        await bus.send([message(address, "reply", mandatory=True)])
        assert bodies(got) == ["reply"] and got[0].headers == {"amb-id": "reply"}
        with pytest.raises(ConfigurationError):
            async with bus.inbox(address, got.append):
                raise AssertionError("two readers")
        await bus.send([message(address, "second")])
    await bus.send([message(address, "too late")])
    assert bodies(got) == ["reply", "second"]


# --- receiving


async def test_receive_waits_returns_at_once_or_returns_nothing(bus: Connection) -> None:
    async with bus.open(source()) as feed, anyio.create_task_group() as group:
        assert await feed.receive(10, wait=False) == ()

        async def later() -> None:
            await anyio.sleep(0.02)
            await publish(bus, *"abc")

        group.start_soon(later)
        assert bodies(await waits(feed, 2)) == ["a", "b"]
        assert bodies(await waits(feed)) == ["c"]


async def test_waiting_members_are_served_in_turn_and_one_that_does_not_ask_gets_nothing(bus: Connection) -> None:
    got: list[tuple[int, str]] = []
    async with feeds(bus, *[source()] * 4) as members, anyio.create_task_group() as group:

        async def work(number: int) -> None:
            while True:
                deliveries = await members[number].receive(1)
                got.extend((number, body) for body in bodies(deliveries))
                await settle(members[number], deliveries)

        for number in range(3):
            group.start_soon(work, number)
            await anyio.wait_all_tasks_blocked()
        for name in "abcdef":
            await publish(bus, name)
            await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert got == list(zip([0, 1, 2, 0, 1, 2], "abcdef", strict=True))


async def test_a_member_that_never_suspends_leaves_the_others_their_share(bus: Connection) -> None:
    got = [0, 0]
    async with feeds(bus, *[source()] * 2) as members, anyio.create_task_group() as group:

        async def work(number: int) -> None:
            while sum(got) < 300:
                deliveries = await members[number].receive(10)
                got[number] += len(deliveries)
                await settle(members[number], deliveries)
            group.cancel_scope.cancel()

        group.start_soon(work, 0)
        group.start_soon(work, 1)
        await anyio.wait_all_tasks_blocked()
        await publish(bus, *["x"] * 300)
    assert sum(got) == 300 and min(got) >= 100


async def test_a_feed_left_while_receiving_ends_the_receive(bus: Connection) -> None:
    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        feed = await stack.enter_async_context(bus.open(source()))
        ended = list[str]()

        async def receive() -> None:
            try:
                await feed.receive(1)
            except ConnectionLost as error:
                ended.append(str(error))

        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await stack.aclose()
        await publish(bus, "kept")
        await anyio.wait_all_tasks_blocked()
        assert len(ended) == 1
        with pytest.raises(ConnectionLost):
            await feed.receive(1, wait=False)
    async with bus.open(source()) as again:
        assert await take(again) == ["kept"]


# --- delay


async def test_a_delayed_message_comes_when_it_is_due_and_holds_up_none(bus: Connection) -> None:
    async with stopwatch() as watch, feeds(bus, source(), source(group=None)) as (grouped, ungrouped):
        due, began = time.time() + 0.5, time.monotonic()
        await publish(bus, "late", not_before=due)
        await publish(bus, "now")
        assert await take(grouped) == await take(ungrouped) == ["now"]
        for feed in (grouped, ungrouped):
            assert bodies(await waits(feed)) == ["late"]
            assert time.time() - due > -0.01 and watch.elapsed(began) < 1.5
        await publish(bus, "past", not_before=time.time() - 1)
        assert await take(grouped) == ["past"]


async def test_a_member_that_waits_already_sees_an_earlier_delayed_message(bus: Connection) -> None:
    async with bus.open(source()) as feed, anyio.create_task_group() as group:
        await publish(bus, "in ten minutes", not_before=time.time() + 600)

        async def later() -> None:
            await anyio.wait_all_tasks_blocked()
            await publish(bus, "soon", not_before=time.time() + 0.05)

        group.start_soon(later)
        assert bodies(await waits(feed)) == ["soon"]


async def test_a_retry_comes_after_its_delay_with_the_next_attempt(bus: Connection) -> None:
    async with bus.open(source()) as feed:
        await publish(bus, "x")
        delivery = (await waits(feed))[0]
        for attempt in (2, 3):
            began = time.monotonic()
            await settle(feed, [delivery], "retry", 0.5)
            assert await take(feed) == []
            (delivery,) = await waits(feed)
            assert delivery.attempt == attempt and time.monotonic() - began > 0.49
        await settle(feed, [delivery], "retry")
        (delivery,) = await waits(feed)
        assert delivery.attempt == 4


# --- settling


async def test_settled_deliveries_never_come_again_and_settling_twice_is_no_error(bus: Connection) -> None:
    async with bus.open(source()) as feed:
        await publish(bus, *"ab")
        first, second = await waits(feed)
        await settle(feed, [first, first], "ack")
        await settle(feed, [second], "discard")
        await settle(feed, [first, second], "ack")
        assert isinstance(feed, ExtendsLease)
        await feed.extend([first.token])
    async with bus.open(source()) as feed:
        assert await take(feed) == []


@pytest.mark.parametrize("group", ["g", None])
async def test_what_was_released_comes_back_first_and_no_attempt_is_spent(bus: Connection, group: str | None) -> None:
    async with bus.open(source(group=group)) as feed:
        await publish(bus, *"abcd")
        first = await waits(feed, 3)
        await settle(feed, first[1:][::-1], "release")
        again = await waits(feed)
        assert bodies(again) == ["b", "c", "d"]
        assert [each.attempt for each in again] == [1, 1, 1]
        await settle(feed, first[1:], "release")  # a second time: these tokens are spent
        assert await take(feed) == []


async def test_leaving_gives_what_is_in_flight_to_the_others_first_as_an_attempt(bus: Connection) -> None:
    async with bus.open(source()) as other:
        async with bus.open(source()) as leaving:
            await publish(bus, *"abcd")
            held = await waits(leaving, 3)
            await settle(leaving, held[:1])
        again = await waits(other)
        assert [(each.body, each.attempt) for each in again] == [(b"b", 2), (b"c", 2), (b"d", 1)]
        with pytest.raises(PartialFailure) as failure:
            await settle(other, held)
        assert list(failure.value.errors) == [1, 2]
        assert all(isinstance(error, LeaseLost) for error in failure.value.errors.values())
        await settle(other, again)
        assert await take(other) == []


@pytest.mark.parametrize("token", [None, "stranger", 7, object()])
async def test_an_unknown_token_is_a_lost_lease(bus: Connection, token: object) -> None:
    async with feeds(bus, source(), source("c")) as (feed, other):
        await publish(bus, "mine")
        await publish(bus, "theirs", topic="c")
        mine, theirs = await waits(feed), await waits(other)
        with pytest.raises(PartialFailure) as failure:
            await feed.settle(
                [Settlement(token, "ack"), Settlement(theirs[0].token, "ack"), Settlement(mine[0].token, "ack")]
            )
        assert list(failure.value.errors) == [0, 1]
        await settle(other, theirs)


# --- leases


@pytest.fixture
async def short() -> AsyncIterator[Connection]:
    """A broker whose leases last 0.1 seconds."""
    async with InMemoryBroker(lease=0.1).connect() as connection:
        yield connection


@pytest.mark.parametrize("members", [1, 2])
async def test_an_unsettled_delivery_comes_again_when_its_lease_ends_and_not_before(
    short: Connection, members: int
) -> None:
    async with stopwatch() as watch, feeds(short, *[source()] * members) as group:
        await publish(short, "x")
        began = time.monotonic()
        (lost,) = await waits(group[0])
        (again,) = await waits(group[-1])
        assert time.monotonic() - began > 0.09 and watch.elapsed(began) < 1
        assert (again.body, again.attempt) == (b"x", 2)
        with pytest.raises(PartialFailure) as failure:
            await settle(group[0], [lost])
        assert isinstance(failure.value.errors[0], LeaseLost)
        assert isinstance(group[0], ExtendsLease)
        with pytest.raises(PartialFailure):
            await group[0].extend([lost.token])
        await settle(group[-1], [again])


async def test_a_member_that_waited_before_the_other_came_gets_what_that_one_loses(short: Connection) -> None:
    async with short.open(source()) as patient, anyio.create_task_group() as tasks:
        got = list[Incoming]()

        async def receive() -> None:
            got.extend(await waits(patient))

        tasks.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        async with short.open(source()) as careless:
            await anyio.wait_all_tasks_blocked()
            await publish(short, "x")
            stolen = await careless.receive(1, wait=False)
            assert bodies(stolen) == ["x"] and not got
            await eventually(lambda: got, "what the careless one loses")
            assert [(each.body, each.attempt) for each in got] == [(b"x", 2)]


async def test_an_extended_lease_keeps_the_delivery(short: Connection) -> None:
    async with feeds(short, *[source()] * 2) as (feed, other):
        assert isinstance(feed, ExtendsLease)
        await publish(short, *"ab")
        kept, lost = await waits(feed)
        for _ in range(6):
            await anyio.sleep(0.04)
            await feed.extend([kept.token])
        again = await waits(other)
        assert [(each.body, each.attempt) for each in again] == [(b"b", 2)]
        await settle(feed, [kept])
        with pytest.raises(PartialFailure):
            await settle(feed, [lost])


@pytest.mark.parametrize("still", [0.7, 1.8])
async def test_a_loop_that_stood_still_takes_nothing_from_who_is_there(still: float) -> None:
    """A handler that blocks, a debugger, a laptop that slept: everybody's clock is late, and renewing comes first."""
    called = list[object]()
    async with MessageBus(InMemoryBroker(lease=0.6)) as bus, MessageBus(bus.broker) as other:

        async def handler(message: Message) -> None:
            called.append(message.data)
            await anyio.sleep(0.01)  # the other member waits again, with a deadline
            if message.data == 0:
                time.sleep(still)
            await anyio.sleep(1.5)

        for member in (bus, other):
            await member.subscribe("a", handler, group="g", concurrency=5)
        await bus.publish_batch([Message(topic="a", data=number) for number in range(4)])
        await eventually(lambda: bus.stats.acked + other.stats.acked == 4, "all to be handled")
        assert sorted(map(str, called)) == list("0123")
        assert bus.stats.settle_errors == other.stats.settle_errors == 0


async def test_without_a_lease_and_without_a_group_nothing_is_taken_back(short: Connection) -> None:
    async with (
        short.open(source(group=None)) as ungrouped,
        InMemoryBroker(lease=None).connect() as endless,
        endless.open(source()) as grouped,
    ):
        await publish(short, "x")
        await publish(endless, "x")
        first, second = await waits(ungrouped), await waits(grouped)
        await anyio.sleep(0.2)
        assert await take(ungrouped) == await take(grouped) == []
        await settle(ungrouped, first)
        await settle(grouped, second)


# --- order per key


async def test_equal_keys_go_out_one_at_a_time_and_different_keys_at_once(bus: Connection) -> None:
    async with feeds(bus, *[source(ordered_by="key")] * 2) as (feed, other):
        for name in ("k1", "k2", "l1", "k3", "-1", "-2"):
            await publish(bus, name, key=None if name[0] == "-" else name[0])
        first = await waits(feed)
        assert bodies(first) == ["k1", "l1", "-1", "-2"]
        assert await take(other) == []
        await settle(feed, first[:1])
        second = await waits(other)
        assert bodies(second) == ["k2"]
        await settle(other, second)
        assert await take(feed) == ["k3"]


async def test_a_key_stays_with_its_message_through_retry_release_lease_and_leaving() -> None:
    async with InMemoryBroker(lease=0.1).connect() as bus, bus.open(source(ordered_by="key")) as feed:
        await publish(bus, *"abc", key="k")
        delivery = (await waits(feed))[0]
        for verdict, delay in (("retry", 0.0), ("retry", 0.03), ("release", 0.0)):
            await feed.settle([Settlement(delivery.token, verdict, delay, delivery.attempt)])  # type: ignore[arg-type]
            (delivery,) = await waits(feed)
            assert delivery.body == b"a"
        (delivery,) = await waits(feed)  # its lease ran out
        assert (delivery.body, delivery.attempt) == (b"a", 4)
        async with bus.open(source(ordered_by="key")) as leaving:
            await settle(feed, [delivery])
            assert await take(leaving) == ["b"]
        (delivery,) = await waits(feed)
        assert (delivery.body, delivery.attempt) == (b"b", 2)
        await settle(feed, [delivery])
        assert await take(feed) == ["c"]


async def test_priority_does_not_break_the_order_of_a_key(bus: Connection) -> None:
    async with bus.open(source(ordered_by="key")) as feed:
        await publish(bus, "low", key="k", priority=5)
        await publish(bus, "critical", key="k", priority=0)
        await publish(bus, "other", key="l", priority=3)
        first = await waits(feed)
        assert bodies(first) == ["other", "low"]
        await settle(feed, first)
        assert await take(feed) == ["critical"]


async def test_a_backlog_is_in_order_for_a_member_that_asks_for_it_later(bus: Connection) -> None:
    async with bus.open(source()):
        await publish(bus, *"abc", key="k")
    async with bus.open(source(ordered_by="key")) as feed:
        for name in "abc":
            delivery = await waits(feed)
            assert bodies(delivery) == [name]
            await settle(feed, delivery)


# --- looking back


async def replayed(
    bus: Connection, pattern: str, since: float | str | None = None, until: float | None = None
) -> list[Incoming]:
    assert isinstance(bus, Replays)
    return [each async for each in bus.replay(pattern, since, until)]


async def test_replay_tells_the_past_and_disturbs_no_group(bus: Connection) -> None:
    async with bus.open(source("#")) as feed:
        await publish(bus, "1", topic="a.x")
        await anyio.sleep(0.02)
        middle = time.time()
        await publish(bus, "2", topic="b")
        await publish(bus, "3", topic="a.y")
        assert len(await take(feed)) == 3
        past = await replayed(bus, "a.#")
        assert bodies(past) == ["1", "3"] and past[0].topic == "a.x"
        assert bodies(await replayed(bus, "#", past[0].position)) == ["2", "3"]
        assert bodies(await replayed(bus, "#", middle)) == ["2", "3"]
        assert bodies(await replayed(bus, "#", None, middle)) == ["1"]
        assert await take(feed) == []
    with pytest.raises(ConfigurationError, match="no position"):
        await replayed(bus, "#", "yesterday")


async def test_replay_ends_at_what_was_newest_when_it_began(bus: Connection) -> None:
    assert isinstance(bus, Replays)
    await publish(bus, "before")
    past = bus.replay("#", None, None)
    await publish(bus, "after")
    assert [each.body async for each in past] == [b"before"]


async def test_history_is_bounded_per_topic_over_all_and_in_bytes() -> None:
    async with InMemoryBroker(history=3).connect() as bus:
        await publish(bus, *"abcde")
        assert bodies(await replayed(bus, "#")) == ["c", "d", "e"]
        for number in range(6000):
            await publish(bus, str(number), topic=f"t.{number}")
        assert 30 <= len(await replayed(bus, "t.#")) <= 4200
        assert (await replayed(bus, "t.#"))[-1].body == b"5999"
    async with InMemoryBroker().connect() as bus:
        for _ in range(200):
            await bus.send([Outgoing("big", bytes(1_000_000), {})])
        assert 60 <= len(await replayed(bus, "#")) <= 85
    async with InMemoryBroker(history=0).connect() as bus:
        await publish(bus, "x")
        assert await replayed(bus, "#") == []


# --- one object, one broker


async def test_connections_of_one_object_share_and_equal_objects_do_not() -> None:
    broker, equal = InMemoryBroker(), InMemoryBroker()
    async with broker.connect() as one, broker.connect() as two, equal.connect() as stranger:
        async with one.open(source()) as feed, stranger.open(source()) as elsewhere:
            assert isinstance(feed, KnowsPeers)
            assert not feed.last_consumer()
            await publish(two, "x")
            assert await take(feed) == ["x"] and await take(elsewhere) == []
    async with broker.connect() as one, one.open(source()) as feed:
        assert await take(feed) == [] and await replayed(one, "#") == []


async def test_the_last_consumer_knows_that_it_is(bus: Connection) -> None:
    async with feeds(bus, source(), source(group=None)) as (feed, ungrouped):
        assert isinstance(feed, KnowsPeers) and isinstance(ungrouped, KnowsPeers)
        assert feed.last_consumer() and ungrouped.last_consumer()
        async with bus.open(source()):
            assert not feed.last_consumer()


async def test_a_closed_connection_says_so() -> None:
    async with InMemoryBroker().connect() as bus:
        left_late = AsyncExitStack()
        feed = await left_late.enter_async_context(bus.open(source()))
        assert isinstance(bus, ReportsHealth)
        assert (await bus.ping())["broker"] == "memory"
    for attempt in (
        lambda: bus.send([message()]),
        bus.ping,
        lambda: feed.receive(1),
        lambda: bus.open(source()).__aenter__(),
    ):
        with pytest.raises(ConnectionLost):
            await attempt()
    await left_late.aclose()


def test_one_object_serves_one_event_loop_and_survives_one_that_was_dropped() -> None:
    broker = InMemoryBroker()
    errors = list[Exception]()

    async def elsewhere() -> None:
        try:
            async with broker.connect():
                raise AssertionError("connected from two threads")
        except ConfigurationError as error:
            errors.append(error)

    async def here() -> None:
        async with broker.connect():
            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            thread.join()

    asyncio.run(here())
    assert "thread" in str(errors[0])

    async def left_open() -> Any:
        context = broker.connect()
        await publish(await context.__aenter__(), "lost with its loop")
        return context

    async def afterwards() -> list[Incoming]:
        async with broker.connect() as bus:
            return await replayed(bus, "#")

    forgotten = asyncio.run(left_open())
    assert asyncio.run(afterwards()) == []
    del forgotten


# --- a network's troubles, simulated


async def test_failures_by_chance_are_errors_and_repeat_with_the_seed() -> None:
    async def failed(seed: int) -> list[int]:
        async with InMemoryBroker(failure_rate=0.3, seed=seed).connect() as bus, bus.open(source()) as feed:
            with pytest.raises(PartialFailure) as failure:
                await publish(bus, *[str(number) for number in range(100)])
            assert all(isinstance(error, Unavailable) for error in failure.value.errors.values())
            assert await take(feed) == [str(number) for number in range(100) if number not in failure.value.errors]
            return list(failure.value.errors)

    assert await failed(1) == await failed(1) != await failed(2)
    assert 10 < len(await failed(1)) < 60


async def test_latency_is_waited_for() -> None:
    async with stopwatch() as watch, InMemoryBroker(latency_ms=50).connect() as bus, bus.open(source()) as feed:
        began = time.monotonic()
        with anyio.fail_after(5):
            await publish(bus, "x")
        assert time.monotonic() - began > 0.045 and watch.elapsed(began) < 1
        assert await take(feed) == ["x"]
