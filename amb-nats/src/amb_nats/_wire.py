"""AMB's values as NATS subjects and headers. Pure functions; the format is described for other languages in
``docs/brokers/nats.md``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

from amb_core.broker import Outgoing, is_inbox
from amb_core.errors import MessageTooLarge
from amb_core.serializer import json_reader

__all__ = [
    "NANO",
    "NOT_BEFORE",
    "Names",
    "durable",
    "from_headers",
    "message_id",
    "to_headers",
    "too_large",
]

#: Nanoseconds, in which NATS counts time.
NANO = 1_000_000_000
#: AMB headers that exist only on NATS: the ordering key, headers that NATS cannot carry as they are (a JSON object),
#: and the time before which a message is not delivered.
KEY, ODD, NOT_BEFORE = "amb-key", "amb-headers", "amb-not-before"
#: Headers that make the server do something. AMB sets them itself; a user's of that name travels in `ODD`.
_SERVER = "nats-"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ESCAPED = re.compile(r"%(25|3E|24|5F)")
_read = json_reader(dict[str, str])


class Names:
    """Topics as subjects below a prefix, and back. A subject is the topic itself, but for what NATS reads as a
    wildcard or as its own: ``%``, ``>``, and a ``$`` or ``_INBOX`` at the very beginning are escaped as in URLs."""

    def __init__(self, prefix: str, inbox_prefix: str) -> None:
        self._prefix = f"{prefix}." if prefix else ""
        # What `>` receives beside the topics: the server's API, and replies to others.
        self._private = ("$", f"{inbox_prefix}.")
        self.subject = lru_cache(maxsize=4096)(self._subject)
        self.topic = lru_cache(maxsize=4096)(self._topic)

    def _subject(self, name: str) -> str:
        escaped = name.replace("%", "%25").replace(">", "%3E")
        if escaped.startswith("$"):
            escaped = "%24" + escaped[1:]
        elif escaped.startswith("_INBOX"):
            escaped = "%5F" + escaped[1:]
        return escaped if is_inbox(name) else self._prefix + escaped

    def _topic(self, native: str) -> str | None:
        """None: NATS's own business."""
        if native.startswith(self._private):
            return None
        native = native.removeprefix(self._prefix)
        return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), native) if "%" in native else native

    def filters(self, pattern: str) -> list[str]:
        """Subjects that no two of match the same, and that match what the pattern matches, and more.

        ``>`` needs at least one word, ``#`` none: so ``a.#`` is ``a`` and ``a.>``."""
        words = pattern.split(".")
        if "#" not in words:
            return [self.subject(pattern)]
        head = words[: words.index("#")]
        if not head:
            return [f"{self._prefix}>"]
        above = self.subject(".".join(head))
        return [above, f"{above}.>"] if all(word == "#" for word in words[len(head) :]) else [f"{above}.>"]


def durable(group: str, pattern: str) -> str:
    """The name of a group's consumer: equal names on different patterns are different groups."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", group)[:40]
    return f"{readable}-{_digest(group, pattern)}"


def message_id(message: Outgoing) -> str | None:
    """What the server knows a second publish by. None for dead letters and for what is put back from them: they
    have the id of the original and are another message."""
    id = message.headers.get("amb-id")
    if id is None or "amb-dead-topic" in message.headers or "amb-for" in message.headers:
        return None
    return _digest(id, message.topic)


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


def to_headers(message: Outgoing, extra: Mapping[str, str] | None = None) -> bytes:
    """The block of headers: AMB's and the user's as they are where NATS can carry them, the rest as JSON; `extra`."""
    headers, odd = message.headers, dict[str, str]()
    values = "".join(headers.values())
    if " " in values or not _fits(values) or not _carries(tuple(headers)):  # nearly never, and one look instead of many
        odd = {name: value for name, value in headers.items() if not (_carried(name) and _fits(value))}
    lines = ["NATS/1.0\r\n", *[f"{name}: {value}\r\n" for name, value in headers.items() if name not in odd]]
    if (key := message.key) is not None:
        if _fits(key):
            lines.append(f"{KEY}: {key}\r\n")
        else:
            odd[KEY] = key
    if odd:
        lines.append(f"{ODD}: {json.dumps(odd)}\r\n")
    for name, value in (extra or {}).items():
        lines.append(f"{name}: {value}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode()


def _fits(text: str) -> bool:
    """NATS can carry it as the value of a header."""
    return text.isascii() and text.isprintable() and text.strip() == text


@lru_cache(maxsize=4096)
def _carried(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name != ODD and _ours(name)


@lru_cache(maxsize=4096)
def _ours(name: str) -> bool:
    return not name.lower().startswith(_SERVER)


@lru_cache(maxsize=4096)
def _carries(names: tuple[str, ...]) -> bool:
    return all(map(_carried, names))


def too_large(message: Outgoing, headers: bytes, limit: int) -> MessageTooLarge | None:
    """The error, if the message with these headers has more bytes than the server takes."""
    size = len(message.body) + len(headers)
    if size <= limit:
        return None
    return MessageTooLarge(
        f"the message for {message.topic!r} has {size} bytes with its headers; the server takes {limit}: "
        "raise its max_payload or send less"
    )


def from_headers(native: Mapping[str, str] | None) -> tuple[dict[str, str], str | None]:
    """Headers and key of a message. A foreign message's headers come as they are."""
    if not native:
        return {}, None
    headers = {name: value for name, value in native.items() if _ours(name)} if "amb-id" in native else dict(native)
    if ODD in headers and (odd := _read(headers[ODD])) is not None:
        headers |= odd
        del headers[ODD]
    return headers, headers.pop(KEY, None)
