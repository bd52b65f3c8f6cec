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
    "durable",
    "filters",
    "from_headers",
    "is_inbox",
    "is_private",
    "message_id",
    "roots",
    "subject",
    "to_headers",
    "too_large",
    "topic",
]

#: AMB headers that exist only on NATS: the ordering key, headers that NATS cannot carry as they are (a JSON object),
#: and the time before which a message is not delivered.
KEY, ODD, NOT_BEFORE = "amb-key", "amb-headers", "amb-not-before"
#: Headers that make the server do something. AMB sets them itself; a user's of that name travels in `ODD`.
_SERVER = "nats-"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")
_ESCAPED = re.compile(r"%(25|3E|24|5F)")
_decode = msgspec.json.Decoder(dict[str, str]).decode


def is_inbox(name: str) -> bool:
    """Whether the topic is a private reply address, which is never stored."""
    return name.startswith(INBOX_PREFIX)


@lru_cache(maxsize=4096)
def subject(name: str) -> str:
    """The subject of a topic: the topic itself, but for what NATS reads as a wildcard or as its own.

    ``%``, ``>``, and a ``$`` or ``_INBOX`` at the very beginning are escaped as in URLs."""
    escaped = name.replace("%", "%25").replace(">", "%3E")
    if escaped.startswith("$"):
        return "%24" + escaped[1:]
    return "%5F" + escaped[1:] if escaped.startswith("_INBOX") else escaped


@lru_cache(maxsize=4096)
def topic(native: str) -> str:
    """The topic of a subject."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), native) if "%" in native else native


def is_private(native: str, inbox_prefix: str) -> bool:
    """Whether the subject belongs to NATS itself, which ``>`` receives too: its API, and replies to others."""
    return native.startswith(("$", f"{inbox_prefix}."))


def filters(pattern: str) -> list[str]:
    """Subjects that no two of match the same, and that match what the pattern matches, and more.

    ``>`` needs at least one word, ``#`` none: so ``a.#`` is ``a`` and ``a.>``."""
    words = pattern.split(".")
    if "#" not in words:
        return [subject(pattern)]
    head = words[: words.index("#")]
    if not head:
        return [">"]
    prefix = subject(".".join(head))
    return [prefix, f"{prefix}.>"] if all(word == "#" for word in words[len(head) :]) else [f"{prefix}.>"]


def roots(native: str) -> set[str]:
    """What a stream has to keep so that it keeps the subject and its relatives; nothing for a leading wildcard."""
    first = native.partition(".")[0]
    if first in ("*", ">"):
        return set()
    # AMB's inboxes have the same first word and must not be kept.
    return {native} if first == "_amb" else {first, f"{first}.>"}


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


def to_headers(message: Outgoing) -> dict[str, str]:
    """The native headers: AMB's and the user's as they are where NATS can carry them, the rest as JSON."""
    headers = message.headers
    if message.key is not None:
        headers = {**headers, KEY: message.key}
    odd = {k: v for k, v in headers.items() if not (_VALUE.fullmatch(v) and _carried(k))}
    if not odd:
        return headers if headers is not message.headers else dict(headers)
    return {k: v for k, v in headers.items() if k not in odd} | {ODD: json.dumps(odd)}


@lru_cache(maxsize=4096)
def _carried(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name != ODD and not name.lower().startswith(_SERVER)


def too_large(message: Outgoing, headers: Mapping[str, str], limit: int) -> MessageTooLarge | None:
    """The error, if the message with these native headers has more bytes than the server takes."""
    size = len(message.body) + sum(len(name) + len(value) + 4 for name, value in headers.items()) + 14
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
