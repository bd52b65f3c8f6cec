"""An ordered feed: the sessions of one subscription, each held by one member at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from amb_core.broker import Incoming, Settlement, Source, Token
from amb_core.concurrency import Wakeup, bounded
from amb_core.errors import AmbError, LeaseLost, PartialFailure
from amb_core.topics import is_pattern
from azure.servicebus import NEXT_AVAILABLE_SESSION
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import OperationTimeoutError

from ._deliveries import Deliveries
from ._entities import Entities
from ._errors import NATIVE, translate
from ._link import Link, hasten, together
from ._wire import subscription

if TYPE_CHECKING:
    from .broker import AzureServiceBusBroker

__all__ = ["SessionsFeed"]

#: A receive returns empty after this, seconds.
_WAIT, _GLANCE = 4.0, 1.5
#: A session without a message for so long is left to others; a busy one now and then, in case others wait.
_IDLE, _SLICE = 0.5, 30.0
#: Messages of a session at a time.
_BATCH = 4
#: Seconds in which a place should have been left.
_AGAIN = 2.0


class SessionsFeed:
    """`Feed` and `ExtendsLease` on a subscription with sessions: a link for each session that is held.

    Accepting a session takes as long as it takes until there is one, and the messages of the others cannot wait for
    that: so a task for each place is owned by the feed, from its start to its end.
    """

    def __init__(self, options: AzureServiceBusBroker, entities: Entities, source: Source) -> None:
        self._options, self._entities = options, entities
        self.source, self._name = source, subscription(source)
        self._doing = f"receive from {source.pattern!r}"
        self._exact = not is_pattern(source.pattern)
        self._places: asyncio.Future[list[None]] | None = None
        self._opening: set[ServiceBusReceiver] = set()
        self._sessions: dict[object, tuple[Link, Deliveries]] = {}
        self._came: deque[Incoming] = deque()
        self._news, self._asked = Wakeup(), anyio.Event()
        self._settled = anyio.Event()
        self._error: AmbError | None = None
        self.broken = self._leaving = False

    async def start(self) -> None:
        """Make sure of the subscription, and take places for its sessions. Raises: AmbError."""
        if self._options.auto_create:
            await self._entities.make_subscription(self._name, self.source)
        # More would be held than there are handlers for; in ordered mode the core holds four for each.
        count = max(1, min(self._options.sessions, self.source.max_in_flight // 4))
        self._places = asyncio.gather(*(self._place() for _ in range(count)))

    async def stop(self) -> None:
        """Leave the sessions: their next holder gets what was not settled."""
        places, self._places = self._places, None
        if places is None:
            return
        self._leaving = True
        for native in self._opening:
            hasten(native)
        while not places.done():
            places.cancel()  # again, as the client may swallow it
            with anyio.move_on_after(_AGAIN):
                await asyncio.wait([places])
        if not places.cancelled():
            places.exception()  # it was told in `receive`

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        if not self._came:
            self._asked.set()
            with suppress(TimeoutError):
                await bounded(self._news.wait(), _WAIT if wait else _GLANCE)
            self._asked = anyio.Event()
        if self._error is not None and not self._came:
            self.broken = True
            raise self._error
        return [self._came.popleft() for _ in range(min(limit, len(self._came)))]

    async def _place(self) -> None:
        """Hold one session after the other, for ever."""
        link: Link | None = None
        try:
            while not self._leaving:
                link = await self._accept()
                deliveries = Deliveries(self._doing, self._options.response_timeout)
                self._sessions[deliveries.number] = link, deliveries
                try:
                    await self._hold(link, deliveries)
                finally:
                    del self._sessions[deliveries.number]
                await link.close()
        except NATIVE as error:
            self._fail(translate(error, self._doing))
        except AmbError as error:
            self._fail(error)
        finally:
            if link is not None:
                await link.close()

    def _fail(self, error: AmbError) -> None:
        self._error = self._error or error
        self._news.set()

    async def _accept(self) -> Link:
        while True:
            native = self._entities.receiver(self._name, session_id=NEXT_AVAILABLE_SESSION)
            self._opening.add(native)
            try:
                return Link(await self._entities.opened(native, self._name, self.source))
            except AmbError as error:
                if not isinstance(error.__cause__, OperationTimeoutError):
                    raise
            finally:
                self._opening.discard(native)

    async def _hold(self, link: Link, deliveries: Deliveries) -> None:
        began = used = renewed = time.monotonic()
        patience = self._options.lock_duration / 5
        while (now := time.monotonic()) - began < _SLICE and not self._leaving:
            if now - renewed > patience:
                # The core renews what it holds; a session that is empty is kept too.
                if await deliveries.renew_session(link):
                    return
                renewed = now
            with anyio.move_on_after(patience):
                await self._asked.wait()
            for message in await link.receive(_BATCH, min(_IDLE, patience)) if self._asked.is_set() else ():
                incoming = deliveries.hold(message)
                if self._exact and incoming.topic != self.source.pattern:  # from before there were rules
                    await deliveries.settle(link, {0: Settlement(incoming.token, "ack")})
                else:
                    self._came.append(incoming)
                    self._news.set()
            if len(deliveries):
                used = time.monotonic()
            elif time.monotonic() - used > _IDLE:
                return
        while len(deliveries) and not link.broken:
            await self._settled.wait()

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`. A retry waits in the core, as what comes behind it must wait too."""
        await self._all(
            [outcome.token for outcome in outcomes],
            lambda link, deliveries, indices: deliveries.settle(link, {i: outcomes[i] for i in indices}),
        )

    async def extend(self, tokens: Sequence[Token]) -> None:
        """See `amb_core.broker.ExtendsLease.extend`. The lock is the session's."""
        await self._all(
            tokens, lambda link, deliveries, indices: deliveries.renew(link, {i: tokens[i] for i in indices})
        )

    async def _all(
        self,
        tokens: Sequence[Token],
        do: Callable[[Link, Deliveries, Sequence[int]], Awaitable[dict[int, AmbError]]],
    ) -> None:
        """Do it for the tokens of each session. Raises: PartialFailure."""
        sessions: dict[object, list[int]] = {}
        for i, token in enumerate(tokens):
            sessions.setdefault(token[0] if isinstance(token, tuple) else None, []).append(i)
        errors: dict[int, AmbError] = {}
        calls = []
        for number, indices in sessions.items():
            if (found := self._sessions.get(number)) is None:
                lost = LeaseLost(f"{self._doing}: the session is not ours any more; the delivery comes again")
                errors.update(dict.fromkeys(indices, lost))
            else:
                calls.append(do(*found, indices))
        for failed in await together(calls, 2 * self._options.response_timeout):
            if isinstance(failed, BaseException):
                raise failed
            errors.update(failed)
        self._settled.set()
        self._settled = anyio.Event()
        if errors:
            raise PartialFailure(dict(errors))
