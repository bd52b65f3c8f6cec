"""Leadership: held by one agent at a time, for a while, by the broker's own means."""

from __future__ import annotations

import logging
import time
from functools import partial

import anyio
from amb_core import AmbError, MessageBus

from ._governor import Governor
from ._life import Life

log = logging.getLogger("amb.kernel")

#: How much slower than the broker's this machine's clock may run before two could lead: a part of the ttl.
DRIFT = 0.005
#: How often a leadership is renewed, and a candidate tries again: parts of the ttl.
RENEWALS, TRIES = 3, 5
#: Seconds to tell the broker that a leader resigns; it need not be told.
_FAREWELL = 2.0
#: Seconds after a renewal that failed.
_PAUSE = 0.1


def _now() -> float:
    """Seconds that only grow; while the machine sleeps too, where the system counts that: the broker does."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class Term:
    """One leadership, as the task that keeps it and the agent that has it share it."""

    def __init__(self, topic: str, ttl: float, token: int | None, asked: float) -> None:
        self.topic, self.ttl, self.token = topic, ttl, token
        self.lost, self.resigning = anyio.Event(), anyio.Event()
        self.prolong(asked)
        if token is None:
            self.lost.set()

    def prolong(self, asked: float) -> None:
        """It was granted to whoever asked at `asked`, by `_now`."""
        self.until = asked + self.ttl * (1 - DRIFT)

    @property
    def holds(self) -> bool:
        """Nobody else can have been elected yet, and it is not given up."""
        return not self.lost.is_set() and not self.resigning.is_set() and _now() < self.until


class Leadership:
    """The outcome of an election. True while this agent leads, to its own best knowledge.

    It leads until `ttl` seconds after the last renewal was *asked for*, by a clock that goes on while this machine
    sleeps, where there is one; the broker gives the leadership to somebody else no sooner than `ttl` seconds after it
    *got* that. So a leader that was frozen finds itself deposed when it goes on. What it had begun before may still
    arrive later than its successor's work: put `token` on that, and let the receiver refuse tokens lower than one it
    has seen.
    """

    def __init__(self, term: Term) -> None:
        self._term = term

    @property
    def topic(self) -> str:
        """What is led."""
        return self._term.topic

    @property
    def token(self) -> int | None:
        """The fencing token: grows with each leadership of the topic. None: somebody else was elected."""
        return self._term.token

    @property
    def is_leader(self) -> bool:
        """Whether this agent leads now. Ask right before anything that only a leader may do."""
        return self._term.holds

    def __bool__(self) -> bool:
        return self._term.holds

    async def lost(self) -> None:
        """Return when this agent does not lead any more; at once if it never did."""
        await self._term.lost.wait()

    async def resign(self) -> None:
        """Give the leadership up, so that another agent may have it at once. Returns when the broker knows."""
        self._term.resigning.set()
        await self._term.lost.wait()

    def __repr__(self) -> str:
        return f"Leadership(topic={self.topic!r}, is_leader={self.is_leader}, token={self.token})"


async def elect(topic: str, ttl: float, wait: bool, who: str, life: Life) -> Leadership:
    """See `AgentKernel.elect_leader`."""
    life.check_running("leading")
    while True:
        asked = _now()
        token = await (await life.governor.bus.elections()).acquire(topic, ttl)
        if token is not None or not wait:
            break
        await anyio.sleep(ttl / TRIES)
    term = Term(topic, ttl, token, asked)
    if token is not None:
        life.spawn(partial(_reign, term, token, who, life.governor))
        try:
            await life.governor.auditor.note("leader.elected", who, topic=topic, detail={"token": token})
        except BaseException:  # cancelled: nobody will know that it leads
            term.resigning.set()
            raise
    return Leadership(term)


async def _reign(term: Term, token: int, who: str, governor: Governor) -> None:
    """Renew until it is lost or given up."""
    bus = governor.bus
    try:
        while term.holds:
            # Not past its end: that it is over must be seen at once.
            with anyio.move_on_after(min(term.ttl / RENEWALS, max(term.until - _now(), 0.0))):
                await term.resigning.wait()
            if term.holds and not await _renewed(term, token, bus):
                break
    finally:
        with anyio.CancelScope(shield=True):
            await _give_up(term, token, bus)
            await governor.auditor.note("leader.lost", who, topic=term.topic, detail={"token": token})


async def _renewed(term: Term, token: int, bus: MessageBus) -> bool:
    """Ask the broker for another `ttl`. False: somebody else may lead. An outage is waited out while there is time."""
    asked = _now()
    try:
        with anyio.fail_after(max(term.until - asked, 0.0)):
            renewed = await (await bus.elections()).renew(term.topic, token, term.ttl)
    except (AmbError, TimeoutError) as error:
        log.warning("the leadership of %r could not be renewed: %s", term.topic, str(error) or "no answer in time")
        await anyio.sleep(min(_PAUSE, term.ttl / RENEWALS))
        return True  # until its time is over
    if renewed:
        term.prolong(asked)
    return renewed


async def _give_up(term: Term, token: int, bus: MessageBus) -> None:
    """Let others have it; who holds it learns of it first."""
    if not term.resigning.is_set():
        term.lost.set()
    with anyio.move_on_after(_FAREWELL):
        try:
            await (await bus.elections()).release(term.topic, token)
        except AmbError as error:
            log.info("the broker was not told who gave up %r: that ends by itself: %s", term.topic, error)
    term.lost.set()
