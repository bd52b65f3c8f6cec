"""G: durability and reconnecting."""

from __future__ import annotations

import socket
import time
from typing import Any

import anyio

from ... import Message, MessageBus
from ...errors import BrokerUnavailable, PublishUnknown
from .._case import case
from .._ledger import Recorder
from .._target import Target
from .._wait import eventually
from ..proxy import FaultProxy


@case("G1", needs=("durable", "durable_groups"))
async def G1_everybody_leaves(t: Target) -> None:
    """Publish, close everything, open again, consume: all there."""
    seen, bus = t.recorder("the consumer", "workers"), t.bus()
    await bus.subscribe(t.topic("jobs"), seen, group="workers")
    await bus.disconnect()
    publisher = t.bus()
    await t.ledger.publish_many(publisher, t.topic("jobs"), range(50))
    await publisher.disconnect()
    await t.bus().subscribe(t.topic("jobs"), seen, group="workers")
    await seen.reaches(50, t.patience)
    await seen.stays_at(50, t.watch)
    t.ledger.check(seen)


@case("G2", needs=("durable", "durable_groups"), within=200)
async def G2_five_times_open_and_closed(t: Target) -> None:
    """5,000 messages in five batches, everything closed and opened in between."""
    seen = t.recorder("the consumer", "workers")
    for batch in range(5):
        bus = t.bus()
        await bus.subscribe(t.topic("jobs"), seen, group="workers")
        async with anyio.create_task_group() as group:
            for part in range(10):
                group.start_soon(
                    t.ledger.publish_many,
                    bus,
                    t.topic("jobs"),
                    range(batch * 1000 + part * 100, batch * 1000 + part * 100 + 100),
                )
        await bus.disconnect()
    await t.bus().subscribe(t.topic("jobs"), seen, group="workers")
    await t.ledger.drained(seen, within=100)
    await anyio.sleep(t.watch)
    t.ledger.check(seen)


@case("G3", needs=("durable", "durable_groups"), fixtures="control", within=120)
async def G3_restart_in_the_middle(t: Target) -> None:
    """The broker is restarted in the middle of 600 messages: none is lost, consuming again within 5 s."""
    seen, bus = t.recorder("the consumer", "workers"), t.bus()
    await bus.subscribe(t.topic("jobs"), seen, group="workers")

    async def publish() -> None:
        for number in range(600):
            try:
                await t.ledger.publish(bus, t.topic("jobs"), number)
            except BrokerUnavailable:
                continue
            await anyio.sleep(0.005)

    async with anyio.create_task_group() as group:
        group.start_soon(publish)
        await seen.reaches(100, t.patience)
        await t.control.stop()
        await anyio.sleep(0.5)
        await t.control.start()
        back = len(seen.seen)
        await eventually(lambda: len(seen.seen) > back, "nothing is consumed after the restart", 5.0)
    await t.ledger.drained(seen, within=t.patience + 2 * t.lease)
    await anyio.sleep(t.watch)
    t.ledger.check(seen, duplicates=10 + len(t.ledger.fated("unknown")))


@case("G4", fixtures="proxy")
async def G4_every_connection_reset(t: Target) -> None:
    """All connections are reset, three times: consuming goes on, and nothing that the broker keeps is lost."""
    proxy, broker = await t.proxied()
    bus, publisher, seen = t.bus(broker), t.bus(), t.recorder("the consumer")
    await bus.subscribe(t.topic("jobs"), seen, **t.group())
    for round in range(3):
        await t.ledger.publish_many(publisher, t.topic("jobs"), range(round * 50, round * 50 + 50))
        await anyio.sleep(0.1)
        assert proxy.reset() > 0, "there was no connection to reset"
        await eventually(lambda: proxy.links > 0, "it does not connect again", t.patience)
    await _comes_through(t, publisher, t.topic("jobs"), seen)
    if t.capabilities.durable_groups:
        await t.ledger.drained(seen, within=t.patience + 2 * t.lease)
        await anyio.sleep(t.watch)
        t.ledger.check(seen, duplicates=30)


async def _comes_through(t: Target, publisher: MessageBus, topic: str, seen: Recorder) -> float:
    """Publish until one arrives; seconds until then."""
    began = time.monotonic()
    while time.monotonic() - began < t.patience:
        try:
            id = await t.ledger.publish(publisher, topic, "probe")
        except BrokerUnavailable:  # the next try to connect may be further off than the publisher waits
            continue
        with anyio.move_on_after(0.5):
            await eventually(lambda: id in seen.ids, "", 60)  # noqa: B023
            return time.monotonic() - began
    raise AssertionError(f"nothing arrives {t.patience:g} s after the fault")


@case("G5", fixtures="proxy", within=90)
async def G5_a_silent_link_is_noticed(t: Target) -> None:
    """A link that swallows everything is noticed: unhealthy while it lasts, consuming again after it, nothing lost."""
    proxy, broker = await t.proxied()
    bus, publisher, seen = t.bus(broker), t.bus(), t.recorder("the consumer")
    await bus.subscribe(t.topic("jobs"), seen, **t.group())
    await t.ledger.publish(publisher, t.topic("jobs"), "before")
    await seen.reaches(1, t.patience)
    accepted = proxy.accepted
    proxy.black_hole()
    began = time.monotonic()
    assert (await bus.health()).status == "unhealthy", "health() calls a link healthy that answers nothing"
    await eventually(lambda: proxy.accepted > accepted, "the dead link is not given up", 30)
    await anyio.sleep(max(0.0, 30.0 - (time.monotonic() - began)) if not t.rig.quick else 0)
    await t.ledger.publish(publisher, t.topic("jobs"), "during")
    proxy.restore()
    await _comes_through(t, publisher, t.topic("jobs"), seen)
    if t.capabilities.durable_groups:
        await t.ledger.drained(seen, within=t.patience + 2 * t.lease)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@case("G6", fixtures="proxy")
async def G6_started_before_the_broker(t: Target) -> None:
    """With the broker down connecting is tried until the deadline, then a typed error; back in time, it works."""
    assert t.rig.through is not None and t.rig.address is not None
    port = free_port()
    bus = MessageBus(t.rig.through("127.0.0.1", port), connect_timeout=1.5)
    began = time.monotonic()
    try:
        await bus.connect()
    except BrokerUnavailable as error:
        assert isinstance(error, ConnectionError) and str(error), f"the error is {error!r}"
    else:
        raise AssertionError("connect() to a dead broker succeeded")
    took = time.monotonic() - began
    assert 0.5 <= took <= 4.0, f"it gave up after {took:.1f} s; the deadline was 1.5 s"
    await bus.disconnect()
    async with FaultProxy.to(*t.rig.address) as proxy:
        proxy.refuse()
        late = t.bus(t.rig.through(proxy.host, proxy.port), connect_timeout=10.0)
        async with anyio.create_task_group() as group:
            group.start_soon(late.connect)
            await anyio.sleep(0.5)
            proxy.restore()
        assert late.connected, "the broker came back in time, and the bus is not connected"
        await late.disconnect()


@case("G7", fixtures="control", within=90)
async def G7_everything_is_restored(t: Target) -> None:
    """After a restart of the broker subscriptions, wildcards, groups, replies, dead letters work, without user code."""
    bus, dead = t.bus(dead_letter_queue=t.topic("dead")), t.recorder("the dead letters")
    exact, wild, shared = t.recorder("exact"), t.recorder("wildcard"), t.recorder("group")

    async def fail(message: Message) -> None:
        raise RuntimeError("fails on purpose")

    async def answer(message: Message) -> Any:
        return message.data

    await bus.subscribe(t.topic("dead"), dead)
    await bus.subscribe(t.topic("a.b"), exact)
    await bus.subscribe(t.topic("a.#"), wild)
    await bus.subscribe(t.topic("a.*"), shared, **t.group())
    await bus.subscribe(t.topic("bad"), fail, **t.group())
    await t.answering(bus, t.topic("ask"), answer)
    assert (await bus.request(t.topic("ask"), "before", timeout=10)).data == "before"
    await t.control.stop()
    await t.control.start()
    publisher = t.bus()
    for seen in (exact, wild, shared):
        await _comes_through(t, publisher, t.topic("a.b"), seen)
    await _answers_again(t, bus)
    began = time.monotonic()
    while lost := [each.pattern for each in (await bus.health()).subscriptions if not each.consuming]:
        assert time.monotonic() - began < t.patience, f"not consuming again: {lost}"
        await anyio.sleep(0.05)
    before = len(dead.seen)
    await publisher.publish(t.topic("bad"), 1)
    await dead.reaches(before + 1, t.patience)


async def _answers_again(t: Target, bus: MessageBus) -> None:
    began = time.monotonic()
    while time.monotonic() - began < t.patience:
        try:
            if (await bus.request(t.topic("ask"), "after", timeout=1.0)).data == "after":
                return
        except (TimeoutError, ConnectionError):
            continue
    raise AssertionError("requests are not answered after the restart")


@case("G8", fixtures="proxy")
async def G8_publishing_in_an_outage(t: Target) -> None:
    """A publish in an outage is an error or delivered later; what the broker may have got is called unknown."""
    proxy, broker = await t.proxied()
    bus, consumer, seen = t.bus(broker, publish_timeout=2.0), t.bus(), t.recorder("the consumer")
    await consumer.subscribe(t.topic("jobs"), seen)
    await t.ledger.publish(consumer, t.topic("jobs"), "the first on its topic, which may have to be made")
    await t.ledger.publish(bus, t.topic("jobs"), "before")
    proxy.refuse()
    began = time.monotonic()
    await _fails(t, bus, "refused")
    assert time.monotonic() - began < 5, "publishing blocks far beyond its timeout"
    proxy.restore()
    await _until_ok(t, bus)
    proxy.black_hole("down")
    await _fails(t, bus, "answer swallowed")
    proxy.restore()
    await _until_ok(t, bus)
    proxy.refuse()
    async with anyio.create_task_group() as group:
        patient = t.bus(broker, publish_timeout=20.0, connect_timeout=20.0)
        group.start_soon(t.ledger.publish, patient, t.topic("jobs"), "bridged")
        await anyio.sleep(0.5)
        proxy.restore()
    await t.ledger.drained(seen, within=t.patience)
    t.ledger.check(seen, duplicates=len(t.ledger.fated("unknown")))
    swallowed = [one for one in seen.seen if one.data == "answer swallowed"]
    if swallowed:
        assert t.ledger.fates[swallowed[0].id] != "failed", "it was called failed, not unknown, and was delivered"


async def _fails(t: Target, bus: MessageBus, data: str) -> None:
    try:
        await t.ledger.publish(bus, t.topic("jobs"), data)
    except (BrokerUnavailable, PublishUnknown, TimeoutError):
        return
    raise AssertionError(f"publishing {data!r} without a working connection was reported as accepted")


async def _until_ok(t: Target, bus: MessageBus) -> None:
    began = time.monotonic()
    while True:
        try:
            await t.ledger.publish(bus, t.topic("jobs"), "again")
            return
        except (BrokerUnavailable, TimeoutError):
            assert time.monotonic() - began < t.patience, "publishing does not recover"


@case("G9", needs="replay")
async def G9_replay(t: Target) -> None:
    """Replay from the start, from a position and from a time gives exactly what was published, oldest first."""
    bus, seen = t.bus(), t.recorder("the consumer", "workers")
    await bus.subscribe(t.topic("log"), seen, **t.group())
    ids = await t.ledger.publish_many(bus, t.topic("log"), range(10))
    await seen.reaches(10, t.patience)
    await anyio.sleep(0.05)
    middle = time.time()
    await anyio.sleep(0.05)
    ids += await t.ledger.publish_many(bus, t.topic("log"), range(10, 20))

    async def replayed(**bounds: Any) -> list[Message]:
        return [message async for message in bus.replay(t.topic("log"), **bounds)]

    every = await replayed()
    assert [message.id for message in every] == ids, f"from the start: {[message.data for message in every]}"
    if t.capabilities.replay in ("position", "time"):
        after = await replayed(since=every[4].position)
        assert [message.data for message in after] == list(range(5, 20)), (
            f"after the fifth: {[message.data for message in after]}"
        )
    if t.capabilities.replay == "time":
        late, early = await replayed(since=middle), await replayed(until=middle)
        assert [message.data for message in late] == list(range(10, 20)), (
            f"since the middle: {[message.data for message in late]}"
        )
        assert [message.data for message in early] == list(range(10)), (
            f"until the middle: {[message.data for message in early]}"
        )
    both = await _replay_pattern(t, bus)
    assert sorted(both) == [1, 2], f"a pattern replayed {both}"
    await seen.reaches(20, t.patience)
    await seen.stays_at(20, t.watch)
    t.ledger.check(seen, ids=ids)


async def _replay_pattern(t: Target, bus: MessageBus) -> list[Any]:
    await bus.publish(t.topic("p", "one"), 1)
    await bus.publish(t.topic("p", "two"), 2)
    await bus.publish(t.topic("q", "three"), 3)
    return [message.data async for message in bus.replay(t.topic("p.*"))]


@case("G10", needs="durable_groups", fixtures="destroy", within=60)
async def G10_deleted_under_a_live_consumer(t: Target) -> None:
    """What is kept for a topic is deleted under a live consumer: within 10 s it consumes again or says why not."""
    assert t.rig.destroy is not None
    bus, publisher, seen = t.bus(), t.bus(), t.recorder("the consumer", "workers")
    subscription = await bus.subscribe(t.topic("jobs"), seen, group="workers")
    await t.ledger.publish(publisher, t.topic("jobs"), "before")
    await seen.reaches(1, t.patience)
    await t.rig.destroy(t.topic("jobs"))
    began = time.monotonic()
    while time.monotonic() - began < 10:
        id = await t.ledger.publish(publisher, t.topic("jobs"), "after")
        with anyio.move_on_after(1.0):
            await eventually(lambda: id in seen.ids, "", 60)  # noqa: B023
            return
        health = (await bus.health()).subscriptions
        if any(each.id == subscription and each.error for each in health):
            return
    raise AssertionError("10 s after the deletion it neither consumes nor says so")


@case("G11", needs="durable_groups", fixtures="capped")
async def G11_trimming_drops_nothing_unread(t: Target) -> None:
    """A cap on what is kept never silently removes what a group has not acknowledged."""
    assert t.rig.capped is not None
    broker = t.rig.capped(100)
    bus, seen = t.bus(broker, publish_timeout=3.0), t.recorder("the consumer", "workers")
    await bus.unsubscribe(await bus.subscribe(t.topic("jobs"), seen, group="workers"))
    refused = 0
    while len(t.ledger.fates) < 500 and refused < 3:
        try:
            await t.ledger.publish(bus, t.topic("jobs"), len(t.ledger.fates))
        except (BrokerUnavailable, TimeoutError):
            refused += 1
    await bus.subscribe(t.topic("jobs"), seen, group="workers")
    await t.ledger.drained(seen, within=t.patience)
    await anyio.sleep(t.watch)
    t.ledger.check(seen)
    assert len(t.ledger.fated("ok")) >= 100, f"only {len(t.ledger.fated('ok'))} messages went into 100 places"


@case("G12", needs="volatile", fixtures="control", within=60)
async def G12_only_the_outage_is_lost(t: Target) -> None:
    """A broker that is not durable loses at most what was published in its outage."""
    bus, publisher, seen = t.bus(), t.bus(publish_timeout=1.0), t.recorder("the consumer")
    await bus.subscribe(t.topic("news"), seen)
    before = await t.ledger.publish_many(bus, t.topic("news"), range(50))
    await seen.reaches(50, t.patience)
    await publisher.connect()
    await t.control.stop()
    for number in range(3):
        try:
            await t.ledger.publish(publisher, t.topic("news"), ["outage", number])
        except (BrokerUnavailable, TimeoutError):
            continue
    await t.control.start()
    await _comes_through(t, publisher, t.topic("news"), seen)
    after = await t.ledger.publish_many(bus, t.topic("news"), range(100, 150))
    await eventually(lambda: set(after) <= set(seen.ids), "what was published after the outage is lost", t.patience)
    assert set(before) <= set(seen.ids), "what was published before the outage is lost"
