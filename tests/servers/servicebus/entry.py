"""What a queue keeps per message, and how it is told of trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol
from uuid import UUID

import msgspec

from .message import Content

ACTIVE, DEFERRED, SCHEDULED = 0, 1, 2


class Refusal(Exception):
    """What the service answers instead of doing it: an AMQP condition, its text, and a status of HTTP."""

    def __init__(self, condition: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.condition, self.description, self.status = condition, description, status


def lock_lost() -> Refusal:
    """The message is somebody else's by now, or gone."""
    return Refusal(
        "com.microsoft:message-lock-lost",
        "The lock supplied is invalid. Either the lock expired, or the message was removed already.",
        410,
    )


class QueueOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A queue's or a subscription's properties; durations in seconds."""

    lock_duration: float = 60.0
    max_delivery_count: int = 10
    ttl: float | None = None
    dead_letter_on_expiration: bool = False
    requires_session: bool = False
    duplicate_window: float | None = None
    auto_delete_on_idle: float | None = None
    user_metadata: str | None = None


class Entry:
    """A message in a queue."""

    __slots__ = ("content", "count", "due", "enqueued", "expires", "extra", "locked_until", "seq", "source", "state",
                 "timer", "token")  # fmt: skip

    def __init__(self, seq: int, content: Content, enqueued: float, *, state: int = ACTIVE) -> None:
        self.seq, self.content, self.enqueued, self.state = seq, content, enqueued, state
        self.count = 0
        #: When it becomes active if it is scheduled, and when it is of no more use.
        self.due: float | None = None
        self.expires: float | None = None
        self.token: UUID | None = None
        self.locked_until = 0.0
        #: Of its lock or of its schedule: it has never both.
        self.timer: asyncio.TimerHandle | None = None
        #: Application properties of the service, and the entity from which it came here as a dead letter.
        self.extra: Mapping[str, str] = {}
        self.source: str | None = None


class Consumer(Protocol):
    """Somebody who receives from a queue."""

    #: The session it has locked, if the queue has sessions.
    session_id: str | None
    #: Whose it is: requests about its session come on the same.
    connection: object
    #: Whether what it gets is gone from the queue at once.
    deletes: bool

    def wants(self) -> bool:
        """Whether it can take a message now."""
        ...

    def deliver(self, entry: Entry) -> None:
        """Send it; the entry is locked already, or gone from the queue."""
        ...

    def lost(self, refusal: Refusal) -> None:
        """End it: its session's lock ran out, or the queue was deleted."""
        ...
