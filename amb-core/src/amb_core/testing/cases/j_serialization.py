"""J: serialization."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import anyio.lowlevel
import msgspec

from ... import Message, MessagePriority
from ..._codec import Codec
from ...broker import Incoming, Outgoing
from ...errors import DecodeError, EncodeError
from .._case import case
from .._target import Target
from .._wait import eventually


class Everything(msgspec.Struct):
    """What JSON has no types for."""

    when: datetime
    price: Decimal
    raw: bytes
    number: int


def _deep(depth: int) -> Any:
    value: Any = "bottom"
    for level in range(depth):
        value = [value] if level % 2 else {"deeper": value}
    return value


def _random_value(dice: random.Random, depth: int = 4) -> Any:
    kind = dice.randrange(9 if depth else 7)
    if kind == 7:
        return [_random_value(dice, depth - 1) for _ in range(dice.randrange(4))]
    if kind == 8:
        return {_random_text(dice): _random_value(dice, depth - 1) for _ in range(dice.randrange(4))}
    simple = (
        None,
        True,
        False,
        dice.randrange(-(2**63), 2**64),
        dice.random() * 10 ** dice.randrange(-9, 9),
        _random_text(dice),
        "",
    )
    return simple[kind]


def _random_text(dice: random.Random) -> str:
    return "".join(
        chr(dice.choice((dice.randrange(32, 127), dice.randrange(0xA0, 0xD7FF), dice.randrange(0x10000, 0x10FFFF))))
        for _ in range(8)
    )


@case("J1")
async def J1_round_trips(t: Target) -> None:
    """Values come back as they were, by JSON and MessagePack: big numbers, depth 100, typed dates, decimals, bytes."""
    seed = random.SystemRandom().randrange(1 << 32)
    dice = random.Random(seed)
    values = [_random_value(dice) for _ in range(60)]
    values += [2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 1e308, 5e-324, -0.0, _deep(100), "\x00", "\u2028", "🚀"]
    zone = timezone(timedelta(hours=5, minutes=30))
    typed = Everything(
        datetime(2026, 2, 28, 23, 59, 59, 999999, zone),
        Decimal("12345678901234567890.123456789"),
        bytes(range(256)),
        2**63,
    )
    for serializer in ("json", "msgpack"):
        bus, seen = t.bus(serializer=serializer), t.recorder(serializer)
        await bus.subscribe(t.topic(serializer), seen)
        sent = {}
        for value in [*values, math.nan, math.inf, 2**70, 10**30]:
            try:
                sent[await t.ledger.publish(bus, t.topic(serializer), value)] = value
            except EncodeError:
                assert isinstance(value, float | int) and (not math.isfinite(value) or value >= 2**64), (
                    f"{value!r} was refused"
                )
        await seen.reaches(len(sent), t.patience)
        for one in seen.seen:
            assert _same(one.data, sent[one.id]), (
                f"{serializer}: {sent[one.id]!r} came back as {one.data!r} (seed {seed})"
            )
        await _typed(t, serializer, typed)


def _same(one: Any, other: Any) -> bool:
    if isinstance(other, float) and math.isnan(other):
        return isinstance(one, float) and math.isnan(one)
    return bool(one == other) and type(one) is type(other)


async def _typed(t: Target, serializer: str, value: Everything) -> None:
    bus, got = t.bus(serializer=serializer), list[Any]()

    async def take(payload: Everything) -> None:
        got.append(payload)

    await bus.subscribe(t.topic("typed", serializer), take)
    await bus.publish(t.topic("typed", serializer), value)
    await eventually(lambda: got, f"{serializer}: the typed handler was not called", t.patience)
    assert got == [value], f"{serializer}: {value!r} came back as {got[0]!r}"


@case("J2")
async def J2_mixed_content_types(t: Target) -> None:
    """JSON and MessagePack on one topic: the content type picks the decoder, message by message."""
    seen, consumer = t.recorder(), t.bus()
    await consumer.subscribe(t.topic("mixed"), seen)
    publishers = [t.bus(serializer="json"), t.bus(serializer="msgpack")]
    for number in range(20):
        await t.ledger.publish(publishers[number % 2], t.topic("mixed"), {"n": number, "text": "ü"})
    await seen.reaches(20, t.patience)
    t.ledger.check(seen)
    assert sorted(data["n"] for data in seen.data) == list(range(20)), f"decoded: {seen.data}"


@case("J3")
async def J3_unknown_type(t: Target) -> None:
    """An unknown content type, and a payload that does not fit the handler's type, are dead letters without a retry."""
    bus, calls = t.bus(dead_letter_queue=t.topic("dead")), list[Any]()

    async def take(payload: Everything) -> None:
        calls.append(payload)

    async with t.connect() as connection, connection.open(t.source(t.topic("dead"))) as letters:
        await bus.subscribe(t.topic("typed"), take, retries=3, retry_delay=0.05, **t.group())
        await t.send_raw(
            t.topic("typed"), b"\x00\x01", {"content-type": "application/x-never-heard-of", "amb-id": "unknown"}
        )
        await bus.publish(t.topic("typed"), {"when": "not a date"})
        two = await t.receive_raw(letters, 2)
        await t.nothing_raw(letters, t.watch)
    attempts = [letter.headers.get("amb-dead-attempts") for letter in two]
    assert attempts == ["1", "1"], f"attempts {attempts}"
    assert {letter.body for letter in two} == {b"\x00\x01", b'{"when":"not a date"}'}, (
        f"bodies {[letter.body for letter in two]}"
    )
    assert not calls, f"the handler was called with {calls}"


@case("J4")
async def J4_unknown_headers(t: Target) -> None:
    """Envelope headers of a later version, and nonsense in known ones, are tolerated."""
    bus, seen = t.bus(), t.recorder()
    await bus.subscribe(t.topic("x"), seen)
    headers = {
        "content-type": "application/json; charset=utf-8; future=1",
        "amb-id": "later-1",
        "amb-future-thing": "7",
        "amb-time": "yesterday",
        "amb-priority": "ultra",
        "amb-ttl": "long",
        "amb-metadata": "{broken",
        "mine": "kept",
    }
    await t.send_raw(t.topic("x"), b'{"a": 1}', headers)
    await seen.reaches(1, t.patience)
    message = seen.seen[0].message
    assert (message.id, message.data, message.headers) == ("later-1", {"a": 1}, {"mine": "kept"}), (
        f"it is {message!r}, {message.headers}"
    )
    assert message.priority == MessagePriority.NORMAL and message.metadata == {}, (
        f"{message.priority!r} {message.metadata}"
    )


@case("J5")
async def J5_fuzzed_frames(t: Target) -> None:
    """10,000 damaged frames give nothing but DecodeError; damaged messages do not stop a consumer."""
    seed = random.SystemRandom().randrange(1 << 32)
    dice = random.Random(seed)
    for name in ("json", "msgpack"):
        codec = Codec(name)
        decoders = [codec.decoder(Any), codec.decoder(Everything), codec.decoder(list[int])]
        good = codec.serializer.encode({"a": [1, 2.5, None, "ü"], "b": {"c": "d" * 20}})[0]
        for number in range(t.scaled(5_000, 500)):
            body = _damaged(dice, good)
            try:
                decoders[number % 3](Incoming("t", body, {"content-type": codec.serializer.content_type}, None))
            except DecodeError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"{name}: {body!r} raised {type(error).__name__}: {error} (seed {seed})"
                ) from error
            if number % 500 == 0:
                await anyio.lowlevel.checkpoint()
    bus, seen = t.bus(), t.recorder()
    await bus.subscribe(t.topic("x"), seen, **t.group())
    async with t.connect() as connection:
        frames = [Outgoing(t.topic("x"), dice.randbytes(dice.randrange(40)), _odd_headers(dice)) for _ in range(200)]
        await connection.send(frames)
    last = await t.ledger.publish(bus, t.topic("x"), "the end")
    await eventually(lambda: last in seen.ids, "damaged messages stopped the consumer", t.patience)


def _damaged(dice: random.Random, good: bytes) -> bytes:
    if dice.random() < 0.3:
        return dice.randbytes(dice.randrange(60))
    frame = bytearray(good)
    for _ in range(dice.randint(1, 4)):
        frame[dice.randrange(len(frame))] = dice.randrange(256)
    return bytes(frame[: dice.randrange(len(frame) + 1)] if dice.random() < 0.3 else frame)


def _odd_headers(dice: random.Random) -> dict[str, str]:
    names = (
        "content-type",
        "amb-id",
        "amb-time",
        "amb-priority",
        "amb-ttl",
        "amb-metadata",
        "traceparent",
        "amb-dead-attempts",
    )
    values = ("application/json", "application/msgpack", "", "nan", "-1", "1e999", "\u0000", "[]", "null", "x" * 300)
    return {dice.choice(names): dice.choice(values) for _ in range(dice.randrange(5))}


#: The wire format of version 1: what a message looks like below the bus, times left out.
WIRE_1 = {
    "amb-id": "golden-1",
    "content-type": "application/json",
    "amb-priority": "urgent",
    "amb-sender": "writer",
    "amb-correlation-id": "corr",
    "amb-reply-to": "some.where",
    "amb-ttl": "600",
    "amb-trace-id": "0af7651916cd43dd8448eb211c80319c",
    "amb-metadata": '{"m": [1, null]}',
    "own": "headér",
}
TIMES_1 = {"amb-time", "amb-expires"}


@case("J6")
async def J6_wire_format(t: Target) -> None:
    """A message travels in the headers of wire format 1, and a recorded frame of version 1 is understood."""
    bus, seen = t.bus(), t.recorder()
    message = Message(
        t.topic("golden"), {"a": [1, "ü"]}, id="golden-1", headers={"own": "headér"}, metadata={"m": [1, None]},
        priority="urgent", sender="writer", correlation_id="corr", reply_to="some.where", ttl=600,
        trace_id="0af7651916cd43dd8448eb211c80319c", key="k",
    )  # fmt: skip
    async with t.connect() as connection, connection.open(t.source(t.topic("golden"))) as feed:
        await bus.publish(message)
        (raw,) = await t.receive_raw(feed, 1)
    times = {name: float(raw.headers.pop(name, "nan")) for name in TIMES_1}
    assert raw.headers == WIRE_1, f"on the wire: {raw.headers}"
    assert abs(times["amb-expires"] - times["amb-time"] / 1e9 - 600) < 0.01, f"times on the wire: {times}"
    assert (raw.body, raw.key, raw.topic) == ('{"a":[1,"ü"]}'.encode(), "k", t.topic("golden")), f"on the wire: {raw}"
    await bus.subscribe(t.topic("recorded"), seen)
    await t.send_raw(t.topic("recorded"), raw.body, {**WIRE_1, "amb-time": "1750000000500000000"})
    await seen.reaches(1, t.patience)
    got = seen.seen[0].message
    for name in (
        "id",
        "data",
        "headers",
        "metadata",
        "priority",
        "sender",
        "correlation_id",
        "reply_to",
        "ttl",
        "trace_id",
    ):
        assert getattr(got, name) == getattr(message, name), f"{name} of the recorded frame is {getattr(got, name)!r}"
    assert (
        got.timestamp == 1750000000.5
        and got.timestamp.isoformat() == datetime.fromtimestamp(1750000000.5, UTC).isoformat()
    )
