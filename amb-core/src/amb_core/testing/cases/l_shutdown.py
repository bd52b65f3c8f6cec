"""L: shutdown, drain, cancellation."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread

from ... import Message
from ...broker import Settlement
from ...errors import BusClosed
from .._case import case
from .._leaks import Snapshot
from .._target import Target
from .._wait import eventually


@case("L1")
async def L1_closing_twice(t: Target) -> None:
    """disconnect() is idempotent, may be called from many tasks at once, and before connecting."""
    bus, seen = t.bus(), t.recorder()
    await t.bus().disconnect()
    await bus.subscribe(t.topic("x"), seen, **t.group())
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(bus.disconnect)
    await bus.disconnect()
    assert not bus.connected, "it is connected after disconnect()"


@case("L2")
async def L2_running_handlers_finish(t: Target) -> None:
    """While draining, running handlers finish and may still acknowledge, publish and request."""
    bus, outer, answers = t.bus(drain_timeout=10.0), t.bus(), t.recorder("the answers")
    finished: list[Any] = []

    async def work(message: Message) -> None:
        await anyio.sleep(0.5)
        reply = await bus.request(t.topic("ask"), message.data, timeout=5)
        await bus.publish(t.topic("answers"), reply.data)
        await message.ack()
        finished.append(message.data)

    seen = t.recorder("the handler", None, work)
    await outer.subscribe(t.topic("answers"), answers)
    outer.responder(t.topic("ask"))(_echo)
    await bus.subscribe(t.topic("jobs"), seen, concurrency=5, **t.group())
    await t.ledger.publish_many(outer, t.topic("jobs"), range(5))
    await seen.reaches(5, t.patience)
    await bus.disconnect()
    assert sorted(finished) == list(range(5)), f"of five running handlers finished {sorted(finished)}"
    await answers.reaches(5, t.patience)
    if t.capabilities.durable_groups:
        later = t.recorder("a later member")
        await outer.subscribe(t.topic("jobs"), later, **t.group())
        await later.stays_at(0, t.watch)


async def _echo(message: Message) -> Any:
    return message.data


@case("L3", needs="return_unstarted")
async def L3_what_never_started_goes_back(t: Target) -> None:
    """After stopping nothing is delivered; what never started reaches another member within 2 s as the same attempt."""
    async with t.connect() as connection, connection.open(t.source(t.topic("raw"), "workers")) as feed:
        for number in range(10):
            await t.send_raw(t.topic("raw"), str(number).encode())
        got = await t.receive_raw(feed, 10)
        await feed.settle([Settlement(incoming.token, "release") for incoming in got[:5]])
        async with connection.open(t.source(t.topic("raw"), "workers")) as other:
            again = await t.receive_raw(other, 5, 2.0)
            assert {incoming.attempt for incoming in again} == {1}, (
                f"released: attempts {[incoming.attempt for incoming in again]}"
            )
            await feed.settle([Settlement(incoming.token, "ack") for incoming in got[5:]])
            await other.settle([Settlement(incoming.token, "ack") for incoming in again])
    await _released_by_the_bus(t)
    if t.capabilities.lease is not None:
        await _asked_for_by_a_leaver(t)


async def _released_by_the_bus(t: Target) -> None:
    async def work(message: Message) -> None:
        await anyio.sleep(0.3)

    leaver, bus = t.bus(), t.bus()
    leaving, staying = t.recorder("the leaver", "workers", work), t.recorder("the stayer", "workers")
    await leaver.subscribe(t.topic("jobs"), leaving, group="workers", concurrency=2)
    await t.ledger.publish_many(bus, t.topic("jobs"), range(20))
    await leaving.reaches(2, t.patience)
    await bus.subscribe(t.topic("jobs"), staying, group="workers", concurrency=1)
    await leaver.disconnect()
    called, left = len(leaving.seen), time.monotonic()
    await eventually(lambda: not t.ledger.missing([leaving, staying]), "what never started has not come", 2.0)
    assert time.monotonic() - left < 2.5
    await anyio.sleep(t.watch)
    assert len(leaving.seen) == called, "the leaver was called after disconnect() had returned"
    t.ledger.check(leaving, staying)
    assert set(staying.attempts) == {1}, f"attempts of the stayer: {staying.attempts}"


async def _asked_for_by_a_leaver(t: Target) -> None:
    """A leaver whose handler runs on had places for more: what is published now is nothing to it."""
    leaves, may_end = anyio.Event(), anyio.Event()

    async def work(message: Message) -> None:
        await may_end.wait()

    async def leave() -> None:
        leaves.set()
        await subscription.unsubscribe()

    leaver, bus = t.bus(drain_timeout=t.patience), t.bus()
    leaving, staying = t.recorder("the leaver", "workers", work), t.recorder("the stayer", "workers")
    subscription = await leaver.subscribe(t.topic("more"), leaving, group="workers", concurrency=5)
    await t.ledger.publish(bus, t.topic("more"), "before")
    await leaving.reaches(1, t.patience)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
        await leaves.wait()
        try:
            await t.ledger.publish_many(bus, t.topic("more"), range(5))
            await bus.subscribe(t.topic("more"), staying, group="workers")
            await staying.reaches(5, t.patience)
        finally:
            may_end.set()
    assert set(staying.attempts) == {1}, f"a leaver kept what it had asked for: attempts {staying.attempts}"


@case("L4", needs="redelivery")
async def L4_a_drain_that_takes_too_long(t: Target) -> None:
    """A drain that times out cancels the handlers: their messages come again, are no dead letters, spend no attempt."""

    async def hang(message: Message) -> None:
        await anyio.sleep(60)

    bus, other, dead = (
        t.bus(drain_timeout=0.3, dead_letter_queue=t.topic("dead")),
        t.bus(),
        t.recorder("the dead letters"),
    )
    hanging, seen = t.recorder("the hanging one", "workers", hang), t.recorder("the next", "workers")
    await other.subscribe(t.topic("dead"), dead)
    await bus.subscribe(t.topic("jobs"), hanging, group="workers", retries=3)
    await t.ledger.publish_many(other, t.topic("jobs"), range(3))
    await hanging.reaches(3, t.patience)
    began = time.monotonic()
    await bus.disconnect()
    assert time.monotonic() - began < 6, f"a drain timeout of 0.3 s took {time.monotonic() - began:.1f} s"
    await other.subscribe(t.topic("jobs"), seen, group="workers")
    await seen.reaches(3, t.patience + 2 * t.lease)
    await seen.stays_at(3, t.watch)
    assert not dead.seen, f"{len(dead.seen)} messages of a drain became dead letters"
    if t.capabilities.return_unstarted:
        assert set(seen.attempts) == {1}, f"a drain spent attempts: {seen.attempts}"


@case("L5")
async def L5_use_after_closing(t: Target) -> None:
    """Every verb raises BusClosed after disconnect()."""
    bus = t.bus()
    await bus.connect()
    await bus.disconnect()
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "publish": lambda: bus.publish(t.topic("x"), 1),
        "publish_batch": lambda: bus.publish_batch([Message(t.topic("x"), 1)]),
        "subscribe": lambda: bus.subscribe(t.topic("x"), t.recorder()),
        "request": lambda: bus.request(t.topic("x"), 1, timeout=1),
        "scatter": lambda: bus.scatter(t.topic("x"), 1, timeout=1),
    }
    for name, call in calls.items():
        try:
            await call()
        except BusClosed as error:
            assert str(error), f"{name}() on a closed bus is refused without a word"
        else:
            raise AssertionError(f"{name}() on a closed bus did not raise BusClosed")
    assert (await bus.health()).status == "unhealthy", "a closed bus is healthy"


@case("L6")
async def L6_cancelling_a_receive(t: Target) -> None:
    """A receive that is cancelled at any moment loses nothing and repeats nothing."""
    group = "workers" if t.capabilities.groups else None
    total, got = t.scaled(200, 60), list[int]()
    async with t.connect() as connection, connection.open(t.source(t.topic("raw"), group)) as feed:

        async def publish() -> None:
            for number in range(total):
                await t.send_raw(t.topic("raw"), str(number).encode())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            deadline = time.monotonic() + t.patience
            pause = 0.0005
            while len(got) < total and time.monotonic() < deadline:
                with anyio.move_on_after(pause):
                    batch = await feed.receive(5)
                    got += [int(incoming.body) for incoming in batch]
                    with anyio.CancelScope(shield=True):
                        await feed.settle([Settlement(incoming.token, "ack") for incoming in batch])
                pause = pause * 1.7 if pause < 0.05 else 0.0005
        await t.nothing_raw(feed, t.watch)
    assert sorted(got) == list(range(total)), (
        f"lost {sorted(set(range(total)) - set(got))[:5]}, {len(got) - len(set(got))} came twice"
    )


@case("L7", fixtures="proxy")
async def L7_closing_without_a_broker(t: Target) -> None:
    """disconnect() with the broker out of reach returns within its time."""
    for silent in (True, False):
        proxy, broker = await t.proxied()
        bus = t.bus(broker, drain_timeout=1.0)
        await bus.subscribe(t.topic("jobs"), t.recorder(), **t.group())
        if silent:
            proxy.black_hole()
        else:
            proxy.refuse()
        await anyio.sleep(0.2)
        began = time.monotonic()
        with anyio.move_on_after(20):
            await bus.disconnect()
        took = time.monotonic() - began
        assert took < 15, (
            f"disconnect() took {took:.1f} s with the broker {'silent' if silent else 'gone'} (drain_timeout is 1 s)"
        )
        proxy.restore()


@case("L8", needs=("groups", "return_unstarted"))
async def L8_rolling_restart(t: Target) -> None:
    """Three generations of consumers over 900 messages: nothing lost, nothing twice."""

    async def work(message: Message) -> None:
        await anyio.sleep(0.002)

    recorders = [t.recorder(f"generation {number}", "workers", work) for number in range(3)]
    publisher, old = t.bus(), None
    for generation, seen in enumerate(recorders):
        bus = t.bus()
        await bus.subscribe(t.topic("jobs"), seen, group="workers")

        async def publish(generation: int = generation) -> None:
            await t.ledger.publish_many(publisher, t.topic("jobs"), range(generation * 300, generation * 300 + 300))

        async with anyio.create_task_group() as group:
            group.start_soon(publish)
            with anyio.fail_after(t.patience):
                while len(seen.seen) < 10:  # nobody promises that members share alike
                    with anyio.move_on_after(1.0):
                        await seen.reaches(10)
                    if len(seen.seen) < 10:
                        await t.ledger.publish_many(publisher, t.topic("jobs"), range(900, 920))
            if old is not None:
                await old.disconnect()
        old = bus
    await t.ledger.drained(*recorders, within=t.patience)
    await anyio.sleep(t.watch)
    t.ledger.check(*recorders)


@case("L9")
async def L9_one_bus_several_lives(t: Target) -> None:
    """The same bus connects again after disconnect(), three times; decorated subscriptions are live again."""
    bus, seen = t.bus(), t.recorder()
    bus.subscriber(t.topic("x"))(seen)
    for life in range(3):
        async with bus:
            extra = t.recorder("a subscription of one life")
            await bus.subscribe(t.topic("x"), extra)
            await t.ledger.publish(bus, t.topic("x"), life)
            await seen.reaches(life + 1, t.patience)
            await extra.reaches(1, t.patience)
    assert seen.data == [0, 1, 2], f"three lives got {seen.data}"


@case("L10", exclusive=True)
async def L10_nothing_is_left(t: Target) -> None:
    """After use of everything no task, socket or thread is left."""
    await anyio.to_thread.run_sync(time.monotonic)
    before = Snapshot()
    bus = t.bus(dead_letter_queue=t.topic("dead"))

    async def fail(message: Message) -> None:
        raise RuntimeError("fails on purpose")

    async with bus:
        failing, seen = t.recorder("the failing handler", None, fail), t.recorder()
        await bus.subscribe(t.topic("bad"), failing, retries=2, retry_delay=0.05, **t.group())
        await bus.subscribe(t.topic("#"), seen)
        await t.answering(bus, t.topic("echo"), _echo)
        await t.ledger.publish_many(bus, t.topic("bad"), range(5))
        await bus.request(t.topic("echo"), 1, timeout=t.patience)
        async with bus.stream(t.topic("stream")) as stream:
            waiting = anyio.Event()

            async def read() -> None:
                waiting.set()
                async for _ in stream:
                    return

            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await waiting.wait()
                await anyio.sleep(0.2)
                await t.ledger.publish(bus, t.topic("stream"), 1)
        await failing.reaches(15, t.patience)
    await before.check()


@case("L11", needs="groups")
async def L11_a_leaver_is_gone_at_once(t: Target) -> None:
    """When disconnect() has returned the group waits for nobody: all new messages reach the other within 2 s."""
    leaver, bus = t.bus(), t.bus()
    leaving, staying = t.recorder("the leaver", "workers"), t.recorder("the stayer", "workers")
    await leaver.subscribe(t.topic("jobs"), leaving, group="workers")
    await bus.subscribe(t.topic("jobs"), staying, group="workers")
    await t.ledger.publish_many(bus, t.topic("jobs"), range(20))
    await t.ledger.drained(leaving, staying, within=t.patience)
    await leaver.disconnect()
    began = time.monotonic()
    ids = await t.ledger.publish_many(bus, t.topic("jobs"), range(20, 40))
    await t.ledger.drained(staying, ids=ids, within=2.0 + time.monotonic() - began)
    t.ledger.check(leaving, staying)
