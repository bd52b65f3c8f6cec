"""The state behind an `InMemoryBroker` object: its queues, who is subscribed, what was said."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import count
from math import ceil, inf
from time import monotonic, time
from typing import TYPE_CHECKING, Final, TypeAlias

import anyio

from ._memory_history import OVERHEAD, History, Record
from ._memory_queue import Entry, Queue, Ticket
from ._memory_terms import Terms
from .broker import Incoming, Outgoing, Source, is_inbox
from .errors import BackpressureError, ConfigurationError, ConnectionLost, NoResponders, Unavailable
from .topics import PatternTable, compile_pattern

if TYPE_CHECKING:
    from .memory import InMemoryBroker

__all__ = ["Store"]

log = logging.getLogger("amb")

#: Where a topic's messages go: queues, history, and the reader of a private inbox.
Route: TypeAlias = tuple[tuple[Queue, ...], "deque[Record] | None", "Callable[[Incoming], None] | None"]

#: The most topics whose route is remembered.
ROUTES: Final = 4096


class Store:
    """Shared by all connections of one broker object; gone with the last of them."""

    def __init__(self, broker: InMemoryBroker, home: tuple[object, int]) -> None:
        #: Held so that the object's identity, under which this is found, is not given to another.
        self.broker = broker
        #: The event loop and the thread it belongs to.
        self.home = home
        self.connections = 0
        self.terms = Terms()
        self.simulates = broker.latency_ms > 0 or broker.failure_rate > 0
        self._chance = random.Random(broker.seed)
        self._table: PatternTable[Queue] = PatternTable()
        self._groups: dict[tuple[str, str], Queue] = {}
        self._inboxes: dict[str, Callable[[Incoming], None]] = {}
        self._history = History(broker.history)
        self._routes: dict[str, Route] = {}
        self._number = 0
        self._tickets = count(1)
        self._blocked: dict[Ticket, None] = {}

    # --- publishing

    def offer(self, message: Outgoing) -> bool:
        """Deliver `message` to every queue it matches, or to none: then one is (nearly) full.

        Raises: NoResponders."""
        route = self._routes.get(message.topic) or self._find(message.topic)
        for queue in route[0]:
            if queue.size >= queue.limit:
                return False
        self._deliver(message, route)
        return True

    def _deliver(self, message: Outgoing, route: Route) -> None:
        queues, records, inbox = route
        if message.mandatory and inbox is None and not any(queue.members for queue in queues):
            raise NoResponders(
                f"nobody is subscribed to {message.topic!r}: subscribe a responder, or check the topic's spelling"
            )
        self._number = number = self._number + 1
        if records is not None:
            records.append((number, time(), message))
            history = self._history
            history.credit -= OVERHEAD + len(message.body)
            if history.credit < 0 and history.trim():
                self._routes.clear()
        if message.not_before is None:
            for queue in queues:
                queue.push(Entry(message, number))
        else:
            self._delay(message, number, queues)
        if inbox is not None:
            inbox(Incoming(message.topic, message.body, message.headers.copy(), None, message.key))

    def _delay(self, message: Outgoing, number: int, queues: tuple[Queue, ...]) -> None:
        remaining = (message.not_before or 0.0) - time()
        for queue in queues:
            if remaining > 0:
                queue.delay(Entry(message, number), monotonic() + remaining)
            else:
                queue.push(Entry(message, number))

    async def squeeze(self, message: Outgoing, closed: Callable[[], bool]) -> None:
        """Deliver `message` when its queues have room, in the order of the calls.

        Raises: BackpressureError (``overflow="raise"``), NoResponders, ConnectionLost."""
        ticket = Ticket(next(self._tickets))
        queues = self._room_or_raise(message)
        if self.broker.backpressure_delay and all(queue.admits(ticket) for queue in queues):
            await anyio.sleep(self.broker.backpressure_delay)
            if closed():
                raise closed_error()
            queues = self._room_or_raise(message)
        self._blocked[ticket] = None
        try:
            while not all(queue.admits(ticket) for queue in (*queues, *ticket.queues)):
                for queue in queues:
                    queue.line_up(ticket)
                await ticket.wakeup.wait()
                queues = self._find(message.topic)[0]  # subscriptions may have come and gone
                if closed():
                    raise closed_error()
            self._deliver(message, self._find(message.topic))
        finally:
            del self._blocked[ticket]
            for queue in ticket.queues:
                queue.step_out(ticket)

    def _room_or_raise(self, message: Outgoing) -> tuple[Queue, ...]:
        queues = self._find(message.topic)[0]
        if self.broker.overflow == "raise":
            for queue in queues:
                if queue.full:
                    raise BackpressureError(
                        f"{queue.name} is full ({queue.size} messages): {message.topic!r} was not published; "
                        "consume faster, raise max_queue_size, or wait with overflow='wait'"
                    )
        return queues

    async def simulate(self) -> None:
        """The latency of a network."""
        if self.broker.latency_ms:
            await anyio.sleep(self.broker.latency_ms / 1000)

    def fail_by_chance(self, message: Outgoing) -> None:
        """Raises: Unavailable, at the rate asked for."""
        if self.broker.failure_rate and self._chance.random() < self.broker.failure_rate:
            raise Unavailable(
                f"publishing to {message.topic!r} failed by chance, "
                f"as failure_rate={self.broker.failure_rate:g} asks for"
            )

    def _find(self, topic: str) -> Route:
        route = self._routes.get(topic)
        if route is None:
            if len(self._routes) >= ROUTES:
                self._routes.clear()
                self._history.forget_unused()
            records = None if is_inbox(topic) else self._history.of(topic)
            route = self._routes[topic] = (tuple(self._table.match(topic)), records, self._inboxes.get(topic))
        return route

    # --- subscribing

    def join(self, source: Source) -> Queue:
        """The queue of `source`, made if need be."""
        key = (source.group or "", source.pattern)
        queue = self._groups.get(key) if source.group is not None else None
        if queue is None:
            queue = self._new_queue(source)
            if source.group is not None:
                self._groups[key] = queue
        if source.ordered_by:
            queue.keep_order()
        return queue

    def _new_queue(self, source: Source) -> Queue:
        broker = self.broker
        room = broker.max_queue_size
        mark = max(1, ceil(room * broker.backpressure_threshold)) if broker.backpressure_delay else room
        who = (
            f"the subscription to {source.pattern!r}"
            if source.group is None
            else f"the queue of group {source.group!r} on {source.pattern!r}"
        )
        queue = Queue(who, room, mark, inf if source.group is None or broker.lease is None else broker.lease)
        if source.group is not None and source.start == "earliest":
            for number, _, message in self._history.matching(compile_pattern(source.pattern)):
                self._delay(message, number, (queue,))
        self._table.add(source.pattern, queue)
        self._routes.clear()
        return queue

    def drop(self, source: Source, queue: Queue) -> None:
        """An ungrouped subscriber is gone, and everything it had."""
        self._table.remove(source.pattern, queue)
        self._routes.clear()
        queue.vanish()

    def say_what_is_lost(self) -> None:
        """The last connection is closed: nobody will ever handle what still waits."""
        for queue in self._groups.values():
            if queue.size:
                log.warning("%d message(s) in %s are gone with the memory broker", queue.size, queue.name)

    def wake_publishers(self) -> None:
        """A connection is closed: those who wait on it have to hear of it."""
        for ticket in self._blocked:
            ticket.wakeup.set()

    def add_inbox(self, address: str, deliver: Callable[[Incoming], None]) -> None:
        if address in self._inboxes:
            raise ConfigurationError(f"the inbox {address!r} is open already: an address has one reader")
        self._inboxes[address] = deliver
        self._routes.clear()

    def remove_inbox(self, address: str) -> None:
        del self._inboxes[address]
        self._routes.clear()

    # --- looking back

    def replay(self, pattern: str, since: float | str | None, until: float | None) -> AsyncIterator[Incoming]:
        """See `amb_core.broker.Replays`. What is yielded is settled from now on, whenever it is read."""
        after, begin = (
            _position(since) if isinstance(since, str) else 0,
            since if isinstance(since, float | int) else -inf,
        )
        end = inf if until is None else until
        records = [r for r in self._history.matching(compile_pattern(pattern)) if r[0] > after and begin <= r[1] <= end]
        return _replayed(records)

    def facts(self) -> dict[str, str]:
        """What `ping` tells people."""
        queues = len(self._groups)
        waiting = sum(queue.size for queue in self._groups.values())
        return {
            "broker": "memory",
            "connections": str(self.connections),
            "groups": str(queues),
            "waiting in groups": str(waiting),
        }


def closed_error() -> ConnectionLost:
    return ConnectionLost("this connection to the memory broker was closed")


def _position(since: str) -> int:
    try:
        return int(since)
    except ValueError:
        raise ConfigurationError(
            f"{since!r} is no position of the memory broker: pass a message's position, or epoch seconds as a number"
        ) from None


async def _replayed(records: list[Record]) -> AsyncIterator[Incoming]:
    for number, _, message in records:
        yield Incoming(message.topic, message.body, message.headers.copy(), None, message.key, 1, str(number))
