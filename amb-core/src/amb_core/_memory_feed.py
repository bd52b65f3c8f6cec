"""The memory broker's side of the contract: connections and feeds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from math import inf
from time import monotonic

import anyio

from ._memory_queue import Entry, Queue
from ._memory_store import Store, closed_error
from ._memory_terms import Terms
from .broker import Backlog, Feed, Incoming, Outgoing, Settlement, Source, Token
from .concurrency import Future, new_future
from .errors import AmbError, LeaseLost, PartialFailure

__all__ = ["MemoryConnection", "MemoryFeed"]

_FOR_GOOD = ("ack", "discard")


class MemoryFeed:
    """Deliveries of one source. Implements `ExtendsLease`, `KnowsDepth`, `KnowsPeers` and `TellsBacklog` too."""

    def __init__(self, store: Store, queue: Queue, source: Source) -> None:
        self._store, self._queue, self._source = store, queue, source
        self._held: dict[Entry, float] = {}
        self._closed = False
        queue.members[self] = self._held
        queue.wake_all()  # whoever waits alone has no deadline for what this one will hold

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed`. Returns without suspending when something is there, unless another
        member was called for it and has not come yet: then that one goes first."""
        queue, waited = self._queue, False
        while True:
            if self._closed:
                raise closed_error()
            now = monotonic()
            if now >= queue.alarm:
                queue.collect(now)
            if queue.size > queue.aside and (waited or not wait or not queue.called):
                taken = queue.take(limit, self._held, now)
                if waited:
                    queue.pass_on()
                return taken
            if not wait:
                return ()
            waiter: Future[None] = new_future()
            queue.waiters.append(waiter)
            try:
                # One coroutine all the way down: each further one is resumed once more for every message.
                deadline = queue.deadline(now)
                if deadline == inf:
                    await waiter
                else:
                    with anyio.move_on_after(deadline - now):
                        await waiter
            except BaseException:
                queue.gone(waiter)
                queue.pass_on()
                raise
            queue.gone(waiter)
            waited = True

    def depth(self) -> int:
        """See `amb_core.broker.KnowsDepth`."""
        return self._queue.size

    async def backlog(self) -> Backlog:
        """See `amb_core.broker.TellsBacklog`. Never suspends."""
        held = sum(len(deliveries) for deliveries in self._queue.members.values())
        return Backlog(waiting=self._queue.size, unsettled=self._queue.size + held)

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed`. Never suspends."""
        held, queue = self._held, self._queue
        errors: dict[int, Exception] = {}
        released: list[Entry] = []
        for index, outcome in enumerate(outcomes):
            entry: Entry = outcome.token  # type: ignore[assignment]  # if it is held, it is one
            if held.pop(entry, None) is None:
                self._check_settled(index, entry, errors)
            elif outcome.verdict in _FOR_GOOD:
                entry.settled = True
                if entry.holds_key:
                    queue.next_of_key(entry)
            elif outcome.verdict == "release":
                released.append(entry)
            else:
                attempt = max(entry.attempt, outcome.attempt) + 1
                queue.retry(entry, attempt, monotonic() + outcome.delay if outcome.delay > 0 else None)
        if len(released) > 1:
            released.sort(key=lambda entry: -entry.number)
        for entry in released:  # each goes to the front: the oldest last
            queue.put_back(entry, entry.attempt)
            entry.settled = True
        if errors:
            raise PartialFailure(errors)

    async def extend(self, tokens: Sequence[Token]) -> None:
        """See `amb_core.broker.ExtendsLease`. Never suspends."""
        due = monotonic() + self._queue.lease
        errors: dict[int, Exception] = {}
        for index, token in enumerate(tokens):
            entry: Entry = token  # type: ignore[assignment]
            if self._held.pop(entry, None) is None:
                self._check_settled(index, token, errors)
            else:
                entry.overdue = 0.0
                self._held[entry] = due  # behind the others: the first lease to end stays the first in the dict
        if errors:
            raise PartialFailure(errors)

    def _check_settled(self, index: int, token: Token, errors: dict[int, Exception]) -> None:
        """Settling twice is no error; settling what is no longer ours is."""
        if not (isinstance(token, Entry) and token.settled):
            errors[index] = LeaseLost(
                f"a delivery on {self._source.pattern!r} was taken back: its lease ran out, or its feed is gone"
            )

    def last_consumer(self) -> bool:
        """See `amb_core.broker.KnowsPeers`."""
        return self._source.group is None or (self._store.connections == 1 and len(self._queue.members) == 1)

    def tries_again(self) -> bool:
        """See `amb_core.broker.KnowsPeers`."""
        return self._queue.tries_again

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._queue.leave(self)
        if self._source.group is None:
            self._store.drop(self._source, self._queue)


class MemoryConnection:
    """Implements `Replays`, `NativeRequests`, `Elects` and `ReportsHealth` too."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._feeds: set[MemoryFeed] = set()
        self._closed = False
        store.connections += 1

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """See `amb_core.broker.Connection`. Suspends only for back-pressure and simulated latency."""
        if self._closed:
            raise closed_error()
        store = self.store
        if store.simulates:
            await store.simulate()
        elif len(batch) == 1:
            if not store.offer(batch[0]):
                await store.squeeze(batch[0], self._is_closed)
            return
        errors: dict[int, Exception] = {}
        for index, message in enumerate(batch):
            try:
                store.fail_by_chance(message)
                if not store.offer(message):
                    await store.squeeze(message, self._is_closed)
            except AmbError as error:
                errors[index] = error
        if errors:
            raise PartialFailure(errors)

    def _is_closed(self) -> bool:
        return self._closed

    def _terms(self) -> Terms:
        if self._closed:
            raise closed_error()
        return self.store.terms

    async def acquire(self, name: str, seconds: float) -> int | None:
        """See `amb_core.broker.Elects`."""
        return self._terms().acquire(name, seconds)

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """See `amb_core.broker.Elects`."""
        return self._terms().renew(name, token, seconds)

    async def release(self, name: str, token: int) -> None:
        """See `amb_core.broker.Elects`."""
        self._terms().release(name, token)

    @asynccontextmanager
    async def open(self, source: Source) -> AsyncIterator[Feed]:
        """See `amb_core.broker.Connection`."""
        if self._closed:
            raise closed_error()
        feed = MemoryFeed(self.store, self.store.join(source), source)
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)
            feed.close()

    @asynccontextmanager
    async def inbox(self, address: str, deliver: Callable[[Incoming], None]) -> AsyncIterator[None]:
        """See `amb_core.broker.NativeRequests`. `deliver` is called inside the `send` of the reply."""
        self.store.add_inbox(address, deliver)
        try:
            yield
        finally:
            self.store.remove_inbox(address)

    def replay(self, pattern: str, since: float | str | None, until: float | None) -> AsyncIterator[Incoming]:
        """See `amb_core.broker.Replays`."""
        return self.store.replay(pattern, since, until)

    async def ping(self) -> Mapping[str, str]:
        """See `amb_core.broker.ReportsHealth`."""
        if self._closed:
            raise closed_error()
        return self.store.facts()

    def close(self) -> None:
        self._closed = True
        for feed in list(self._feeds):
            feed.close()
        self.store.connections -= 1
        if not self.store.connections:
            self.store.say_what_is_lost()
        self.store.wake_publishers()
