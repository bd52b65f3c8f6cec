"""AMB's values as NATS subjects and headers. Pure functions; the format is described for other languages in
``docs/brokers/nats.md``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

import msgspec
from amb_core.broker import INBOX_PREFIX, Outgoing
from amb_core.errors import MessageTooLarge

__all__ = [
    "NOT_BEFORE",
    "Names",
    "durable",
    "from_headers",
    "is_inbox",
    "message_id",
    "to_headers",
    "too_large",
]

#: AMB headers that exist only on NATS: the ordering key, headers that NATS cannot carry as they are (a JSON object),
#: and the time before which a message is not delivered.
KEY, ODD, NOT_BEFORE = "amb-key", "amb-headers", "amb-not-before"
#: Headers that make the server do something. AMB sets them itself; a user's of that name travels in `ODD`.
_SERVER = "nats-"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ESCAPED = re.compile(r"%(25|3E|24|5F)")
_decode = msgspec.json.Decoder(dict[str, str]).decode


def is_inbox(name: str) -> bool:
    """Whether the topic is a private reply address, which is never stored."""
    return name.startswith(INBOX_PREFIX)


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
    lines, odd = ["NATS/1.0\r\n"], dict[str, str]()
    for name, value in message.headers.items():
        if value.isascii() and value.isprintable() and value == value.strip() and _carried(name):
            lines.append(f"{name}: {value}\r\n")
        else:
            odd[name] = value
    if (key := message.key) is not None:
        if key.isascii() and key.isprintable() and key == key.strip():
            lines.append(f"{KEY}: {key}\r\n")
        else:
            odd[KEY] = key
    if odd:
        lines.append(f"{ODD}: {json.dumps(odd)}\r\n")
    for name, value in (extra or {}).items():
        lines.append(f"{name}: {value}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode()


@lru_cache(maxsize=4096)
def _carried(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name != ODD and not name.lower().startswith(_SERVER)


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
    headers = dict(native)
    if "amb-id" in headers:
        for name in [name for name in headers if name.lower().startswith(_SERVER)]:
            del headers[name]
    if ODD in headers:
        try:
            headers.update(_decode(headers[ODD]))
            del headers[ODD]
        except msgspec.MsgspecError:
            pass
    return headers, headers.pop(KEY, None)
