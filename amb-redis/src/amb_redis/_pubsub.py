"""A feed on a pub/sub channel: inboxes always, everything with ``use_streams=False``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from amb_core.broker import Incoming, Settlement, Source
from amb_core.errors import AmbError, Unavailable
from amb_core.topics import is_pattern

from ._errors import NATIVE, translate
from ._links import Link, Reply, checked
from ._servers import Servers
from ._wire import Names, from_frame

if TYPE_CHECKING:
    from .broker import RedisBroker

__all__ = ["PubSubFeed"]

#: A receive returns empty after this, seconds, having sent a ping.
_WAIT = 4.5


class PubSubFeed:
    """`Feed` on one connection in subscribe mode. What is sent while it is away is gone."""

    def __init__(self, options: RedisBroker, found: Servers, names: Names, source: Source) -> None:
        self._options = options
        self._servers = found
        self._names = names
        self._source = source
        self._link: Link | None = None
        self._pinged: float | None = None
        self._held: dict[int, Incoming] = {}
        self._back: list[Incoming] = []
        self._serial = 0

    async def start(self) -> None:
        """Subscribe; returns when the server has said so."""
        pattern = self._source.pattern
        verb, name = (
            ("PSUBSCRIBE", self._names.glob(pattern))
            if is_pattern(pattern)
            else ("SUBSCRIBE", self._names.channel(pattern))
        )
        doing = f"subscribe to {pattern!r}"
        self._link = await self._servers.link(name)
        try:
            async with asyncio.timeout(self._options.response_timeout):
                await self._link.ask([(verb, name)])
                checked(await self._link.answer(), doing)
        except AmbError:
            raise
        except NATIVE as error:
            raise translate(error, doing) from error

    async def stop(self) -> None:
        if self._link is not None:
            await self._link.close()

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        if self._back:
            found, self._back = self._back[:limit], self._back[limit:]
            return [self._hold(incoming) for incoming in found]
        try:
            return await self._receive(limit, wait)
        except AmbError:
            raise
        except NATIVE as error:
            raise translate(error, f"receive from {self._source.pattern!r}") from error

    async def _receive(self, limit: int, wait: bool) -> list[Incoming]:
        link, found = self._link, list[Incoming]()
        if link is None or not link.alive:
            raise Unavailable(f"the subscription to {self._source.pattern!r} has lost its link")
        if wait:
            try:
                async with asyncio.timeout(_WAIT):
                    self._read(await link.answer(), found)
            except TimeoutError:
                await self._probe(link)
        while len(found) < limit and await link.more():
            self._read(await link.answer(), found)
        return found

    def _read(self, reply: Reply, found: list[Incoming]) -> None:
        self._pinged = None
        if isinstance(reply, AmbError | Exception):
            raise translate(reply, f"receive from {self._source.pattern!r}")
        if reply[0] in (b"message", b"pmessage"):
            channel, data = reply[-2:]
            entry = from_frame(data)
            topic = self._names.from_channel(channel)
            found.append(self._hold(Incoming(topic, entry.body, entry.headers, 0, entry.key)))

    def _hold(self, incoming: Incoming) -> Incoming:
        self._serial += 1
        incoming.token = self._serial
        self._held[self._serial] = incoming
        return incoming

    async def _probe(self, link: Link) -> None:
        """A dead link looks like a silent one: ask, and expect something before long."""
        now = time.monotonic()
        if self._pinged is None:
            self._pinged = now
            await link.ask([("PING",)])
        elif now > self._pinged + self._options.response_timeout:
            raise Unavailable(f"the subscription to {self._source.pattern!r} got no answer to a ping")

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """Nothing to tell the server. What is released comes again from this feed."""
        for outcome in outcomes:
            incoming = self._held.pop(outcome.token, None) if isinstance(outcome.token, int) else None
            if incoming is not None and outcome.verdict in ("release", "retry"):
                self._back.append(incoming)
