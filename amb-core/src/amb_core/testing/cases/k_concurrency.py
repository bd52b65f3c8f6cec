"""K: concurrency and stress."""

from __future__ import annotations

import gc
import time

import anyio

from ... import Message
from .._case import case, cases
from .._leaks import open_descriptors, resident
from .._target import Target
from .._wait import eventually


@case("K1", exclusive=True, within=120)
async def K1_fifty_and_fifty(t: Target) -> None:
    """5,000 messages from 50 publishers to 50 subscribers: nothing lost, nothing twice."""
    members = [t.recorder(f"subscriber {number}") for number in range(50)]
    buses = [t.bus() for _ in range(5)]
    spread = not t.capabilities.groups  # without groups every subscriber has a topic of its own
    for number, member in enumerate(members):
        word = f"jobs{number}" if spread else "jobs"
        await buses[number % 5].subscribe(t.topic(word), member, concurrency=2, **t.group())

    async def publish(number: int) -> None:
        word = f"jobs{number}" if spread else "jobs"
        await t.ledger.publish_many(buses[number % 5], t.topic(word), [[number, index] for index in range(100)])

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(publish, number)
    await t.ledger.drained(*members, within=60)
    await anyio.sleep(t.watch)
    t.ledger.check(*members)


@case("K2")
async def K2_concurrency_is_a_bound(t: Target) -> None:
    """The maximum of concurrent handlers is reached and never exceeded, and can be changed while running."""
    running = highest = 0
    free: list[anyio.Event] = []

    async def work(message: Message) -> None:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        mine = anyio.Event()
        free.append(mine)
        await mine.wait()
        running -= 1

    bus, seen = t.bus(drain_timeout=1.0), t.recorder("the handler", None, work)
    subscription = await bus.subscribe(t.topic("jobs"), seen, concurrency=8, **t.group())
    await t.ledger.publish_many(t.bus(), t.topic("jobs"), range(60))

    async def level(wanted: int) -> None:
        nonlocal highest
        # Those that were told to finish still count as running.
        await eventually(
            lambda: running == len(free) == wanted, lambda: f"{running} handlers run instead of {wanted}", t.patience
        )
        highest = running
        await anyio.sleep(0.2)
        assert highest <= wanted, f"{highest} handlers at once, {wanted} allowed"

    def finish(count: int) -> None:
        for _ in range(count):
            free.pop(0).set()

    await level(8)
    finish(8)
    await level(8)
    subscription.set_concurrency(3)
    finish(8)
    await level(3)
    subscription.set_concurrency(12)
    await level(12)
    while len(seen.seen) < 60 or running:
        finish(len(free))
        await anyio.sleep(0.01)
    t.ledger.check(seen)


#: Quick cases that touch every part.
SAMPLE = ("A1", "A4", "B3", "C1", "D3", "D5", "E2", "H4", "I7", "J2")


@case("K3", exclusive=True, within=180)
async def K3_ten_times_in_parallel(t: Target) -> None:
    """Ten runs of a sample of the cases at the same time do not disturb each other."""
    from .._runner import run_case

    failures: list[str] = []
    limit = anyio.CapacityLimiter(100 if t.capabilities.single_process else t.scaled(30, 10))

    async def run(id: str) -> None:
        async with limit:
            outcome = await run_case(t.rig, cases()[id], check_files=False)
        if outcome.result == "failed":
            failures.append(f"{id}: {outcome.detail.splitlines()[0]}")

    async with anyio.create_task_group() as group:
        for _ in range(10):
            for id in SAMPLE:
                group.start_soon(run, id)
    assert not failures, f"{len(failures)} of {10 * len(SAMPLE)} failed; {failures[0]}"


@case("K4", exclusive=True, within=120)
async def K4_a_thousand_subscriptions(t: Target) -> None:
    """1,000 times subscribe and unsubscribe: no growth of memory (5 %) or descriptors."""
    bus, seen = t.bus(), t.recorder()

    async def cycle(count: int) -> None:
        for number in range(count):
            pattern = t.topic("s", str(number % 10)) if number % 2 else t.topic("p", "*", str(number % 10))
            await bus.unsubscribe(await bus.subscribe(pattern, seen, **(t.group() if number % 3 == 0 else {})))

    total = t.scaled(1000, 200)
    await cycle(total // 4)
    gc.collect()
    memory, descriptors = resident(), open_descriptors()
    await cycle(total - total // 4)
    gc.collect()
    assert open_descriptors() <= descriptors + 2, f"descriptors grew from {descriptors} to {open_descriptors()}"
    assert resident() <= memory * 1.05 + (1 << 20), f"memory grew from {memory >> 20} to {resident() >> 20} MiB"
    assert len((await bus.health()).subscriptions) == 0, "subscriptions are left in health()"


@case("K5")
async def K5_a_flood(t: Target) -> None:
    """100 agents flood a slow consumer: it gets everything once, and the publishers are never told a lie."""

    async def work(message: Message) -> None:
        await anyio.sleep(0.001)

    bus, seen, publishers = t.bus(), t.recorder("the slow consumer", None, work), [t.bus() for _ in range(4)]
    await bus.subscribe(t.topic("jobs"), seen, concurrency=5, **t.group())
    async with anyio.create_task_group() as group:
        for agent in range(100):
            group.start_soon(
                t.ledger.publish_many, publishers[agent % 4], t.topic("jobs"), [[agent, number] for number in range(20)]
            )
    await t.ledger.drained(seen, within=t.patience + 20)
    await seen.stays_at(2000, t.watch)
    t.ledger.check(seen)


@case("K6", needs="lease", exclusive=True, within=90)
async def K6_a_blocked_event_loop(t: Target) -> None:
    """The event loop is blocked past the lease: a lost lease is reported, and nobody else's delivery is settled."""
    ready = anyio.Event()

    async def block(message: Message) -> None:
        if message.data == "block" and message.attempt == 1:
            await ready.wait()
            time.sleep(2.5 * t.lease)  # noqa: ASYNC251 - that is the point

    bus, seen = t.bus(), t.recorder("the blocker", "workers", block)
    await bus.subscribe(t.topic("jobs"), seen, group="workers")
    await t.ledger.publish(bus, t.topic("jobs"), "block")
    await seen.reaches(1, t.patience)
    if t.capabilities.single_process:
        ready.set()
        await anyio.sleep(t.watch)
        t.ledger.check(seen, duplicates=1)
        assert len(seen.seen) == 1 or bus.stats.settle_errors, "it came twice, and no lost lease was reported"
    else:
        child = await t.child(t.topic("jobs"), group="workers", concurrency=1, then="hang")
        ready.set()
        await child.event("got")
        await eventually(lambda: bus.stats.settle_errors > 0, "the lost lease was not reported", t.patience)
        child.kill()
        await seen.reaches(2, t.patience + 2 * t.lease)
        assert seen.attempts[1] >= 3, f"attempts {seen.attempts}: the late verdict touched the other member's delivery"
    await t.ledger.publish(bus, t.topic("jobs"), "next")
    await eventually(lambda: "next" in seen.data, "after a blocked event loop nothing comes", t.patience)
