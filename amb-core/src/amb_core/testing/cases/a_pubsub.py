"""A: publish and subscribe."""

from __future__ import annotations

import time
from typing import Any

import anyio

from ... import Message, MessageFilter, MessagePriority
from ...broker import Connection
from ...errors import PartialFailure, Unavailable
from .._case import case
from .._target import Target
from .._wait import eventually
from ..tamper import TamperedBroker


@case("A1")
async def A1_a_hundred_messages_arrive_once_and_unchanged(t: Target) -> None:
    """100 distinct messages are each received exactly once, data and headers equal."""
    bus, seen = t.bus(), t.recorder()
    await bus.subscribe(t.topic("orders"), seen)
    sent = {}
    for number in range(100):
        data = {"number": number, "text": "ü✓" * number, "list": [None, True, 1.5, number]}
        headers = {"x-number": str(number), "x-empty": "", "X-Case": "Kept"}
        sent[await t.ledger.publish(bus, t.topic("orders"), data, headers=headers)] = (data, headers)
    await seen.reaches(100, t.patience)
    await seen.stays_at(100, t.watch)
    t.ledger.check(seen)
    for one in seen.seen:
        assert (one.data, one.headers) == sent[one.id], f"{one.id} was changed: {one.data!r} {one.headers!r}"


@case("A2")
async def A2_subscribe_returns_when_live(t: Target) -> None:
    """What is published right after subscribe() returned is received, 200 of 200 times."""
    bus = t.bus()
    for number in range(t.scaled(200, 50)):
        seen = t.recorder()
        subscription = await bus.subscribe(t.topic("round", str(number % 20)), seen)
        await t.ledger.publish(bus, t.topic("round", str(number % 20)), number)
        await seen.reaches(1)
        assert seen.data == [number], f"round {number} got {seen.data}"
        await bus.unsubscribe(subscription)


@case("A3")
async def A3_topics_never_mix(t: Target) -> None:
    """20 topics with 100 messages each at once: each handler gets its own and all of them."""
    bus = t.bus()
    recorders = {name: t.recorder(name) for name in (f"t{number}" for number in range(20))}
    for name, seen in recorders.items():
        await bus.subscribe(t.topic(name), seen)
    async with anyio.create_task_group() as group:
        for name in recorders:
            group.start_soon(t.ledger.publish_many, bus, t.topic(name), [[name, n] for n in range(100)])
    await t.ledger.drained(*recorders.values(), within=t.patience)
    for name, seen in recorders.items():
        strangers = [data for data in seen.data if data[0] != name]
        assert not strangers, f"{name} got {strangers[:3]} of another topic"
        assert sorted(data[1] for data in seen.data) == list(range(100)), f"{name} got {len(seen.data)} of 100"


@case("A4")
async def A4_two_handlers_each_get_everything(t: Target) -> None:
    """Two handlers on one topic each get every message; one that fails does not affect the other."""

    def fail(message: Message) -> None:
        raise RuntimeError("fails on purpose")

    bus, good, bad = t.bus(), t.recorder("the good one"), t.recorder("the bad one", then=fail)
    await bus.subscribe(t.topic("shared"), bad)
    await bus.subscribe(t.topic("shared"), good)
    await t.ledger.publish_many(bus, t.topic("shared"), range(30))
    await good.reaches(30)
    await bad.reaches(30)
    await good.stays_at(30, t.watch)
    t.ledger.check(good)
    t.ledger.check(bad)


@case("A5")
async def A5_every_ungrouped_process_gets_everything(t: Target) -> None:
    """Ungrouped subscribers in two processes each get all."""
    bus, here = t.bus(), t.recorder("this process")
    await bus.subscribe(t.topic("news"), here)
    if t.capabilities.single_process:
        there = t.recorder("another bus")
        await t.bus().subscribe(t.topic("news"), there)
        await t.ledger.publish_many(bus, t.topic("news"), range(20))
        await there.reaches(20)
        t.ledger.check(there)
    else:
        child = await t.child(t.topic("news"))
        await t.ledger.publish_many(bus, t.topic("news"), range(20))
        await child.event("got", 20)
        assert sorted(child.data) == list(range(20)), f"the other process got {sorted(child.data)}"
    await here.reaches(20)
    t.ledger.check(here)


@case("A6")
async def A6_unsubscribed_means_never_again(t: Target) -> None:
    """After unsubscribe() the handler is never called again, others are, and subscribing again works."""
    bus, leaving, staying = t.bus(), t.recorder("the leaver"), t.recorder("the stayer")
    subscription = await bus.subscribe(t.topic("a"), leaving)
    await bus.subscribe(t.topic("a"), staying)
    await t.ledger.publish_many(bus, t.topic("a"), range(10))
    await leaving.reaches(10)
    await bus.unsubscribe(subscription)
    await t.ledger.publish_many(bus, t.topic("a"), range(10, 20))
    await staying.reaches(20)
    await leaving.stays_at(10, t.watch)
    await bus.subscribe(t.topic("a"), leaving)
    last = await t.ledger.publish(bus, t.topic("a"), 20)
    await leaving.reaches(11)
    assert leaving.ids[10:] == [last], "what was published while it was away came after all"
    await staying.reaches(21)
    t.ledger.check(staying)


@case("A7")
async def A7_nothing_from_while_it_was_away(t: Target) -> None:
    """An ungrouped subscriber does not get messages from before it subscribed."""
    bus, seen = t.bus(), t.recorder()
    await t.ledger.publish_many(bus, t.topic("past"), range(10))
    await bus.subscribe(t.topic("past"), seen)
    now = await t.ledger.publish(bus, t.topic("past"), "now")
    await seen.reaches(1)
    await seen.stays_at(1, t.watch)
    assert seen.ids == [now], f"got {seen.data} from the past"


@case("A8")
async def A8_first_message_of_a_new_topic(t: Target) -> None:
    """A subscriber made before its topic exists gets the topic's first message."""
    consumer, publisher, seen = t.bus(), t.bus(), t.recorder()
    await consumer.subscribe(t.topic("never", "seen", "before"), seen)
    await anyio.sleep(t.capabilities.new_topic_lag)
    await t.ledger.publish(publisher, t.topic("never", "seen", "before"), 1)
    await seen.reaches(1, t.patience)
    t.ledger.check(seen)


@case("A9")
async def A9_publishing_to_nobody(t: Target) -> None:
    """Publishing without a subscriber returns quickly and without an error."""
    bus = t.bus()
    await bus.connect()
    began = time.monotonic()
    for number in range(10):
        await t.ledger.publish(bus, t.topic("nobody"), number)
    took = time.monotonic() - began
    assert took < 5, f"ten publishes to nobody took {took:.1f} s"


@case("A10", needs="confirm", fixtures="control")
async def A10_confirmed_means_the_broker_said_so(t: Target) -> None:
    """A confirmed publish does not return while the broker is frozen, and returns after it thaws."""
    bus = t.bus()
    await bus.publish(t.topic("warm"), 0, wait_for_confirmation=True)
    done, early = anyio.Event(), True

    async def publish() -> None:
        await bus.publish(t.topic("frozen"), 1, wait_for_confirmation=True)
        done.set()

    t.control.freeze()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(publish)
            await anyio.sleep(1.0)
            early = done.is_set()
            t.control.thaw()
            with anyio.fail_after(10):
                await done.wait()
    finally:
        t.control.thaw()
    assert not early, "a confirmed publish returned while the broker was frozen"


@case("A11", needs=("durable", "durable_groups"), within=90)
async def A11_unconfirmed_publishes_survive_closing(t: Target) -> None:
    """10,000 unconfirmed publishes from 20 tasks, then disconnect(): none is lost."""
    total = t.scaled(10_000, 2_000)
    first, seen = t.bus(), t.recorder()
    await first.unsubscribe(await first.subscribe(t.topic("many"), seen, group="workers"))
    publisher = t.bus()

    async def publish(task: int) -> None:
        for number in range(task, total, 20):
            await publisher.publish(t.topic("many"), number)

    async with anyio.create_task_group() as group:
        for task in range(20):
            group.start_soon(publish, task)
    await publisher.disconnect()
    await first.subscribe(t.topic("many"), seen, group="workers")
    await seen.reaches(total, 60)
    assert sorted(seen.data) == list(range(total)), "some are lost, others came twice"


@case("A12")
async def A12_fields_survive(t: Target) -> None:
    """Id, topic, timestamp, sender, correlation id, reply topic, priority, ttl, trace id, key and metadata arrive."""
    bus, seen = t.bus(), t.recorder()
    await bus.subscribe(t.topic("#"), seen)
    before = time.time()
    message = Message(
        t.topic("fields", "all"),
        {"a": 1},
        id=f"{t.namespace}-fields",
        headers={"own": "header"},
        metadata={"deep": [1, {"x": None}]},
        priority=MessagePriority.HIGH,
        sender="agent-7",
        correlation_id="corr-1",
        reply_to="some.answers",
        ttl=600.0,
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        key="key-1",
    )
    assert await bus.publish(message) == message.id
    await seen.reaches(1, t.patience)
    got = seen.seen[0].message
    for name in (
        "id",
        "topic",
        "headers",
        "metadata",
        "priority",
        "sender",
        "correlation_id",
        "reply_to",
        "ttl",
        "trace_id",
        "key",
    ):
        assert getattr(got, name) == getattr(message, name), f"{name} arrived as {getattr(got, name)!r}"
    assert before - 1 <= got.timestamp <= time.time() + 1, f"the timestamp is {got.timestamp}, published at {before}"
    assert got.attempt == 1, f"the first attempt is number {got.attempt}"


@case("A13")
async def A13_handlers_may_use_the_bus(t: Target) -> None:
    """Sync and async handlers; publish, subscribe and unsubscribe inside a handler at concurrency 1 do not deadlock."""
    bus, inner, answers, sync_seen = t.bus(), t.recorder("the inner handler"), t.recorder("the answers"), list[Any]()

    async def busy(message: Message) -> None:
        topic = t.topic("inner", str(message.data))
        subscription = await bus.subscribe(topic, inner)
        await bus.publish(topic, message.data)
        await eventually(lambda: message.data in inner.data, "the inner handler was not called")
        await bus.unsubscribe(subscription)
        await bus.publish(t.topic("answers"), message.data)

    def sync(message: Message) -> None:
        sync_seen.append(message.data)

    await bus.subscribe(t.topic("answers"), answers)
    await bus.subscribe(t.topic("outer"), busy, concurrency=1)
    await bus.subscribe(t.topic("outer"), sync, concurrency=1)
    for number in range(5):
        await bus.publish(t.topic("outer"), number)
    await answers.reaches(5, t.patience)
    assert sorted(answers.data) == list(range(5)), f"answers: {answers.data}"
    await eventually(lambda: sorted(sync_seen) == list(range(5)), lambda: f"the sync handler got {sync_seen}")


@case("A14")
async def A14_a_batch_names_what_failed(t: Target) -> None:
    """A batch publish that fails in part names the failed messages; the others arrive."""

    async def send(connection: Connection, batch: Any) -> None:
        bad = {index: item for index, item in enumerate(batch) if item.headers.get("x-fail")}
        await connection.send([item for index, item in enumerate(batch) if index not in bad])
        if bad:
            raise PartialFailure({index: Unavailable("refused on purpose") for index in bad})

    # What is Unavailable is offered again until the publish timeout.
    bus, seen = t.bus(TamperedBroker(t.broker, send=send), publish_timeout=2.0), t.recorder()
    await bus.subscribe(t.topic("batch"), seen)
    messages = [
        Message(
            t.topic("batch"), number, id=f"{t.namespace}-m{number}", headers={"x-fail": "1"} if number in (3, 7) else {}
        )
        for number in range(10)
    ]
    try:
        await bus.publish_batch(messages)
    except PartialFailure as failure:
        assert set(failure.errors) == {3, 7}, f"the failed indexes are {sorted(failure.errors)} instead of 3 and 7"
        text = " ".join([str(failure), *map(str, failure.errors.values())])
        assert messages[3].id in text and messages[7].id in text, f"the failed ids are not in: {text}"
    else:
        raise AssertionError("two of ten messages failed and publish_batch() said nothing")
    await seen.reaches(8)
    await seen.stays_at(8, t.watch)
    assert sorted(seen.data) == [n for n in range(10) if n not in (3, 7)], f"got {sorted(seen.data)}"
    plain = t.bus()
    ids = await plain.publish_batch([Message(t.topic("batch"), number) for number in range(10, 20)])
    assert len(set(ids)) == 10, f"publish_batch() returned {ids}"
    await seen.reaches(18)


@case("A15")
async def A15_filter_misses_are_no_failures(t: Target) -> None:
    """Filters on headers, data and by a callable: misses are acknowledged, not failures, never dead letters."""
    bus, dead = t.bus(dead_letter_queue=t.topic("dead")), t.recorder("the dead letters")
    by_header, by_data, by_call = t.recorder("by header"), t.recorder("by data"), t.recorder("by callable")
    await bus.subscribe(t.topic("dead"), dead)
    await bus.subscribe(t.topic("f"), by_header, filter=MessageFilter(headers={"kind": "x"}), **t.group("h"))
    await bus.subscribe(t.topic("f"), by_data, filter=MessageFilter(data_match={"n": 3}))
    await bus.subscribe(t.topic("f"), by_call, filter=lambda message: message.data["n"] % 2 == 0)
    for number in range(10):
        await t.ledger.publish(bus, t.topic("f"), {"n": number}, headers={"kind": "x" if number < 2 else "y"})
    await by_header.reaches(2)
    await by_data.reaches(1)
    await by_call.reaches(5)
    await by_call.stays_at(5, t.watch)
    assert sorted(data["n"] for data in by_header.data) == [0, 1], f"by header: {by_header.data}"
    assert [data["n"] for data in by_data.data] == [3], f"by data: {by_data.data}"
    assert sorted(data["n"] for data in by_call.data) == [0, 2, 4, 6, 8], f"by callable: {by_call.data}"
    assert not dead.seen, f"a miss became a dead letter: {dead.data}"
    stats = bus.stats
    await eventually(lambda: stats.filtered >= 22, lambda: f"{stats.filtered} of 22 misses counted", t.patience)
    assert (stats.failed, stats.filtered) == (0, 22), (
        f"{stats.failed} failures and {stats.filtered} misses counted instead of 0 and 22"
    )
    await _group_is_empty(t, "f", "h")


async def _group_is_empty(t: Target, word: str, group: str) -> None:
    if not t.capabilities.groups:
        return
    later = t.recorder("a later member")
    await t.bus().subscribe(t.topic(word), later, group=group)
    await later.stays_at(0, t.watch)
