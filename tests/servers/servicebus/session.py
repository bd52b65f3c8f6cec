"""An AMQP session: its links by handle, its windows, and what the client has not settled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from . import outcomes
from .entry import Refusal
from .frames import Attach, Begin, Detach, Disposition, Flow, Performative, Transfer
from .links import Answers, Link, Receiver

if TYPE_CHECKING:
    from .connection import Connection

_WINDOW = 2**31 - 1


class Attaching(Protocol):
    """What decides which link a client gets."""

    def attach(self, session: AmqpSession, attach: Attach) -> None:
        """Answer an attach. Raises: Refusal."""
        ...


class AmqpSession:
    """One session of a connection."""

    def __init__(self, connection: Connection, channel: int, begin: Begin, attaching: Attaching) -> None:
        self.connection = connection
        self.unsettled: dict[int, tuple[Receiver, UUID]] = {}
        #: The links on which requests are answered, by the node that they ask.
        self.answers: dict[str, Answers] = {}
        #: How many frames of transfers the client takes before it must say that it takes more.
        self.window = begin.incoming_window
        self._channel, self._attaching = channel, attaching
        self._links: dict[int, Link] = {}
        self._ending: set[int] = set()
        self._next_in, self._next_out, self._delivery = begin.next_outgoing_id, 1, 0
        self.send(Begin(channel, self._next_out, _WINDOW, _WINDOW, 255))

    def send(self, performative: Performative, payload: bytes = b"") -> None:
        """Send a frame on this session's channel."""
        self.connection.send(self._channel, performative, payload)

    def flow(self, handle: int, count: int, credit: int, *, drain: bool = False) -> None:
        """Tell a link's credit, which grants it or gives it back."""
        self.send(Flow(self._next_in, _WINDOW, self._next_out, _WINDOW, handle, count, credit, drain=drain or None))

    def transfer(self, handle: int, tag: bytes, payload: bytes, *, settled: bool) -> int:
        """Send a delivery in as many frames as it needs. Returns: its id."""
        number, self._delivery = self._delivery, (self._delivery + 1) % 2**32
        room = self.connection.largest_payload
        for start in range(0, max(1, len(payload)), room):
            more = start + room < len(payload)
            self.send(Transfer(handle, number, tag, 0, settled, more), payload[start : start + room])
            self._next_out, self.window = (self._next_out + 1) % 2**32, self.window - 1
        return number

    def received(self, performative: Performative, payload: bytes) -> None:
        """Handle what the client sent."""
        if isinstance(performative, Transfer):
            self._next_in = (self._next_in + 1) % 2**32
            link = self._links.get(performative.handle)
            if link is not None:
                link.transfer(performative, payload)
        elif isinstance(performative, Disposition):
            self._settle(performative)
        elif isinstance(performative, Flow):
            self._flow(performative)
        elif isinstance(performative, Attach):
            self._attach(performative)
        elif isinstance(performative, Detach):
            self._detach(performative)

    def add(self, link: Link) -> None:
        """Let a link be found by its handle."""
        self._links[link.handle] = link

    def refuse(self, attach: Attach, refusal: Refusal) -> None:
        """Answer an attach by a link that is closed at once, which is how AMQP refuses one."""
        self.send(
            Attach(attach.name, attach.handle, not attach.role, initial_delivery_count=0 if attach.role else None)
        )
        self._links.pop(attach.handle, None)
        self._ending.add(attach.handle)
        self.send(Detach(attach.handle, True, outcomes.error(refusal)))

    def end_link(self, handle: int, refusal: Refusal) -> None:
        """Close a link, and say why."""
        link = self._links.pop(handle, None)
        if link is not None:
            link.detached()
            self._ending.add(handle)
            self.send(Detach(handle, True, outcomes.error(refusal)))

    def end(self) -> None:
        """The session, or its connection, is over."""
        links, self._links = self._links, {}
        for link in links.values():
            link.detached()

    def _attach(self, attach: Attach) -> None:
        self._ending.discard(attach.handle)
        try:
            self._attaching.attach(self, attach)
        except Refusal as refusal:
            self.refuse(attach, refusal)

    def _detach(self, detach: Detach) -> None:
        link = self._links.pop(detach.handle, None)
        if link is not None:
            link.detached()
        if detach.handle in self._ending:
            self._ending.discard(detach.handle)
        else:
            self.send(Detach(detach.handle, detach.closed))

    def _flow(self, flow: Flow) -> None:
        known = flow.next_incoming_id if flow.next_incoming_id is not None else 1
        self.window = (known + flow.incoming_window - self._next_out) % 2**32
        links = list(self._links.values())
        if flow.handle is None:
            for link in links:
                if isinstance(link, Receiver):
                    link.queue.pump()
            if flow.echo:
                self.send(Flow(self._next_in, _WINDOW, self._next_out, _WINDOW))
        elif flow.handle in self._links:
            self._links[flow.handle].flow(flow)

    def _settle(self, disposition: Disposition) -> None:
        if not disposition.role:
            return
        last = disposition.first if disposition.last is None else disposition.last
        if disposition.state is None and not disposition.settled:
            return
        for number in range(disposition.first, last + 1):
            found = self.unsettled.pop(number, None)
            if found is not None:
                state = found[0].settle(found[1], disposition.state)
                if not disposition.settled:
                    self.send(Disposition(False, number, None, True, state))
