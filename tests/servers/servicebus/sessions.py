"""The sessions of a queue: each is locked by one receiver at a time."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .entry import ACTIVE, Consumer, Entry, Refusal

if TYPE_CHECKING:
    from .queue import Queue


class Session:
    """Messages with one session id, and who has them."""

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self.ready: list[int] = []
        self.state: bytes | None = None
        self.holder: Consumer | None = None
        self.locked_until = 0.0
        self.timer: asyncio.TimerHandle | None = None


class Sessions:
    """The sessions of one queue, and those who wait for one."""

    def __init__(self, queue: Queue) -> None:
        self.by_id: dict[str, Session] = {}
        self._queue = queue
        #: Who waits for any session: called with the one that is theirs from then on, or with why there is none.
        self._waiting: list[tuple[Consumer, Callable[[Session | Refusal], None]]] = []

    def get(self, session_id: str) -> Session:
        """The session of this id; it begins to exist by being asked for."""
        return self.by_id.setdefault(session_id, Session(session_id))

    def of(self, entry: Entry) -> Session:
        """The session to which a message belongs."""
        return self.get(entry.content.session_id or "")

    def held_by(self, consumer: Consumer) -> Session | None:
        """The session that a receiver has."""
        session = self.by_id.get(consumer.session_id or "")
        return session if session is not None and session.holder is consumer else None

    def offer(self, entry: Entry) -> None:
        """A message is ready in its session."""
        session = self.of(entry)
        heapq.heappush(session.ready, entry.seq)
        self._hand_out(session)

    def lock(self, session_id: str, consumer: Consumer) -> Session:
        """Lock a named session. Raises: Refusal if somebody has it."""
        session = self.get(session_id)
        if session.holder is not None:
            raise Refusal(
                "com.microsoft:session-cannot-be-locked", f"The session '{session_id}' is locked by another receiver.",
                410,
            )  # fmt: skip
        self._give(session, consumer)
        return session

    def wait(self, consumer: Consumer, done: Callable[[Session | Refusal], None], seconds: float) -> None:
        """Lock any session with messages, now or when there is one within so many seconds."""
        self._waiting.append((consumer, done))
        asyncio.get_running_loop().call_later(seconds, self._waited, consumer)
        for session in list(self.by_id.values()):
            self._hand_out(session)

    def stop_waiting(self, consumer: Consumer) -> None:
        """It does not want one any more."""
        self._waiting = [(other, done) for other, done in self._waiting if other is not consumer]

    def _waited(self, consumer: Consumer) -> None:
        for other, done in self._waiting:
            if other is consumer:
                self.stop_waiting(consumer)
                done(
                    Refusal("com.microsoft:timeout", f"No session of '{self._queue.path}' had a message in time.", 408)
                )
                return

    def renew(self, session_id: str) -> float:
        """Lock it for a whole duration from now on. Returns: until when. Raises: Refusal."""
        session = self.by_id.get(session_id)
        if session is None or session.holder is None:
            raise _lost(session_id)
        self._lock_until(session)
        return session.locked_until

    def held(self, session_id: str) -> Session:
        """A session that somebody has. Raises: Refusal."""
        session = self.by_id.get(session_id)
        if session is None or session.holder is None:
            raise _lost(session_id)
        return session

    def check(self, session_id: str, connection: object) -> None:
        """Raises: Refusal unless a receiver on `connection` has the session."""
        holder = self.held(session_id).holder
        if holder is None or holder.connection is not connection:
            raise _lost(session_id)

    def set_state(self, session_id: str, state: bytes | None) -> None:
        """Keep a value with the session. Raises: Refusal if nobody has it."""
        self.held(session_id).state = state
        self._queue.write_session(session_id, state)

    def release(self, consumer: Consumer) -> None:
        """Its receiver is gone: what it had not settled is ready again, and that does not count."""
        self.stop_waiting(consumer)
        session = self.held_by(consumer)
        if session is not None:
            self._free(session, failed=False)

    def close(self, refusal: Refusal) -> None:
        """The queue is deleted."""
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done(refusal)
        for session in self.by_id.values():
            self._drop_timer(session)

    def _give(self, session: Session, consumer: Consumer) -> None:
        session.holder, consumer.session_id = consumer, session.id
        self._lock_until(session)

    def _lock_until(self, session: Session) -> None:
        self._drop_timer(session)
        duration = self._queue.options.lock_duration
        session.locked_until = time.time() + duration
        session.timer = asyncio.get_running_loop().call_later(duration, self._ran_out, session)

    def _ran_out(self, session: Session) -> None:
        session.timer = None
        holder = session.holder
        self._free(session, failed=True)
        if holder is not None:
            holder.lost(_lost(session.id))

    def _free(self, session: Session, *, failed: bool) -> None:
        self._drop_timer(session)
        session.holder = None
        self._queue.let_go(self._queue.locked_of(session), failed=failed)
        self._hand_out(session)

    def _hand_out(self, session: Session) -> None:
        if self._waiting and session.holder is None and self._has_ready(session):
            consumer, done = self._waiting.pop(0)
            self._give(session, consumer)
            done(session)

    def _has_ready(self, session: Session) -> bool:
        entries = self._queue.entries
        ready = (entries.get(seq) for seq in session.ready)
        return any(entry is not None and entry.state == ACTIVE and entry.token is None for entry in ready)

    def _drop_timer(self, session: Session) -> None:
        if session.timer is not None:
            session.timer.cancel()
            session.timer = None


def _lost(session_id: str) -> Refusal:
    return Refusal("com.microsoft:session-lock-lost", f"The lock of the session '{session_id}' ran out.", 410)
