"""Keeps deliveries ours while their handlers run, for as long as they run."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import anyio

from ._leaving import as_failure
from .broker import ExtendsLease
from .errors import ConnectionLost, LeaseLost, PartialFailure

if TYPE_CHECKING:
    from ._consumer import Consumer
    from ._deliver import Delivery

log = logging.getLogger("amb")
_NEVER = 1 << 60


class Renewal:
    """Extends the leases of a consumer's open deliveries every quarter of the lease.

    A delivery is first extended between a quarter and half of the lease after it came: short handlers cost
    nothing, and a busy event loop or a slow broker may take the other half. A loop that was busy for a quarter has
    taken its part: then everything is extended at once. The timer rests while nothing is open.
    """

    def __init__(self, consumer: Consumer, lease: float) -> None:
        self._consumer, self._lease = consumer, lease
        self._armed = self._extending = False
        #: When the next round is due.
        self._at = 0.0
        #: Counts the rounds; a delivery remembers the round in which it came.
        self.tick = 0

    def arm(self) -> None:
        """Deliveries have come: see to their leases."""
        if not self._armed:
            self._armed, self._at = True, time.monotonic() + self._lease / 4
            self._consumer.host.timers.call_later(self._lease / 4, self._due)

    def let_go(self, delivery: Delivery) -> None:
        """Extend `delivery` no more; when its lease has run out it is the broker's again."""
        delivery.tick = _NEVER
        self._consumer.host.timers.call_later(self._lease, lambda: self._expired(delivery))

    def _expired(self, delivery: Delivery) -> None:
        if not delivery.settled and delivery.verdict is None:
            self._consumer.lose(delivery)
            self._consumer.kick()

    def _due(self) -> None:
        self._armed = False
        if self._consumer.open and not self._consumer.aborted:
            late = time.monotonic() - self._at > self._lease / 4
            self.arm()
            old = [delivery for delivery in self._consumer.open.values() if delivery.tick < self.tick + late]
            self.tick += 1
            if old and not self._extending:
                self._extending = True
                self._consumer.host.start_soon(self._extend, old)

    async def _extend(self, deliveries: list[Delivery]) -> None:
        try:
            # What takes longer than the lease has failed; the next round may fare better.
            with anyio.move_on_after(self._lease):
                await self._extend_now(deliveries)
        finally:
            self._extending = False

    async def _extend_now(self, deliveries: list[Delivery]) -> None:
        feed, stats = self._consumer.feed, self._consumer.host.stats
        if not isinstance(feed, ExtendsLease):
            return
        errors: dict[int, Exception] = {}
        try:
            await feed.extend([delivery.incoming.token for delivery in deliveries])
        except PartialFailure as failure:
            errors = failure.errors
        except BaseException as caught:
            error = as_failure(caught)
            if not isinstance(error, Exception):
                raise
            log.warning("the leases on %r could not be renewed: %s", self._consumer.source.pattern, error)
            if isinstance(error, ConnectionLost):
                self._consumer.fail(feed, error)
            return
        stats.lease_renewals += len(deliveries) - len(errors)
        for index, delivery in enumerate(deliveries):
            error = errors.get(index)
            if error is None or delivery.settled:
                continue
            lost = isinstance(error, LeaseLost)
            log.warning(
                "%s the lease of %s on %r: %s",
                "lost" if lost else "could not renew",
                delivery.incoming.headers.get("amb-id"),
                delivery.incoming.topic,
                error,
            )
            if lost:
                stats.settle_errors += 1
                self._consumer.lose(delivery)
        self._consumer.kick()  # places may have become free
