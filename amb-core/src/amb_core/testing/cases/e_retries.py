"""E: retries, dead letters, time to live, the breaker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from ... import CircuitBreaker, Message, RetryPolicy
from ...broker import Connection, Feed, Outgoing, Settlement
from ...errors import CircuitOpen, ConfigurationError, Unavailable, UnsupportedError
from .._case import case
from .._target import Target
from .._wait import eventually, stays
from ..tamper import TamperedBroker


def failing(*data: Any, times: int | None = None) -> Callable[[Message], None]:
    """A handler that fails on these data (on any if none is given), the first `times` attempts."""

    def fail(message: Message) -> None:
        if (not data or message.data in data) and (times is None or message.attempt <= times):
            raise RuntimeError("fails on purpose")

    return fail


@case("E1")
async def E1_retries_then_one_dead_letter(t: Target) -> None:
    """Three retries are four calls with the policy's delays, then exactly one dead letter, and none before."""
    policy = RetryPolicy(max_retries=3, initial_delay=0.2, exponential_base=2.0, jitter=0.1)
    bus, dead = t.bus(retry_policy=policy, dead_letter_queue=t.topic("dead")), t.recorder("the dead letters")
    seen = t.recorder("the handler", None, failing())
    await bus.subscribe(t.topic("dead"), dead)
    await bus.subscribe(t.topic("jobs"), seen, **t.group())
    id = await t.ledger.publish(bus, t.topic("jobs"), {"n": 1})
    await dead.reaches(1, t.patience)
    await seen.stays_at(4, t.watch)
    await dead.stays_at(1, t.watch)
    assert seen.attempts == [1, 2, 3, 4], f"attempts {seen.attempts}"
    assert dead.ids == [id] and dead.seen[0].time >= seen.seen[3].time, "the dead letter came before the last attempt"
    for number, wanted in enumerate((0.2, 0.4, 0.8)):
        gap = seen.seen[number + 1].time - seen.seen[number].time
        assert wanted * 0.95 <= gap <= wanted * 1.1 + 1.0, (
            f"retry {number + 1} came after {gap:.2f} s instead of {wanted} s"
        )
    assert bus.stats.retried == 3 and bus.stats.dead_lettered == 1, f"counted: {bus.stats}"


@case("E2")
async def E2_not_retryable(t: Target) -> None:
    """An exception that is not in the policy's list is a dead letter after the first failure."""

    def fail(message: Message) -> None:
        raise KeyError("not worth another try") if message.data == "fatal" else ConnectionError("worth another try")

    policy = RetryPolicy(max_retries=2, initial_delay=0.05, retryable_exceptions=(ConnectionError,))
    bus, dead, seen = (
        t.bus(dead_letter_queue=t.topic("dead")),
        t.recorder("the dead letters"),
        t.recorder("the handler", None, fail),
    )
    await bus.subscribe(t.topic("dead"), dead)
    await bus.subscribe(t.topic("jobs"), seen, retry_policy=policy, **t.group())
    await t.ledger.publish_many(bus, t.topic("jobs"), ["fatal", "transient"])
    await dead.reaches(2, t.patience)
    await seen.stays_at(4, t.watch)
    assert (seen.data.count("fatal"), seen.data.count("transient")) == (1, 3), f"calls: {seen.data}"


@case("E3")
async def E3_what_a_dead_letter_says(t: Target) -> None:
    """A dead letter keeps id, data, headers, key, and adds topic, reason, error, attempts, times, group, handler."""
    bus, dead = t.bus(dead_letter_queue=t.topic("dead")), t.recorder("the dead letters")
    seen = t.recorder("the handler", None, failing())
    began = time.time()
    await bus.subscribe(t.topic("dead"), dead)
    await bus.subscribe(t.topic("jobs", "#"), seen, retries=1, retry_delay=0.2, **t.group())
    fields: dict[str, Any] = {
        "headers": {"own": "häder"},
        "key": "k1",
        "metadata": {"a": [1]},
        "sender": "me",
        "correlation_id": "c1",
    }
    id = await t.ledger.publish(bus, t.topic("jobs", "x"), {"deep": [1, {"ü": None}]}, **fields)
    await dead.reaches(1, t.patience)
    letter = dead.seen[0].message
    assert (letter.id, letter.data, letter.headers) == (id, {"deep": [1, {"ü": None}]}, {"own": "häder"}), (
        f"it became {letter!r} {letter.headers}"
    )
    for name, value in fields.items():
        assert getattr(letter, name) == value, f"its {name} became {getattr(letter, name)!r}"
    info = letter.dead
    assert info is not None, "a dead letter does not know that it is one"
    assert info.topic == t.topic("jobs", "x"), f"its topic is {info.topic!r}"
    assert "RuntimeError" in info.error and "on purpose" in info.error, f"its error is {info.error!r}"
    assert info.reason and info.handler, f"its reason is {info.reason!r}, its handler {info.handler!r}"
    assert info.attempts == 2, f"its attempts are {info.attempts}"
    assert info.group == (t.group().get("group", "")), f"its group is {info.group!r}"
    assert began - 1 <= info.first_time <= info.last_time <= time.time() + 1, (
        f"its times are {info.first_time}, {info.last_time}"
    )
    position = seen.seen[0].message.position
    assert position is None or info.position, (
        f"the broker kept the message at {position!r}, and the dead letter does not say so"
    )


@case("E4", within=90)
async def E4_nothing_goes_without_its_dead_letter(t: Target) -> None:
    """While dead letters cannot be stored the original is not acknowledged; nothing is lost."""
    refused, refusals, stored, gone = 0, t.scaled(3, 1), list[str](), list[tuple[str, int]]()

    async def send(connection: Connection, batch: Sequence[Outgoing]) -> None:
        nonlocal refused
        if any(item.topic == t.topic("dead") for item in batch):
            if refused < refusals:
                refused += 1
                raise Unavailable("dead letters refused on purpose")
            stored.extend(item.headers["amb-id"] for item in batch)
        await connection.send(batch)

    async def settle(feed: Feed, outcomes: Sequence[Settlement]) -> None:
        gone.extend((outcome.verdict, len(stored)) for outcome in outcomes)
        await feed.settle(outcomes)

    broker = TamperedBroker(t.broker, send=send, settle=settle)
    bus, dead = t.bus(broker, dead_letter_queue=t.topic("dead"), publish_timeout=1.0), t.recorder("the dead letters")
    other = t.bus()
    await other.subscribe(t.topic("dead"), dead)
    seen = t.recorder("the handler", None, failing("bad"))
    await bus.subscribe(t.topic("jobs"), seen, **t.group())
    bad = await t.ledger.publish(other, t.topic("jobs"), "bad")
    good = await t.ledger.publish(other, t.topic("jobs"), "good")
    await dead.reaches(1, t.patience + 10)
    await eventually(lambda: good in seen.ids, "the next message is stuck behind it", t.patience)
    assert dead.ids[0] == bad, f"dead letters: {dead.ids}"
    assert refused == refusals, f"the dead-letter topic was tried {refused} times only"
    if t.capabilities.redelivery == "broker":
        early = [verdict for verdict, count in gone if verdict == "discard" and count == 0]
        assert not early, "the original was discarded before its dead letter was stored"


@case("E5")
async def E5_a_retry_concerns_one_group_and_one_message(t: Target) -> None:
    """A retry blocks no other message and reaches only the group that failed."""
    bus = t.bus()
    one = t.recorder("the failing group", "a", failing("bad", times=1))
    two = t.recorder("the other group", "b")
    alone = t.recorder("ungrouped")
    # Long enough for a busy machine to publish and handle twenty others meanwhile.
    await bus.subscribe(t.topic("jobs"), one, retries=2, retry_delay=6.0, concurrency=1, **t.group("a"))
    await bus.subscribe(t.topic("jobs"), two, **t.group("b"))
    await bus.subscribe(t.topic("jobs"), alone)
    await t.ledger.publish_many(bus, t.topic("jobs"), ["bad", *range(20)])
    await eventually(
        lambda: len(set(one.data)) == 21, lambda: f"behind a retry came {len(set(one.data)) - 1} of 20", t.patience
    )
    assert one.data.count("bad") == 1 or one.seen[-1].data == "bad", "the others waited for the retry"
    await one.reaches(22, t.patience)
    await one.stays_at(22, t.watch)
    t.ledger.check(two)
    t.ledger.check(alone)


@case("E6", needs=("durable", "delivery_count"))
async def E6_retries_go_on_after_a_restart(t: Target) -> None:
    """The number of retries made survives a restart of the consumer: four calls in all, then the dead letter."""
    options: dict[str, Any] = {"group": "workers", "retries": 3, "retry_delay": 0.5}
    seen, dead, letters = t.recorder("the handler", "workers", failing()), t.recorder("the dead letters"), t.bus()
    await letters.subscribe(t.topic("dead"), dead)
    bus = t.bus(dead_letter_queue=t.topic("dead"))
    await bus.subscribe(t.topic("jobs"), seen, **options)
    await t.ledger.publish(letters, t.topic("jobs"), 1)
    for calls in (1, 2, 3):
        await seen.reaches(calls, t.patience)
        await bus.disconnect()
        bus = t.bus(dead_letter_queue=t.topic("dead"))
        await bus.subscribe(t.topic("jobs"), seen, **options)
    await dead.reaches(1, t.patience)
    await seen.stays_at(4, t.watch)
    assert seen.attempts == [1, 2, 3, 4], f"attempts {seen.attempts}"


@case("E7", needs=("durable_groups",))
async def E7_redrive(t: Target) -> None:
    """A dead letter that is put back returns to its topic once, with its attempts starting anew, for its group only."""
    broken = True

    def fail(message: Message) -> None:
        if broken:
            raise RuntimeError("fails on purpose")

    bus = t.bus(dead_letter_queue=t.topic("dead"))
    seen, other = t.recorder("the handler", "workers", fail), t.recorder("another group", "b")
    await bus.subscribe(t.topic("jobs"), seen, group="workers", retries=1, retry_delay=0.05)
    await bus.subscribe(t.topic("jobs"), other, group="b")
    id = await t.ledger.publish(bus, t.topic("jobs"), {"n": 1}, headers={"h": "v"})
    await eventually(lambda: bus.stats.dead_lettered == 1, "no dead letter was counted", t.patience)
    letters = await bus.dead_letters(t.topic("dead"))
    assert [letter.id for letter in letters] == [id], f"dead_letters() lists {letters}"
    assert [letter.id for letter in await bus.dead_letters(t.topic("dead"))] == [id], (
        "listing a dead letter takes it away"
    )
    broken = False
    count = await bus.retry_dead_letters([id], t.topic("dead"))
    assert count == 1, f"retry_dead_letters() put back {count}"
    await seen.reaches(3, t.patience)
    await seen.stays_at(3, t.watch)
    last = seen.seen[-1]
    assert (last.id, last.data, last.headers, last.attempt) == (id, {"n": 1}, {"h": "v"}, 1), f"it came back as {last}"
    assert len(other.seen) == 1, f"a group that had not failed got it {len(other.seen)} times"
    assert await bus.dead_letters(t.topic("dead")) == [], "it is still a dead letter"


@case("E8")
async def E8_no_dead_letters_of_dead_letters(t: Target) -> None:
    """A failing consumer of the dead letters makes no further dead letters."""
    bus = t.bus(dead_letter_queue=t.topic("dead"))
    reader, seen = t.recorder("the failing reader", None, failing()), t.recorder("the handler", None, failing())
    watcher = t.recorder("a healthy reader")
    await bus.subscribe(t.topic("dead"), reader, retries=1, retry_delay=0.05, **t.group("readers"))
    await bus.subscribe(t.topic("dead"), watcher)
    await bus.subscribe(t.topic("jobs"), seen, retries=0, **t.group())
    await t.ledger.publish(bus, t.topic("jobs"), 1)
    await reader.reaches(2, t.patience)
    await watcher.stays_at(1, 2 * t.watch)
    # What cannot be kept elsewhere is offered again, but not soon.
    later = [one.time - reader.seen[1].time for one in reader.seen[2:]]
    assert all(gap >= t.watch for gap in later), f"the failing reader was called again after {later} s"
    assert bus.stats.dead_lettered == 1, f"{bus.stats.dead_lettered} dead letters counted instead of 1"


@case("E9")
async def E9_the_policy_decides_how_often(t: Target) -> None:
    """Thirty retries are thirty retries, or refused at the start: a broker's own lower limit never wins silently."""
    bus, dead = t.bus(dead_letter_queue=t.topic("dead")), t.recorder("the dead letters")
    seen = t.recorder("the handler", None, failing())
    await bus.subscribe(t.topic("dead"), dead)
    policy = RetryPolicy(max_retries=30, initial_delay=0.01, exponential_base=1.0, jitter=0.0)
    try:
        await bus.subscribe(t.topic("jobs"), seen, retry_policy=policy, **t.group())
    except (ConfigurationError, UnsupportedError):
        return
    await t.ledger.publish(bus, t.topic("jobs"), 1)
    await dead.reaches(1, t.patience + 10)
    await seen.stays_at(31, t.watch)
    assert seen.attempts == list(range(1, 32)), f"{len(seen.seen)} attempts instead of 31: {seen.attempts}"


@case("E10")
async def E10_time_to_live(t: Target) -> None:
    """With 1 s to live: delivered at 0.5 s; never at 1.5 s, neither from a backlog nor after a retry; counted."""
    bus, seen = t.bus(), t.recorder("the handler")
    subscription = await bus.subscribe(t.topic("jobs"), seen, **t.group())
    subscription.pause()
    early = await t.ledger.publish(bus, t.topic("jobs"), "early", ttl=30.0)
    await anyio.sleep(0.5)
    subscription.resume()
    await seen.reaches(1, t.patience)
    subscription.pause()
    await t.ledger.publish(bus, t.topic("jobs"), "too late", ttl=1.0)
    last = await t.ledger.publish(bus, t.topic("jobs"), "no limit")
    await anyio.sleep(1.5)
    subscription.resume()
    await seen.reaches(2, t.patience)
    await seen.stays_at(2, t.watch)
    assert seen.ids == [early, last], f"delivered: {seen.data}"
    if t.capabilities.ttl == "envelope":
        await eventually(lambda: bus.stats.expired >= 1, "an expired message was not counted", 5)
    retried = t.recorder("the failing handler", None, failing())
    # Long enough for a busy machine to deliver it once: a topic that is new to broker and client may take a second.
    await bus.subscribe(t.topic("retry"), retried, retries=3, retry_delay=5.0, **t.group())
    await t.ledger.publish(bus, t.topic("retry"), 1, ttl=4.0)
    await retried.reaches(1, t.patience)
    await retried.stays_at(1, max(t.watch, 6.5))


@case("E11")
async def E11_breaker(t: Target) -> None:
    """The breaker opens at its threshold; while open nothing is called and no attempt spent; half open lets exactly n
    through; it closes; its events fire; topics are independent."""
    broken, probes, events = True, anyio.Event(), list[tuple[str, str]]()

    async def work(message: Message) -> None:
        if broken:
            raise RuntimeError("fails on purpose")
        await probes.wait()

    # Long enough for a busy machine to do, while it is open, all that is done below while it is open.
    breaker = CircuitBreaker(failure_threshold=3, recovery_timeout=5.0, half_open_requests=2)
    bus = t.bus(circuit_breaker=breaker)
    for name in ("opened", "half_open", "closed"):
        bus.on(f"circuit_breaker.{name}")(lambda topic, name=name: events.append((name, topic)))
    seen, other = t.recorder("the handler", None, work), t.recorder("another topic")
    await bus.subscribe(t.topic("jobs"), seen, retries=20, retry_delay=0.05, concurrency=4, **t.group())
    await bus.subscribe(t.topic("other"), other, **t.group())
    publisher = t.bus()  # has no breaker that a retry in between could open
    await t.ledger.publish_many(publisher, t.topic("jobs"), range(3))
    await eventually(lambda: ("opened", t.topic("jobs")) in events, lambda: f"the breaker did not open: {events}", 5)
    opened = len(seen.seen)
    await t.ledger.publish_many(publisher, t.topic("jobs"), range(100, 110))
    await t.ledger.publish(bus, t.topic("other"), 1)
    await _fails_fast(bus, t.topic("jobs"))
    await other.reaches(1, t.patience)
    broken = False
    await stays(
        lambda: len(seen.seen) == opened or ("half_open", t.topic("jobs")) in events, "called while it was open", 0.5
    )
    await seen.reaches(opened + 2, t.patience)
    await seen.stays_at(opened + 2, 0.5)
    probes.set()
    await eventually(
        lambda: set(range(100, 110)) <= set(seen.data), lambda: f"after it closed came {seen.data[opened:]}", t.patience
    )
    assert [name for name, topic in events if topic == t.topic("jobs")] == ["opened", "half_open", "closed"], (
        f"events: {events}"
    )
    fresh = [one.attempt for one in seen.seen if one.data is not None and one.data >= 100]
    assert set(fresh) == {1}, f"messages that waited while it was open were attempts {fresh}"
    assert not [event for event in events if event[1] == t.topic("other")], f"another topic's breaker moved: {events}"


async def _fails_fast(bus: Any, topic: str) -> None:
    try:
        await bus.publish(topic, "no")
    except CircuitOpen:
        return
    raise AssertionError("publishing through an open breaker did not raise CircuitOpen")
