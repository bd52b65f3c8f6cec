"""The service's ends of links: what a client sends to, what it receives from, and requests with their answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from . import outcomes
from .codec import CodecError
from .entry import Entry, Refusal
from .frames import Attach, Disposition, Flow, Transfer
from .message import compose, milliseconds
from .queue import Queue

if TYPE_CHECKING:
    from .session import AmqpSession

_CREDIT = 1000
#: What is done with what a client sent: the message format, and the payload. Raises Refusal.
Sink = Callable[[int | None, bytes], None]


class Inlet:
    """A client sends to it."""

    def __init__(self, session: AmqpSession, attach: Attach, sink: Sink, largest: int) -> None:
        self.handle = attach.handle
        self._session, self._sink, self._largest = session, sink, largest
        self._count = attach.initial_delivery_count or 0
        self._credit = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._first: Transfer | None = None

    def grant(self) -> None:
        """Let the client send, if it may soon send no more."""
        if self._credit < _CREDIT // 2:
            self._credit = _CREDIT
            self._session.flow(self.handle, self._count, _CREDIT)

    def transfer(self, transfer: Transfer, payload: bytes) -> None:
        """A part of a delivery, or all of it."""
        first = self._first = self._first or transfer
        self._parts.append(payload)
        self._size += len(payload)
        if transfer.more and not transfer.aborted:
            return
        data = b"".join(self._parts)
        size, self._size, self._first = self._size, 0, None
        self._parts.clear()
        self._count, self._credit = self._count + 1, self._credit - 1
        if not transfer.aborted:
            self._take(first, data, size)
        self.grant()

    def flow(self, flow: Flow) -> None:
        """The client says where it is; there is nothing to do."""

    def detached(self) -> None:
        """The client is gone."""

    def _take(self, first: Transfer, data: bytes, size: int) -> None:
        state = outcomes.ACCEPTED
        try:
            if size > self._largest:
                raise Refusal(
                    "amqp:link:message-size-exceeded",
                    f"The received message (size: {size} bytes) exceeds the limit of the link ({self._largest} bytes).",
                )
            self._sink(first.message_format, data)
        except Refusal as refusal:
            state = outcomes.rejected(refusal)
        except CodecError as error:
            state = outcomes.rejected(Refusal("amqp:decode-error", str(error)))
        if not first.settled:
            self._session.send(Disposition(True, first.delivery_id or 0, None, True, state))


class Outlet:
    """A client receives from it: the credit it gave, and the deliveries that it has not settled."""

    def __init__(self, session: AmqpSession, attach: Attach, *, settled: bool) -> None:
        self.handle, self.settled = attach.handle, settled
        self._session = session
        self._count = 0
        self._credit = 0
        self._tags = 0

    def room(self) -> bool:
        """Whether it may send a delivery now."""
        return self._credit > 0 and self._session.window > 0

    def send(self, payload: bytes, tag: bytes | None = None) -> int:
        """Send a delivery. Returns: its id."""
        self._count, self._credit, self._tags = self._count + 1, self._credit - 1, self._tags + 1
        return self._session.transfer(self.handle, tag or self._tags.to_bytes(4, "big"), payload, settled=self.settled)

    def flow(self, flow: Flow, ready: Callable[[], None]) -> None:
        """The client gives credit, and wants it back if it drains."""
        self._credit = (flow.delivery_count or 0) + (flow.link_credit or 0) - self._count
        ready()
        if flow.drain:
            self._count, self._credit = self._count + max(0, self._credit), 0
            self._session.flow(self.handle, self._count, 0, drain=True)
        elif flow.echo:
            self._session.flow(self.handle, self._count, self._credit)


class Answers:
    """The link on which a client gets the answers to its requests."""

    def __init__(self, session: AmqpSession, attach: Attach) -> None:
        self.handle = attach.handle
        self._outlet = Outlet(session, attach, settled=True)
        self._pending: deque[bytes] = deque()

    def answer(self, payload: bytes) -> None:
        """Send an answer, as soon as there is credit."""
        self._pending.append(payload)
        self._send()

    def flow(self, flow: Flow) -> None:
        self._outlet.flow(flow, self._send)

    def transfer(self, transfer: Transfer, payload: bytes) -> None:
        raise Refusal("amqp:not-allowed", "A receiver's link takes no transfers.")

    def detached(self) -> None:
        self._pending.clear()

    def _send(self) -> None:
        while self._pending and self._outlet.room():
            self._outlet.send(self._pending.popleft())


class Receiver:
    """A client's receiver of a queue."""

    def __init__(self, session: AmqpSession, attach: Attach, queue: Queue) -> None:
        self.handle, self.queue = attach.handle, queue
        self.deletes = attach.snd_settle_mode == 1
        self.session_id: str | None = None
        self.connection: object = session.connection
        self._session = session
        self._outlet = Outlet(session, attach, settled=self.deletes)

    def wants(self) -> bool:
        return self._outlet.room()

    def deliver(self, entry: Entry) -> None:
        token = entry.token
        number = self._outlet.send(encode_entry(entry), token.bytes_le if token else None)
        if token is not None:
            self._session.unsettled[number] = (self, token)

    def lost(self, refusal: Refusal) -> None:
        self._session.end_link(self.handle, refusal)

    def flow(self, flow: Flow) -> None:
        self._outlet.flow(flow, self.queue.pump)

    def transfer(self, transfer: Transfer, payload: bytes) -> None:
        raise Refusal("amqp:not-allowed", "A receiver's link takes no transfers.")

    def detached(self) -> None:
        """Its locks stay until they run out; a session is free at once."""
        if self in self.queue.consumers:
            self.queue.consumers.remove(self)
        if self.queue.sessions is not None:
            self.queue.sessions.release(self)

    def settle(self, token: UUID, state: object) -> object:
        """Do what the client wants with a delivery. Returns: the state to confirm."""
        try:
            return self._settle(token, state)
        except Refusal as refusal:
            return outcomes.rejected(refusal)

    def _settle(self, token: UUID, state: object) -> object:
        code, fields = outcomes.fields(state)
        if outcomes.is_accepted(code):
            self.queue.complete(token)
            return outcomes.ACCEPTED
        if outcomes.is_rejected(code):
            self.queue.dead_letter(token, *outcomes.reason_of(fields))
            return outcomes.rejected()
        if not outcomes.is_modified(code):
            self.queue.release(token)
            return outcomes.RELEASED
        failed, undeliverable = (*fields, None, None)[:2]
        if undeliverable:
            self.queue.defer(token)
        else:
            (self.queue.abandon if failed else self.queue.release)(token)
        return outcomes.modified(undeliverable_here=bool(undeliverable))


Link = Inlet | Answers | Receiver


def encode_entry(entry: Entry) -> bytes:
    """A message as a receiver gets it."""
    own: dict[str, object] = {
        "x-opt-sequence-number": entry.seq,
        "x-opt-enqueue-sequence-number": entry.seq,
        "x-opt-enqueued-time": milliseconds(entry.enqueued),
        "x-opt-message-state": entry.state,
    }
    if entry.token is not None:
        own["x-opt-locked-until"] = milliseconds(entry.locked_until)
    if entry.source is not None:
        own["x-opt-deadletter-source"] = entry.source
    return compose(entry.content, entry.count, own, entry.extra)
