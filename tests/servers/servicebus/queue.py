"""A queue: what is ready, locked, deferred and scheduled in it, and who gets the next message."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from uuid import UUID, uuid4

from .entry import ACTIVE, DEFERRED, SCHEDULED, Consumer, Entry, QueueOptions, Refusal, lock_lost
from .journal import Journal
from .message import Content
from .sessions import Session, Sessions


class Queue:
    """Messages in the order of their numbers, given to consumers in turn."""

    def __init__(
        self, path: str, options: QueueOptions, journal: Journal, *, dead_letters: Queue | None = None
    ) -> None:
        self.path, self.options, self.dead_letters = path, options, dead_letters
        self.entries: dict[int, Entry] = {}
        self.sessions = Sessions(self) if options.requires_session else None
        self.consumers: list[Consumer] = []
        #: When something was last received here, or a receiver was there.
        self.used = time.monotonic()
        #: For what becomes due at a topic: it does not stay here, but goes there.
        self.forward: Callable[[Content], None] | None = None
        self._journal = journal
        self._ready: list[int] = []
        self._locked: dict[UUID, Entry] = {}
        self._seen: dict[str, float] = {}
        self._next = 1
        self._turn = 0
        self._pumping = False

    # What comes in.

    def put(self, content: Content, *, scheduled: float | None = None) -> int:
        """Keep a message. Returns: its sequence number, 0 for a duplicate. Raises: Refusal."""
        self.check(content)
        if self.duplicate(content):
            return 0
        entry = Entry(self._number(), content, time.time())
        due = scheduled or content.scheduled
        if due is not None and due > entry.enqueued:
            entry.state, entry.due = SCHEDULED, due
        self._expire_from(entry, entry.due or entry.enqueued)
        self.add(entry)
        return entry.seq

    def check(self, content: Content) -> None:
        """Raises: Refusal if a message without a session comes to a queue of sessions."""
        if self.sessions is not None and content.session_id is None:
            raise Refusal("amqp:not-allowed", f"The SessionId was not set on a message for '{self.path}'.")

    def duplicate(self, content: Content) -> bool:
        """Whether a message with this id came within the window."""
        window, key = self.options.duplicate_window, content.message_id
        if window is None or key is None:
            return False
        now = time.time()
        # They are in the order in which they came.
        for old in list(takewhile(lambda seen: self._seen[seen] + window <= now, self._seen)):
            del self._seen[old]
        if key in self._seen:
            return True
        self._seen[key] = now
        self._journal.write("seen", self.path, key, now)
        return False

    def seen(self, key: str, when: float) -> None:
        """Remember an id from an earlier process."""
        self._seen[key] = when

    def add(self, entry: Entry, *, write: bool = True) -> None:
        """Keep an entry, as it is."""
        self.entries[entry.seq] = entry
        self._next = max(self._next, entry.seq + 1)
        if write:
            self._journal.write(
                "put", self.path, entry.seq, entry.content.encoded, entry.enqueued, entry.due, entry.expires,
                dict(entry.extra), entry.source, entry.state,
            )  # fmt: skip
        if entry.state == SCHEDULED:
            self._at(entry, entry.due or 0.0, self._came_due)
        elif entry.token is not None:
            self._locked[entry.token] = entry
            self._at(entry, entry.locked_until, self._lock_ran_out)
        elif entry.state == ACTIVE:
            self._offer(entry)

    def _number(self) -> int:
        number, self._next = self._next, self._next + 1
        return number

    def _expire_from(self, entry: Entry, start: float) -> None:
        lives = [ttl for ttl in (entry.content.ttl, self.options.ttl) if ttl is not None]
        entry.expires = start + min(lives) if lives else None

    def _came_due(self, entry: Entry) -> None:
        entry.state, entry.timer, entry.enqueued = ACTIVE, None, time.time()
        self.changed(entry)
        self._offer(entry)

    # What goes out.

    def pump(self) -> None:
        """Give what is ready to those who want it."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._give_one():
                pass
        finally:
            self._pumping = False

    def _give_one(self) -> bool:
        consumers = self.consumers
        for offset in range(len(consumers)):
            index = (self._turn + offset) % len(consumers)
            if consumers[index].wants():
                entry = self._take(consumers[index])
                if entry is not None:
                    self._turn = index + 1
                    self._give(consumers[index], entry)
                    return True
                if self.sessions is None:
                    return False
        return False

    def _take(self, consumer: Consumer) -> Entry | None:
        """The first entry that is ready for it."""
        ready = self._ready
        if self.sessions is not None:
            session = self.sessions.held_by(consumer)
            if session is None:
                return None
            ready = session.ready
        while ready:
            entry = self.entries.get(heapq.heappop(ready))
            if entry is not None and entry.state == ACTIVE and entry.token is None and not self._expired(entry):
                return entry
        return None

    def _give(self, consumer: Consumer, entry: Entry) -> None:
        self.used = time.monotonic()
        if consumer.deletes:
            self._remove(entry)
        else:
            self._lock(entry)
        consumer.deliver(entry)

    def _lock(self, entry: Entry) -> None:
        entry.token = uuid4()
        self._locked[entry.token] = entry
        session = self.sessions.of(entry) if self.sessions else None
        entry.locked_until = session.locked_until if session else time.time() + self.options.lock_duration
        if session is None:
            self._at(entry, entry.locked_until, self._lock_ran_out)
        self.changed(entry)

    def _expired(self, entry: Entry) -> bool:
        if entry.expires is None or entry.expires > time.time():
            return False
        if self.options.dead_letter_on_expiration:
            self._to_dead_letters(entry, "TTLExpiredException", "The message expired and was dead lettered.")
        else:
            self._remove(entry)
        return True

    # What becomes of it.

    def complete(self, token: UUID) -> None:
        """It was handled. Raises: Refusal."""
        self._remove(self.locked(token))

    def abandon(self, token: UUID) -> None:
        """It failed, and is wanted again. Raises: Refusal."""
        self._unlock(self.locked(token), failed=True)

    def release(self, token: UUID) -> None:
        """It was not looked at. Raises: Refusal."""
        self._unlock(self.locked(token), failed=False)

    def defer(self, token: UUID) -> None:
        """It stays here until somebody asks for its number. Raises: Refusal."""
        entry = self.locked(token)
        entry.state = DEFERRED
        self._unlock(entry, failed=False)

    def dead_letter(self, token: UUID, reason: str, description: str) -> None:
        """It goes to the sub-queue of dead letters. Raises: Refusal."""
        entry = self.locked(token)
        if self.dead_letters is None:
            self._remove(entry)
        else:
            self._to_dead_letters(entry, reason, description)

    def renew(self, token: UUID) -> float:
        """Lock it for a whole duration from now on. Returns: until when. Raises: Refusal."""
        entry = self.locked(token)
        self._drop_timer(entry)
        entry.locked_until = time.time() + self.options.lock_duration
        self._at(entry, entry.locked_until, self._lock_ran_out)
        self.changed(entry)
        return entry.locked_until

    def locked(self, token: UUID) -> Entry:
        """The entry that has this lock. Raises: Refusal."""
        entry = self._locked.get(token)
        if entry is None:
            raise lock_lost()
        return entry

    def cancel(self, seq: int) -> None:
        """Take back a scheduled message. Raises: Refusal."""
        entry = self.entries.get(seq)
        if entry is None or entry.state != SCHEDULED:
            raise Refusal("com.microsoft:message-not-found", f"No scheduled message has the number {seq}.", 404)
        self._remove(entry)

    def take_deferred(self, seq: int, *, deletes: bool) -> Entry:
        """A deferred message, locked or gone. Raises: Refusal."""
        entry = self.entries.get(seq)
        if entry is None or entry.state != DEFERRED or entry.token is not None:
            raise Refusal("com.microsoft:message-not-found", f"No deferred message has the number {seq}.", 404)
        if deletes:
            self._remove(entry)
        else:
            self._lock(entry)
        return entry

    def peek(self, start: int, count: int, session_id: str | None) -> list[Entry]:
        """Up to `count` messages from this number on, as they are."""
        found = [entry for seq, entry in sorted(self.entries.items()) if seq >= start]
        now = time.time()
        return [
            entry for entry in found
            if (session_id is None or entry.content.session_id == session_id)
            and (entry.expires is None or entry.expires > now)
        ][:count]  # fmt: skip

    def let_go(self, entries: Iterable[Entry], *, failed: bool) -> None:
        """Unlock what a lost session had."""
        for entry in list(entries):
            self._unlock(entry, failed=failed, offer=False)

    def locked_of(self, session: Session) -> Iterator[Entry]:
        """What of a session is locked."""
        return (entry for entry in self._locked.values() if entry.content.session_id == session.id)

    def write_session(self, session_id: str, state: bytes | None) -> None:
        """Write down the state of a session."""
        self._journal.write("session", self.path, session_id, state)

    def close(self, refusal: Refusal) -> None:
        """The queue is deleted: end its consumers and timers."""
        for consumer in list(self.consumers):
            consumer.lost(refusal)
        for entry in self.entries.values():
            self._drop_timer(entry)
        if self.sessions is not None:
            self.sessions.close(refusal)

    def _lock_ran_out(self, entry: Entry) -> None:
        entry.timer = None
        self._unlock(entry, failed=True)

    def _unlock(self, entry: Entry, *, failed: bool, offer: bool = True) -> None:
        self._forget_lock(entry)
        entry.count += failed
        exhausted = entry.count >= self.options.max_delivery_count
        if failed and exhausted and entry.state == ACTIVE and self.dead_letters is not None:
            times = self.options.max_delivery_count
            self._to_dead_letters(
                entry, "MaxDeliveryCountExceeded", f"Message could not be consumed after {times} delivery attempts."
            )
            return
        self.changed(entry)
        if entry.state == ACTIVE:
            self._offer(entry, pump=offer)

    def _to_dead_letters(self, entry: Entry, reason: str, description: str) -> None:
        assert self.dead_letters is not None
        self._remove(entry)
        dead = Entry(entry.seq, entry.content, entry.enqueued)
        dead.count, dead.source = entry.count, self.path
        given = {"DeadLetterReason": reason, "DeadLetterErrorDescription": description}
        dead.extra = {**entry.extra, **{name: text for name, text in given.items() if text}}
        self.dead_letters.add(dead)
        self.dead_letters.changed(dead)

    def _remove(self, entry: Entry) -> None:
        self._forget_lock(entry)
        del self.entries[entry.seq]
        self._journal.write("gone", self.path, entry.seq)

    def _offer(self, entry: Entry, *, pump: bool = True) -> None:
        if self.forward is not None:
            self._remove(entry)
            self.forward(entry.content)
        elif self.sessions is not None:
            self.sessions.offer(entry)
        else:
            heapq.heappush(self._ready, entry.seq)
        if pump:
            self.pump()

    def _forget_lock(self, entry: Entry) -> None:
        self._drop_timer(entry)
        if entry.token is not None:
            del self._locked[entry.token]
            entry.token = None

    def changed(self, entry: Entry) -> None:
        """Write down how an entry is now."""
        token = entry.token.bytes if entry.token and self.sessions is None else None
        self._journal.write("meta", self.path, entry.seq, entry.count, entry.state, token, entry.locked_until)

    def _drop_timer(self, entry: Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def _at(self, entry: Entry, when: float, call: Callable[[Entry], None]) -> None:
        entry.timer = asyncio.get_running_loop().call_later(max(0.0, when - time.time()), call, entry)
