"""Bytes and headers of strangers: 10,000 of each kind give values or decode errors, and nothing else."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from amb_core import (
    AvroSerializer,
    DecodeError,
    InMemoryBroker,
    JsonSerializer,
    Message,
    MessageBus,
    MsgPackSerializer,
    ProtobufSerializer,
)
from amb_core._deliver import _is_past
from amb_core._message import priority_of, read_dead
from amb_core.broker import Incoming, Outgoing
from amb_core.serializer import Serializer
from amb_redis._wire import from_entry, from_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core._help import eventually

from ._golden import FOLDER, load

PROTOS = Path(__file__).parents[1] / "core" / "protos"
#: hypothesis makes the noise and finds the smallest case; each example is also a seed for mutations.
EXAMPLES, EACH = 500, 20
fuzz = settings(max_examples=EXAMPLES, derandomize=True)


class Event(msgspec.Struct):
    """What a handler may be annotated with."""

    agent_id: str
    count: int
    parts: list[dict[str, float]] = []


class Nested(msgspec.Struct):
    """What Avro's bytes can be abused for: lengths, counts, levels, and items without content."""

    agent_id: str
    count: int
    parts: list[dict[str, float]] = []
    inner: Nested | None = None
    nothing: list[None] = []


NESTED = {
    "type": "record",
    "name": "Nested",
    "fields": [
        {"name": "agent_id", "type": "string"},
        {"name": "count", "type": "long"},
        {"name": "parts", "type": {"type": "array", "items": {"type": "map", "values": "double"}}},
        {"name": "inner", "type": ["null", "Nested"]},
        {"name": "nothing", "type": {"type": "array", "items": "null"}},
    ],
}

VALUE = {
    "agent_id": "Zoë",
    "count": 2**40,
    "parts": [{"a": 1.5, "b": -2e300}, {}],
    "deep": [[[[None, True, "x" * 50]]]],
}


def mutated(valid: bytes, chance: random.Random) -> bytes:
    """`valid` with some bytes changed, taken out, doubled or cut off."""
    body = bytearray(valid)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(5):
            case 0:
                body[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del body[at : at + chance.randint(1, 8)]
            case 2:
                body[at:at] = body[at : at + chance.randint(1, 16)] * chance.randint(1, 40)
            case 3:
                body[at:at] = chance.choice(
                    [b"\xff" * 9, b"[" * 2000, b"\x81" * 2000, b"\x2a\x80\x01" * 200, b"1" * 5000]
                )
            case _:
                del body[at:]
    return bytes(body)


def check(decode: Callable[[bytes], object], noise: bytes, valid: bytes, seed: int) -> None:
    chance = random.Random(seed)
    for body in (noise, *(mutated(valid, chance) for _ in range(EACH - 1))):
        try:
            decode(body)
        except DecodeError as error:
            assert len(str(error)) < 2000


def serializer(name: str) -> tuple[Serializer, Any, list[Any]]:
    """The serializer, a value, and the types it is read as."""
    if name == "json":
        return JsonSerializer(), VALUE, [Any, Event]
    if name == "msgpack":
        return MsgPackSerializer(strict_map_key=True), VALUE, [Any, Event]
    if name == "avro":
        nested = Nested("ü" * 20, 2**40, [{"a": 1.5}, {}], Nested("in", 1), [None] * 3)
        return AvroSerializer(schemas={Nested: NESTED}), nested, [Any, Nested]
    protobuf = ProtobufSerializer(PROTOS)
    order: Any = protobuf.message_type("Order")
    lines = [{"item": "tea", "count": 2}, {"item": "ü" * 40}]
    value = order(
        id=2**60, lines=lines, by={"agent_id": "a", "metadata": {"k": "v"}}, part_of=order(id=1, part_of=order())
    )
    return protobuf, value, [Any, order]


@pytest.mark.parametrize("name", ["json", "msgpack", "protobuf", "avro"])
def test_ten_thousand_bodies_are_values_or_decode_errors(name: str) -> None:
    made, value, types = serializer(name)
    valid, content_type = made.encode(value)
    decoders = [made.decoder(type) for type in types]

    def decode(body: bytes) -> None:
        for decoder in decoders[:-1]:
            decoder(body, content_type)
        decoders[-1](body, content_type)

    @fuzz
    @given(st.binary(max_size=300), st.integers(0, 2**64))
    def run(noise: bytes, seed: int) -> None:
        check(decode, noise, valid, seed)

    run()


@pytest.mark.anyio
async def test_ten_thousand_messages_of_strangers_are_handled_or_dead_letters(
    broker: InMemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole messages, through a bus that goes on afterwards."""
    caplog.set_level(logging.CRITICAL, "amb")
    chance, handled, many = random.Random(7), list[tuple[object, ...]](), 10_000
    made = [serializer(name) for name in ("json", "msgpack", "protobuf")]
    valid = [each.encode(value) for each, value, _ in made]
    kinds = [kind for _, kind in valid] + ["application/cloudevents+json", "text/plain", "", "a" * 5000, "; proto=x"]

    def message(chance: random.Random) -> Outgoing:
        headers = {name: chance.choice(_ODD) for name in ("amb-time", "amb-metadata", "amb-priority", "traceparent")}
        body = mutated(chance.choice(valid)[0], chance)
        return Outgoing("strange", body, headers | {"amb-id": "x", "content-type": chance.choice(kinds)})

    async def handle(message: Message) -> None:
        handled.append((message.data, message.headers, message.metadata, message.timestamp))

    async with (
        MessageBus(broker, serializer=made[2][0], dead_letter_queue="failed") as bus,
        broker.connect() as stranger,
    ):
        await bus.subscribe("strange", handle, group="g")
        for _ in range(many // 100):
            batch = [message(chance) for _ in range(100)]
            await stranger.send(batch)
        await eventually(lambda: len(handled) + bus.stats.dead_lettered == many, "all of them are done with", 60)
        assert min(len(handled), bus.stats.dead_lettered) > many / 100
        await bus.publish("strange", "and on it goes")
        await eventually(lambda: handled[-1][0] == "and on it goes", "the bus goes on")


NAMES = sorted({name for path in FOLDER.iterdir() for name in load(path.stem).headers} | {"amb-dead-position", "x"})
_ODD = [
    "",
    "NaN",
    "-inf",
    "1e999",
    "9" * 5000,
    "1_0",
    "٣",
    "[" * 100_000,
    '{"a":' * 5000,
    "\ud800",
    "null",
    "-1",
    " 1 ",
    "\0",
]


def read(headers: dict[str, str]) -> None:
    """Everything the core reads in the headers of a delivery."""
    message = Message._delivered(Incoming("t", b"", headers, 1), None, None)
    assert isinstance(message.id, str) and isinstance(message.metadata, dict)
    assert message.timestamp >= 0 or message.timestamp < 0  # a number
    assert message.ttl is None or abs(message.ttl) < float("inf")
    assert message.headers.keys() <= headers.keys()
    assert 0 <= priority_of(headers) <= 5 and message.priority == priority_of(headers)
    assert message.dead == read_dead(headers)
    assert _is_past(headers.get("amb-expires", "")) in (True, False)


def test_ten_thousand_sets_of_headers_are_read() -> None:
    @fuzz
    @given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=40)), st.integers(0, 2**64))
    def run(noise: dict[str, str], seed: int) -> None:
        chance, valid = random.Random(seed), load("dead-letter").headers | load("full").headers
        read(dict(noise))
        for _ in range(EACH - 1):
            changed = {
                name: chance.choice([value, chance.choice(_ODD), value + chance.choice(_ODD)[:200]])
                for name, value in valid.items()
            }
            read(changed)

    run()


def test_ten_thousand_frames_and_entries_of_redis_are_read() -> None:
    frame = b'AMB1 {"headers":{"amb-id":"m-1","content-type":"application/json"},"key":"k"}\n{"id":7}'

    def parse(body: bytes) -> None:
        assert isinstance(from_frame(body).headers, dict)
        half = len(body) // 2
        assert isinstance(from_entry([b"body", body[:half], b"headers", body[half:]]).body, bytes)
        assert isinstance(from_entry([body[:half], body[half:]]).headers, dict)

    @fuzz
    @given(st.binary(max_size=300), st.integers(0, 2**64))
    def run(noise: bytes, seed: int) -> None:
        check(parse, noise, frame, seed)

    run()
