"""What handlers see: `Message`, its priority, and the headers it travels in.

Everything that knows the name of a wire header is in this file (see docs/wire-format.md).
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Protocol

import msgspec

from .broker import Incoming

PREFIX = "amb-"
ID, TIME, CONTENT_TYPE, PRIORITY = "amb-id", "amb-time", "content-type", "amb-priority"
SENDER, CORRELATION, REPLY_TO, TTL, EXPIRES = (
    "amb-sender",
    "amb-correlation-id",
    "amb-reply-to",
    "amb-ttl",
    "amb-expires",
)
TRACE_ID, METADATA = "amb-trace-id", "amb-metadata"
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
INBOX, REQUEST, ERROR = "amb-inbox", "amb-request", "amb-error"
FOR_GROUP = "amb-for"
DEAD_TOPIC = "amb-dead-topic"
#: W3C Trace Context, section 3.2: neither id is all zeros, version ff is forbidden, later versions may say more.
_VALID_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class MessagePriority(enum.IntEnum):
    """Six lanes; a lower number is more urgent."""

    CRITICAL = 0
    URGENT = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4
    BACKGROUND = 5

    @classmethod
    def parse(cls, value: MessagePriority | str | int) -> MessagePriority:
        """The priority for a member, its number, or its name in any case. Raises: ValueError."""
        try:
            return cls[value.upper()] if isinstance(value, str) else cls(value)
        except (KeyError, ValueError):
            names = ", ".join(member.name for member in cls)
            raise ValueError(f"no priority {value!r}: use one of {names}, or MessagePriority") from None


Priority = MessagePriority
_BY_NAME = {member.name.lower(): member for member in MessagePriority}
NORMAL = MessagePriority.NORMAL


def priority_of(headers: Mapping[str, str]) -> int:
    """The lane a delivery belongs to."""
    return _BY_NAME.get(headers.get(PRIORITY, "normal"), NORMAL)


class AckMode(enum.StrEnum):
    """When a delivery is acknowledged."""

    AUTO = "auto"  #: when the handler returns
    MANUAL = "manual"  #: when the handler calls ``ack()``, ``nack()``, ``reject()`` or ``dead_letter()``
    BATCH = "batch"  #: the handler gets a list; all are acknowledged together when it returns


class Timestamp(float):
    """Seconds since the epoch that can also be read as a date."""

    __slots__ = ()

    @property
    def datetime(self) -> datetime:
        """The same instant as an aware datetime in UTC."""
        return datetime.fromtimestamp(self, UTC)

    def isoformat(self) -> str:
        """The instant in ISO 8601, in UTC."""
        return self.datetime.isoformat()


class DeadInfo(msgspec.Struct, frozen=True):
    """Why and where a dead letter failed."""

    topic: str
    reason: str
    error: str
    attempts: int
    first_time: Timestamp
    last_time: Timestamp
    group: str
    handler: str
    position: str


class Settled:
    """The optional awaitable of a settling call: waits until the broker was told."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Callable[[], Awaitable[None]] | None = None) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, Any, None]:
        if self._wait is not None:
            yield from self._wait().__await__()


class Settles(Protocol):
    """Whoever carries out a message's verdict (a delivery in `_deliver`)."""

    verdict: str | None

    def decide(self, verdict: str, delay: float = 0.0, reason: str = "") -> Settled: ...


class Envelope(msgspec.Struct):
    """A message's fields beside topic and data; read from the wire headers when first asked for."""

    id: str
    headers: dict[str, str]
    metadata: dict[str, Any]
    timestamp: Timestamp
    priority: MessagePriority
    sender: str | None
    correlation_id: str | None
    reply_to: str | None
    ttl: float | None
    trace_id: str | None
    key: str | None
    attempt: int = 1
    position: str | None = None
    native: object = None


class Message:
    """A message: data on a topic, with what travels beside it.

    Handlers get one per delivery; it is theirs alone, changing it changes nobody else's. Users may
    build one to publish; `id` and `timestamp` are then filled in unless given. Equal to another
    Message with the same id, or to any other value that equals its data.
    """

    __slots__ = ("__weakref__", "_delivery", "_envelope", "_incoming", "data", "topic")
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        topic: str,
        data: Any = None,
        *,
        payload: Any = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        timestamp: float | None = None,
        priority: MessagePriority | str | int = NORMAL,
        sender: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        ttl: float | None = None,
        trace_id: str | None = None,
        key: str | None = None,
    ) -> None:
        if data is not None and payload is not None:
            raise TypeError("give the message's content as data or as payload, not both")
        self.topic = topic
        self.data: Any = data if payload is None else payload
        self._incoming: Incoming | None = None
        self._delivery: Settles | None = None
        self._envelope: Envelope | None = Envelope(
            id or "",
            dict(headers or {}),
            dict(metadata or {}),
            Timestamp(timestamp or 0.0),
            MessagePriority.parse(priority),
            sender,
            correlation_id,
            reply_to,
            ttl,
            trace_id,
            key,
        )

    @classmethod
    def _delivered(cls, incoming: Incoming, data: Any, delivery: Settles | None) -> Message:
        message = cls.__new__(cls)
        message.topic = incoming.topic
        message.data = data
        message._incoming = incoming
        message._delivery = delivery
        message._envelope = None
        return message

    def _read(self) -> Envelope:
        if self._envelope is None:
            assert self._incoming is not None
            self._envelope = read_envelope(self._incoming)
        return self._envelope

    @property
    def payload(self) -> Any:
        """The same as `data`."""
        return self.data

    @property
    def id(self) -> str:
        """The message's id; empty on one that was built without and not published."""
        return self._read().id

    @property
    def headers(self) -> dict[str, str]:
        """The publisher's own headers, without AMB's."""
        return self._read().headers

    @property
    def metadata(self) -> dict[str, Any]:
        """Free data of the publisher, carried as JSON."""
        return self._read().metadata

    @property
    def timestamp(self) -> Timestamp:
        """When it was published: epoch seconds by the publisher's clock."""
        return self._read().timestamp

    @property
    def priority(self) -> MessagePriority:
        """The lane it travels in."""
        return self._read().priority

    @property
    def sender(self) -> str | None:
        """Who published it, as the publisher says."""
        return self._read().sender

    @property
    def correlation_id(self) -> str | None:
        """The user's own correlation id; AMB matches replies by an id of its own."""
        return self._read().correlation_id

    @property
    def reply_to(self) -> str | None:
        """The user's own reply topic; AMB's replies travel on a private inbox."""
        return self._read().reply_to

    @property
    def ttl(self) -> float | None:
        """Seconds after `timestamp` for which it is worth delivering."""
        return self._read().ttl

    @property
    def trace_id(self) -> str | None:
        """The trace it belongs to: as given by hand, else that of its ``traceparent``."""
        return self._read().trace_id

    @property
    def key(self) -> str | None:
        """The ordering key."""
        return self._read().key

    @property
    def attempt(self) -> int:
        """1 for the first delivery to this group, then 2, 3, …"""
        return self._read().attempt

    @property
    def position(self) -> str | None:
        """Where the broker keeps it (offset, stream id), if it keeps it."""
        return self._read().position

    @property
    def native(self) -> object:
        """The client library's own object, if the backend hands it out; set to None, nobody gets it from here."""
        return self._read().native

    @native.setter
    def native(self, value: None) -> None:
        self._read().native = value
        if self._incoming is not None:
            self._incoming.native = value

    @property
    def dead(self) -> DeadInfo | None:
        """On a dead letter: where and why it failed; else None."""
        return read_dead(self._incoming.headers) if self._incoming else None

    def ack(self) -> Settled:
        """Done: never deliver it to this group again.

        Decided at once; awaiting the result waits until the broker was told. Settling twice with the
        same verdict is harmless. Raises: AlreadySettled after a different verdict; RuntimeError on a
        message that was not delivered by a subscription."""
        return self._settles().decide("ack")

    def nack(self, requeue: bool = True, delay: float | None = None) -> Settled:
        """Not done: deliver it again, after `delay` seconds, with the attempt counted; with
        ``requeue=False`` the same as ``reject()``. Otherwise as `ack`."""
        if requeue:
            return self._settles().decide("retry", delay or 0.0)
        return self._settles().decide("dead", reason="rejected")

    def reject(self, requeue: bool = False, delay: float | None = None) -> Settled:
        """Refuse it: to the dead letters (dropped and counted where none are configured); with
        ``requeue=True`` deliver it again after `delay` seconds. Otherwise as `ack`."""
        return self.nack(requeue, delay)

    def dead_letter(self, reason: str = "") -> Settled:
        """Send it to the dead letters with `reason`. Otherwise as `reject`."""
        return self._settles().decide("dead", reason=reason or "dead-lettered by the handler")

    def _settles(self) -> Settles:
        if self._delivery is None:
            raise RuntimeError(f"the message on {self.topic!r} was not delivered by a subscription: nothing to settle")
        return self._delivery

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Message):
            return self.id == other.id and self.topic == other.topic and bool(self.data == other.data)
        return bool(self.data == other)

    def __repr__(self) -> str:
        return f"Message(topic={self.topic!r}, data={self.data!r}, id={self.id!r}, attempt={self.attempt})"


Request = Message


def read_envelope(incoming: Incoming) -> Envelope:
    """The fields in a delivery's headers. What is missing or malformed has its default: a message from a
    foreign producer is still a message."""
    headers = incoming.headers
    get = headers.get
    return Envelope(
        get(ID) or incoming.position or "",
        {name: value for name, value in headers.items() if not name.startswith(PREFIX) and name != CONTENT_TYPE},
        _metadata(get(METADATA)),
        _timestamp(get(TIME)),
        _BY_NAME.get(get(PRIORITY, "normal"), NORMAL),
        get(SENDER),
        get(CORRELATION),
        get(REPLY_TO),
        number(get(TTL)),
        get(TRACE_ID) or trace_of(get(TRACEPARENT)),
        incoming.key,
        incoming.attempt,
        incoming.position,
        incoming.native,
    )


def trace_of(traceparent: str | None) -> str | None:
    """The trace id in a W3C ``traceparent``; None without a valid one."""
    valid = None if traceparent is None else _VALID_TRACEPARENT.fullmatch(traceparent)
    return None if valid is None else valid[1]


def number(text: str | None) -> float | None:
    """A header's number; None if there is none, or an infinite one."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _timestamp(text: str | None) -> Timestamp:
    """Nanoseconds as seconds. Divided as integers: a float would already have lost the last digits."""
    try:
        return Timestamp(int(text or "0") / 10**9)
    except (ValueError, OverflowError):
        return Timestamp(0.0)


def _metadata(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_dead(headers: Mapping[str, str]) -> DeadInfo | None:
    """What a dead letter's headers say, or None if it is no dead letter."""
    topic = headers.get(DEAD_TOPIC)
    if topic is None:
        return None
    get = headers.get
    return DeadInfo(
        topic,
        get("amb-dead-reason", ""),
        get("amb-dead-error", ""),
        int(number(get("amb-dead-attempts")) or 0),
        Timestamp(number(get("amb-dead-first")) or 0.0),
        Timestamp(number(get("amb-dead-last")) or 0.0),
        get("amb-dead-group", ""),
        get("amb-dead-handler", ""),
        get("amb-dead-position", ""),
    )
