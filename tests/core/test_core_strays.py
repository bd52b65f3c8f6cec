"""A client library that lets a cancellation of its own escape: the bus hears of an error, and goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from amb_core import MessageBus
from amb_core.broker import Incoming
from amb_core.errors import ConnectionLost, PublishUnknown, Unavailable

from tests.core._help import Collector, eventually
from tests.core._scripted import ScriptedBroker, ScriptedConnection, incoming

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Only asyncio lets code cancel what it does not own."""
    return "asyncio"


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


class Stray:
    """Awaits a future that was cancelled, the first `times`."""

    def __init__(self, times: int = 1) -> None:
        self.left = times

    async def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left >= 0:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future


@asynccontextmanager
async def connected(broker: ScriptedBroker) -> AsyncIterator[MessageBus]:
    async with MessageBus(broker, connect_timeout=2, publish_timeout=2, drain_timeout=2) as bus:
        yield bus
        assert (await bus.health()).connected


async def test_while_connecting(broker: ScriptedBroker) -> None:
    broker.on_connect = Stray()
    async with connected(broker) as bus:
        await bus.publish("t", 1)
    broker.on_connect = Stray(1000)
    with pytest.raises((ConnectionLost, Unavailable)):
        await MessageBus(broker, connect_timeout=0.2).connect()


async def test_while_opening_a_feed(broker: ScriptedBroker) -> None:
    broker.on_open = Stray()
    async with connected(broker) as bus:
        seen = Collector()
        await bus.subscribe("t", seen, group="g")
        (await broker.feed()).hand(1)
        await seen.wait()


async def test_while_a_broken_feed_is_left(broker: ScriptedBroker) -> None:
    broker.on_leave = Stray()
    async with connected(broker) as bus:
        seen = Collector()
        await bus.subscribe("t", seen, group="g")
        (await broker.feed()).fail(ConnectionLost("the line was cut"))
        (await broker.feed(2)).hand(1)
        await seen.wait()
        assert len(bus.host.supervised) == 1


async def test_while_a_lost_connection_is_left(broker: ScriptedBroker) -> None:
    broker.on_disconnect = Stray()
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        (await broker.feed()).fail(ConnectionLost("the line was cut"))
        await broker.feed(2)
        await bus.publish("t", 1)


async def test_while_receiving(broker: ScriptedBroker) -> None:
    async with connected(broker) as bus:
        seen = Collector()
        await bus.subscribe("t", seen, group="g")
        (await broker.feed()).fail(asyncio.CancelledError())  # type: ignore[arg-type]
        (await broker.feed(2)).hand(1)
        await seen.wait()


async def test_while_settling(broker: ScriptedBroker) -> None:
    broker.on_settle = Stray()
    async with connected(broker) as bus:
        seen = Collector()
        await bus.subscribe("t", seen, group="g")
        (await broker.feed()).hand(1)
        await seen.wait()
        feed = await broker.feed(2)
        await eventually(lambda: feed.verdicts(), "what was handled is settled all the same")


async def test_while_publishing(broker: ScriptedBroker) -> None:
    broker.on_send = Stray()
    async with connected(broker) as bus:
        with pytest.raises(PublishUnknown, match="gave up"):
            await bus.publish("t", 1, wait_for_confirmation=True)
        await bus.publish("t", 2, wait_for_confirmation=True)
        assert [outgoing.body for outgoing in broker.sent] == [b"2"]


class Asked(ScriptedConnection):
    """A connection that answers what it is asked, when it is not gone astray."""

    stray = Stray(0)

    async def ping(self) -> dict[str, str]:
        await self.stray()
        return {}

    async def acquire(self, name: str, seconds: float) -> int | None:
        await self.stray()
        return 7

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        await self.stray()
        return True

    async def release(self, name: str, token: int) -> None:
        await self.stray()

    async def replay(self, pattern: str, since: object, until: object) -> AsyncIterator[Incoming]:
        yield incoming(pattern, 1)
        await self.stray()
        yield incoming(pattern, 2)


async def test_while_something_else_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = ScriptedBroker(elections=True, replay="position")
    broker.connecting = Asked
    async with connected(broker) as bus:
        elections = await bus.elections()
        for ask in (
            lambda: elections.acquire("lead", 1),
            lambda: elections.renew("lead", 7, 1),
            lambda: elections.release("lead", 7),
            lambda: collected(bus),
        ):
            monkeypatch.setattr(Asked, "stray", Stray())
            with pytest.raises(ConnectionLost, match="gave up"):
                await ask()
        monkeypatch.setattr(Asked, "stray", Stray())
        health = await bus.health()
        assert not health.connected and "gave up" in health.details["error"]
        assert await elections.acquire("lead", 1) == 7
        assert await collected(bus) == [1, 2]


async def collected(bus: MessageBus) -> list[Any]:
    return [message.data async for message in bus.replay("t")]


async def test_a_timeout_of_asyncio_within_one_of_anyio(monkeypatch: pytest.MonkeyPatch) -> None:
    async def child() -> None:
        time.sleep(0.3)  # so that both end in one turn of the loop
        await anyio.sleep(60)

    async def two_clocks(*_: Any) -> None:
        with anyio.fail_after(0.2):
            async with asyncio.timeout(0.1):
                await asyncio.gather(child())

    broker = ScriptedBroker(elections=True)
    broker.connecting = Asked
    monkeypatch.setattr(Asked, "stray", two_clocks)
    async with MessageBus(broker, connect_timeout=2) as bus:
        with pytest.raises(ConnectionLost, match="gave up"):
            await (await bus.elections()).acquire("lead", 1)


async def test_a_cancellation_that_was_asked_for_stays_one(broker: ScriptedBroker) -> None:
    async def hang(*_: Any) -> None:
        await anyio.sleep_forever()

    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(), group="g")
        broker.on_open = hang
        with anyio.move_on_after(0.1) as scope:
            await bus.subscribe("u", Collector(), group="g")
        assert scope.cancelled_caught
        task = asyncio.ensure_future(bus.subscribe("v", Collector(), group="g"))
        await anyio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
