"""A feed on a plain subscription: core NATS. What is sent while it is away is gone."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from amb_core.broker import Incoming, Settlement, Source
from amb_core.concurrency import Wakeup, bounded
from amb_core.errors import AccessDenied
from amb_core.lanes import Lanes
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ._link import Link
from ._wire import Names, durable, from_headers

if TYPE_CHECKING:
    from .broker import NatsBroker

__all__ = ["LiveFeed", "subscribe"]

logger = logging.getLogger("amb.nats")

#: A receive returns empty after this, seconds, having heard from the server.
_WAIT = 4.0
#: Seconds after which what has come in meanwhile counts.
_STALE = 0.001
_NORMAL = 3
#: About what a message takes here beside its body, bytes.
_OVERHEAD = 1024
_LANES = {"critical": 0, "urgent": 1, "high": 2, "normal": 3, "low": 4, "background": 5}


async def subscribe(
    link: Link, subjects: Sequence[str], queue: str, arrived: Callable[[Msg], Awaitable[None]], doing: str
) -> list[Subscription]:
    """Subscriptions that the server has accepted. Raises: AccessDenied, ConnectionLost."""
    made = []
    for subject in subjects:
        link.check()
        made.append(await link.client.subscribe(subject, queue, cb=arrived))
    await link.flush(doing)
    if link.denied("subscription", {f"{one}" for one in subjects}):
        raise AccessDenied(f"{doing}: the server does not permit it; extend the user's subscribe permissions")
    return made


class LiveFeed:
    """`Feed` and `KnowsPeers` without anything stored. The server hands over at once, so what waits, waits here."""

    def __init__(self, options: NatsBroker, link: Link, names: Names, source: Source) -> None:
        self._options, self._link, self._names, self._source = options, link, names, source
        self._doing = f"receive from {source.pattern!r}"
        self._subscriptions: list[Subscription] = []
        self._lanes: Lanes[Msg] = Lanes()
        self._bytes = self._dropped = 0
        self._news = Wakeup()
        self._prioritized, self._returned = False, 0.0
        self._tokens = itertools.count()
        self._held: dict[object, Msg] = {}

    async def start(self) -> None:
        """Subscribe; returns when the server has."""
        group, pattern = self._source.group, self._source.pattern
        queue = "" if group is None else durable(group, pattern)
        self._link.watchers.add(self._news.set)
        self._subscriptions = await subscribe(
            self._link, self._names.filters(pattern), queue, self._arrived, f"subscribe to {pattern!r}"
        )

    async def stop(self) -> None:
        """Hear no more."""
        self._link.watchers.discard(self._news.set)
        if self._link.lost is None:
            await self._unsubscribe()

    async def _unsubscribe(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await self._link.drain(subscription)

    async def _arrived(self, message: Msg) -> None:
        if self._names.topic(message.subject) is None:
            return
        if self._bytes >= self._options.buffer_size:
            self._drop()
            return
        lane = _lane(message)
        self._prioritized = self._prioritized or lane != _NORMAL
        self._bytes += _size(message)
        self._lanes.push(lane, message)
        self._news.set()

    def _drop(self) -> None:
        self._dropped += 1
        if self._dropped & (self._dropped - 1) == 0:
            logger.warning(
                "the subscription to %r is %d bytes behind and has dropped %d messages: core NATS cannot wait; "
                "raise buffer_size, use a group, or jetstream=True",
                self._source.pattern, self._bytes, self._dropped,
            )  # fmt: skip

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        if self._prioritized and time.monotonic() > self._returned + _STALE:
            # What is more urgent may still be on its way.
            await self._link.flush(self._doing)
        if not self._lanes:
            await self._more(wait)
        found = [self._hold(self._lanes.pop()) for _ in range(min(limit, len(self._lanes)))]
        self._returned = time.monotonic()
        return found

    def _hold(self, message: Msg) -> Incoming:
        self._bytes -= _size(message)
        token = next(self._tokens)
        self._held[token] = message
        headers, key = from_headers(message.headers)
        topic = self._names.topic(message.subject) or message.subject
        return Incoming(topic, message.data, headers, token, key, native=message)

    async def _more(self, wait: bool) -> None:
        self._link.check()
        if not wait:
            # The bus takes what is left before it leaves. What comes from now on is for the others of the group.
            if self._source.group is not None:
                await self._unsubscribe()
            return
        try:
            await bounded(self._news.wait(), _WAIT)
        except TimeoutError:
            await self._link.flush(self._doing)
        self._link.check()

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """Nothing to tell the server. What is released comes again from this feed."""
        for outcome in outcomes:
            message = self._held.pop(outcome.token, None)
            if message is not None and outcome.verdict in ("release", "retry"):
                self._bytes += _size(message)
                self._lanes.push_front(_lane(message), message)
                self._news.set()

    def last_consumer(self) -> bool:
        """What the server has handed over is nobody else's."""
        return True

    def tries_again(self) -> bool:
        """Nothing waits in the server."""
        return False


def _lane(message: Msg) -> int:
    return _LANES.get((message.headers or {}).get("amb-priority", "normal"), _NORMAL)


def _size(message: Msg) -> int:
    return len(message.data) + _OVERHEAD
