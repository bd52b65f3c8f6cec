"""Which schema a body has, and what it begins with: one byte 0, four of the schema's id, and for protobuf which of
its messages. Everything is asked once, whoever wants to know it meanwhile."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import msgspec
from amb_core.broker import Frame, Framed, Incoming
from amb_core.errors import AmbError, EncodeError, IncompatibleSchema, NotFound
from amb_core.serializer import Schema

from ._wire import INBOXES, Names

if TYPE_CHECKING:
    from ._registry import Registry
    from .broker import KafkaBroker

__all__ = ["Schemas"]

logger = logging.getLogger("amb.kafka")
T = TypeVar("T")

#: So much is remembered of each kind.
_MOST = 1000
#: Seconds until the latest schema of a subject is asked for again.
_LATEST = 60.0
#: Seconds in which an id that the registry does not know is not asked for again.
_UNKNOWN = 5.0
#: A feed asks for so many seconds before it says that it has nothing; so often it says why.
_PATIENCE, _PAUSE, _REPEAT = 3.0, 0.5, 30.0
#: Content types that other programs write for a framed body, if they write any.
_FRAMED = {
    "application/avro", "avro/binary", "application/vnd.apache.avro+binary", "application/protobuf",
    "application/x-protobuf", "application/vnd.google.protobuf",
}  # fmt: skip
#: Messages within messages within messages.
_DEEPEST = 100
_NOT_FRAMED = "the payload does not begin with a 0 and the id of a schema, as the schema registry's clients write it"


class _Turn(msgspec.Struct):
    """Somebody asks, the others wait. Neither a value nor an error: who asked was cancelled."""

    done: anyio.Event
    value: object = None
    error: AmbError | None = None


class Schemas:
    """What is known of a registry."""

    def __init__(self, options: KafkaBroker, names: Names, registry: Registry) -> None:
        self._mode, self._subjects = options.schema_registry_mode, options.schema_registry_subjects
        self._names, self._registry = names, registry
        self._frames: OrderedDict[Hashable, tuple[Frame, float]] = OrderedDict()
        self._read: OrderedDict[int, Schema] = OrderedDict()
        self._unknown: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self._turns: dict[Hashable, _Turn] = {}
        self._said = float("-inf")
        #: What is wrong with the registry, for people.
        self.problem = ""

    # --- writing

    async def frame(self, topic: str, format: str, schema: Schema | None) -> Frame:
        """See `amb_core.broker.KeepsSchemas.frame`."""
        name = self._names.name(topic)
        key = (name, format if schema is None else schema)
        found = self._frames.get(key)
        if found is not None and found[1] > time.monotonic():
            return found[0]
        frame = await self._once(key, lambda: self._ask_frame(name, topic, format, schema))
        lasts = float("inf") if schema is not None and self._mode != "latest" else time.monotonic() + _LATEST
        _remember(self._frames, key, (frame, lasts))
        return frame

    async def _ask_frame(self, name: str, topic: str, format: str, schema: Schema | None) -> Frame:
        subject = self._subject(name, topic, schema)
        if schema is None or self._mode == "latest":
            number, latest = await self._latest(subject)
            if latest.format != format:
                raise IncompatibleSchema(
                    f"the latest schema of the subject {subject!r} is in the format {latest.format}, not {format}: "
                    f"publish with that serializer, or give the topic another name"
                )
            known = ("", ()) if schema is None else (schema.name, schema.path)
            schema = msgspec.structs.replace(latest, name=known[0], path=known[1])
        elif self._mode == "register":
            number = await self._registry.register(subject, schema)
        else:
            try:
                number, _ = await self._registry.find(subject, schema)
            except NotFound as error:
                raise NotFound(f"{error}, or set schema_registry_mode='register'") from error
        prefix = b"\0" + number.to_bytes(4, "big") + (_indexes(schema.path) if format == "protobuf" else b"")
        return Frame(prefix, schema, str(number))

    async def _latest(self, subject: str) -> tuple[int, Schema]:
        try:
            return await self._registry.latest(subject)
        except NotFound as error:
            raise NotFound(
                f"{error}, or publish an object of a class that has a schema, such as a msgspec Struct"
            ) from error

    def _subject(self, name: str, topic: str, schema: Schema | None) -> str:
        # Replies of all kinds come to the same Kafka topic.
        style = "topic-record" if name == INBOXES and self._subjects == "topic" else self._subjects
        if style == "topic":
            return f"{name}-value"
        if schema is None or not schema.name:
            raise EncodeError(
                f"a payload for {topic!r} must say its schema, since subjects are named after it: publish an object "
                "of a class that has one"
            )
        return schema.name if style == "record" else f"{name}-{schema.name}"

    # --- reading

    async def describe(self, batch: Sequence[Incoming]) -> bool:
        """Set ``Incoming.framed`` on each. False: the registry could not say, try again. It has waited a little."""
        try:
            with anyio.fail_after(_PATIENCE):
                for incoming in batch:
                    await self.look_up(incoming)
        except (AmbError, TimeoutError) as error:
            self.problem = str(error) or "it does not answer in time"
            if time.monotonic() > self._said + _REPEAT:
                self._said = time.monotonic()
                logger.warning("%d messages of %r wait for the schema registry: %s", len(batch), batch[0].topic,
                               self.problem)  # fmt: skip
            await anyio.sleep(_PAUSE)
            return False
        if self.problem:
            self.problem, self._said = "", float("-inf")
        return True

    async def look_up(self, incoming: Incoming) -> None:
        """Set ``Incoming.framed``. Raises: AmbError, if the registry could not be asked."""
        content_type, body = incoming.headers.get("content-type"), incoming.body
        if content_type is not None and content_type not in _FRAMED and "schema-id" not in content_type:
            return
        if len(body) < 5 or body[0]:
            incoming.framed = Framed(None, 0, _NOT_FRAMED)
            return
        number = int.from_bytes(body[1:5], "big")
        schema = self._read.get(number) or await self._schema(number)
        if schema is None:
            incoming.framed = Framed(None, 0, self._unknown[number][0])
        elif schema.format == "protobuf":
            incoming.framed = _pointing(schema, body)
        else:
            incoming.framed = Framed(schema, 5)

    async def _schema(self, number: int) -> Schema | None:
        unknown = self._unknown.get(number)
        if unknown is not None and unknown[1] > time.monotonic():
            return None
        try:
            schema = await self._once(number, lambda: self._registry.by_id(number))
        except NotFound as error:
            _remember(self._unknown, number, (str(error), time.monotonic() + _UNKNOWN))
            return None
        _remember(self._read, number, schema)
        return schema

    async def _once(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` returns; while somebody asks the same, what that one is told."""
        while (turn := self._turns.get(key)) is not None:
            await turn.done.wait()
            if turn.error is not None:
                raise type(turn.error)(*turn.error.args) from turn.error
            if turn.value is not None:
                return cast(T, turn.value)
        turn = self._turns[key] = _Turn(anyio.Event())
        try:
            value = await ask()
            turn.value = value
            return value
        except AmbError as error:
            turn.error = error
            raise
        finally:
            del self._turns[key]
            turn.done.set()


def _remember(known: OrderedDict[Any, Any], key: Hashable, value: object) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > _MOST:
        known.popitem(last=False)


def _indexes(path: Sequence[int]) -> bytes:
    """Which message of the file it is; the first of all in one byte."""
    if tuple(path) in ((), (0,)):
        return b"\0"
    return b"".join(_varint(number) for number in (len(path), *path))


def _varint(number: int) -> bytes:
    found, number = b"", number << 1
    while number > 0x7F:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def _pointing(schema: Schema, body: bytes) -> Framed:
    try:
        count, at = _number(body, 5)
        if not 0 <= count <= _DEEPEST:
            raise ValueError
        path = []
        for _ in range(count):
            index, at = _number(body, at)
            path.append(index)
    except (IndexError, ValueError):
        return Framed(None, 0, "the payload does not say which message of its protobuf schema it is")
    return Framed(msgspec.structs.replace(schema, path=tuple(path) or (0,)), at)


def _number(body: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends. Raises: IndexError, ValueError."""
    found = 0
    for shift in range(0, 35, 7):
        byte = body[at]
        at += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (found >> 1) ^ -(found & 1), at
    raise ValueError
