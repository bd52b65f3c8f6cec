"""AMB's values as Kafka topics and records. Pure functions; no client library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import msgspec
from amb_core.broker import Outgoing, Source, is_inbox
from amb_core.topics import compile_pattern, is_pattern

__all__ = [
    "ELECTIONS",
    "INBOXES",
    "Entry",
    "Headers",
    "Names",
    "group_of",
    "is_name",
    "later",
    "read",
    "write",
]

Headers = Sequence[tuple[str, bytes]]

#: The Kafka topic of all reply addresses. A bus reads the one partition that its address is in.
INBOXES = "_amb.inbox"
#: Who leads what.
ELECTIONS = "_amb.elections"
#: What the names of AMB's own Kafka topics begin with. No subscription with wildcards reads them.
_PRIVATE = "_amb."
_RETRIES = "_amb.retry."
_LONGEST = 249
#: So many names are not taken apart twice.
_REMEMBERED = 10_000
#: Kafka's names have fewer characters than topics: the others are ``_-`` and two hexadecimal digits a byte.
_ESCAPE = re.compile(rb"_(?=-)|[^A-Za-z0-9._-]")
_ESCAPED = re.compile(rb"_-([0-9A-F]{2})")
#: The names of topics that would be too long. What they carry is in a header.
_HASHED = "_-h."

# Headers of our own, beside what the core has put into the message.
_TOPIC, _DUE, _ATTEMPT, _PLACE, _KEYLESS, _HELD, _NOTE = (
    "amb-kafka-topic", "amb-kafka-due", "amb-kafka-attempt", "amb-kafka-position", "amb-kafka-keyless",
    "amb-kafka-held", "amb-kafka-note",
)  # fmt: skip
_OWN = {_TOPIC, _DUE, _ATTEMPT, _PLACE, _KEYLESS, _HELD, _NOTE}
_TRACE = ("traceparent", "tracestate")


def is_name(name: str) -> bool:
    """Whether Kafka takes this as the name of a topic, and AMB does not use it itself."""
    legal = re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name) is not None
    return legal and name not in (".", "..") and not name.startswith((_PRIVATE, "__"))


class Names:
    """Which Kafka topics carry which AMB topics."""

    def __init__(self, families: Mapping[str, str]) -> None:
        self._families = [(compile_pattern(pattern), pattern, name) for pattern, name in families.items()]
        self._mapped = {name for _, _, name in self._families}

    def name(self, topic: str) -> str:
        """The Kafka topic that carries the AMB topic."""
        if is_inbox(topic):
            return INBOXES
        for matches, _, name in self._families:
            if matches(topic):
                return name
        return _name(topic)

    def is_shared(self, name: str) -> bool:
        """Whether the Kafka topic may carry more than one AMB topic."""
        return name in self._mapped or name.startswith((_HASHED, _PRIVATE))

    def read_by(self, pattern: str, known: Iterable[str]) -> set[str]:
        """The Kafka topics that can hold what the pattern matches, and perhaps more."""
        if not is_pattern(pattern):
            return {self.name(pattern)}
        matches = compile_pattern(pattern)
        found = {name for name in self._mapped if name in known}
        for name in known:
            if name.startswith(_HASHED) or (not name.startswith((_PRIVATE, "__")) and matches(_topic(name))):
                found.add(name)
        return found

    def topic(self, name: str, key: bytes | None, headers: Mapping[str, str]) -> str:
        """The AMB topic of a record."""
        if (topic := headers.get(_TOPIC)) is not None:
            return topic
        if name in self._mapped:
            # From a foreign producer: its key may say it, or the family is one topic.
            text = key.decode(errors="replace") if key else ""
            for matches, pattern, mapped in self._families:
                if mapped == name and (matches(text) or not is_pattern(pattern)):
                    return text if matches(text) else pattern
        return _topic(name)


def group_of(source: Source) -> tuple[str, str]:
    """The consumer group of a source, and the Kafka topic of its retries."""
    group = f"{source.group}@{source.pattern}"
    digest = hashlib.sha256(group.encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9-]", "-", source.group or "")[:64]
    return group, f"{_RETRIES}{readable}.{digest}"


@lru_cache(_REMEMBERED)
def _name(topic: str) -> str:
    name = _ESCAPE.sub(lambda found: b"_-%02X" % found[0][0], topic.encode()).decode()
    if name in (".", "..") or len(name) > _LONGEST:
        return f"{_HASHED}{hashlib.sha256(topic.encode()).hexdigest()}"
    return name


@lru_cache(_REMEMBERED)
def _topic(name: str) -> str:
    raw = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), name.encode())
    return raw.decode(errors="replace")


class Entry(msgspec.Struct):
    """What a record says."""

    topic: str
    headers: dict[str, str]
    key: str | None
    attempt: int = 1
    #: When it may be handed out; 0: at once.
    due: float = 0.0
    #: Where it was first.
    position: str | None = None
    #: Under which id somebody works on it; see `_holds`.
    held: str | None = None
    #: What came of that: ``done`` or ``back``.
    note: str | None = None


def write(message: Outgoing, shared: bool) -> tuple[bytes | None, list[tuple[str, bytes]]]:
    """The key and the headers of the record that carries the message."""
    headers = [(name, value.encode()) for name, value in message.headers.items()]
    key = None if message.key is None else message.key.encode()
    if shared:
        headers.append((_TOPIC, message.topic.encode()))
        if key is None:
            # What belongs to one topic stays together, and other programs see which topic it is.
            key = message.topic.encode()
            headers.append((_KEYLESS, b"1"))
    if message.not_before is not None:
        headers.append((_DUE, repr(message.not_before).encode()))
    return key, headers


def read(names: Names, name: str, key: bytes | None, headers: Headers) -> Entry:
    """What a record says. One without AMB's headers is a message from a foreign producer."""
    texts = {header: value.decode(errors="replace") for header, value in headers if value is not None}
    if len(texts) < len(headers) and "amb-id" in texts:
        # An instrumented client below AMB adds the context of its own span, which is in another trace.
        traced = ((header, value) for header, value in reversed(headers) if header in _TRACE and value)
        texts |= {header: value.decode(errors="replace") for header, value in traced}
    topic = names.topic(name, key, texts)
    text = None if key is None or _KEYLESS in texts else key.decode(errors="replace")
    if _OWN.isdisjoint(texts):
        return Entry(topic, texts, text)
    due, attempt, position = texts.get(_DUE), texts.get(_ATTEMPT), texts.get(_PLACE)
    held, note = texts.get(_HELD), texts.get(_NOTE)
    for header in _OWN:
        texts.pop(header, None)
    return Entry(topic, texts, text, int(attempt or 1), float(due or 0), position, held, note)


def later(
    headers: Headers, topic: str, due: float, attempt: int, position: str, held: str | None = None
) -> list[tuple[str, bytes]]:
    """The headers of the copy of a record that a group is to get later, or holds under an id."""
    own = {_TOPIC: topic, _DUE: repr(due), _ATTEMPT: str(attempt), _PLACE: position}
    if held is not None:
        own[_HELD] = held
    kept = [(name, value) for name, value in headers if name not in own and name != _HELD]
    return [*kept, *((name, text.encode()) for name, text in own.items())]


def noted(held: str, note: str) -> list[tuple[str, bytes]]:
    """The headers of the record that says what came of a copy that was held."""
    return [(_HELD, held.encode()), (_NOTE, note.encode())]
