"""One queue of the memory broker: what waits, who waits for it, and in what order it leaves."""

from __future__ import annotations

import sys
from bisect import insort
from collections import deque
from heapq import heappop, heappush
from math import inf

import msgspec

from .broker import Incoming, Outgoing
from .concurrency import Future, Wakeup
from .lanes import Lanes

__all__ = ["Entry", "Queue", "Ticket"]


class Entry(msgspec.Struct, eq=False, gc=False):
    """One message in one queue; also the token of one hand-out: it goes back as a new entry."""

    message: Outgoing
    number: int
    attempt: int = 1
    #: The first of its key in an ordered queue; the rest wait behind it.
    holds_key: bool = False
    settled: bool = False
    #: When its lease was first seen to have run out; 0: it has not been.
    overdue: float = 0.0


class Ticket:
    """A publisher's place in the line before full queues."""

    __slots__ = ("number", "queues", "wakeup")

    def __init__(self, number: int) -> None:
        self.number = number
        self.queues: list[Queue] = []
        self.wakeup = Wakeup()


class Queue:
    """The messages of one source: of a group on a pattern, or of one ungrouped subscriber.

    Every change is synchronous. A delivery handed out stands in its member's ``held`` dict with the
    time its lease ends; leases are equally long, so the first in each dict ends first. A delivery is taken
    back half a lease after its lease was seen to have run out: whoever is to renew it runs on the same event
    loop, and if that stood still (a handler that blocks, a debugger, a laptop that slept), that has its turn first.
    """

    __slots__ = (
        "_delayed", "_keys", "_lanes", "_mark", "_room", "alarm", "aside", "blocked", "called",
        "lease", "limit", "members", "name", "ordered", "size", "waiters",
    )  # fmt: skip

    def __init__(self, name: str, room: int, mark: int, lease: float) -> None:
        self.name = name
        self.members: dict[object, dict[Entry, float]] = {}
        self.ordered = False
        #: Messages that wait: in the lanes, delayed, or behind another of their key.
        self.size = 0
        #: How many of them cannot leave now.
        self.aside = 0
        #: From this size on publishers are slowed down; below zero while some already wait.
        self.limit = mark
        self.blocked: list[Ticket] = []
        #: Nothing falls due before this: a lower bound, made exact before a member waits.
        self.alarm = inf
        #: Members waiting, the longest waiting first; and those told to come that have not come yet.
        self.waiters: deque[Future[None]] = deque()
        self.called: set[Future[None]] = set()
        self.lease = lease
        self._room, self._mark = room, mark
        self._lanes: Lanes[Entry] = Lanes()
        self._delayed: list[tuple[float, int, Entry]] = []
        self._keys: dict[str, deque[Entry]] = {}

    # --- in

    def push(self, entry: Entry) -> None:
        """A message arrives."""
        self.size += 1
        if self.ordered and not self._first_of_key(entry):
            return
        self._lanes.push(entry.message.priority, entry)
        if self.waiters:
            self.wake()

    def delay(self, entry: Entry, due: float) -> None:
        """A message arrives that must not leave before `due`."""
        self.size += 1
        self.aside += 1
        heappush(self._delayed, (due, entry.number, entry))
        if due < self.alarm:
            self.alarm = due
            self.wake_all()

    def _first_of_key(self, entry: Entry) -> bool:
        key = entry.message.key
        if key is None or entry.holds_key:
            return True
        behind = self._keys.get(key)
        if behind is not None:
            behind.append(entry)
            self.aside += 1
            return False
        self._keys[key] = deque()
        entry.holds_key = True
        return True

    # --- out

    def take(self, limit: int, held: dict[Entry, float], now: float) -> list[Incoming]:
        """Hand out up to `limit` messages."""
        due = now + self.lease
        if due < self.alarm:
            self.alarm = due
        pop, taken = self._lanes.pop, []
        count = self.size - self.aside
        if count > limit:
            count = limit
        self.size -= count
        while count:
            count -= 1
            entry = pop()
            held[entry] = due
            message = entry.message
            # A copy of the headers for each hand-out: what a handler writes there reaches nobody else.
            taken.append(
                Incoming(
                    message.topic,
                    message.body,
                    message.headers.copy(),
                    entry,
                    message.key,
                    entry.attempt,
                    str(entry.number),
                )
            )
        if self.blocked:
            self.unblock()
        return taken

    def next_of_key(self, entry: Entry) -> None:
        """The first of its key was settled for good: the next may leave."""
        behind = self._keys[entry.message.key or ""]
        if not behind:
            del self._keys[entry.message.key or ""]
            return
        following = behind.popleft()
        following.holds_key = True
        self.aside -= 1
        self._lanes.push(following.message.priority, following)
        self.wake()

    # --- back

    def retry(self, entry: Entry, attempt: int, due: float | None) -> None:
        """A delivery comes back for another attempt: behind the others, so that it holds up none."""
        entry.settled = True
        again = Entry(entry.message, entry.number, attempt, entry.holds_key)
        if due is None:
            self.push(again)
        else:
            self.delay(again, due)

    def put_back(self, entry: Entry, attempt: int) -> None:
        """A delivery comes back to where it was taken from."""
        self._lanes.push_front(entry.message.priority, Entry(entry.message, entry.number, attempt, entry.holds_key))
        self.size += 1
        self.wake()

    def leave(self, member: object) -> None:
        """A member is gone: what it held was attempted, and goes to the others."""
        held = self.members.pop(member)
        for entry in reversed(held):
            self.put_back(entry, entry.attempt + 1)
        held.clear()
        if self.waiters:
            self.wake_all()

    def keep_order(self) -> None:
        """From now on one message of each key at a time. What is in flight is past ordering."""
        if self.ordered:
            return
        self.ordered = True
        entries = sorted(self._lanes, key=lambda entry: entry.number)
        self._lanes = Lanes()
        self.size -= len(entries)
        for entry in entries:
            self.push(entry)

    # --- what falls due

    def collect(self, now: float) -> None:
        """Free delayed messages whose time has come, and take back deliveries whose lease ran out."""
        while self._delayed and self._delayed[0][0] <= now:
            self.size -= 1
            self.aside -= 1
            self.push(heappop(self._delayed)[2])
        lost: list[Entry] = []
        for held in self.members.values():
            expired = [entry for entry, due in held.items() if due <= now and self._given_up(entry, now)]
            for entry in expired:
                del held[entry]
            lost += expired
        for entry in sorted(lost, key=lambda entry: entry.number, reverse=True):
            self.put_back(entry, entry.attempt + 1)
        self.alarm = self._next_due()

    def _given_up(self, entry: Entry, now: float) -> bool:
        entry.overdue = entry.overdue or now
        return entry.overdue + self.lease / 2 <= now

    def deadline(self, now: float) -> float:
        """When a member that begins to wait has to look again; infinity: when it is told to."""
        self.alarm = self._next_due()
        # What the others take from now on falls due after `now` plus a lease: looking then is early enough,
        # and spares telling the waiting members about every hand-out.
        return self.alarm if len(self.members) < 2 else min(self.alarm, now + self.lease)

    def _next_due(self) -> float:
        due = self._delayed[0][0] if self._delayed else inf
        for held in self.members.values():
            if held:
                entry, end = next(iter(held.items()))
                due = min(due, entry.overdue + self.lease / 2 if entry.overdue else end)
        return due

    @property
    def tries_again(self) -> bool:
        """A delivery that failed waits for its next attempt."""
        return any(entry.attempt > 1 for _, _, entry in self._delayed)

    # --- who waits

    def wake(self) -> None:
        """Tell the longest waiting member to come."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                self.called.add(waiter)
                waiter.set_result(None)
                return

    def wake_all(self) -> None:
        """Tell every waiting member to look at the clock again."""
        for _ in range(len(self.waiters)):
            self.wake()

    def gone(self, waiter: Future[None]) -> None:
        """`waiter` waits no more."""
        if waiter in self.called:
            self.called.discard(waiter)
        elif waiter in self.waiters:
            self.waiters.remove(waiter)

    def pass_on(self) -> None:
        """Whoever was told to come did not take everything: tell the next."""
        if self.size > self.aside and not self.called:
            self.wake()

    # --- who waits for room

    def admits(self, ticket: Ticket) -> bool:
        """Room, and nobody before `ticket`."""
        return self.size < self._room and (not self.blocked or self.blocked[0] is ticket)

    @property
    def full(self) -> bool:
        return self.size >= self._room

    def line_up(self, ticket: Ticket) -> None:
        """Oldest first in every queue: the oldest of all is then first in all of its lines, and no circle forms."""
        if self not in ticket.queues:
            ticket.queues.append(self)
            insort(self.blocked, ticket, key=_age)
            self.limit = -1
            self.unblock()  # who was slowed down on the way here may be the first of them, before room that is there

    def step_out(self, ticket: Ticket) -> None:
        """`ticket` has been served, or gave up."""
        self.blocked.remove(ticket)
        if self.blocked:
            self.unblock()
        else:
            self.limit = self._mark

    def unblock(self) -> None:
        """Tell the first publisher in line, if there is room."""
        if self.blocked and self.size < self._room:
            self.blocked[0].wakeup.set()

    def vanish(self) -> None:
        """Nothing comes here any more: nobody has to wait, but those who did go on in their order."""
        self._room = sys.maxsize
        self.unblock()


def _age(ticket: Ticket) -> int:
    return ticket.number
