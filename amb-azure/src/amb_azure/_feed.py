"""A feed: the receiver of one subscription."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
from amb_core.broker import Incoming, Settlement, Source, Token, is_inbox
from amb_core.errors import AmbError, LeaseLost, PartialFailure, Unavailable
from amb_core.topics import is_pattern
from azure.servicebus import ServiceBusMessage

from ._deliveries import Deliveries
from ._entities import Entities
from ._errors import NATIVE, translate
from ._link import Link
from ._publisher import Publisher
from ._wire import clone, subscription

if TYPE_CHECKING:
    from .broker import AzureServiceBusBroker

__all__ = ["SubscriptionFeed"]

#: A receive returns empty after this, seconds, having heard from the service; one that may not wait, after that.
_WAIT, _GLANCE = 4.0, 0.25
#: Opening a link takes half a second: who unsubscribes at once is spared it.
_GRACE = 0.02


class SubscriptionFeed:
    """`Feed` and `ExtendsLease` on a subscription. Nothing is fetched for which there is no free handler."""

    def __init__(
        self, options: AzureServiceBusBroker, entities: Entities, publisher: Publisher, source: Source
    ) -> None:
        self._options, self._entities, self._publisher = options, entities, publisher
        self.source, self._name = source, subscription(source)
        self._doing = f"receive from {source.pattern!r}"
        #: Replies are worthless after whoever asked, so they need no settling.
        self._keeps = not is_inbox(source.pattern)
        #: The core renews no leases of these, so there must be none: they are settled before they are handed over.
        self._settles = self._keeps and source.group is None
        self._exact = not is_pattern(source.pattern)
        self._link: Link | None = None
        self._deliveries = Deliveries(self._doing, options.response_timeout)
        self._opening, self._left = anyio.Lock(), False
        self.broken = self._started = False

    async def start(self) -> None:
        """Make sure of the subscription, and open it. Raises: AmbError."""
        self.broken = self._left = self._started = False
        try:
            if self._options.auto_create:
                # Who may make a subscription may listen to it, so its link can wait.
                await self._entities.make_subscription(self._name, self.source)
            else:
                await self._live()
        except BaseException:
            # Opened again too early: what was held before is held still.
            self.broken = len(self._deliveries) > 0
            raise
        self._started = True

    async def stop(self) -> None:
        """Close the link. What was not settled goes back at once, unless the link broke: then it is settled later."""
        self._left = True
        async with self._opening:
            link, self._link = self._link, None
        if link is not None:
            if not self.broken and len(self._deliveries):
                await self._deliveries.give_back(link)
            await link.close()
        # One that could not be opened again has messages from before the outage, for the next attempt.
        if self.source.group is None and self._started and not self.broken and self._options.auto_create:
            await self._entities.remove_subscription(self._name)

    async def _live(self) -> Link:
        if self.broken:
            raise Unavailable(f"{self._doing}: the link broke; it is opened again")
        async with self._opening:
            if self._link is None:
                await self._open()
            assert self._link is not None
            return self._link

    async def _open(self) -> None:
        native = self._entities.receiver(self._name, keep=self._keeps)
        try:
            await self._entities.opened(native, self._name, self.source)
        except AmbError:
            self.broken = True
            raise
        link = Link(native)
        if self._left:  # while it was being opened
            await link.close()
            raise Unavailable(f"{self._doing}: the subscription has ended")
        self._link = link

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        if self._link is None:
            await anyio.sleep(_GRACE)
        link = await self._live()
        try:
            messages = await link.receive(limit, _WAIT if wait else _GLANCE)
            if not messages and wait:
                await link.pulse(self._options.response_timeout)
        except NATIVE as error:
            self.broken = True
            raise translate(error, self._doing) from error
        arrived = [self._deliveries.hold(message) for message in messages]
        # From before the subscription had its rules.
        strange = [i.token for i in arrived if self._exact and i.topic != self.source.pattern]
        done = [i.token for i in arrived] if self._settles else strange
        lost = await self._done(link, done) if done else ()
        return [i for i in arrived if i.token not in strange and i.token not in lost]

    async def _done(self, link: Link, tokens: Sequence[Token]) -> Sequence[Token]:
        """Complete deliveries. Returns those that come again."""
        errors: dict[int, AmbError] = {}
        with anyio.CancelScope(shield=True):
            errors = await self._deliveries.settle(link, {i: Settlement(t, "ack") for i, t in enumerate(tokens)})
        self.broken = self.broken or link.broken
        return [tokens[i] for i in errors]

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`. What is to come later is stored first.

        Not to be cancelled half-way, which would deliver twice; each half takes a response timeout at most."""
        with anyio.CancelScope(shield=True):
            await self._settle(outcomes)

    async def _settle(self, outcomes: Sequence[Settlement]) -> None:
        errors = self._strange([outcome.token for outcome in outcomes])
        later: dict[int, ServiceBusMessage] = {}
        for i, outcome in enumerate(outcomes):
            if outcome.verdict == "retry" and outcome.delay > 0 and (message := self._deliveries.find(outcome.token)):
                later[i] = clone(message, self._name, outcome.attempt, outcome.delay)
        if later:
            errors.update(await self._publisher.send(later, f"store a retry for {self.source.pattern!r}"))
        rest = {i: outcome for i, outcome in enumerate(outcomes) if i not in errors}
        if len(self._deliveries):
            link = await self._live()
            errors.update(await self._deliveries.settle(link, rest, frozenset(later)))
            # Where every handler is busy nobody receives, so that nobody else would notice.
            self.broken = self.broken or link.broken
        if errors:
            raise PartialFailure(dict(errors))

    async def extend(self, tokens: Sequence[Token]) -> None:
        """See `amb_core.broker.ExtendsLease.extend`."""
        errors = self._strange(tokens)
        if self.broken:
            await self._mend()
        link = await self._live()
        errors.update(await self._deliveries.renew(link, dict(enumerate(tokens))))
        self.broken = self.broken or link.broken
        if errors:
            raise PartialFailure(dict(errors))

    async def _mend(self) -> None:
        """Open the link anew under handlers that all are busy: the locks are theirs, and would run out."""
        async with self._opening:
            link, self._link = self._link, None
            if link is not None:
                await link.close()
            await self._open()
            self.broken = False

    def _strange(self, tokens: Sequence[Token]) -> dict[int, AmbError]:
        lost = LeaseLost(f"{self._doing}: the delivery came over a connection that is gone; it comes again")
        return {i: lost for i, token in enumerate(tokens) if self._deliveries.strange(token)}
