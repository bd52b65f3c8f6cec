"""C: groups, whose members share the messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio

from ... import Message
from .._case import case
from .._target import Target
from .._wait import eventually


def _slowly(seconds: float) -> Callable[[Message], Any]:
    async def work(message: Message) -> None:
        await anyio.sleep(seconds)

    return work


@case("C1", needs="groups")
async def C1_members_share(t: Target) -> None:
    """Two members of a group: together they get all, and nothing twice."""
    one, two = t.recorder("one", "workers"), t.recorder("two", "workers")
    for seen in (one, two):
        await t.bus().subscribe(t.topic("jobs"), seen, group="workers")
    publisher = t.bus()
    await t.ledger.publish_many(publisher, t.topic("jobs"), range(200))
    await t.ledger.drained(one, two, within=t.patience)
    await one.stays_at(200 - len(two.seen), t.watch)
    t.ledger.check(one, two)


@case("C2", needs="groups")
async def C2_groups_each_get_all(t: Target) -> None:
    """Two groups and an ungrouped subscriber each get all."""
    alone, other = t.recorder("ungrouped"), t.recorder("another group", "b")
    members = [t.recorder(f"member {number}", "a") for number in range(2)]
    bus = t.bus()
    await bus.subscribe(t.topic("jobs"), alone)
    await bus.subscribe(t.topic("jobs"), other, group="b")
    for member in members:
        await t.bus().subscribe(t.topic("jobs"), member, group="a")
    await t.ledger.publish_many(bus, t.topic("jobs"), range(100))
    for seen in ([alone], [other], members):
        await t.ledger.drained(*seen, within=t.patience)
    await anyio.sleep(t.watch)
    for seen in ([alone], [other], members):
        t.ledger.check(*seen)


@case("C3", needs="durable_groups")
async def C3_an_empty_group_keeps_its_messages(t: Target) -> None:
    """A group without a live member keeps messages until one returns."""
    first, again = t.recorder("before"), t.recorder("after")
    leaver = t.bus()
    await leaver.subscribe(t.topic("jobs"), first, group="workers")
    await t.ledger.publish(leaver, t.topic("jobs"), "seen")
    await first.reaches(1)
    await leaver.disconnect()
    bus = t.bus()
    await t.ledger.publish_many(bus, t.topic("jobs"), range(20))
    await anyio.sleep(0.3)
    await bus.subscribe(t.topic("jobs"), again, group="workers")
    await again.reaches(20, t.patience)
    await again.stays_at(20, t.watch)
    t.ledger.check(first, again)


@case("C4", needs="groups")
async def C4_a_member_joins(t: Target) -> None:
    """A member joins in the middle of 300 messages: nothing is lost and every member gets some."""
    one, two = (t.recorder(name, "workers", _slowly(0.005)) for name in ("one", "two"))
    bus = t.bus()
    await bus.subscribe(t.topic("jobs"), one, group="workers", concurrency=2)
    await t.ledger.publish_many(bus, t.topic("jobs"), range(100))
    await t.bus().subscribe(t.topic("jobs"), two, group="workers", concurrency=2)
    await t.ledger.publish_many(bus, t.topic("jobs"), range(100, 300))
    await t.ledger.drained(one, two, within=t.patience)
    t.ledger.check(one, two)
    assert one.seen and two.seen, f"one got {len(one.seen)}, two got {len(two.seen)}"


@case("C5", needs="groups")
async def C5_a_member_leaves(t: Target) -> None:
    """A member leaves in an orderly way: nothing lost, nothing twice, the other takes over within 2 s."""
    leaving, staying = (t.recorder(name, "workers", _slowly(0.01)) for name in ("the leaver", "the stayer"))
    leaver, bus = t.bus(), t.bus()
    await leaver.subscribe(t.topic("jobs"), leaving, group="workers", concurrency=4)
    await bus.subscribe(t.topic("jobs"), staying, group="workers", concurrency=4)
    total = 0
    with anyio.fail_after(t.patience):
        while len(leaving.seen) < 5:  # nobody promises that members share alike
            await t.ledger.publish_many(bus, t.topic("jobs"), range(total, total + 200))
            total += 200
            with anyio.move_on_after(0.5):
                await leaving.reaches(5)
    await leaver.disconnect()
    gone, left = time.monotonic(), len(staying.seen)
    await eventually(
        lambda: len(staying.seen) > left or not t.ledger.missing([leaving, staying]),
        "the other does not take over",
        2.0,
    )
    await t.ledger.drained(leaving, staying, within=t.patience)
    await staying.stays_at(total - len(leaving.seen), t.watch)
    t.ledger.check(leaving, staying)
    late = [one for one in leaving.seen if one.time > gone]
    assert not late, f"the leaver was called {len(late)} times after it had left"


@case("C6", needs="lease")
async def C6_a_killed_member_loses_nothing(t: Target) -> None:
    """A member killed while it holds k messages: exactly those k come again, all of them, within the lease + 2 s."""
    seen, bus = t.recorder("the survivor", "workers"), t.bus()
    if t.capabilities.single_process:
        # Nobody can be killed inside one process: a feed that goes silent stands in.
        async with t.connect() as connection, connection.open(t.source(t.topic("jobs"), "workers")) as feed:
            await t.ledger.publish_many(bus, t.topic("jobs"), range(10))
            await t.receive_raw(feed, 10)
            died = time.monotonic()
            await bus.subscribe(t.topic("jobs"), seen, group="workers")
            await _all_again(t, died, seen)
        return
    child = await t.child(t.topic("jobs"), group="workers", concurrency=10, then="hang")
    await t.ledger.publish_many(bus, t.topic("jobs"), range(10))
    await child.event("got", 10)
    await bus.subscribe(t.topic("jobs"), seen, group="workers")
    child.kill()
    await _all_again(t, time.monotonic(), seen)


async def _all_again(t: Target, died: float, seen: Any) -> None:
    await t.ledger.publish_many(t.bus(), t.topic("jobs"), range(10, 15))
    await seen.reaches(15, t.lease + 2 + died - time.monotonic())
    await seen.stays_at(15, t.watch)
    t.ledger.check(seen)


@case("C7", needs="groups")
async def C7_equal_names_on_different_patterns(t: Target) -> None:
    """Groups of one name on different patterns do not steal from each other."""
    bus, wide, narrow = t.bus(), t.recorder("a.*", "workers"), t.recorder("a.b", "workers")
    await bus.subscribe(t.topic("a.*"), wide, group="workers")
    await bus.subscribe(t.topic("a.b"), narrow, group="workers")
    ids = await t.ledger.publish_many(bus, t.topic("a.b"), range(50))
    await t.ledger.publish_many(bus, t.topic("a.c"), range(50))
    await wide.reaches(100, t.patience)
    await narrow.reaches(50, t.patience)
    await anyio.sleep(t.watch)
    t.ledger.check(wide)
    t.ledger.check(narrow, ids=ids)


@case("C8", needs="durable_groups")
async def C8_a_slow_member_hoards_nothing(t: Target) -> None:
    """While one member is stuck in its only handler, the other gets everything else."""
    stuck, free = anyio.Event(), anyio.Event()

    async def block(message: Message) -> None:
        stuck.set()
        await free.wait()

    slow, fast = t.recorder("the slow one", "workers", block), t.recorder("the fast one", "workers")
    bus = t.bus()
    await bus.subscribe(t.topic("jobs"), slow, group="workers", concurrency=1)
    await t.ledger.publish(bus, t.topic("jobs"), "stuck")
    with anyio.fail_after(t.patience):
        await stuck.wait()
    await t.bus().subscribe(t.topic("jobs"), fast, group="workers", concurrency=1)
    await t.ledger.publish_many(bus, t.topic("jobs"), range(50))
    await fast.reaches(50, t.patience)
    assert len(slow.seen) == 1, f"the stuck member was called {len(slow.seen)} times"
    free.set()
    await anyio.sleep(0.2)
    t.ledger.check(slow, fast)
