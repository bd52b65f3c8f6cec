"""F: order."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import anyio

from ... import Message
from .._case import case
from .._ledger import Seen
from .._target import Target
from .._wait import eventually


def _per_key(seen: list[Seen]) -> dict[str | None, list[Any]]:
    orders: dict[str | None, list[Any]] = defaultdict(list)
    for one in sorted(seen, key=lambda one: one.time):
        orders[one.message.key].append(one.data)
    return orders


def _key(t: Target, publisher: str) -> dict[str, str]:
    """What a publisher adds so that its messages stay in order: its key, unless the whole topic is in order."""
    return {"key": publisher} if t.capabilities.order == "key" else {}


@case("F1", needs="order")
async def F1_one_publisher_one_consumer(t: Target) -> None:
    """A thousand messages of one publisher reach one consumer in order."""
    bus, seen = t.bus(), t.recorder()
    await bus.subscribe(t.topic("log"), seen, concurrency=1, **t.group())
    await t.ledger.publish_many(bus, t.topic("log"), range(1000), **_key(t, "one"))
    await seen.reaches(1000, t.patience)
    assert seen.data == sorted(seen.data), (
        f"first inversion near {next(a for a, b in zip(seen.data, seen.data[1:], strict=False) if a > b)}"
    )
    t.ledger.check(seen)


@case("F2", needs=("order", "groups"))
async def F2_order_per_key_over_members(t: Target) -> None:
    """Sixteen keys over two members with five handlers each: every key in order, nothing lost, nothing twice."""

    async def work(message: Message) -> None:
        await anyio.sleep(0.001 * (message.data % 5))

    members = [t.recorder(f"member {number}", "workers", work) for number in range(2)]
    for member in members:
        await t.bus().subscribe(t.topic("log"), member, group="workers", ordered_by="key", concurrency=5)
    bus = t.bus()
    for number in range(400):
        await t.ledger.publish(bus, t.topic("log"), number, key=f"key-{number % 16}")
    await t.ledger.drained(*members, within=t.patience)
    await anyio.sleep(t.watch)
    t.ledger.check(*members)
    for key, order in _per_key([one for member in members for one in member.seen]).items():
        assert order == sorted(order), f"{key} came as {order}"


@case("F3", needs=("order", "groups"))
async def F3_the_next_of_a_key_waits(t: Target) -> None:
    """The next message of a key is withheld until the one before is settled, 2 s long; other keys flow."""
    free = anyio.Event()

    async def work(message: Message) -> None:
        if message.data == "first":
            await free.wait()

    members = [t.recorder(f"member {number}", "workers", work) for number in range(2)]
    for member in members:
        await t.bus().subscribe(t.topic("log"), member, group="workers", ordered_by="key", concurrency=5)
    bus = t.bus()

    def handled() -> list[Any]:
        return [data for member in members for data in member.data]

    await t.ledger.publish(bus, t.topic("log"), "first", key="held")
    await eventually(lambda: handled() == ["first"], "the first message never came", t.patience)
    held = [f"next {number}" for number in range(6)]
    for data in held:
        await t.ledger.publish(bus, t.topic("log"), data, key="held")
        await anyio.sleep(0.02)  # so that not one member fetches all of them at once
    for number in range(10):
        await t.ledger.publish(bus, t.topic("log"), number, key=f"free-{number}")
    await eventually(lambda: len(handled()) >= 11, lambda: f"beside a held key came {handled()}", t.patience)
    await anyio.sleep(2.0)
    early = [data for data in handled() if data in held]
    assert not early, f"{early} of the key came before the one before was settled"
    free.set()
    await t.ledger.drained(*members, within=t.patience)
    calls = sorted((one for member in members for one in member.seen if one.data in held), key=lambda one: one.time)
    assert [one.data for one in calls] == held, f"after that the key came as {[one.data for one in calls]}"
    t.ledger.check(*members)


@case("F4", needs="order", fixtures="proxy")
async def F4_order_after_a_reconnect(t: Target) -> None:
    """After reconnecting there are no inversions once duplicates are removed."""
    proxy, broker = await t.proxied()
    bus, publisher, seen = t.bus(broker), t.bus(), t.recorder()
    options: dict[str, Any] = {"ordered_by": "key", **t.group()}
    await bus.subscribe(t.topic("log"), seen, **options)
    for number in range(300):
        await t.ledger.publish(publisher, t.topic("log"), number, key=f"key-{number % 4}")
        if number in (100, 200):
            proxy.reset()
    if t.capabilities.redelivery == "broker" and t.capabilities.groups:
        await t.ledger.drained(seen, within=t.patience + 2 * t.lease)
    else:
        # What was sent while the link was down may be gone: go on until something comes.
        for number in range(300, 300 + int(t.patience / 0.1)):
            if seen.data and seen.data[-1] >= 300:
                break
            await t.ledger.publish(publisher, t.topic("log"), number, key=f"key-{number % 4}")
            await anyio.sleep(0.1)
        assert seen.data[-1] >= 300, "nothing comes after the reconnect"
    for key, order in _per_key(seen.seen).items():
        first_times = list(dict.fromkeys(order))
        assert first_times == sorted(first_times), f"{key} came as {order}"


@case("F5", needs="order")
async def F5_a_retried_key_keeps_its_order(t: Target) -> None:
    """In ordered mode a message that is tried again keeps its place in its key."""

    async def work(message: Message) -> None:
        if message.data == 1 and message.attempt < 3:
            raise RuntimeError("fails on purpose")

    bus, seen = t.bus(), t.recorder("the handler", None, work)
    await bus.subscribe(t.topic("log"), seen, ordered_by="key", retries=5, retry_delay=0.3, **t.group())
    for number in range(6):
        await t.ledger.publish(bus, t.topic("log"), number, key="a")
        await t.ledger.publish(bus, t.topic("log"), number + 100, key="b")
    await seen.reaches(14, t.patience)
    await seen.stays_at(14, t.watch)
    orders = _per_key(seen.seen)
    assert orders["a"] == [0, 1, 1, 1, 2, 3, 4, 5], f"the retried key came as {orders['a']}"
    assert orders["b"] == [100, 101, 102, 103, 104, 105], f"the other key came as {orders['b']}"
    attempts = [one.attempt for one in seen.seen if one.data == 1]
    assert attempts == [1, 2, 3], f"attempts {attempts}"


@case("F6", needs="order")
async def F6_order_per_publisher(t: Target) -> None:
    """Twenty publishers at once: each one's messages come in its order."""
    consumer, seen, bus = t.bus(), t.recorder(), t.bus()
    await consumer.subscribe(t.topic("log"), seen, concurrency=1, **t.group())

    async def publish(publisher: int) -> None:
        values = [[publisher, number] for number in range(50)]
        await t.ledger.publish_many(bus, t.topic("log"), values, **_key(t, f"publisher {publisher}"))

    async with anyio.create_task_group() as group:
        for publisher in range(20):
            group.start_soon(publish, publisher)
    await seen.reaches(1000, t.patience)
    t.ledger.check(seen)
    for publisher in range(20):
        order = [number for who, number in seen.data if who == publisher]
        assert order == list(range(50)), f"publisher {publisher}'s came as {order}"
