"""AMB's messages as bodies of SQS messages. Pure functions; the format is described for other languages in
``docs/brokers/sqs.md``."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode

import msgspec
from amb_core.broker import Outgoing
from amb_core.serializer import json_reader

__all__ = ["Content", "attributes", "from_body", "to_body"]

#: All that JSON leaves and SQS refuses.
_NOT_XML = re.compile("[\ufffe\uffff]")
#: What other programs' instrumentation looks for beside the body, and not in it.
_TRACE = ("traceparent", "tracestate")
_LONGEST = 512


class _Envelope(msgspec.Struct, omit_defaults=True):
    """The body of a message. Of `data` (JSON as it is) and `base64` (bytes) it has one."""

    amb: int
    topic: str
    headers: dict[str, str] = {}
    key: str | None = None
    not_before: float | None = msgspec.field(default=None, name="notBefore")
    attempts: int = 0
    base64: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Content(msgspec.Struct):
    """What a message body says."""

    #: None: a foreign message, whose body says nothing about itself.
    topic: str | None
    body: bytes
    headers: dict[str, str]
    key: str | None = None
    not_before: float | None = None
    #: Attempts made before this copy was stored.
    attempts: int = 0


_encode = msgspec.json.Encoder().encode
_read = json_reader(_Envelope)


def to_body(message: Outgoing, *, attempts: int = 0, not_before: float | None = None) -> str:
    """The text that carries the message: JSON as a part of it, everything else as base64."""
    envelope = _Envelope(1, message.topic, message.headers, message.key, not_before, attempts)
    if message.body:
        envelope.data = msgspec.Raw(message.body)
        text = _encode(envelope)
        if _is_json(text, message.body):
            return text.decode()
        envelope.data = msgspec.UNSET
    envelope.base64 = b64encode(message.body).decode()
    # These two are all that JSON leaves and SQS refuses; they are parts of strings here.
    return _NOT_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", _encode(envelope).decode())


def attributes(message: Outgoing) -> dict[str, str]:
    """The message attributes that repeat headers: they tell programs that are not AMB where its trace goes on."""
    found = ((name, message.headers.get(name, "")) for name in _TRACE)
    return {name: text for name, text in found if 0 < len(text) <= _LONGEST and text.isascii() and text.isprintable()}


def _is_json(text: bytes, body: bytes) -> bool:
    """Whether the body is in there unchanged, and in letters that SQS takes."""
    try:
        return not _NOT_XML.search(text.decode()) and (read := _read(text)) is not None and _body(read) == body
    except UnicodeDecodeError:
        return False


def _body(envelope: _Envelope) -> bytes | None:
    if envelope.base64 is None:
        return b"" if envelope.data is msgspec.UNSET else bytes(envelope.data)
    try:
        return b64decode(envelope.base64, validate=True)
    except ValueError:
        return None


def from_body(text: str) -> Content:
    """What the text says. One without the envelope is a foreign message: all of it is the body."""
    envelope = _read(text)
    if envelope is None or envelope.amb != 1 or (body := _body(envelope)) is None:
        return Content(None, text.encode(), {})
    return Content(envelope.topic, body, envelope.headers, envelope.key, envelope.not_before, envelope.attempts)
