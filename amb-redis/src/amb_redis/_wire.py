"""AMB's values as Redis keys, stream entries and pub/sub frames. Pure functions; the format is
described for other languages in ``docs/wire-format``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

import msgspec
from amb_core.broker import Outgoing, is_inbox
from amb_core.lanes import is_express
from amb_core.serializer import json_reader

__all__ = [
    "EXPRESS",
    "NORMAL",
    "Entry",
    "Names",
    "entry_fields",
    "from_entry",
    "from_frame",
    "lane_of",
    "to_frame",
]

NORMAL, EXPRESS = b"s", b"x"
_FRAME = b"AMB1 "
_encode = msgspec.json.Encoder().encode
_headers = json_reader(dict[str, str])


def lane_of(priority: int) -> bytes:
    """The stream that carries the priority: CRITICAL, URGENT and HIGH have the express one."""
    return EXPRESS if is_express(priority) else NORMAL


class Names:
    """Keys and channels under one prefix. Topics come back out of them exactly."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.topics = f"{prefix}:{{topics}}".encode()
        self.bell = f"{prefix}:{{topics}}:new".encode()
        self.groups = f"{prefix}:{{topics}}:groups".encode()
        self._channel = f"{prefix}:ch:".encode()
        self._inbox = f"{prefix}:in:".encode()

    def base(self, topic: str) -> bytes:
        """What all keys of the topic begin with. The braces make them share a cluster slot, so
        braces in the topic must not end them early."""
        safe = topic.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        return f"{self.prefix}:{{{safe}}}:".encode()

    def topic(self, key: bytes) -> str:
        """The topic of a key."""
        return unquote(key.decode()[len(self.prefix) + 2 :].partition("}:")[0])

    def group(self, group: str, pattern: str) -> str:
        """The group on the server: equal names on different patterns are different groups."""
        return f"{group.replace('%', '%25').replace('@', '%40')}@{pattern}"

    def channel(self, topic: str) -> bytes:
        """The pub/sub channel of a topic. Inboxes are apart, so that ``#`` does not read them."""
        return (self._inbox if is_inbox(topic) else self._channel) + topic.encode()

    def glob(self, pattern: str) -> bytes:
        """A glob that matches the channels of all topics the pattern matches, and more."""
        words = [{"*": "*", "#": "#"}.get(w, re.sub(r"([?*\[\]\\^])", r"\\\1", w)) for w in pattern.split(".")]
        text = re.sub(r"(?:\.?#)+\.?", "*", ".".join(words)) if "#" in words else ".".join(words)
        return re.sub(rb"([?*\[\]\\^])", rb"\\\1", self._channel) + text.encode()

    def from_channel(self, channel: bytes) -> str:
        """The topic of a channel."""
        return channel[len(self._channel) :].decode(errors="replace")


class Entry(msgspec.Struct):
    """What a stream entry says."""

    body: bytes
    headers: dict[str, str]
    key: str | None = None
    #: Attempts made before this entry was written, and where it was first.
    base: int = 0
    position: str | None = None


def entry_fields(message: Outgoing) -> tuple[bytes | str, ...]:
    """The fields of the entry that carries the message."""
    fields = (b"body", message.body, b"headers", _encode(message.headers))
    return fields if message.key is None else (*fields, b"key", message.key)


def from_entry(fields: Sequence[bytes], again: bool = False) -> Entry:
    """What the fields say. Whatever a foreign producer has added becomes a header.

    `again`: the entry is from a group's own stream, where attempt and position come last."""
    plain = len(fields) == 4 and fields[0] == b"body" and fields[2] == b"headers"
    if plain and (ours := _headers(fields[3])) is not None:
        return Entry(fields[1], ours)
    base, position, end = 0, None, len(fields)
    if again:
        base, position, end = int(fields[-3]) - 1, fields[-1].decode(), end - 4
    body, key, headers = b"", None, dict[str, str]()
    for name, value in zip(fields[0:end:2], fields[1:end:2], strict=False):
        if name == b"body":
            body = value
        elif name == b"key":
            key = _text(value)
        elif name == b"headers":
            found = _headers(value)
            headers |= {"headers": _text(value)} if found is None else found
        else:
            headers[_text(name)] = _text(value)
    return Entry(body, headers, key, base, position)


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


class _Frame(msgspec.Struct, omit_defaults=True):
    headers: dict[str, str] = {}
    key: str | None = None


_frame = json_reader(_Frame)


def to_frame(message: Outgoing) -> bytes:
    """``AMB1 {"headers":{…},"key":"…"}``, a line feed, the body."""
    return b"".join((_FRAME, _encode(_Frame(message.headers, message.key)), b"\n", message.body))


def from_frame(data: bytes) -> Entry:
    """What a frame says. One without the envelope is a foreign message: all of it is the body."""
    if data.startswith(_FRAME):
        head, found, body = data[len(_FRAME) :].partition(b"\n")
        if found and (frame := _frame(head)) is not None:
            return Entry(body, frame.headers, frame.key)
    return Entry(data, {})
