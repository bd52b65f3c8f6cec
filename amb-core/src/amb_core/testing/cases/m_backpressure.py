"""M: backpressure and priority."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import anyio
import anyio.lowlevel

from ... import Message, MessagePriority
from ...broker import Feed, Incoming, Settlement
from ...errors import BackpressureError, BrokerUnavailable
from .._case import case
from .._leaks import resident
from .._target import Target
from .._wait import eventually
from ..tamper import TamperedBroker


@case("M1", exclusive=True, within=180)
async def M1_in_flight_is_bounded(t: Target) -> None:
    """With a backlog of 100,000 never more than the limit is unsettled, and memory is bounded."""
    backlog, unsettled, highest, grown = t.scaled(100_000, 5_000), 0, 0, 0

    async def receive(feed: Feed, limit: int, wait: bool) -> Sequence[Incoming]:
        nonlocal unsettled, highest
        got = await feed.receive(limit, wait)
        unsettled += len(got)
        highest = max(highest, unsettled)
        return got

    async def settle(feed: Feed, outcomes: Sequence[Settlement]) -> None:
        nonlocal unsettled
        await feed.settle(outcomes)
        unsettled -= len(outcomes)

    async def flood() -> None:
        for _ in range(backlog // 500):
            await publisher.publish_batch([Message(t.topic("jobs"), {"text": "x" * 100}) for _ in range(500)])

    async def work(message: Message) -> None:
        await anyio.lowlevel.checkpoint()

    bus, publisher, seen = (
        t.bus(TamperedBroker(t.broker, receive=receive, settle=settle)),
        t.bus(),
        t.recorder("the handler", None, work),
    )
    subscription = await bus.subscribe(t.topic("jobs"), seen, concurrency=7, **t.group())
    subscription.pause()
    async with anyio.create_task_group() as group:
        group.start_soon(flood)
        # A broker that bounds its own queue makes the flood wait; one that stores takes all of it.
        with anyio.move_on_after(60 if t.capabilities.durable else 2):
            await eventually(lambda: publisher.stats.published >= backlog, "", 120)
        memory = resident()
        subscription.resume()
        await seen.reaches(2000, t.patience)
        grown = resident() - memory
        group.cancel_scope.cancel()
    await bus.unsubscribe(subscription)
    assert highest <= 7, f"{highest} deliveries were unsettled at once, 7 allowed"
    assert grown < 64 << 20, f"consuming grew memory by {grown >> 20} MiB"
    if t.rig.destroy is not None:
        await t.rig.destroy(t.topic("jobs"))


@case("M2", fixtures="capped")
async def M2_a_full_queue_is_no_silent_drop(t: Target) -> None:
    """When what the broker keeps is full a publisher waits or is told so; what was accepted arrives."""
    assert t.rig.capped is not None
    broker = t.rig.capped(50)
    bus, publisher, seen = t.bus(broker), t.bus(broker, publish_timeout=1.0), t.recorder("the consumer")
    subscription = await bus.subscribe(t.topic("jobs"), seen, **t.group())
    subscription.pause()
    told = 0
    for number in range(200):
        began = time.monotonic()
        try:
            await t.ledger.publish(publisher, t.topic("jobs"), number)
        except (BackpressureError, BrokerUnavailable) as error:
            assert str(error), "the refusal says nothing"
            told += 1
        assert time.monotonic() - began < 3.0, "a publish timeout of 1 s was not kept"
        if told >= 3:
            break
    assert told or not t.capabilities.single_process, "200 messages went into 50 places, and the publisher felt nothing"
    subscription.resume()
    await t.ledger.drained(seen, within=t.patience)
    await anyio.sleep(t.watch)
    t.ledger.check(seen)


@case("M3")
async def M3_a_long_pause(t: Target) -> None:
    """A subscription paused longer than the lease: its messages wait, none is lost, none is tried twice."""
    bus, seen = t.bus(), t.recorder("the handler")
    subscription = await bus.subscribe(t.topic("jobs"), seen, **t.group())
    await t.ledger.publish(bus, t.topic("jobs"), "before")
    await seen.reaches(1, t.patience)
    subscription.pause()
    await t.ledger.publish_many(bus, t.topic("jobs"), range(30))
    await seen.stays_at(1, max(1.0, 2.5 * t.lease))
    health = next(each for each in (await bus.health()).subscriptions if each.id == subscription)
    assert health.paused, "health() does not say that it is paused"
    subscription.resume()
    await seen.reaches(31, t.patience)
    await seen.stays_at(31, t.watch)
    t.ledger.check(seen)
    assert set(seen.attempts) == {1}, f"attempts {sorted(set(seen.attempts))}"


@case("M4")
async def M4_a_slow_topic_stops_nobody(t: Target) -> None:
    """A topic whose handler is stuck, with a backlog, does not stop another topic of the same bus."""
    free = anyio.Event()

    async def stuck(message: Message) -> None:
        await free.wait()

    bus, slow, fast = t.bus(), t.recorder("the stuck one", None, stuck), t.recorder("the fast one")
    await bus.subscribe(t.topic("slow"), slow, concurrency=1, **t.group())
    await bus.subscribe(t.topic("fast"), fast, **t.group())
    ids = []
    for number in range(100):
        await t.ledger.publish(bus, t.topic("slow"), number)
        ids.append(await t.ledger.publish(bus, t.topic("fast"), number))
    await t.ledger.drained(fast, ids=ids, within=t.patience)
    await slow.reaches(1, t.patience)  # perhaps its worker had no turn yet
    assert len(slow.seen) == 1, f"the stuck handler was called {len(slow.seen)} times"
    free.set()
    await slow.reaches(100, t.patience)


@case("M5", needs="priority")
async def M5_critical_overtakes(t: Target) -> None:
    """With 1,000 BACKGROUND messages queued a CRITICAL one starts after at most what was in flight and one more."""

    async def work(message: Message) -> None:
        await anyio.sleep(0.002)

    bus, publisher, seen = t.bus(), t.bus(), t.recorder("the handler", None, work)
    subscription = await bus.subscribe(t.topic("jobs"), seen, concurrency=2, **t.group())
    subscription.pause()
    await publisher.publish_batch(
        [Message(t.topic("jobs"), number, priority=MessagePriority.BACKGROUND) for number in range(1000)]
    )
    subscription.resume()
    await seen.reaches(20, t.patience)
    await publisher.publish(
        t.topic("jobs"), "critical", priority="critical", wait_for_confirmation=t.capabilities.confirm != "none"
    )
    started = len(seen.seen)
    await eventually(lambda: "critical" in seen.data, "the critical message never started", t.patience)
    place = seen.data.index("critical")
    assert place <= started + 2 + 1, (
        f"{place - started} handlers started between the publish and the critical message; 3 allowed"
    )
    await bus.unsubscribe(subscription)


@case("M6", needs="priority")
async def M6_the_lowest_lane_progresses(t: Target) -> None:
    """Under a constant load of HIGH messages BACKGROUND ones still get their turn."""
    bus, publisher, seen = t.bus(), t.bus(), t.recorder("the handler")
    subscription = await bus.subscribe(t.topic("jobs"), seen, concurrency=1, **t.group())
    subscription.pause()
    await publisher.publish_batch([Message(t.topic("jobs"), "low", priority="background") for _ in range(5)])
    await publisher.publish_batch([Message(t.topic("jobs"), "high", priority="high") for _ in range(600)])
    subscription.resume()
    await seen.reaches(605, t.patience)
    first = seen.data.index("low")
    assert first <= 150, f"the first BACKGROUND message came after {first} HIGH ones"
    # One may have been on its way when the subscription was paused.
    assert "high" in seen.data[:2], "BACKGROUND messages overtook HIGH ones"


@case("M7", fixtures="control")
async def M7_a_broker_that_blocks(t: Target) -> None:
    """A broker that takes nothing makes a publish wait, then fail in time; afterwards it works again."""
    bus, publisher, seen = t.bus(), t.bus(publish_timeout=1.0), t.recorder()
    await bus.subscribe(t.topic("jobs"), seen)
    await t.ledger.publish(bus, t.topic("jobs"), "before")
    await publisher.connect()
    t.control.freeze()
    try:
        began = time.monotonic()
        try:
            await t.ledger.publish(publisher, t.topic("jobs"), "frozen")
        except (BrokerUnavailable, TimeoutError):
            took = time.monotonic() - began
        else:
            raise AssertionError("a frozen broker accepted a message")
    finally:
        t.control.thaw()
    assert 0.8 <= took <= 6.0, f"a publish timeout of 1 s took {took:.1f} s"
    began = time.monotonic()
    while time.monotonic() - began < t.patience:
        with suppress(BrokerUnavailable, TimeoutError):
            id = await t.ledger.publish(publisher, t.topic("jobs"), "after")
            await eventually(lambda: id in seen.ids, "what was published after the block does not arrive", t.patience)  # noqa: B023
            return
    raise AssertionError("publishing does not recover")
