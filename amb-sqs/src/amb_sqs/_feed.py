"""A feed: one queue, or two with an express lane, polled when there is a place for a message."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio
from amb_core.broker import Backlog, Incoming, Outgoing, Settlement, Source, Token, is_inbox
from amb_core.errors import AmbError, BrokerUnavailable, NotFound, PartialFailure, Unavailable
from amb_core.lanes import Lanes
from amb_core.topics import compile_pattern

from ._client import Aws, Entry, Received
from ._names import stand_in
from ._poll import Lane, Outcome, Poll, Polls
from ._queues import PULSE, Queues
from ._routes import TOPIC, fifo_entry
from ._settling import LONGEST, Lease, Settling, attempted
from ._wire import from_body, to_body

if TYPE_CHECKING:
    from .broker import SQSBroker

__all__ = ["SqsFeed"]

logger = logging.getLogger("amb.sqs")

#: `receive` may wait five seconds.
_WAIT = 4.0
#: The part of a lease that must be left when a delivery is handed over.
_FRESH = 0.5
#: The topic of what wakes the polls of a subscription that ends, and how many seconds it is kept for them.
WAKE, _WAKES = "_amb.wake", 5.0
#: How often a message in the one queue is offered at once to whoever asks, and for how many seconds a subscriber for
#: whom there was nothing lets the others go first.
_OFFERS, _TURN = 10, 0.2
#: Messages of a subscriber without a group that are remembered, because they may come twice.
_SEEN = 2000


#: What subscribers without a group had been given when their feed failed, for the next one. A bus that ends without one
#: leaves it here, so there is a limit.
_standing: dict[str, dict[str, Lease]] = {}


class SqsFeed:
    """`Feed`, `Withdraws`, `ExtendsLease` and `TellsBacklog` on queues."""

    def __init__(
        self, options: SQSBroker, aws: Aws, queues: Queues, polls: Polls, source: Source, lanes: Sequence[Lane]
    ) -> None:
        self._options, self._aws, self._queues, self._polls, self._source = options, aws, queues, polls, source
        self.lanes = list(lanes)
        self._lease = options.visibility_timeout
        self._alone = source.group is None
        self._settling = Settling(options, aws, polls, source.pattern, self._alone)
        self._matches = compile_pattern(source.pattern)
        # SNS hands everything to everybody, and in the one queue is everything.
        self._filters = (options.use_sns_fanout or options.one_queue) and not is_inbox(source.pattern)
        self._ready: Lanes[Incoming] = Lanes()
        self._held: set[Lease] = set()
        self._seen = _standing.pop(source.id, {})
        self._failure: AmbError | None = None
        self._withdrawn = False
        self._left = False
        self.broken = False
        self._beat = time.monotonic()

    # --- receiving

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        self._withdrawn = False
        if not len(self._ready):
            await self._poll(min(limit, self._options.max_number_of_messages), wait)
        if self._failure is not None and not len(self._ready):
            self.broken = True
            raise self._failure
        if self._alone and time.monotonic() > self._beat + PULSE:
            self._beat = time.monotonic()
            await self._queues.pulse(self.lanes[0].url)
        return await self._take(limit)

    async def backlog(self) -> Backlog:
        """See `amb_core.broker.TellsBacklog`. What is in the one queue for everything is not only for us."""
        if self._options.one_queue:
            return Backlog()
        counts = [await self._aws.counts(lane.url) for lane in self.lanes]
        waiting = sum(wait for wait, _ in counts)
        return Backlog(waiting=waiting, unsettled=waiting + sum(held for _, held in counts))

    async def _poll(self, limit: int, wait: bool) -> None:
        """Return when a poll has ended, or after some seconds. Polls go on when this is cancelled."""
        futures: list[Poll] = []
        for lane in self.lanes:
            if not wait:
                futures.append(self._polls.start(lane, limit, 0, self._lease, self._deliver))
            elif lane.poll is None or lane.poll.done():
                seconds = self._options.wait_time_seconds
                lane.poll = self._polls.start(lane, limit, seconds, self._lease, self._deliver)
            if wait and lane.poll is not None:
                futures.append(lane.poll)
        until = asyncio.FIRST_COMPLETED if wait else asyncio.ALL_COMPLETED
        done, _ = await asyncio.wait(futures, timeout=_WAIT, return_when=until)
        for future in done:
            future.result()

    async def _deliver(self, lane: Lane, outcome: Outcome) -> None:
        """A poll has ended. Runs on its own, whoever waits."""
        if isinstance(outcome, AmbError):
            self._failure = self._gone(outcome)
            return
        back: list[tuple[int, str, int]] = []
        away: list[tuple[int, str]] = []
        for message in outcome:
            read = self._read(lane, message)
            if read is None:
                away.append((len(away), message.handle))
            elif isinstance(read, int):
                back.append((len(back), message.handle, read))
            else:
                self._ready.push(lane.priority, read)
        try:
            if away:
                await self._aws.delete(lane.url, away)
            if back:
                await self._aws.hide(lane.url, back)
        except AmbError as error:
            logger.info("%d message(s) on %r come again later: %s", len(away) + len(back), self._source.pattern, error)
        if self._withdrawn or (self._left and not self._alone):
            await self._return_unseen()
        if self._left:
            self._clean_up(lane)
        elif len(back) == len(outcome) > 0:
            await anyio.sleep(_TURN)

    def _gone(self, error: AmbError) -> AmbError:
        if not isinstance(error, NotFound) or not (self._alone or self._options.auto_create):
            return error
        gone = Unavailable(f"the queue of {self._source.pattern!r} is gone: making it again ({error})")
        gone.__cause__ = error
        return gone

    def _read(self, lane: Lane, message: Received) -> Incoming | int | None:
        """The delivery; or for how many seconds to hide it; or None: delete it."""
        content = from_body(message.body)
        if content.topic == WAKE:
            lane.waking = lane.waking and not self._left
            return None if self._left or self._is_old(message) else 0
        due, hidden = content.not_before or 0.0, 0
        if due:
            early = math.ceil(due - time.time())
            if early > 0:
                return min(early, LONGEST)
            # Receiving it too early, to hide it again, was no attempt.
            hidden = max(0, math.ceil((due - message.first) / LONGEST)) if message.first else 0
        topic = content.topic or message.attributes.get(TOPIC) or stand_in(self._source.pattern)
        if self._filters and not self._matches(topic):
            if not self._options.one_queue:
                return None
            # It is somebody else's. Seldom asked for, when nobody seems to want it.
            return 0 if message.count < _OFFERS else min(2 ** (message.count - _OFFERS), 900)
        if self._alone and (known := self._seen.get(message.id)) is not None:
            # It has been here. With this handle it can be deleted.
            known.handle = message.handle
            return None if known.settled else self._lease
        receives = 1 if self._options.one_queue else self._settling.attempts(message) - hidden
        attempt = content.attempts + max(1, receives)
        lease = Lease(lane.url, message, content, topic, attempt, self._lease)
        if self._alone:
            self._remember(lease)
        headers = content.headers or ({} if content.topic else dict(message.attributes))
        return Incoming(topic, content.body, headers, lease, content.key, attempt, message.id, message)

    def _is_old(self, wake: Received) -> bool:
        """Whoever was to be woken is gone, or the redrive policy would take it next."""
        offers = self._options.max_receive_count or _OFFERS
        return wake.count >= offers or wake.sent < time.time() - _WAKES

    def _remember(self, lease: Lease) -> None:
        while len(self._seen) >= _SEEN:
            del self._seen[next(iter(self._seen))]
        self._seen[lease.id] = lease

    async def _take(self, limit: int) -> list[Incoming]:
        """Up to `limit` of what is there and still ours, for long enough."""
        found: list[Incoming] = []
        while len(self._ready) and len(found) < limit:
            found.append(self._ready.pop())
        if self._alone:
            return found
        now = time.monotonic()
        # What waited here too long comes again by itself, and this was no attempt.
        self._settling.note_unstarted([lease for lease in map(_lease, found) if lease.until <= now])
        found = [incoming for incoming in found if _lease(incoming).until > now]
        old = [incoming.token for incoming in found if _lease(incoming).until < now + self._lease * _FRESH]
        self._held.update(_lease(incoming) for incoming in found)
        if old:
            try:
                await self.extend(old)
            except PartialFailure:
                found = [incoming for incoming in found if _lease(incoming).until > time.monotonic()]
            except BaseException:
                for incoming in found:
                    self._ready.push_front(0, incoming)
                raise
        return found

    # --- settling

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`."""
        errors = await self._settling.settle(outcomes)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome.token, Lease) and not isinstance(errors.get(index), BrokerUnavailable):
                outcome.token.settled = True
                self._held.discard(outcome.token)
        if errors:
            raise PartialFailure(errors)

    async def extend(self, tokens: Sequence[Token]) -> None:
        """See `amb_core.broker.ExtendsLease.extend`."""
        errors = await self._settling.extend(tokens)
        if errors:
            raise PartialFailure(errors)

    # --- leaving

    async def withdraw(self) -> None:
        """See `amb_core.broker.Withdraws`. A poll goes on."""
        self._withdrawn = True
        await self._return_unseen()

    async def _return_unseen(self, more: Iterable[Lease] = ()) -> None:
        """Others may have what was not handed over, and `more`."""
        unseen = [_lease(self._ready.pop()) for _ in range(len(self._ready))]
        errors = await self._settling.settle([Settlement(lease, "release") for lease in (*unseen, *more)])
        if errors:
            logger.info("%d message(s) on %r come again later", len(errors), self._source.pattern)

    async def stop(self) -> None:
        """Give back what was not settled. After a failure handlers go on, and the next feed settles what they hold."""
        self._left = True
        if self._alone:
            if self.broken:
                self._keep_seen()
            await self._polls.stop([lane.poll for lane in self.lanes if lane.poll is not None])
            return
        await self._return_unseen([] if self.broken else self._held)
        if not self._options.one_queue and not self.broken:
            await self._wake()

    def _keep_seen(self) -> None:
        # What waits here was not handed over: it comes again, to the next feed.
        for _ in range(len(self._ready)):
            self._seen.pop(_lease(self._ready.pop()).id, None)
        while len(_standing) >= 1000:
            del _standing[next(iter(_standing))]
        _standing[self._source.id] = self._seen

    async def _wake(self) -> None:
        """End the polls that go on. Nothing but a message ends a poll without hiding what comes next from others; a
        member that gets it and does not leave puts it back."""
        for lane in self.lanes:
            if lane.poll is not None and not lane.poll.done():
                message = Outgoing(WAKE, b"", {})
                entry = Entry(0, to_body(message))
                if lane.url.endswith(".fifo"):
                    entry = fifo_entry(0, message, to_body(message), {}, False)
                lane.waking = not await attempted(
                    partial(self._aws.send, lane.url, [entry], "a subscription that ends"), [0]
                )
                if lane.poll.done():
                    self._clean_up(lane)

    def _clean_up(self, lane: Lane) -> None:
        """Take what was to wake a poll that ended by itself."""
        if lane.waking:
            lane.waking = False
            self._polls.start(lane, 1, 0, self._lease, self._deliver)


def _lease(incoming: Incoming) -> Lease:
    assert isinstance(incoming.token, Lease)
    return incoming.token
