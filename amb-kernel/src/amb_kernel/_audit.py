"""Records of what the kernel allowed, refused and noticed: to the log, to a sink of the user's, to a topic."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec
from amb_core import MessageBus

from .errors import AuditFailed

log = logging.getLogger("amb.kernel.audit")


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. Published as a dict of these fields."""

    #: ``sent``, ``denied``, ``rate_limited``, ``refused``; ``agent.started``, ``agent.stopped``, ``agent.crashed``,
    #: ``schedule.failed``, ``leader.elected``, ``leader.lost``, ``escalated``; or what the program calls it.
    event: str
    #: Epoch seconds.
    time: float
    kernel_id: str
    #: Who did it; empty: a sender that did not say.
    agent: str
    topic: str | None = None
    #: The rule that decided.
    rule: str | None = None
    #: The message, once it has an id.
    message_id: str | None = None
    detail: dict[str, Any] = {}


#: Takes each record, in order; may be async. What it raises stops the sends that must be recorded.
Sink: TypeAlias = Callable[[AuditRecord], Awaitable[None] | None]


class Auditor:
    """Writes records to wherever they are wanted."""

    def __init__(self, kernel_id: str, bus: MessageBus, topic: str | None, sink: Sink | None) -> None:
        self.kernel_id, self.topic = kernel_id, topic
        self._bus, self._sink = bus, sink

    async def write(self, event: str, agent: str, **fields: Any) -> None:
        """Record it, or raise. Fields: see `AuditRecord`. Raises: AuditFailed."""
        record = AuditRecord(event=event, time=time.time(), kernel_id=self.kernel_id, agent=agent, **fields)
        log.info("%s by %r on %r: %s", event, agent, record.topic, record.detail or record.rule or "")
        try:
            if self._sink is not None and inspect.isawaitable(pending := self._sink(record)):
                await pending
            if self.topic is not None:
                await self._bus.publish(self.topic, msgspec.to_builtins(record), sender=self.kernel_id)
        except Exception as error:
            raise AuditFailed(
                f"{event!r} by {agent!r} could not be recorded ({type(error).__name__}: {error}): "
                "mend the audit sink or the bus"
            ) from error

    async def note(self, event: str, agent: str, **fields: Any) -> None:
        """Record it; a failure is logged, because what is recorded has happened already."""
        try:
            await self.write(event, agent, **fields)
        except AuditFailed:
            log.exception("an audit record is missing")
