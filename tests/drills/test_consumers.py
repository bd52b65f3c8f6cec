"""Consumers that are killed, and consumers that are replaced one after the other."""

from __future__ import annotations

import time
from itertools import count, islice, pairwise
from typing import Any

import anyio
import pytest
from amb_core import MessageBus
from amb_core.testing import Child, eventually

from ._stage import Stage, go, numbers

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

#: What each killed consumer has done before, besides what it holds.
DONE = 10
PUBLISHERS = 4


async def test_killed_consumers_leave_exactly_what_they_held(stage: Stage) -> None:
    """Every heir is called for what its predecessor held and for what is new, once each."""
    bus, fresh, waited = await stage.bus(), count(), list[float]()
    plan: dict[str, Any] = {"told": True, "concurrency": stage.size.held + 5}
    victim, inherited = await stage.consumer(hold=0, **plan), list[int]()
    for round in range(stage.size.kills):
        heir = await stage.loaded(hold=round + 1, **plan)
        before, held, after = (list(islice(fresh, some)) for some in (DONE // 2, stage.size.held, DONE // 2))
        await stage.publish(bus, before)
        await stage.publish(bus, held, hold=round)
        await stage.publish(bus, after)
        await victim.event("done", len(inherited) + DONE, stage.patience)
        await eventually(lambda: set(held) <= set(numbers([victim])), "what is to be held came", stage.patience)  # noqa: B023
        await heir.event("loaded", within=stage.patience)
        victim.kill()
        killed = time.monotonic()
        assert sorted(numbers([victim])) == sorted([*inherited, *before, *held, *after])
        await go(heir)
        await heir.event("done", len(held), stage.patience)
        waited.append(heir.events("got")[-1]["at"] - killed)
        victim, inherited = heir, held
    await stage.quiet()
    assert sorted(numbers([victim])) == sorted(inherited), "what was settled came again"
    assert stage.check(twice=stage.size.kills * stage.size.held) == stage.size.kills * stage.size.held
    stage.measured |= {"kills": stage.size.kills, "held each": stage.size.held, "all back after s": _spread(waited)}
    assert max(waited) <= (stage.capabilities.lease or 0.0) + 10


async def test_a_rolling_restart_loses_nothing_and_repeats_nothing(stage: Stage) -> None:
    """Three members are replaced one by one while messages flow; none becomes a dead letter."""
    bus, took = await stage.bus(), list[float]()
    plan: dict[str, Any] = {"work": 0.005, "dead": stage.topic("dead"), "retries": 2}
    members = await stage.consumers(3, **plan)
    async with stage.dead_letters(stage.topic("dead")) as letters, anyio.create_task_group() as group:
        for publisher in range(PUBLISHERS):
            group.start_soon(_load, stage, bus, publisher)
        await eventually(lambda: len(stage.got) > 30, "messages flow", stage.patience)
        for _ in range(stage.size.generations):
            heirs = [await stage.loaded(**plan) for _ in members]
            members = [await _replaced(old, new, took) for old, new in zip(members, heirs, strict=True)]
        group.cancel_scope.cancel()
    await stage.drained()
    await stage.quiet()
    assert stage.check(twice=0) == 0
    assert not letters, f"{len(letters)} dead letters"
    stage.measured |= {
        "messages": len(stage.ok), "replaced": len(took), "left within s": _spread(took),
        "longest pause s": round(_longest_pause(stage), 2),
    }  # fmt: skip


async def test_a_handler_that_outlives_its_lease_three_times_is_called_once(stage: Stage) -> None:
    """Two members are at work for as long; a third comes meanwhile, and idles. Where nothing runs out, 6 s."""
    seconds = 3 * (stage.capabilities.lease or 2.0)
    bus, plan = await stage.bus(), {"work": seconds, "concurrency": 2, "told": True}
    await stage.consumers(2, **plan)
    third = await stage.loaded(**plan)
    await stage.publish(bus, range(4))
    await stage.drained()
    await go(third)
    await eventually(lambda: len(numbers(stage.children, "done")) >= 4, "they end", stage.patience + seconds)
    await stage.quiet()
    assert stage.check(twice=0) == 0
    assert {call["attempt"] for child in stage.children for call in child.events("got")} == {1}
    stage.measured |= {"lease s": stage.capabilities.lease, "handlers ran s": seconds}


async def _load(stage: Stage, bus: MessageBus, first: int) -> None:
    for number in count(first, PUBLISHERS):
        with anyio.CancelScope(shield=True):  # so that the fate of the last one is known
            await stage.publish(bus, [number])
        await anyio.sleep(0.01)


async def _replaced(old: Child, new: Child, took: list[float]) -> Child:
    await go(new)
    began = time.monotonic()
    old.terminate()
    assert await old.ends(20) == 0
    took.append(time.monotonic() - began)
    return new


def _longest_pause(stage: Stage) -> float:
    times: list[float] = sorted(entry["at"] for child in stage.children for entry in child.events("got"))
    return max(0.0, *(later - earlier for earlier, later in pairwise(times)))


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2]:.2f} (max {ordered[-1]:.2f})"
