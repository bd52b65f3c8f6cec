"""A message as a client sent it, and what the service knows of it beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec

from .codec import CodecError, Raw, Symbol, Timestamp, Ubyte, Uint, Ulong, decode, decode_raw_map, encode, encode_list

#: The message format of a batch: each of its data sections is an encoded message.
BATCH = 0x80013700
_HEADER, _ANNOTATIONS, _PROPERTIES, _APPLICATION, _DATA, _VALUE = 0x70, 0x72, 0x73, 0x74, 0x75, 0x77
_PROPERTY_NAMES = (
    "message_id", "user_id", "to", "subject", "reply_to", "correlation_id", "content_type", "content_encoding",
    "absolute_expiry_time", "creation_time", "group_id", "group_sequence", "reply_to_group_id",
)  # fmt: skip
_SCHEDULED = "x-opt-scheduled-enqueue-time"


class Content(msgspec.Struct, frozen=True):
    """What was sent. The parts that the service does not change are kept as the bytes they came in."""

    durable: bool | None
    priority: int | None
    #: How long it is of use, in seconds.
    ttl: float | None
    annotations: dict[str, bytes]
    properties: dict[str, object]
    application: dict[str, bytes]
    #: The properties, and everything behind the application properties.
    encoded_properties: bytes
    body: bytes
    #: All of it, as it came.
    encoded: bytes

    @property
    def message_id(self) -> str | None:
        """What duplicates have in common."""
        return _text(self.properties.get("message_id"))

    @property
    def session_id(self) -> str | None:
        """The session it belongs to."""
        return _text(self.properties.get("group_id"))

    @property
    def scheduled(self) -> float | None:
        """When it is to be enqueued, in seconds since 1970."""
        encoded = self.annotations.get(_SCHEDULED)
        when = decode(encoded)[0] if encoded else None
        return when / 1000 if isinstance(when, int) else None

    def application_value(self, name: str) -> object:
        """An application property, None if there is none of that name."""
        encoded = self.application.get(name)
        return decode(encoded)[0] if encoded else None


def parse(data: bytes) -> Content:
    """The message in the payload of a delivery. Raises: CodecError."""
    header: list[object] = []
    annotations: dict[str, bytes] = {}
    application: dict[str, bytes] = {}
    properties: list[object] = []
    encoded_properties = b""
    pos = 0
    while pos < len(data):
        start = pos
        code, pos = _section(data, pos)
        if code >= _DATA:
            pos = start
            break
        if code in (_ANNOTATIONS, _APPLICATION):
            entries = decode_raw_map(data, pos)
            _, pos = decode(data, pos)
            annotations, application = (entries, application) if code == _ANNOTATIONS else (annotations, entries)
            continue
        value, pos = decode(data, pos)
        if code == _HEADER:
            header = cast("list[object]", value)
        elif code == _PROPERTIES:
            properties, encoded_properties = cast("list[object]", value), data[start:pos]
    durable, priority, ttl = (*header, None, None, None)[:3]
    return Content(
        cast("bool | None", durable), cast("int | None", priority), ttl / 1000 if isinstance(ttl, int) else None,
        annotations, dict(zip(_PROPERTY_NAMES, properties, strict=False)), application, encoded_properties, data[pos:],
        data,
    )  # fmt: skip


def parse_all(message_format: int | None, data: bytes) -> list[Content]:
    """The messages in the payload of a delivery, which may be a batch. Raises: CodecError."""
    if message_format != BATCH:
        return [parse(data)]
    found = []
    pos = 0
    while pos < len(data):
        code, pos = _section(data, pos)
        value, pos = decode(data, pos)
        if code == _DATA:
            found.append(parse(cast(bytes, value)))
    return found


def body_of(content: Content) -> object:
    """The value that a message of requests carries."""
    if not content.body:
        return None
    _, pos = _section(content.body, 0)
    return decode(content.body, pos)[0]


def compose(
    content: Content, delivery_count: int, annotations: Mapping[str, object], extra: Mapping[str, str]
) -> bytes:
    """The payload of a delivery: what was sent, with the service's own annotations and application properties."""
    ttl = None if content.ttl is None else Uint(min(round(content.ttl * 1000), 2**32 - 1))
    priority = None if content.priority is None else Ubyte(content.priority)
    parts = [_DESCRIBED_HEADER, encode([content.durable, priority, ttl, None, Uint(delivery_count)])]
    parts += [_DESCRIBED_ANNOTATIONS, _merged(content.annotations, annotations), content.encoded_properties]
    if content.application or extra:
        parts += [_DESCRIBED_APPLICATION, _merged(content.application, extra, key=str)]
    parts.append(content.body)
    return b"".join(parts)


def response(application: dict[str, object], correlation_id: object, body: object) -> bytes:
    """The payload of an answer to a request."""
    # A number that names a message is an unsigned one.
    named = Ulong(correlation_id) if isinstance(correlation_id, int) else correlation_id
    properties = encode_list([b"\x40"] * 5 + [encode(named)])
    return b"".join((
        b"\x00\x53\x73", properties, _DESCRIBED_APPLICATION, encode(dict(application)), b"\x00\x53\x77", encode(body),
    ))  # fmt: skip


def milliseconds(seconds: float) -> Timestamp:
    """A moment as AMQP writes it."""
    return Timestamp(round(seconds * 1000))


def _merged(raw: Mapping[str, bytes], own: Mapping[str, object], key: type[str] = Symbol) -> bytes:
    entries: dict[object, object] = {key(name): Raw(value) for name, value in raw.items() if name not in own}
    entries.update((key(name), value) for name, value in own.items())
    return encode(entries)


def _section(data: bytes, pos: int) -> tuple[int, int]:
    if data[pos] != 0:
        raise CodecError(f"no section of a message at byte {pos}")
    code, pos = decode(data, pos + 1)
    return cast(int, code), pos


def _text(value: object) -> str | None:
    return None if value is None else str(value)


_DESCRIBED_HEADER, _DESCRIBED_ANNOTATIONS, _DESCRIBED_APPLICATION = (
    b"\x00" + encode(Ulong(code)) for code in (_HEADER, _ANNOTATIONS, _APPLICATION)
)
