"""Poison among good messages, topics that nobody knew, and a flood."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

import anyio
import pytest
from amb_core import Message, MessageBus
from amb_core.broker import Outgoing
from amb_core.testing import Child, eventually

from ._stage import Stage, numbers

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

BATCH, PUBLISHERS, SLOTS = 100, 100, 2
#: Of a message of the flood, and what a process may grow by while a multiple of it passes, in bytes.
BODY, GROWTH = 16_000, 24 << 20


async def test_the_dead_letters_are_exactly_the_poison(stage: Stage) -> None:
    """One in a hundred is poison: half of it fails in the handler, half cannot be decoded."""
    total, retries = stage.size.poisoned_messages, 1
    failing, garbled = set(range(50, total, 200)), set(range(150, total, 200))
    await stage.consumer(dead=stage.topic("dead"), retries=retries)
    async with stage.dead_letters(stage.topic("dead")) as letters:
        began = time.monotonic()
        await _publish_poisoned(stage, failing, garbled)
        expected = Counter(number for number in range(total) if number not in garbled)
        expected.update(list(failing) * retries)
        await eventually(lambda: len(stage.got) >= expected.total(), lambda: f"{len(stage.got)} calls", stage.patience)
        took = time.monotonic() - began
        await eventually(lambda: len(letters) >= total // 100, lambda: f"{len(letters)} dead letters", stage.patience)
        await stage.quiet()
        assert Counter(stage.got) == expected
        assert sorted(letter.headers["amb-id"] for letter in letters) == sorted(_id(n) for n in failing | garbled)
    stage.measured |= {"messages": total, "dead letters": len(letters), "handled/s": round(total / took)}


async def _publish_poisoned(stage: Stage, failing: set[int], garbled: set[int]) -> None:
    bus, jobs = await stage.bus(), stage.topic("jobs")
    async with stage.broker.connect() as connection:
        for first in range(0, stage.size.poisoned_messages, BATCH):
            batch = range(first, first + BATCH)
            await bus.publish_batch(
                [Message(jobs, {"n": n, "poison": n in failing}, id=_id(n)) for n in batch if n not in garbled]
            )
            headers = {"content-type": "application/json"}
            bad = [Outgoing(jobs, b'{"n":', headers | {"amb-id": _id(n)}, confirm=True) for n in batch if n in garbled]
            if bad:
                await connection.send(bad)


def _id(number: int) -> str:
    return f"number-{number}"


async def test_the_first_message_of_every_new_topic_arrives(stage: Stage) -> None:
    """A group subscribes to a wildcard, then topics appear under it that did not exist."""
    total = stage.size.topics
    child = await stage.consumer(topic=stage.topic("agents.#"))
    bus = await stage.bus()

    async def first_messages(numbers: Iterable[int]) -> None:
        for number in numbers:
            await stage.publish(bus, [number], f"agents.a{number}.said")

    async with anyio.create_task_group() as group:
        for part in range(10):
            group.start_soon(first_messages, range(part, total, 10))
    assert len(stage.ok) == total
    await stage.drained(stage.patience)
    await stage.quiet()
    assert stage.check(twice=0) == 0
    arrived = {entry["data"]: entry["at"] for entry in child.events("got")}
    late = sorted(max(0.0, arrived[number] - accepted) for number, accepted in stage.ok.items())
    stage.measured |= {"topics": total, "arrived after s": f"{late[total // 2]:.3f} (max {late[-1]:.2f})"}


async def test_a_flood_takes_bounded_memory_and_what_is_critical_comes_first(stage: Stage) -> None:
    """A hundred publishers, a consumer that can't keep up, then one CRITICAL message."""
    slow = await stage.consumer(work=0.02, concurrency=SLOTS)
    buses = [await stage.bus(publish_timeout=120) for _ in range(4)]
    await stage.publish(buses[0], [-1])
    await stage.drained()
    before = _resident("self"), _resident(slow.pid)

    async def agent(number: int) -> None:
        for index in range(stage.size.flood):
            data = {"n": number * stage.size.flood + index, "text": "x" * BODY}
            await buses[number % 4].publish(stage.topic("jobs"), data, priority="background")

    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for number in range(PUBLISHERS):
            group.start_soon(agent, number)
    seconds, total = time.monotonic() - began, PUBLISHERS * stage.size.flood
    place = await _critical(stage, buses[0], slow, total)
    grown = [now - then for now, then in zip((_resident("self"), _resident(slow.pid)), before, strict=True)]
    stage.measured |= {
        "published": total, "per s": round(total / seconds), "waiting": total - len(stage.got),
        "publisher grew MiB": round(grown[0] / 2**20, 1), "consumer grew MiB": round(grown[1] / 2**20, 1),
        "overtaken by": place,
    }  # fmt: skip
    slow.kill()
    if stage.rig.destroy is not None:
        await stage.rig.destroy(stage.topic("jobs"))
    assert max(grown) <= GROWTH, f"publisher and consumer grew by {grown} bytes"


async def _critical(stage: Stage, bus: MessageBus, slow: Child, number: int) -> int | str:
    """How many others began between the acceptance of a CRITICAL message and its turn."""
    await eventually(lambda: len(stage.got) > 50, "the slow consumer works", stage.patience)
    if stage.capabilities.priority == "prefetch":
        return "no priority on this broker"
    await bus.publish(stage.topic("jobs"), {"n": number}, priority="critical", wait_for_confirmation=True)
    accepted = time.monotonic()
    await eventually(lambda: number in numbers([slow]), "the critical message comes", stage.patience)
    between = _begun(slow.events("got"), accepted, number)
    assert between <= SLOTS + 1, f"{between} others began before the critical message"
    return between


def _begun(calls: Sequence[dict[str, float]], since: float, until: int) -> int:
    place = next(index for index, call in enumerate(calls) if call["data"] == until)
    return sum(call["at"] > since for call in calls[:place])


def _resident(pid: int | str) -> int:
    """Of a process, in bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


async def test_a_dead_letter_waits_for_whoever_looks_for_it_later(stage: Stage) -> None:
    """Nobody has subscribed to its topic when it is stored; some brokers would keep nothing there."""
    jobs, dead, found = stage.topic("doomed"), stage.topic("morgue"), list[Message]()

    async def fail(message: Message) -> None:
        raise ValueError("doomed")

    async def find(message: Message) -> None:
        found.append(message)

    async with MessageBus(stage.broker, dead_letter_queue=dead) as bus:
        await bus.subscribe(jobs, fail, group="workers", retries=0)
        await bus.publish(jobs, {"n": 1})
        await eventually(lambda: bus.stats.dead_lettered == 1, lambda: f"{bus.stats}", stage.patience)
    async with MessageBus(stage.broker) as bus:
        start = "latest" if bus.capabilities.replay == "none" else "earliest"
        await bus.subscribe(dead, find, group="amb.dlq", start=start)
        await eventually(lambda: len(found) == 1, lambda: f"{len(found)} dead letters", stage.patience)
        assert found[0].dead is not None and (found[0].dead.topic, found[0].data) == (jobs, {"n": 1})
