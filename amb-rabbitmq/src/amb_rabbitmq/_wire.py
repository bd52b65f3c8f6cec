"""AMB's values as AMQP keys, properties and headers. Pure functions; the format is described for other languages in
``docs/brokers/rabbitmq.md``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING

from amb_core.broker import Incoming, Outgoing, Token, is_inbox
from amb_core.errors import MessageTooLarge
from amb_core.serializer import json_reader
from pamqp.commands import Basic
from pamqp.common import FieldValue

from .broker import LEVELS, UNIT

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

__all__ = ["EXPRESS", "Names", "again", "from_native", "lane", "later", "to_properties", "units"]

#: The header that holds what only AMB needs, as a table: a user's headers are strings, so none is mistaken for it.
OURS = "x-amb"
#: Inside it: the concrete topic where the routing key is another, the attempt, the ordering key, headers as JSON.
TOPIC, ATTEMPT, KEY, ODD = "topic", "attempt", "key", "headers"
#: Headers that make RabbitMQ do something, or that it sets. A user's of that name travel in `ODD`.
_SERVERS = ("CC", "BCC")
_LONGEST = 255
#: A message's headers travel in one frame of 128 KiB.
_HEADER_ROOM = 120 * 1024
_LANES = {"critical": 0, "urgent": 1, "high": 2, "normal": 3, "low": 4, "background": 5}


#: What a group's express queue ends with.
EXPRESS = ",express"
_read = json_reader(dict[str, str])
_PLAIN = re.compile(r"[A-Za-z0-9_.:@-]*")


class Names:
    """What things are called in the broker."""

    def __init__(self, exchange: str) -> None:
        self.normal, self.express = exchange, f"{exchange}.express"
        #: Copies for one queue only come back through here; the queue's name is the key.
        self.back = f"{exchange}.back"
        #: Where what has waited its time comes out.
        self.delayed = f"{exchange}.delayed"
        #: The queue in which elections are counted.
        self.elections = f"{exchange}.elections"

    def queue(self, group: str, pattern: str, ordered: bool) -> str:
        """The queue of a group. Readable, unless that would be too long."""
        kind = "ordered" if ordered else "group"
        name = f"{self.normal}.{kind}/{group}/{pattern}"
        if _PLAIN.fullmatch(group) and _PLAIN.fullmatch(pattern.replace("*", "").replace("#", "")):
            # The client library lets no asterisk through; a plus in a topic takes the other way.
            name = name.replace("*", "+")
            if len(name) + len(EXPRESS) <= _LONGEST:
                return name
        digest = blake2b(f"{group}\0{pattern}".encode(), digest_size=16).hexdigest()
        return f"{self.normal}.{kind}//{digest}"

    def election(self, name: str) -> str:
        """The queue whose maker holds a name. Readable, unless that would be too long."""
        queue = f"{self.normal}.election/{name}"
        if _PLAIN.fullmatch(name) and len(queue) <= _LONGEST:
            return queue
        return f"{self.normal}.election//{blake2b(name.encode(), digest_size=16).hexdigest()}"

    def level(self, number: int) -> str:
        """The queue of a delay level, and the exchange before it."""
        return f"{self.normal}.delay.{number}"

    def exit(self, exchange: str) -> str:
        """The word for where a delayed message goes at last."""
        return "n" if exchange == self.normal else "x" if exchange == self.express else "b"


def lane(message: DeliveredMessage) -> int:
    """The priority of a delivery."""
    headers = message.header.properties.headers
    named = headers.get("amb-priority") if headers else None
    return _LANES.get(named, 3) if isinstance(named, str) else 3


def to_properties(message: Outgoing) -> Basic.Properties:
    """The properties of a new message. Raises: MessageTooLarge."""
    table: dict[str, FieldValue] = {}
    odd: dict[str, str] = {}
    size = 0
    for name, value in message.headers.items():
        size += len(name) + len(value) + 7
        if name.startswith("x-") or name in _SERVERS or len(name.encode()) > _LONGEST or not name:
            odd[name] = value
        else:
            table[name] = value
    ours: dict[str, FieldValue] = {}
    if message.key is not None:
        ours[KEY] = message.key
        size += len(message.key)
    if odd:
        ours[ODD] = json.dumps(odd)
    if ours:
        table[OURS] = ours
    if size > _HEADER_ROOM // 4 and _bytes(message) > _HEADER_ROOM:
        raise MessageTooLarge(f"publish to {message.topic!r}: the headers take more than {_HEADER_ROOM} bytes")
    kind = message.headers.get("content-type")
    if kind is not None and len(kind.encode()) > _LONGEST:
        kind = None
    if kind is not None and "content-type" in table:
        del table["content-type"]
    return Basic.Properties(
        content_type=kind,
        headers=table,
        delivery_mode=1 if is_inbox(message.topic) else 2,
        # Only exclusive queues have priorities of their own: larger is more urgent there.
        priority=5 - message.priority,
    )


def _bytes(message: Outgoing) -> int:
    total = len((message.key or "").encode())
    for name, value in message.headers.items():
        total += len(json.dumps(name)) + len(json.dumps(value)) + 7
    return total


def again(message: DeliveredMessage, attempt: int) -> Basic.Properties:
    """The properties of a copy of a delivery, for the attempt after `attempt`."""
    old = message.header.properties
    headers = {
        name: value for name, value in (old.headers or {}).items() if not name.startswith("x-") and name not in _SERVERS
    }
    ours = _ours(old.headers)
    headers[OURS] = ours | {TOPIC: _topic(message, ours), ATTEMPT: attempt + 1}
    return Basic.Properties(
        content_type=old.content_type, content_encoding=old.content_encoding, headers=headers,
        delivery_mode=2, priority=old.priority, correlation_id=old.correlation_id, reply_to=old.reply_to,
        message_id=old.message_id, timestamp=old.timestamp, message_type=old.message_type,
        user_id=None, app_id=old.app_id,
    )  # fmt: skip


def units(delay: float) -> int:
    """A delay in units, rounded up."""
    return int(min(max(0, math.ceil(delay / UNIT - 1e-6)), 2**LEVELS - 1))


def later(properties: Basic.Properties, count: int, exit_: str, key: str, topic: str) -> str:
    """Turn a message into one that comes after `count` units; returns its routing key.

    The key says bit by bit which levels to wait in; the true key is the carbon copy, which RabbitMQ keeps along the
    way. Topics that begin with ``_amb.`` are AMB's own, so no subscriber's pattern mistakes one key for the other."""
    headers = dict(properties.headers or {})
    ours = _ours(headers)
    ours.setdefault(TOPIC, topic)
    headers[OURS], headers["CC"] = ours, [key]
    properties.headers = headers
    return f"_amb.{exit_}." + ".".join(f"{count:0{LEVELS}b}")


def from_native(message: DeliveredMessage, token: Token) -> Incoming:
    """A delivery in AMB's terms. A foreign producer's needs no header at all."""
    properties = message.header.properties
    table = properties.headers or {}
    headers = {
        name: _text(value) for name, value in table.items() if not name.startswith("x-") and name not in _SERVERS
    }
    ours = _ours(table)
    if properties.content_type is not None:
        headers["content-type"] = properties.content_type
    odd = ours.get(ODD)
    if isinstance(odd, str):
        headers |= _read(odd) or {}
    key, attempt = ours.get(KEY), ours.get(ATTEMPT)
    return Incoming(
        _topic(message, ours),
        message.body,
        headers,
        token,
        key if isinstance(key, str) else None,
        attempt if isinstance(attempt, int) and attempt > 0 else 1,
        native=message,
    )


def _topic(message: DeliveredMessage, ours: Mapping[str, object]) -> str:
    topic = ours.get(TOPIC)
    return topic if isinstance(topic, str) else str(message.routing_key or "")


def _ours(table: Mapping[str, FieldValue] | None) -> dict[str, FieldValue]:
    ours = (table or {}).get(OURS)
    return dict(ours) if isinstance(ours, dict) else {}


def _text(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="replace")
    return value.isoformat() if isinstance(value, datetime) else str(value)
