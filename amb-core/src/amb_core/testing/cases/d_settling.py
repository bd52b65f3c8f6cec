"""D: settling, redelivery, delays, batches."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from ... import AckMode, Message
from ...broker import Feed, Settlement
from ...errors import AlreadySettled, LeaseLost, PartialFailure
from .._case import case
from .._target import Target
from .._wait import eventually
from ..tamper import TamperedBroker


@case("D1", needs="groups")
async def D1_acknowledged_only_when_the_handler_has_returned(t: Target) -> None:
    """Automatic mode acknowledges nothing before the handler returned; killed inside it, the message comes again."""
    returned, running = anyio.Event(), anyio.Event()
    settled: list[tuple[str, bool]] = []

    async def settle(feed: Feed, outcomes: Sequence[Settlement]) -> None:
        settled.extend((outcome.verdict, returned.is_set()) for outcome in outcomes)
        await feed.settle(outcomes)

    async def work(message: Message) -> None:
        running.set()
        await anyio.sleep(0.2)
        returned.set()

    bus, seen = t.bus(TamperedBroker(t.broker, settle=settle)), t.recorder("the handler", "workers", work)
    await bus.subscribe(t.topic("watched"), seen, group="workers")
    await t.ledger.publish(bus, t.topic("watched"), 1)
    await eventually(lambda: settled, "nothing was settled after the handler had returned", t.patience)
    assert settled == [("ack", True)], f"settled (verdict, after the handler had returned): {settled}"
    if not t.capabilities.single_process and t.capabilities.redelivery == "broker":
        child = await t.child(t.topic("jobs"), group="workers", then="hang")
        await t.ledger.publish(bus, t.topic("jobs"), 2)
        await child.event("got")
        child.kill()
        again = t.recorder("the survivor", "workers")
        await bus.subscribe(t.topic("jobs"), again, group="workers")
        await again.reaches(1, t.patience)


@case("D2", needs="lease")
async def D2_manual_mode_waits_for_the_verdict(t: Target) -> None:
    """Manual mode: unsettled comes again after the lease, not before; acknowledged never again, a restart included."""

    async def first_time_nothing(message: Message) -> None:
        if message.data == "ack" or message.attempt > 1:
            await message.ack()

    bus, seen = t.bus(), t.recorder("the handler", "workers", first_time_nothing)
    await bus.subscribe(t.topic("jobs"), seen, group="workers", ack_mode=AckMode.MANUAL)
    acked = await t.ledger.publish(bus, t.topic("jobs"), "ack")
    await seen.reaches(1, t.patience)
    began = time.monotonic()
    left = await t.ledger.publish(bus, t.topic("jobs"), "leave")
    await seen.reaches(2, t.patience)
    await seen.reaches(3, 3 * t.lease + 2)
    calls = [one for one in seen.seen if one.id == left]
    assert len(calls) == 2, f"after the lease came {seen.data[2:]}"
    # The lease began when the broker handed the message over; a busy machine calls the handler later.
    gap = calls[1].time - began
    assert gap >= 0.9 * t.lease, f"the lease is {t.lease} s, and it came again after {gap:.2f} s"
    assert calls[1].attempt == 2, f"the second delivery is attempt {calls[1].attempt}"
    await seen.stays_at(3, t.watch)
    await bus.disconnect()
    again = t.recorder("after the restart", "workers")
    await t.bus().subscribe(t.topic("jobs"), again, group="workers")
    await again.stays_at(0, t.watch)
    assert acked != left


@case("D3")
async def D3_nack_brings_the_original_again(t: Target) -> None:
    """nack(): the same data and headers with the next attempt; what the handler changed is rolled back."""

    async def spoil(message: Message) -> None:
        message.data["list"].append("changed")
        message.headers["x"] = "changed"
        message.headers["new"] = "added"
        message.metadata["m"] = "changed"
        if message.attempt < 3:
            await message.nack()
        returned.append(message.attempt)

    returned: list[int] = []
    bus, alone, shared = t.bus(), t.recorder("ungrouped", None, spoil), t.recorder("the group", "workers", spoil)
    await bus.subscribe(t.topic("jobs"), alone)
    if t.capabilities.groups:
        await bus.subscribe(t.topic("jobs"), shared, group="workers")
    fields: dict[str, Any] = {"headers": {"x": "y"}, "metadata": {"m": 1}, "key": "k"}
    await t.ledger.publish(bus, t.topic("jobs"), {"list": [1]}, **fields)
    everybody = [alone, shared] if t.capabilities.groups else [alone]
    for seen in everybody:
        await seen.reaches(3, t.patience)
        await seen.stays_at(3, t.watch)
        assert len(set(seen.ids)) == 1 and seen.attempts == [1, 2, 3], (
            f"{seen.name}: ids {seen.ids}, attempts {seen.attempts}"
        )
        for one in seen.seen:
            assert one.headers == {"x": "y"}, f"{seen.name}, attempt {one.attempt}: headers {one.headers}"
            assert one.message.data == {"list": [1, "changed"]}, (
                f"{seen.name}, attempt {one.attempt}: data {one.message.data}"
            )
            assert one.message.key == "k", f"{seen.name}, attempt {one.attempt}: key {one.message.key}"
    await eventually(
        lambda: sorted(returned) == sorted([1, 2, 3] * len(everybody)),
        lambda: f"awaiting nack() returned in attempts {returned}",
    )


@case("D4", needs="retry_delay", within=90)
async def D4_delayed_redelivery(t: Target) -> None:
    """nack(delay=d) comes not before 0.9 d and by d + max(1 s, 20 %), others flow meanwhile; delayed publishing too."""
    delays = [0.2, 2.0] if t.rig.quick else [0.2, 2.0, 30.0]

    async def postpone(message: Message) -> None:
        if message.attempt == 1 and message.data in delays:
            await message.nack(delay=message.data)

    bus, seen = t.bus(), t.recorder("the handler", None, postpone)
    await bus.subscribe(t.topic("jobs"), seen, **t.group())
    await t.ledger.publish_many(bus, t.topic("jobs"), delays)
    await seen.reaches(len(delays), t.patience)
    await t.ledger.publish_many(bus, t.topic("jobs"), ["others"] * 10)
    await seen.reaches(len(delays) + 10, 1.5)
    if t.capabilities.delay != "none":
        sent = time.monotonic()
        await t.ledger.publish(bus, t.topic("jobs"), "later", delay=1.0)
        await eventually(lambda: "later" in seen.data, "the delayed publish does not come", t.patience)
        _on_time("publish(delay=1)", 1.0, next(one.time for one in seen.seen if one.data == "later") - sent)
    for delay in delays:
        await eventually(lambda: seen.data.count(delay) == 2, f"nack(delay={delay}) does not come again", delay + 10)  # noqa: B023
        first, second = (one for one in seen.seen if one.data == delay)
        _on_time(f"nack(delay={delay})", delay, second.time - first.time)
        assert second.attempt == 2, f"after nack(delay={delay}) the attempt is {second.attempt}"
    await seen.stays_at(len(seen.seen), t.watch)
    t.ledger.check(seen, duplicates=len(delays))


def _on_time(what: str, delay: float, took: float) -> None:
    assert 0.9 * delay <= took <= delay + max(1.0, 0.2 * delay), f"{what} came after {took:.2f} s"


@case("D5")
async def D5_reject(t: Target) -> None:
    """reject() goes to the dead letters, or is dropped and counted where there are none; with and without await."""

    async def refuse(message: Message) -> None:
        if message.data == "awaited":
            await message.reject()
        else:
            message.reject(requeue=False)

    bus, seen, dead = (
        t.bus(dead_letter_queue=t.topic("dead")),
        t.recorder("the refuser", None, refuse),
        t.recorder("the dead letters"),
    )
    await bus.subscribe(t.topic("dead"), dead)
    await bus.subscribe(t.topic("jobs"), seen, retries=5, **t.group())
    ids = await t.ledger.publish_many(bus, t.topic("jobs"), ["awaited", "not awaited"])
    await dead.reaches(2, t.patience)
    await seen.stays_at(2, t.watch)
    assert sorted(dead.ids) == sorted(ids), f"dead letters: {dead.ids}"
    assert bus.stats.dead_lettered == 2, f"{bus.stats.dead_lettered} dead letters counted instead of 2"
    plain, dropped = t.bus(), t.recorder("the refuser without dead letters", None, refuse)
    await plain.subscribe(t.topic("drop"), dropped, **t.group())
    await t.ledger.publish_many(plain, t.topic("drop"), ["awaited", "not awaited"])
    await eventually(
        lambda: plain.stats.dropped == 2,
        lambda: f"{plain.stats.dropped} dropped messages counted instead of 2",
        t.patience,
    )
    await dropped.stays_at(2, t.watch)


@case("D6")
async def D6_settling_twice(t: Target) -> None:
    """Acknowledging twice is harmless, acknowledging after nack() raises AlreadySettled, and others are unaffected."""
    raised: list[str] = []

    async def twice(message: Message) -> None:
        if message.data == "ack":
            await message.ack()
            await message.ack()
        elif message.data == "nack" and message.attempt == 1:
            message.nack()
            try:
                message.ack()
            except AlreadySettled as error:
                raised.append(str(error))

    bus, seen = t.bus(), t.recorder("the handler", None, twice)
    await bus.subscribe(
        t.topic("jobs"), seen, ack_mode=AckMode.MANUAL if t.capabilities.groups else AckMode.AUTO, **t.group()
    )
    await t.ledger.publish_many(bus, t.topic("jobs"), ["ack", "nack"])
    await seen.reaches(3, t.patience)
    assert sorted(seen.data) == ["ack", "nack", "nack"], f"calls: {seen.data}"
    assert len(raised) == 1 and raised[0], "ack() after nack() did not raise AlreadySettled"
    seen.seen[-1].message.ack()
    await t.ledger.publish_many(bus, t.topic("jobs"), ["ack"] * 5)
    await seen.reaches(8, t.patience)
    await seen.stays_at(8, t.watch)


@asynccontextmanager
async def _feed(t: Target, word: str, limit: int = 10) -> AsyncIterator[Feed]:
    async with t.connect() as connection, connection.open(t.source(t.topic(word), "workers", limit=limit)) as feed:
        yield feed


@case("D7", needs="lease", within=90)
async def D7_a_lost_lease_settles_nothing(t: Target) -> None:
    """An acknowledgement after the lease was lost never settles the newer delivery, and the subscription survives."""
    async with _feed(t, "jobs") as old, _feed(t, "jobs") as new:
        await t.send_raw(t.topic("jobs"), b"1", {"content-type": "application/json"})
        (first,) = await t.receive_raw(old, 1)
        (second,) = await t.receive_raw(new, 1, 3 * t.lease + 2)
        assert second.attempt == 2, f"the second delivery is attempt {second.attempt}"
        for _ in range(2):
            try:
                await old.settle([Settlement(first.token, "ack")])
            except PartialFailure as failure:
                wrong = {type(error).__name__ for error in failure.errors.values()} - {LeaseLost.__name__}
                assert not wrong, f"a lost lease is {wrong} instead of LeaseLost"
        (third,) = await t.receive_raw(old, 1, 3 * t.lease + 2)
        assert third.attempt == 3, f"after a stale acknowledgement the third delivery is attempt {third.attempt}"
        await old.settle([Settlement(third.token, "ack")])
        await t.nothing_raw(new, t.watch)
    await _late_verdict(t)


async def _late_verdict(t: Target) -> None:
    messages: list[Message] = []
    bus, seen = t.bus(), t.recorder("the handler", "workers", lambda message: messages.append(message))
    await bus.subscribe(t.topic("late"), seen, group="workers", ack_mode=AckMode.MANUAL)
    await t.ledger.publish(bus, t.topic("late"), 1)
    await seen.reaches(2, t.patience + 2 * t.lease)
    try:
        await messages[0].ack()
    except LeaseLost:
        pass
    messages[1].ack()
    await t.ledger.publish(bus, t.topic("late"), 2)
    await eventually(
        lambda: 2 in seen.data, "after a late acknowledgement the subscription gets nothing more", t.patience
    )
    messages[-1].ack()


@case("D8", needs="redelivery", fixtures="proxy")
async def D8_cut_while_the_handler_runs(t: Target) -> None:
    """The connection is cut while a handler runs and its acknowledgement fails: the consumer resumes; nothing lost."""
    proxy, broker = await t.proxied()
    running, free = anyio.Event(), anyio.Event()

    async def work(message: Message) -> None:
        if message.data == "first" and message.attempt == 1:
            running.set()
            await free.wait()

    bus, seen, publisher = t.bus(broker), t.recorder("the handler", "workers", work), t.bus()
    await bus.subscribe(t.topic("jobs"), seen, group="workers")
    await t.ledger.publish(publisher, t.topic("jobs"), "first")
    with anyio.fail_after(t.patience):
        await running.wait()
    proxy.refuse()
    free.set()
    await anyio.sleep(0.3)
    proxy.restore()
    await t.ledger.publish_many(publisher, t.topic("jobs"), range(10))
    await seen.reaches(11, t.patience + 2 * t.lease)
    await anyio.sleep(t.watch)
    t.ledger.check(seen, duplicates=1)
    await bus.disconnect()
    later = t.recorder("a later member", "workers")
    await t.bus().subscribe(t.topic("jobs"), later, group="workers")
    await later.stays_at(0, t.watch)


@case("D9", needs="redelivery")
async def D9_nothing_is_acknowledged_on_the_way(t: Target) -> None:
    """2 to 10 are acknowledged while 1 is open, then the consumer is gone: 1 comes again, alone."""
    seen, bus = t.recorder("the next", "workers"), t.bus()
    if t.capabilities.single_process:
        async with _feed(t, "jobs") as feed:
            await t.ledger.publish_many(bus, t.topic("jobs"), range(1, 11))
            got = sorted(await t.receive_raw(feed, 10), key=lambda incoming: int(incoming.body))
            for incoming in got[1:]:
                await feed.settle([Settlement(incoming.token, "ack")])
    else:
        child = await t.child(t.topic("jobs"), group="workers", concurrency=10, ack_mode="manual", then="hang")
        await t.ledger.publish_many(bus, t.topic("jobs"), range(1, 11))
        await child.event("got", 10)
        for number in range(2, 11):
            await child.tell(do="ack", data=number)
        await child.event("settled", 9)
        child.kill()
    await bus.subscribe(t.topic("jobs"), seen, group="workers")
    await seen.reaches(1, t.patience + 2 * t.lease)
    await seen.stays_at(1, t.watch)
    assert seen.data == [1], f"came again: {seen.data}"


@case("D10", needs=("lease", "extend_lease"), exclusive=True)
async def D10_long_handlers_keep_their_lease(t: Target) -> None:
    """A handler that runs three times the lease gets its message once, as attempt 1."""

    async def work(message: Message) -> None:
        await anyio.sleep(3 * t.lease)

    seen, other = t.recorder("the long one", "workers", work), t.recorder("the other member", "workers", work)
    bus = t.bus()
    await bus.subscribe(t.topic("jobs"), seen, group="workers")
    await t.bus().subscribe(t.topic("jobs"), other, group="workers")
    await t.ledger.publish_many(bus, t.topic("jobs"), range(4))
    await t.ledger.drained(seen, other, within=t.patience)
    await anyio.sleep(3 * t.lease + t.watch)
    t.ledger.check(seen, other)
    assert {*seen.attempts, *other.attempts} == {1}, f"attempts {seen.attempts + other.attempts}"


@case("D11", needs="lease", within=120, exclusive=True)  # a busy machine renews late
async def D11_waiting_messages_do_not_age(t: Target) -> None:
    """Concurrency 1 and 20 queued messages that take 0.75 leases each: each is delivered once, as attempt 1."""

    async def work(message: Message) -> None:
        await anyio.sleep(0.75 * t.lease)

    count = t.scaled(20, 6)
    seen, bus = t.recorder("the handler", "workers", work), t.bus(drain_timeout=2 * t.lease)
    await bus.subscribe(t.topic("jobs"), seen, group="workers", concurrency=1)
    await t.ledger.publish_many(bus, t.topic("jobs"), range(count))
    await seen.reaches(count, count * t.lease + t.patience)
    await seen.stays_at(count, t.watch)
    t.ledger.check(seen)
    assert set(seen.attempts) == {1}, f"attempts {seen.attempts}"


@case("D12", needs="delivery_count")
async def D12_the_count_survives_the_consumer(t: Target) -> None:
    """The attempt count survives a restart of the consumer process."""

    async def nack(message: Message) -> None:
        await message.nack(delay=pause)

    # Without delays of the broker's own a pause is the process's, and so is the attempt after it. With them it is long
    # enough that the process is killed in it, and not in the middle of the next retry, which may deliver twice.
    pause = 1.5 if t.capabilities.delay != "none" else 0.0
    bus, again, publisher = t.bus(), t.recorder("the next", "workers"), t.bus()
    if t.capabilities.single_process:
        seen = t.recorder("the first", "workers", nack)
        await bus.subscribe(t.topic("jobs"), seen, group="workers")
        await t.ledger.publish(publisher, t.topic("jobs"), 1)
        await seen.reaches(3, t.patience)
        await bus.disconnect()
        made = max(seen.attempts)
        bus = t.bus()
    else:
        child = await t.child(t.topic("jobs"), group="workers", then="nack", delay=pause)
        await t.ledger.publish(publisher, t.topic("jobs"), 1)
        await child.event("settled", 2, t.patience)
        child.kill()
        made = max(entry["attempt"] for entry in child.events("got"))
    await bus.subscribe(t.topic("jobs"), again, group="workers")
    await again.reaches(1, t.patience + 2 * t.lease)
    assert again.attempts[0] > made, f"{made} attempts were made, and the next is number {again.attempts[0]}"
    await again.stays_at(1, t.watch)


@case("D13", needs=("groups", "redelivery"))
async def D13_nobody_wants_it(t: Target) -> None:
    """Three members hand back a hundred times, then a healthy one gets all fifty."""
    members = [t.recorder(f"member {number}", "workers", lambda message: message.nack()) for number in range(3)]
    buses = [t.bus() for _ in members]
    for bus, member in zip(buses, members, strict=True):
        await bus.subscribe(t.topic("jobs"), member, group="workers")
    publisher, healthy = t.bus(), t.recorder("the healthy one", "workers")
    await t.ledger.publish_many(publisher, t.topic("jobs"), range(50))
    await eventually(lambda: sum(len(member.seen) for member in members) >= 100, "fewer than 100 refusals", t.patience)
    await publisher.subscribe(t.topic("jobs"), healthy, group="workers")
    for bus in buses:
        await bus.disconnect()
    await t.ledger.drained(healthy, within=t.patience + 2 * t.lease)
    await healthy.stays_at(50, t.watch)
    t.ledger.check(healthy)


@case("D14")
async def D14_batches(t: Target) -> None:
    """A batch comes at its size or after its wait and is acknowledged as one; an exception acknowledges nothing."""
    batches: list[list[Any]] = []
    failed: list[Any] = []

    async def take(messages: list[Message]) -> None:
        batches.append([message.data for message in messages])
        if not failed:
            failed.extend(message.data for message in messages)
            raise RuntimeError("fails on purpose, once")

    bus = t.bus()
    options: dict[str, Any] = {"ack_mode": AckMode.BATCH, "batch_size": 10, "batch_timeout": 0.5, "concurrency": 1}
    subscription = await bus.subscribe(t.topic("jobs"), take, retries=3, retry_delay=0.1, **options, **t.group())
    subscription.pause()  # a busy machine may need longer for ten publishes than a batch waits
    await t.ledger.publish_many(bus, t.topic("jobs"), range(25))
    subscription.resume()

    def done() -> set[Any]:
        return {item for batch in batches[1:] for item in batch}

    await eventually(
        lambda: done() == set(range(25)), lambda: f"of 25 came {sorted(done())} after the failed batch", t.patience
    )
    await anyio.sleep(t.watch + 0.5)
    assert max(map(len, batches)) == 10, (
        f"batch sizes {[len(batch) for batch in batches]}: none reached 10, or one had more"
    )
    assert done() >= set(failed), "the failed batch did not come again"
    assert sorted(item for batch in batches[1:] for item in batch) == list(range(25)), (
        f"batches after the failed one: {batches[1:]}"
    )
    began = time.monotonic()
    await t.ledger.publish(bus, t.topic("jobs"), "alone")
    await eventually(lambda: ["alone"] in batches, "an incomplete batch never came", 5)
    assert time.monotonic() - began >= 0.3, "a batch of one came before its waiting time was over"
    if t.capabilities.redelivery == "broker" and t.capabilities.groups and not t.capabilities.single_process:
        await _killed_in_a_batch(t)


async def _killed_in_a_batch(t: Target) -> None:
    child = await t.child(
        t.topic("killed"),
        group="workers",
        ack_mode="batch",
        batch_size=5,
        batch_timeout=10.0,
        concurrency=1,
        then="hang",
    )
    bus, seen = t.bus(), t.recorder("the survivor", "workers")
    ids = await t.ledger.publish_many(bus, t.topic("killed"), range(5))
    await child.event("got", 5)
    child.kill()
    await bus.subscribe(t.topic("killed"), seen, group="workers")
    await seen.reaches(5, t.patience + 2 * t.lease)
    t.ledger.check(seen, ids=ids)


@case("D15")
async def D15_undecodable(t: Target) -> None:
    """An undecodable message is a dead letter with its reason after one attempt, and the next one is handled."""
    bus, seen = t.bus(dead_letter_queue=t.topic("dead")), t.recorder()
    async with t.connect() as connection, connection.open(t.source(t.topic("dead"))) as letters:
        await bus.subscribe(t.topic("jobs"), seen, retries=5, **t.group())
        await t.send_raw(t.topic("jobs"), b"{not json", {"content-type": "application/json", "amb-id": "bad-1"})
        good = await t.ledger.publish(bus, t.topic("jobs"), "good")
        await seen.reaches(1, t.patience)
        (letter,) = await t.receive_raw(letters, 1)
        await t.nothing_raw(letters, t.watch)
    assert seen.ids == [good], f"the handler was called with {seen.data}"
    assert letter.body == b"{not json", f"the dead letter's body is {letter.body!r}"
    facts = {name: value for name, value in letter.headers.items() if name.startswith("amb-dead-")}
    assert facts.get("amb-dead-reason") == "undecodable" and facts.get("amb-dead-attempts") == "1", (
        f"the dead letter says {facts}"
    )
