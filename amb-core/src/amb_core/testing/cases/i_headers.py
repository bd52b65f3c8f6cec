"""I: headers and bodies."""

from __future__ import annotations

from typing import Any

from ... import Message, MessageBus, MessagePriority
from ...errors import MessageTooLarge
from .._case import case
from .._target import Target
from .._vectors import WEIRD
from .._wait import eventually
from ..tamper import NoDial

#: Bodies above this are not tried: the test would need as much memory several times over.
LARGEST = 32 << 20


@case("I1")
async def I1_weird_strings(t: Target) -> None:
    """Weird strings as header names and values and as data arrive exactly, or are refused; never altered."""
    bus, seen, sent = t.bus(), t.recorder(), dict[str, Any]()
    await bus.subscribe(t.topic("weird"), seen)
    for text in WEIRD:
        for headers in ({"x-weird": text}, {text: "value"}):
            try:
                sent[await t.ledger.publish(bus, t.topic("weird"), {text: text}, headers=headers)] = (
                    headers,
                    {text: text},
                )
            except (ValueError, MessageTooLarge):
                continue
    await seen.reaches(len(sent), t.patience)
    for one in seen.seen:
        assert (one.headers, one.data) == sent[one.id], f"{sent[one.id]!r} arrived as {one.headers!r}, {one.data!r}"
    assert len(sent) > len(WEIRD), f"only {len(sent)} of {2 * len(WEIRD)} were accepted"
    t.ledger.check(seen)


@case("I2")
async def I2_lone_surrogates(t: Target) -> None:
    """Lone surrogates are refused, wherever they are, and nothing arrives."""
    bus, seen = t.bus(), t.recorder()
    await bus.subscribe(t.topic("#"), seen)
    bad = "a\ud800b"
    attempts: dict[str, dict[str, Any]] = {
        "header value": {"headers": {"x": bad}},
        "header name": {"headers": {bad: "x"}},
        "key": {"key": bad},
        "sender": {"sender": bad},
        "correlation id": {"correlation_id": bad},
        "metadata": {"metadata": {"x": bad}},
    }
    for where, fields in attempts.items():
        await _refused(where, bus.publish(t.topic("x"), 1, **fields))
    await _refused("data", bus.publish(t.topic("x"), {"x": bad}))
    await _refused("topic", bus.publish(t.topic(bad), 1))
    await seen.stays_at(0, t.watch)


async def _refused(where: str, call: Any) -> None:
    try:
        await call
    except ValueError as error:
        assert str(error), f"a lone surrogate in the {where} is refused without a word"
    else:
        raise AssertionError(f"a lone surrogate in the {where} was accepted")


@case("I3")
async def I3_many_and_large_headers(t: Target) -> None:
    """50 headers and a value of 8 KiB arrive, or are refused before sending."""
    bus, seen, sent = t.bus(), t.recorder(), dict[str, dict[str, str]]()
    await bus.subscribe(t.topic("x"), seen)
    for headers in ({f"h-{number}": str(number) for number in range(50)}, {"long": "ä" * 4096}):
        try:
            sent[await t.ledger.publish(bus, t.topic("x"), 1, headers=headers)] = headers
        except MessageTooLarge as error:
            assert t.capabilities.max_headers is not None, f"refused ({error}) without a declared limit"
    await seen.reaches(len(sent), t.patience)
    for one in seen.seen:
        assert one.headers == sent[one.id], f"{len(sent[one.id])} headers arrived as {len(one.headers)}"


@case("I4")
async def I4_sizes(t: Target) -> None:
    """Empty bodies, None, one byte, a megabyte and the largest message arrive; one more byte is refused at once."""
    async with t.connect() as connection, connection.open(t.source(t.topic("raw"))) as feed:
        for body in (b"", b"x", b"\x00" * 10, b"y" * (1 << 20 if _allows(t, 1 << 20) else 1 << 10)):
            await t.send_raw(t.topic("raw"), body)
            (got,) = await t.receive_raw(feed, 1)
            assert got.body == body, f"{len(body)} bytes arrived as {len(got.body)}"
    bus, seen = t.bus(), t.recorder()
    await bus.subscribe(t.topic("x"), seen)
    await t.ledger.publish_many(bus, t.topic("x"), [None, "", 0])
    await seen.reaches(3, t.patience)
    assert sorted(seen.data, key=repr) == sorted([None, "", 0], key=repr), f"arrived: {seen.data}"
    limit = t.capabilities.max_message
    if limit is not None and limit <= LARGEST:
        await t.ledger.publish(bus, t.topic("x"), "z" * (limit - 2))
        await seen.reaches(4, t.patience)
        assert len(seen.data[-1]) == limit - 2, "the largest message was cut"
        refusing = MessageBus(NoDial(t.broker))
        try:
            await refusing.publish(t.topic("x"), "z" * (limit - 1))
        except MessageTooLarge as error:
            assert str(limit) in str(error), f"the refusal does not name the limit: {error}"
        else:
            raise AssertionError("a message above the limit was accepted")


def _allows(t: Target, size: int) -> bool:
    return t.capabilities.max_message is None or t.capabilities.max_message >= size


@case("I5")
async def I5_every_byte(t: Target) -> None:
    """All 256 byte values survive, raw and as a MessagePack payload."""
    every = bytes(range(256))
    async with t.connect() as connection, connection.open(t.source(t.topic("raw"))) as feed:
        await t.send_raw(t.topic("raw"), every * 4, {"content-type": "application/octet-stream"})
        (got,) = await t.receive_raw(feed, 1)
        assert got.body == every * 4, "bytes were altered"
        assert got.headers.get("content-type") == "application/octet-stream", f"its headers are {got.headers}"
    bus, seen = t.bus(serializer="msgpack"), t.recorder()
    await bus.subscribe(t.topic("x"), seen)
    await t.ledger.publish(bus, t.topic("x"), {"bytes": every})
    await seen.reaches(1, t.patience)
    assert seen.data == [{"bytes": every}], f"arrived: {seen.data}"


@case("I6")
async def I6_reserved_names(t: Target) -> None:
    """AMB's own header names cannot be set by a publisher; what it says about itself stays true."""
    bus, seen = t.bus(), t.recorder()
    await bus.subscribe(t.topic("x"), seen)
    for name in ("amb-id", "amb-expires", "amb-dead-topic", "AMB-Id", "amb-anything", "content-type", "Content-Type"):
        try:
            await bus.publish(t.topic("x"), 1, headers={name: "spoofed"})
        except ValueError as error:
            assert name.lower() in str(error).lower(), f"the refusal does not name {name!r}: {error}"
        else:
            raise AssertionError(f"the reserved header {name!r} was accepted")
    id = await t.ledger.publish(bus, t.topic("x"), 1, headers={"id": "other", "topic": "other", "priority": "low"})
    await seen.reaches(1, t.patience)
    message = seen.seen[0].message
    assert (message.id, message.topic) == (id, t.topic("x")), f"a harmless header replaced a field: {message!r}"
    assert seen.seen[0].headers == {"id": "other", "topic": "other", "priority": "low"}, (
        f"headers: {seen.seen[0].headers}"
    )


@case("I7")
async def I7_nobody_sees_anothers_changes(t: Target) -> None:
    """What a handler changes in data, headers or metadata is not seen by other handlers or by a retry."""

    async def spoil(message: Message) -> None:
        message.data["list"].clear()
        message.data["new"] = 1
        message.headers.clear()
        message.metadata["new"] = 1

    bus, recorders = t.bus(), [t.recorder(f"handler {number}", None, spoil) for number in range(3)]
    seen: list[tuple[Any, Any, Any]] = []

    async def look(message: Message) -> None:
        seen.append((message.data, message.headers, message.metadata))

    for recorder in recorders[:2]:
        await bus.subscribe(t.topic("x"), recorder)
    await bus.subscribe(t.topic("x"), look)
    await bus.subscribe(t.topic("x"), recorders[2], **t.group())
    data = {"list": [1, {"a": 2}]}
    await t.ledger.publish_many(bus, t.topic("x"), [data] * 5, headers={"h": "v"}, metadata={"m": 1})
    assert data == {"list": [1, {"a": 2}]}, "the publisher's own object was changed"
    for recorder in recorders:
        await recorder.reaches(5, t.patience)
        for one in recorder.seen:
            assert one.headers == {"h": "v"}, f"{recorder.name} saw the headers {one.headers}"
    await eventually(lambda: len(seen) == 5, "the looking handler was not called", t.patience)
    assert all(one == ({"list": [1, {"a": 2}]}, {"h": "v"}, {"m": 1}) for one in seen), f"it saw {seen}"


@case("I8")
async def I8_traceparent(t: Target) -> None:
    """A malformed traceparent is ignored; a valid one is continued in what the handler publishes."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    bus, inner = t.bus(), t.recorder("the inner handler")

    async def work(message: Message) -> None:
        await bus.publish(t.topic("inner"), message.data)

    seen = t.recorder("the outer handler", None, work)
    await bus.subscribe(t.topic("inner"), inner)
    await bus.subscribe(t.topic("outer"), seen)
    good = f"00-{trace}-00f067aa0ba902b7-01"
    bad = ("garbage", "00-xyz-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01", "")
    for number, value in enumerate((good, *bad)):
        await t.send_raw(
            t.topic("outer"), str(number).encode(), {"content-type": "application/json", "traceparent": value}
        )
    await inner.reaches(5, t.patience)
    carried = {one.data: one.headers.get("traceparent") or one.message.trace_id or "" for one in inner.seen}
    assert trace in carried[0], f"the valid trace went on as {carried[0]!r}"
    for number, value in enumerate(bad, 1):
        assert not value or value not in carried[number], f"the malformed traceparent {value!r} was passed on"


@case("I9")
async def I9_foreign_messages(t: Target) -> None:
    """A message without AMB's headers is still a message: data, topic and own headers reach the handler; it settles."""

    async def once_more(message: Message) -> None:
        if message.attempt == 1 and message.data == {"from": "elsewhere"}:
            await message.nack()

    bus, seen = t.bus(), t.recorder("the handler", None, once_more)
    await bus.subscribe(t.topic("x"), seen, **t.group())
    await t.send_raw(t.topic("x"), b'{"from": "elsewhere"}')
    await t.send_raw(t.topic("x"), b"[1]", {"own": "header"})
    await seen.reaches(3, t.patience)
    await seen.stays_at(3, t.watch)
    first = [one for one in seen.seen if one.data == {"from": "elsewhere"}]
    assert [one.attempt for one in first] == [1, 2], f"attempts {[one.attempt for one in first]}"
    message = first[0].message
    assert (message.topic, message.priority, message.sender) == (t.topic("x"), MessagePriority.NORMAL, None), (
        f"it is {message!r}"
    )
    other = next(one for one in seen.seen if one.data == [1])
    assert other.headers == {"own": "header"}, f"its headers are {other.headers}"
    assert isinstance(message.timestamp, float) and isinstance(message.id, str)
