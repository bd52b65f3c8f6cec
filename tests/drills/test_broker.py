"""A broker that restarts while messages flow."""

from __future__ import annotations

import socket
import time
from itertools import count

import anyio
import pytest
from amb_core.testing import eventually

from ._stage import Stage

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

PUBLISHERS, CONSUMERS, CONCURRENCY = 20, 2, 10
#: Seconds between a publisher's messages: they flow before, during and after each restart.
PAUSE = 0.04


async def test_restarts_lose_nothing_and_consuming_goes_on_within_five_seconds(stage: Stage) -> None:
    """From the port's opening to the first handling of a message that was accepted after it."""
    bus, fresh, back = await stage.bus(publish_timeout=60), count(), list[float]()
    await stage.consumers(CONSUMERS, concurrency=CONCURRENCY)
    total, restarts = stage.size.restarted_messages, stage.size.restarts

    async def publish() -> None:
        while len(stage.ok) < total or len(back) < restarts:
            await stage.publish(bus, [next(fresh)])
            await anyio.sleep(PAUSE)

    async def hurt() -> None:
        for number in range(restarts):
            wanted = (number + 1) * total // (restarts + 1)
            await eventually(lambda: len(stage.ok) >= wanted, "messages flow", stage.patience)  # noqa: B023
            back.append(await _restart(stage))

    async with anyio.create_task_group() as group:
        for _ in range(PUBLISHERS):
            group.start_soon(publish)
        group.start_soon(hurt)
    await stage.drained()
    await stage.quiet()
    twice = stage.check(twice=restarts * CONSUMERS * CONCURRENCY + len(stage.unknown))
    stage.measured |= {
        "restarts": restarts, "messages": len(stage.ok), "unknown": len(stage.unknown), "twice": twice,
        "consuming again after s": [round(seconds, 2) for seconds in back],
    }  # fmt: skip
    assert max(back) <= 5, f"consuming again {back} s after the port opened"


async def _restart(stage: Stage) -> float:
    """Stop and start; seconds from the opening of the port to the first message of the time after it."""
    assert stage.rig.control is not None
    opened = list[float]()
    await stage.rig.control.stop()
    async with anyio.create_task_group() as group:
        group.start_soon(_watch, stage, opened)
        await stage.rig.control.start()
    await eventually(lambda: _handled(stage, opened[0]), lambda: _silence(stage, opened[0]), 30)
    return _handled(stage, opened[0])[0] - opened[0]


def _handled(stage: Stage, since: float) -> list[float]:
    """When messages were handled that were accepted `since` then."""
    late = {number for number, at in stage.ok.items() if at > since}
    return sorted(entry["at"] for child in stage.children for entry in child.events("got") if entry["data"] in late)


def _silence(stage: Stage, since: float) -> str:
    accepted = sum(at > since for at in stage.ok.values())
    called = sum(entry["at"] > since for child in stage.children for entry in child.events("got"))
    return f"after the restart {accepted} messages were accepted, and the consumers called {called} times with others"


async def _watch(stage: Stage, opened: list[float]) -> None:
    assert stage.rig.address is not None, "the rig does not say where the server listens"
    while not opened:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(stage.rig.address) == 0:
                opened.append(time.monotonic())
        await anyio.sleep(0.01)
