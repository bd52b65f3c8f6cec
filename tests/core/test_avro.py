"""Avro without a registry: typed on both sides, exact, and what is not valid asks for no more than it has."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import subprocess
import sys
import tracemalloc
import uuid
from pathlib import Path
from typing import Any, Literal

import fastavro
import msgspec
import pytest
from amb_core import (
    AvroSerializer,
    ConfigurationError,
    DecodeError,
    EncodeError,
    InMemoryBroker,
    JsonSerializer,
    Message,
    MessageBus,
)
from amb_core.serializer import Described, Schema

from tests.core._help import DLQ, Collector, dead_letters

PLAIN_AVRO = "application/avro"


class Colour(enum.Enum):
    RED = "RED"
    BLUE = "BLUE"


class Line(msgspec.Struct):
    sku: str
    count: int = 1


class Everything(msgspec.Struct):
    id: uuid.UUID
    total: decimal.Decimal
    at: datetime.datetime
    day: datetime.date
    lines: list[Line]
    raw: bytes
    kind: Literal["a", "b"] = "a"
    colour: Colour = Colour.BLUE
    first: Line | None = None
    note: str | None = None
    sizes: dict[str, float] = {}
    share: float = 0.5
    either: int | str = 3


@dataclasses.dataclass
class Task:
    id: int
    tags: list[str] = dataclasses.field(default_factory=list)


class Tree(msgspec.Struct):
    value: int
    below: list[Tree] = []


EVERYTHING = Everything(
    uuid.UUID(int=7), decimal.Decimal("1.50"), datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC),
    datetime.date(2026, 1, 2), [Line("tea"), Line("milk", 2)], b"\x00\xff", "b", Colour.RED, Line("first"), "ü",
    {"a": 1.5}, 1.0, "x",
)  # fmt: skip
TASK = {
    "type": "record",
    "name": "Task",
    "fields": [{"name": "id", "type": "long"}, {"name": "note", "type": ["null", "string"], "default": None}],
}


@pytest.fixture
def avro() -> AvroSerializer:
    return AvroSerializer()


@pytest.mark.parametrize(
    ("value", "type"),
    [
        (EVERYTHING, Everything),
        (Task(1, ["a"]), Task),
        (Tree(1, [Tree(2, [Tree(3)]), Tree(4)]), Tree),
        *((plain, Any) for plain in (None, True, -(2**63), 1.5, "ü", b"\x00")),
    ],
)
def test_what_is_written_is_read(avro: AvroSerializer, value: object, type: Any) -> None:
    body, content_type = avro.encode(value)
    assert avro.decoder(type)(body, content_type) == value
    # Another process has the class, and nothing else of the writer.
    assert AvroSerializer().decoder(type)(body, content_type) == value


def test_the_bytes_are_what_the_library_writes(avro: AvroSerializer, tmp_path: Path) -> None:
    schema = avro.schema_of(EVERYTHING)
    assert schema is not None and isinstance(avro, Described)
    (tmp_path / "schema.avsc").write_text(schema.text)
    parsed = fastavro.schema.load_schema(str(tmp_path / "schema.avsc"))
    (tmp_path / "body").write_bytes(avro.encode(EVERYTHING)[0])
    with (tmp_path / "body").open("rb") as stream:
        found: Any = fastavro.schemaless_reader(stream, parsed, None)
    assert (found["id"], found["at"], found["lines"][1]) == (EVERYTHING.id, EVERYTHING.at, {"sku": "milk", "count": 2})
    assert AvroSerializer(tmp_path / "schema.avsc").encode(found)[0] == avro.encode(EVERYTHING)[0]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"id": 1.5}, "Expected `int`"),
        ({"id": True}, "Expected `int`"),
        ({"id": 2**63}, "Expected `int`"),
        ({"id": "1"}, "Expected `int`"),
        ({"id": 1, "more": 2}, "more"),
        ({"note": "x"}, "missing required field `id`"),
        ({"id": 1, "note": 2}, "note"),
        ([1], "Expected `object`"),
        (Line("x"), "missing required field `id`|more fields"),
        (object(), "no form"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(value: object, problem: str) -> None:
    avro = AvroSerializer(schemas={Line: TASK, object: TASK, dict: TASK, list: TASK})
    with pytest.raises(EncodeError, match=problem):
        avro.encode(value)


def test_a_schema_that_msgspec_cannot_check_is_checked_all_the_same() -> None:
    leaf = {"type": "record", "name": "Leaf", "fields": [{"name": "n", "type": "long"}]}
    node = {"type": "record", "name": "Node", "fields": [{"name": "of", "type": ["Leaf", "Node", "null"]}]}
    avro = AvroSerializer(json.dumps({"type": "record", "name": "Top", "fields": [
        {"name": "leaf", "type": leaf}, {"name": "node", "type": node}]}))  # fmt: skip
    good = {"leaf": {"n": 1}, "node": {"of": {"of": {"n": 2}}}}
    assert avro.decoder(Any)(*avro.encode(good)) == good
    for bad in ({"leaf": {"n": 1.5}, "node": {"of": None}}, {"leaf": {"n": 1}, "node": {"of": {"of": {"n": True}}}}):
        with pytest.raises(EncodeError):
            avro.encode(bad)
    inner: dict[str, Any] = {"of": None}
    inner["of"] = inner
    with pytest.raises(EncodeError, match="deeper than 100"):
        avro.encode({"leaf": {"n": 1}, "node": inner})


class NoForm(msgspec.Struct):
    what: Any


def test_a_class_without_a_schema_says_what_to_do(avro: AvroSerializer) -> None:
    with pytest.raises(EncodeError, match=r"NoForm.*Avro has no form for Any.*schemas="):
        avro.encode(NoForm(1))
    with pytest.raises(EncodeError, match=r"dict does not say its Avro schema.*AvroSerializer\(schema=\.\.\.\)"):
        avro.encode({"a": 1})


@pytest.mark.parametrize(
    "schema", ["{", '{"type": "record"}', "nothing.avsc", {"type": "recrod", "name": "x"}, "Unknown"]
)
def test_a_bad_schema_is_a_bad_option(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="AvroSerializer: the schema cannot be used"):
        AvroSerializer(schema)


def test_a_schema_that_is_not_known_is_no_guess(avro: AvroSerializer) -> None:
    body, content_type = avro.encode(Line("x"))
    with pytest.raises(DecodeError, match="by an Avro schema that is not known here"):
        AvroSerializer().decoder(Any)(body, content_type)
    with pytest.raises(DecodeError, match="does not say its Avro schema"):
        AvroSerializer().decoder(Any)(body, PLAIN_AVRO)
    with pytest.raises(DecodeError, match="kept elsewhere"):
        AvroSerializer(TASK).decoder(Any)(body, f"{PLAIN_AVRO}; schema-id=4")
    # A foreign producer, whose schema was given.
    assert AvroSerializer(TASK).decoder(Any)(b"\x02\x00", PLAIN_AVRO) == {"id": 1, "note": None}


def test_readers_have_schemas_of_their_own() -> None:
    older = Schema("avro", json.dumps(TASK | {"fields": [{"name": "id", "type": "int"}]}))
    body = AvroSerializer().encode_as({"id": 4}, older)
    assert AvroSerializer(TASK).decoder_of(older, Any)(body) == {"id": 4, "note": None}
    assert AvroSerializer().decoder_of(older, Any)(body) == {"id": 4}
    assert AvroSerializer().decoder_of(older, Task)(body) == Task(4)
    with pytest.raises(DecodeError, match="Line"):
        AvroSerializer().decoder_of(older, Line)(body)
    with pytest.raises(DecodeError, match="cannot be read"):
        AvroSerializer().decoder_of(Schema("avro", "{"), Any)


def long(number: int) -> bytes:
    """As Avro writes it."""
    number, found = (number << 1) ^ (number >> 63), b""
    while number > 0x7F:
        found, number = found + bytes([number & 0x7F | 0x80]), number >> 7
    return found + bytes([number])


DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}
EMPTY = {"type": "record", "name": "Empty", "fields": []}
CHAIN = {"type": "record", "name": "Chain", "fields": [{"name": "next", "type": ["null", "Chain"]}]}


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        ("string", long(2**40) + b"x"),
        ("bytes", long(-1)),
        ({"type": "array", "items": "long"}, long(2**40) + b"\x02"),
        ({"type": "array", "items": "null"}, long(2**40) + b"\0"),
        ({"type": "array", "items": "null"}, (long(-9_999) + long(0)) * 100 + b"\0"),
        ({"type": "array", "items": EMPTY}, long(2**40) + b"\0"),
        ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, long(2**40) + b"\0"),
        ({"type": "map", "values": "null"}, long(2**40) + b"\0"),
        (CHAIN, long(1) * 1_000_000),
        (CHAIN, long(1) * 101 + long(0)),
        (DECIMAL, long(2_000_000) + b"\x7f" * 2_000_000),
        (["null", "string"], long(7)),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, long(3)),
        ("string", long(2) + b"\xff\xff"),
        ("long", b"\x02\x02"),
    ],
)
def test_hostile_bytes_cost_nothing(schema: Any, body: bytes) -> None:
    decode = AvroSerializer().decoder_of(Schema("avro", json.dumps(schema)), Any)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError) as caught:
            decode(body)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000 + 2 * len(body)
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 500


def test_a_body_that_is_too_long_is_refused_both_ways() -> None:
    short = AvroSerializer(max_length=10)
    with pytest.raises(EncodeError, match="max_length is 10"):
        short.encode("x" * 20)
    with pytest.raises(DecodeError, match="max_length is 10"):
        short.decoder(Any)(*AvroSerializer().encode("x" * 20))
    with pytest.raises(ConfigurationError, match="max_length"):
        AvroSerializer(max_length=0)


@pytest.mark.anyio
async def test_on_a_bus_objects_come_as_objects() -> None:
    typed, plain, other = list[Line](), Collector(), Collector()

    async def handle(line: Line) -> None:
        typed.append(line)

    broker = InMemoryBroker()
    async with MessageBus(broker, serializer="avro", dead_letter_queue=DLQ) as bus:
        await bus.subscribe("lines", handle)
        await bus.subscribe("lines", plain)
        await bus.subscribe("tasks", handle)

        @bus.responder("count")
        async def count(line: Line) -> int:
            return line.count

        dead = await dead_letters(bus)
        await bus.publish("lines", Line("tea", 2), headers={"h": "v"})
        await bus.publish_batch([Message(topic="lines", data=Line("milk"))])
        await bus.publish("tasks", Task(1))
        assert (await bus.request("count", Line("tea", 5))).data == 5
        await plain.wait(2)
        await dead.wait()
        await bus.subscribe("mixed", other)
        await bus.publish("mixed", 5)
        await other.wait()
    assert typed == [Line("tea", 2), Line("milk")] and plain.data[0] == {"sku": "tea", "count": 2}
    assert dead.messages[0].dead is not None and "Line" in dead.messages[0].dead.error
    assert JsonSerializer().encode(other.data) == (b"[5]", "application/json")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_naming_it_imports_nothing() -> None:
    assert run("import sys; from amb_core import AvroSerializer; print('fastavro' in sys.modules)") == "False"


@pytest.mark.parametrize(
    "use", ["AvroSerializer()", "MessageBus(serializer='avro')", "MessageBus().codec.decoder(object)(m)"]
)
def test_what_needs_it_says_how_to_get_it(use: str) -> None:
    code = (
        "import sys; sys.modules['fastavro'] = None\n"
        "from amb_core import AvroSerializer, MessageBus\n"
        "from amb_core.broker import Incoming\n"
        "m = Incoming('t', b'', {'content-type': 'application/avro; schema=0000000000000000'}, 1)\n"
        f"try: {use}\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    assert "pip install 'amb-core[avro]'" in run(code)
    assert run(code).startswith(("PluginError", "DecodeError"))


@pytest.mark.anyio
async def test_only_the_first_message_asks_whether_the_broker_keeps_schemas() -> None:
    seen = Collector()
    async with MessageBus(InMemoryBroker(), serializer=AvroSerializer()) as bus:
        await bus.subscribe("t", seen)
        asked = [bus.publisher.prepares]
        for line in (Line("a"), Line("b", 2)):
            await bus.publish("t", line)
            asked.append(bus.publisher.prepares)
    assert asked == [True, False, False]
    assert seen.data == [{"sku": "a", "count": 1}, {"sku": "b", "count": 2}]
