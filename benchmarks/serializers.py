"""AMB's serializers against the libraries they are made of, used directly, as ratios.

    python -m benchmarks.serializers [--quick] [--rounds N] [--cpu] [--json FILE]

One process, no bus: ``encode`` against the library's own, made once, and a compiled decoder against the library's own.
Everybody has the same payload: a message of 100 bytes, as in the other benchmarks, and an event of about 2 kB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import orjson
from amb_core import AvroSerializer, JsonSerializer, MsgPackSerializer, ProtobufSerializer

from benchmarks._rounds import TIMES, Budget, Measured, arguments, finish, report

PROTOS = Path(__file__).with_name("_drivers") / "event.proto"
LIMIT = 1.2


class Step(msgspec.Struct):
    """What an agent did."""

    tool: str
    arguments: dict[str, str]
    seconds: float
    tokens: int


class Event(msgspec.Struct):
    """What an agent tells of a task."""

    agent_id: str
    event_type: str
    timestamp: int
    metadata: dict[str, str] = {}
    steps: list[Step] = []


SMALL = Event("agent-0001", "task_completed", 1_700_000_000, {"task": "t-17", "by": "planner"})
STEPS = [Step("search", {"query": f"quarter {n} results", "language": "en"}, n / 7, n * 311) for n in range(16)]
LARGE = Event("agent-0001", "task_completed", 1_700_000_000, {f"key-{n}": f"value of {n}" for n in range(16)}, STEPS)
_Call = Callable[[], object]


def cases() -> dict[str, dict[str, _Call]]:
    """For each figure, what everybody does."""
    found: dict[str, dict[str, _Call]] = {}
    for size, event in (("small", SMALL), ("large", LARGE)):
        plain = msgspec.to_builtins(event)
        for ours, theirs in ((JsonSerializer(), msgspec.json), (MsgPackSerializer(), msgspec.msgpack)):
            name: str = ours.name
            body, _ = ours.encode(event)
            found |= _pair(f"{name} {size}", ours, event, Event)
            found[f"{name} {size} encode"]["msgspec"] = _bind(theirs.Encoder().encode, event)
            found[f"{name} {size} decode"]["msgspec"] = _bind(theirs.Decoder(Event).decode, body)
        found |= _pair(f"json {size} plain", JsonSerializer(), plain, Any)
        found[f"json {size} plain encode"]["orjson"] = _bind(orjson.dumps, plain)
        found[f"json {size} plain decode"]["orjson"] = _bind(orjson.loads, orjson.dumps(plain))
        protobuf = ProtobufSerializer(PROTOS)
        cls: Any = protobuf.message_type("Event")
        message = cls(**plain)
        found |= _pair(f"protobuf {size}", protobuf, message, cls)
        found[f"protobuf {size} encode"]["protobuf"] = _bind(cls.SerializeToString, message)
        found[f"protobuf {size} decode"]["protobuf"] = _bind(cls.FromString, message.SerializeToString())
        found |= _avro(f"avro {size}", event, plain)
    return found


def _avro(name: str, event: Event, plain: dict[str, Any]) -> dict[str, dict[str, _Call]]:
    """Dicts on both sides: the library knows no classes."""
    text = AvroSerializer().schema_of(event)
    assert text is not None
    found = _pair(f"{name} plain", AvroSerializer(text.text), plain, Any) | _pair(name, AvroSerializer(), event, Event)
    schema: Any = fastavro.parse_schema(msgspec.json.decode(text.text))
    body, _ = AvroSerializer().encode(event)

    def write() -> bytes:
        stream = BytesIO()
        fastavro.schemaless_writer(stream, schema, plain)
        return stream.getvalue()

    found[f"{name} plain encode"]["fastavro"] = write
    found[f"{name} plain decode"]["fastavro"] = lambda: fastavro.schemaless_reader(BytesIO(body), schema, None)
    for verb in ("encode", "decode"):
        found[f"{name} {verb}"]["fastavro"] = found[f"{name} plain {verb}"]["fastavro"]
    return found


def _pair(name: str, serializer: Any, value: object, kind: Any) -> dict[str, dict[str, _Call]]:
    body, content_type = serializer.encode(value)
    decode = serializer.decoder(kind)
    return {
        f"{name} encode": {"amb": lambda: serializer.encode(value)},
        f"{name} decode": {"amb": lambda: decode(body, content_type)},
    }


def _bind(function: Callable[[Any], object], value: object) -> _Call:
    return lambda: function(value)


def measure(found: Mapping[str, Mapping[str, _Call]], count: int, rounds: int, clock: Callable[[], float]) -> Measured:
    """Seconds a call, for everybody in every round, the order turning; each the best of some runs."""
    measured: Measured = {}
    for number in range(rounds):
        for figure, calls in found.items():
            order = list(calls)[:: 1 if number % 2 else -1]
            best = dict.fromkeys(order, float("inf"))
            for _ in range(TIMES):
                for name in order:
                    best[name] = min(best[name], _seconds(calls[name], count, clock))
            for name, value in best.items():
                measured.setdefault(figure, {}).setdefault(name, []).append(value)
    return measured


def _seconds(call: _Call, count: int, clock: Callable[[], float]) -> float:
    begin = clock()
    for _ in range(count):
        call()
    return (clock() - begin) / count


BUDGETS = [
    Budget(f"{name}{plain}, {bytes_}, {verb}", f"{name} {size}{plain} {verb}", against, at_most=LIMIT)
    for name, plain, against in (
        ("json", "", "msgspec"),
        ("json", " plain", "orjson"),
        ("msgpack", "", "msgspec"),
        ("protobuf", "", "protobuf"),
        ("avro", " plain", "fastavro"),
    )
    for size, bytes_ in (("large", "2 kB"), ("small", "100 bytes"))
    for verb in ("encode", "decode")
]


def main() -> None:
    options = arguments("AMB's serializers against their libraries, as ratios")
    clock = time.process_time if options.cpu else time.perf_counter
    measured = measure(cases(), 300 if options.quick else 5_000, options.rounds, clock)
    finish(report("serializers", measured, BUDGETS, options), options.json)


if __name__ == "__main__":
    main()
