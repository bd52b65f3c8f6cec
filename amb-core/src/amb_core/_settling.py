"""Tells the broker what became of deliveries: in batches, dead letters first, whoever waits for it last."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import anyio

from ._deadletter import STORE_AGAIN, Undertaker
from ._deliver import Delivery
from ._leaving import LAST_WORDS, as_failure
from .concurrency import Future, new_future
from .errors import BrokerUnavailable, LeaseLost, PartialFailure, Unavailable

if TYPE_CHECKING:
    from ._consumer import Consumer
    from .broker import Feed

log = logging.getLogger("amb")
#: A burst of handlers that never wait is settled at the latest after this many seconds.
SETTLE_WITHIN = 0.005
#: Seconds after which a verdict that the broker could not take just then is offered again.
SETTLE_AGAIN = 1.0


class Settler:
    """The verdicts of one subscription on their way to the broker."""

    undertaker: Undertaker

    def __init__(self, consumer: Consumer, *, whole: bool) -> None:
        #: `whole`: whoever settles waits for a network, and could be cancelled half-way.
        self._consumer, self._whole = consumer, whole
        #: Decided, and the broker does not know yet.
        self.pending: list[Delivery] = []
        #: When they are to be told, even if handlers keep this process busy.
        self.due = 0.0
        self.flushing = self._coming = self._some_dead = False
        #: Verdicts that the broker could not take just now.
        self._again: set[Delivery] = set()
        self._waiters: list[Future[None]] = []
        #: What is being told, and by when it must be.
        self._telling: anyio.CancelScope | None = None
        self._until = math.inf

    def add(self, delivery: Delivery) -> None:
        """Tell the broker the verdict of `delivery` with the next batch."""
        self._some_dead = self._some_dead or delivery.verdict == "dead"
        self.pending.append(delivery)

    def flush_soon(self) -> None:
        """Settle what is decided, in a task of its own: the decision came from outside a worker's loop."""
        if not self._coming:
            self._coming = True
            self._consumer.host.start_soon(self._flush_now)

    async def _flush_now(self) -> None:
        self._coming = False
        await self.flush()
        self._consumer.kick()

    async def told(self, delivery: Delivery) -> None:
        """Return when the broker was told the delivery's verdict (or cannot be any more)."""
        while not delivery.settled and not self._consumer.aborted:
            if not self._whole:
                await self.flush()
            elif self.pending and self._consumer.feed is not None:
                self.flush_soon()  # whoever waits here may give up, and the broker must be told all the same
            if not delivery.settled:
                waiter = new_future()
                self._waiters.append(waiter)
                await waiter

    async def flush(self, asking: int = 0) -> None:
        """Tell the broker every verdict so far. Does nothing while another flush runs or the feed is down.
        `asking`: how many deliveries the caller will ask for then."""
        if self.flushing:
            return
        self.flushing = True
        try:
            while self.pending and (feed := self._consumer.feed) is not None:
                batch, self.pending = self.pending, []
                ahead, asking = asking, 0
                try:
                    await (self._tell_whole if self._whole else self._tell)(feed, batch, ahead)
                except PartialFailure as failure:
                    for index, delivery in enumerate(batch):
                        if index in failure.errors:
                            self._not_settled(delivery, failure.errors[index])
                except BaseException as caught:
                    error = as_failure(caught)
                    self.pending = [d for d in batch if not d.settled] + self.pending  # for the next feed
                    if not isinstance(error, Exception):
                        if not self._consumer.aborted:
                            self.flush_soon()  # whoever waited for a verdict gave up; it has to be told all the same
                        raise
                    self._consumer.feed_failed(feed, error, "settling on")
                    if self._consumer.feed is feed:
                        break
                    continue  # the next feed may have come meanwhile
                self._carried_out(batch)
        finally:
            self.flushing = False
            self.due = time.monotonic() + SETTLE_WITHIN
            if self._waiters:
                self.tell_waiters()

    async def _tell_whole(self, feed: Feed, batch: list[Delivery], asking: int) -> None:
        """As `_tell`, not to be cancelled: what a broker has done half and is told anew it may do twice."""
        with anyio.CancelScope(shield=True, deadline=self._until) as self._telling:
            await self._tell(feed, batch, asking)
            return
        raise Unavailable(f"settling on {self._consumer.source.pattern!r} took longer than leaving may")

    async def _tell(self, feed: Feed, batch: list[Delivery], asking: int) -> None:
        """Bury the dead of `batch`, and tell the broker what is left in it then. Raises what the feed raises."""
        if self._some_dead:
            batch[:] = await self._bury(batch)
            if not batch:
                return
        told = [delivery.settlement() for delivery in batch]
        if asking > 0 and self._consumer.ahead is not None:
            self._consumer.ahead.expect(asking)
        if (observer := self._consumer.host.observer) is None:
            await feed.settle(told)
        else:
            with observer.settling(self._consumer.source, [d.incoming for d in batch], told):
                await feed.settle(told)

    def hurry(self) -> None:
        """The subscription ends: what is not told in a few seconds comes again."""
        self._until = anyio.current_time() + LAST_WORDS
        if self._telling is not None:
            self._telling.deadline = self._until

    def tell_waiters(self) -> None:
        """Let everybody look again who waits for the broker to be told something."""
        waiters, self._waiters = self._waiters, []
        tell(waiters)

    def _carried_out(self, batch: list[Delivery]) -> None:
        acked = 0
        opened = self._consumer.open
        for delivery in batch:
            if delivery.unsettled_again:
                delivery.unsettled_again = False
                continue
            acked += delivery.verdict == "ack"
            delivery.settled = True
            if opened.get(delivery.incoming.token) is delivery:
                del opened[delivery.incoming.token]
        self._consumer.host.stats.acked += acked

    async def _bury(self, batch: list[Delivery]) -> list[Delivery]:
        """Store the dead letters among `batch`. Returns what the broker is to be told."""
        self._some_dead = False
        dead = [delivery for delivery in batch if delivery.verdict == "dead" and not delivery.buried]
        try:
            kept = await self.undertaker.bury(dead, self._consumer)
        except BaseException:
            self._some_dead = True
            raise
        for delivery in dead:
            delivery.buried = True
        for delivery in kept:
            self._keep(delivery)
        for delivery in batch:
            if delivery.local:
                self._consumer.close_delivery(delivery)
        return [delivery for delivery in batch if not delivery.settled]

    def _not_settled(self, delivery: Delivery, error: Exception) -> None:
        if isinstance(error, BrokerUnavailable):
            delivery.unsettled_again = True
            self._again.add(delivery)
            self._consumer.host.timers.call_later(SETTLE_AGAIN, lambda: self._settle_again(delivery))
            return
        if self._consumer.source.group is None and isinstance(error, LeaseLost):
            return  # a feed before this one handed it over: nobody else gets it, whatever became of it
        self._consumer.host.stats.settle_errors += 1
        self._consumer.host.stats.acked -= delivery.verdict == "ack"
        what = (
            "was taken back before it was settled and comes again"
            if isinstance(error, LeaseLost)
            else "could not be settled"
        )
        log.warning(
            "message %s on %r %s: %s", delivery.incoming.headers.get("amb-id"), delivery.incoming.topic, what, error
        )

    def _settle_again(self, delivery: Delivery) -> None:
        if delivery in self._again and not delivery.lost:
            self._again.discard(delivery)
            self.pending.append(delivery)
            self.flush_soon()

    def _keep(self, delivery: Delivery) -> None:
        """A dead letter that could not be stored: the original must not go."""
        delivery.verdict, delivery.delay = "retry", STORE_AGAIN
        if not self._consumer.by_broker or not self._consumer.delays:
            self._consumer.held.add(delivery)

    async def finish(self) -> None:
        """Tell what is left, for the last time."""
        while self.flushing:
            waiter: Future[None] = new_future()
            self._waiters.append(waiter)
            await waiter
        self.pending.extend(self._again)
        self._again.clear()
        await self.flush()


def tell(waiters: list[Future[None]]) -> None:
    """Let everybody go on who waits for one of these."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
