"""N: errors and health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import anyio

from ... import Message, MessageBus
from ...broker import Capabilities, Feed, Incoming, Outgoing
from ...errors import (
    AccessDenied,
    AuthenticationError,
    BrokerUnavailable,
    NotFound,
    PartialFailure,
    Unavailable,
    UnsupportedError,
)
from .._case import LacksFixture, case
from .._gates import GATES, refuses
from .._target import Target
from .._wait import eventually
from ..tamper import NoDial, TamperedBroker


@case("N1", fixtures="strict")
async def N1_a_missing_topic(t: Target) -> None:
    """A topic that does not exist and may not be created is NotFound, not a timeout."""
    assert t.rig.strict is not None
    bus = t.bus(t.rig.strict())
    for call in (bus.subscribe(t.topic("missing"), t.recorder()), bus.publish(t.topic("missing"), 1)):
        try:
            await call
        except NotFound as error:
            assert "missing" in str(error), f"the error does not name the topic: {error}"
        else:
            raise AssertionError("a missing topic was accepted")


@case("N2", fixtures="impostor")
async def N2_wrong_credentials(t: Target) -> None:
    """Wrong credentials are an AuthenticationError at once, and the secret is in no text."""
    assert t.rig.impostor is not None
    broker = t.rig.impostor()
    bus = MessageBus(broker, connect_timeout=10.0)
    began = time.monotonic()
    try:
        await bus.connect()
    except AuthenticationError as error:
        assert time.monotonic() - began < 5, "it was tried again before the error"
        chain: BaseException | None = error
        seen: list[BaseException] = []
        while chain is not None and chain not in seen:
            seen.append(chain)
            assert "wrong-secret" not in f"{chain} {chain!r}", f"the secret is in {type(chain).__name__}"
            chain = chain.__cause__ or chain.__context__
    else:
        raise AssertionError("wrong credentials were accepted")
    finally:
        await bus.disconnect()
    assert "wrong-secret" not in repr(broker), f"the secret is in the broker's repr: {broker!r}"


@case("N3", fixtures="restricted")
async def N3_a_denied_topic(t: Target) -> None:
    """A topic that the credentials may not use is a PermissionError; other subscriptions go on."""
    assert t.rig.restricted is not None
    bus, seen = t.bus(await t.rig.restricted(t.namespace)), t.recorder()
    await bus.subscribe(t.topic("open", "x"), seen)
    for call in (bus.subscribe(t.topic("closed"), t.recorder()), bus.publish(t.topic("closed"), 1)):
        try:
            await call
        except AccessDenied as error:
            assert isinstance(error, PermissionError) and "closed" in str(error), (
                f"the error does not name the topic: {error}"
            )
        else:
            raise AssertionError("a denied topic was accepted")
    await t.ledger.publish(bus, t.topic("open", "x"), 1)
    await seen.reaches(1, t.patience)
    assert (await bus.health()).status == "healthy", "a denied topic made the bus unhealthy"


@case("N4")
async def N4_bad_names(t: Target) -> None:
    """Bad topic names and arguments are refused alike on every broker, before the network, saying what is wrong."""
    bus = MessageBus(NoDial(t.broker))
    for topic in ("", "a..b", "a b", "x" * 256, "ä" * 128, "_amb.inbox.x", "a.\x7f", "a*b"):
        for call in (bus.publish(topic, 1), bus.subscribe(topic, t.recorder())):
            await _raises(ValueError, call, f"the topic {topic[:20]!r}")
    for nothing in (None, 7, b"bytes"):
        await _raises(TypeError, bus.publish(nothing, 1), f"the topic {nothing!r}")  # type: ignore[arg-type]
    await _raises(TypeError, bus.subscribe("a", "no handler"), "a handler that cannot be called")  # type: ignore[arg-type]
    await _raises(TypeError, bus.subscribe("a", t.recorder(), colour="red"), "an unknown option")
    await _raises(ValueError, bus.subscribe("a", t.recorder(), concurrency=0), "concurrency=0")
    await _raises(ValueError, bus.publish("a", 1, ttl=-1), "ttl=-1")
    await _raises(ValueError, bus.publish("a", 1, priority="loud"), "priority='loud'")
    await _raises(TypeError, bus.publish("a", 1, headers={"x": 1}), "a header that is no string")  # type: ignore[dict-item]
    await _raises(ValueError, bus.publish("a", object()), "a payload that no serializer knows")


async def _raises(kind: type[Exception], call: Any, what: str) -> None:
    try:
        await call
    except kind as error:
        assert str(error), f"{what} is refused without a word"
    else:
        raise AssertionError(f"{what} was accepted")


@case("N5")
async def N5_unsupported_is_refused(t: Target) -> None:
    """What is not declared raises UnsupportedError before any I/O; with nothing declared everything does."""
    for gate in GATES.values():
        if not gate.holds(t.capabilities):
            await refuses(t.broker, gate, t.topic("x"))
    incapable = TamperedBroker(t.broker, capabilities=Capabilities())
    for name in ("groups", "delay", "order", "replay"):
        try:
            await refuses(incapable, GATES[name], t.topic("x"))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    try:
        await MessageBus(NoDial(incapable)).subscribe(t.topic("x"), t.recorder(), group="workers")
    except UnsupportedError as error:
        assert "group" in str(error), f"the refusal does not say what is missing: {error}"


@case("N6", fixtures="proxy")
async def N6_native_errors_are_translated(t: Target) -> None:
    """Whatever breaks below arrives as one of AMB's errors: out of reach, cut, silent."""
    proxy, broker = await t.proxied()
    proxy.refuse()
    try:
        async with t.connect(broker):
            raise AssertionError("connecting through a refusing cable succeeded")
    except BrokerUnavailable:
        pass
    proxy.restore()
    try:
        async with t.connect(broker) as connection, connection.open(t.source(t.topic("x"))) as feed:
            proxy.refuse()
            errors = [
                await _error_of(connection.send([Outgoing(t.topic("x"), b"1", {}, confirm=True)])),
                await _error_of(feed.receive(1)),
            ]
            strange = [error for error in errors if not isinstance(error, BrokerUnavailable | PartialFailure)]
            assert not strange, f"a cut connection raised {strange!r}"
    except BrokerUnavailable:
        pass  # closing may find out too


async def _error_of(call: Any) -> BaseException | None:
    with anyio.move_on_after(10):
        try:
            while True:
                await call
                return AssertionError("no error at all")
        except Exception as error:
            return error
    return TimeoutError("nothing within 10 s")


@case("N7", within=90)
async def N7_health_tells_the_truth(t: Target) -> None:
    """health() never raises; unhealthy within 5 s of a loss, healthy within 5 s after; connected is not consuming."""
    bus = t.bus()
    assert (await bus.health()).status == "unhealthy", "a bus that never connected is healthy"
    subscription = await bus.subscribe(t.topic("x"), t.recorder(), **t.group())
    health = await bus.health()
    assert health.status == "healthy" and health.connected, f"a live bus is {health}"
    assert [each.id for each in health.subscriptions] == [subscription] and health.subscriptions[0].consuming, (
        f"it says {health.subscriptions}"
    )
    await _connected_but_not_consuming(t)
    if t.capabilities.single_process:
        return
    if t.rig.lacks("proxy"):
        raise LacksFixture("proxy")
    proxy, broker = await t.proxied()
    remote = t.bus(broker)
    await remote.subscribe(t.topic("x"), t.recorder(), **t.group())
    for break_it in (proxy.refuse, proxy.black_hole):
        break_it()
        await _becomes(remote, "unhealthy", 5.0)
        proxy.restore()
        await _becomes(remote, "healthy", 5.0)


async def _connected_but_not_consuming(t: Target) -> None:
    broken = False

    async def receive(feed: Feed, limit: int, wait: bool) -> Sequence[Incoming]:
        if broken:
            raise Unavailable("this feed is broken on purpose")
        with anyio.move_on_after(0.2):
            return await feed.receive(limit, wait)
        return ()

    bus = t.bus(TamperedBroker(t.broker, receive=receive))
    await bus.subscribe(t.topic("x"), t.recorder(), **t.group())
    await _becomes(bus, "healthy", 5.0)
    broken = True
    began = time.monotonic()
    while (health := await bus.health()).subscriptions[0].consuming:
        assert time.monotonic() - began < 5, f"connected, not consuming, and health() says {health}"
        await anyio.sleep(0.02)
    assert health.connected and health.status == "degraded" and health.subscriptions[0].error, f"health() says {health}"
    broken = False
    await _becomes(bus, "healthy", 5.0)


async def _becomes(bus: MessageBus, status: str, within: float) -> None:
    began = time.monotonic()
    while (health := await bus.health()).status != status:
        assert time.monotonic() - began < within, f"not {status} within {within:g} s: {health}"
        await anyio.sleep(0.05)


@case("N8")
async def N8_handlers_that_cancel_or_exit(t: Target) -> None:
    """A handler that raises CancelledError, SystemExit or anything else does not end the consumer."""
    bad: dict[str, BaseException] = {
        "exit": SystemExit(3),
        "generator": GeneratorExit(),
        "interrupt": StopIteration(),
        "stop": StopAsyncIteration(),
        "assertion": AssertionError("wrong"),
        "recursion": RecursionError("deep"),
    }
    if asyncio._get_running_loop() is not None:
        bad["cancelled"] = asyncio.CancelledError()

    async def work(message: Message) -> None:
        if message.data in bad:
            raise bad[message.data]

    bus, dead, seen = (
        t.bus(dead_letter_queue=t.topic("dead")),
        t.recorder("the dead letters"),
        t.recorder("the handler", None, work),
    )
    await bus.subscribe(t.topic("dead"), dead)
    await bus.subscribe(t.topic("x"), seen, concurrency=2, retries=1, retry_delay=0.02, **t.group())
    ids = await t.ledger.publish_many(bus, t.topic("x"), bad)
    good = await t.ledger.publish_many(bus, t.topic("x"), range(20))
    await eventually(
        lambda: set(good) <= set(seen.ids), lambda: f"after bad exceptions came {len(seen.seen)} calls", t.patience
    )
    await dead.reaches(len(bad), t.patience)
    assert sorted(dead.ids) == sorted(ids), f"{len(dead.ids)} dead letters of {len(ids)}"
    health = (await bus.health()).subscriptions
    assert all(each.consuming for each in health), f"health() says {health}"
