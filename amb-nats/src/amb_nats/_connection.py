"""A live connection: publishing, subscribing, replay and health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from amb_core.broker import Connection, Feed, Incoming, Outgoing, Source, is_inbox
from amb_core.concurrency import require_asyncio
from amb_core.errors import (
    AccessDenied,
    AmbError,
    NoResponders,
    PartialFailure,
    UnsupportedError,
)
from nats.aio.msg import Msg

from ._dial import dial
from ._elections import Elections
from ._feed import LiveFeed, subscribe
from ._link import Link, status
from ._pull import PullFeed
from ._replay import replay
from ._store import Store
from ._stream import Stream
from ._wire import Names, from_headers, to_headers, too_large

if TYPE_CHECKING:
    from .broker import NatsBroker

__all__ = ["connect"]

#: Subjects remembered as permitted.
_KNOWN = 10_000
#: Messages written without a pause.
_AT_ONCE = 64
#: What leaving a feed may take, seconds.
_LEAVING = 3.0


@asynccontextmanager
async def connect(options: NatsBroker) -> AsyncIterator[Connection]:
    """See `amb_core.broker.Broker.connect`."""
    require_asyncio("NatsBroker")
    async with dial(options) as made:
        connection = NatsConnection(options, made)
        await connection.start()
        yield connection


class NatsConnection:
    """`Connection`, `NativeRequests`, `Replays`, `Elects` and `ReportsHealth` on NATS."""

    def __init__(self, options: NatsBroker, link: Link) -> None:
        self._options, self._link = options, link
        self._names = Names(options.prefix, options.inbox_prefix)
        self._stream = Stream(options, link) if options.stores else None
        self._store = Store(link, self._stream, self._names) if self._stream is not None else None
        self._known: set[str] = set()
        elections = Elections(options, link, self._stream, self._names)
        #: See `amb_core.broker.Elects`.
        self.acquire, self.renew, self.release = elections.acquire, elections.renew, elections.release

    async def start(self) -> None:
        """Ask for what the options need. Raises: AmbError."""
        if self._stream is not None:
            await self._stream.start()

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """See `amb_core.broker.Connection.send`."""
        self._link.check()
        errors: dict[int, AmbError] = {}
        kept = [i for i, one in enumerate(batch) if self._store is not None and not is_inbox(one.topic)]
        if self._store is not None and kept:
            errors.update(await self._store.send(batch, kept))
        if len(kept) < len(batch):
            errors.update(await self._send_live(batch, sorted(set(range(len(batch))) - set(kept))))
        if errors:
            if len(errors) == len(batch) and len({type(error) for error in errors.values()}) == 1:
                raise errors[min(errors)]
            raise PartialFailure(errors)

    async def _send_live(self, batch: Sequence[Outgoing], chosen: Sequence[int]) -> dict[int, AmbError]:
        """Publish without JetStream. Waits for the server where somebody wants to know, and on new subjects."""
        errors: dict[int, AmbError] = {}
        written: dict[int, str] = {}
        asked: dict[int, tuple[str, asyncio.Future[Msg]]] = {}
        wait = False
        for count, i in enumerate(chosen, 1):
            if count % _AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()  # nothing below waits, and handlers want their turn
            message = batch[i]
            name = self._names.subject(message.topic)
            headers = to_headers(message)
            if (error := too_large(message, headers, self._link.client.max_payload)) is not None:
                errors[i] = error
                continue
            box = ""
            if message.mandatory:
                asked[i] = box, _ = self._link.expect(name)
            wait = wait or message.confirm or message.mandatory or name not in self._known
            posting = self._link.client.post(name, message.body, box, headers, more=True)
            await self._link.call(f"publish to {message.topic!r}", posting)
            written[i] = name
        await self._link.client.push()
        try:
            if wait and written:
                await self._link.flush("publish", unknown=True)
                errors.update(self._refused(batch, written))
            # The server says so before it answers the ping, and says nothing if there is somebody. A stream that stores
            # the subject acknowledges there too.
            for i, (_, answer) in asked.items():
                if i not in errors and answer.done() and status(answer.result()) == "503":
                    errors[i] = NoResponders(f"nobody is subscribed to {batch[i].topic!r}")
            return errors
        finally:
            for box, answer in asked.values():
                self._link.forget(box, answer)

    def _refused(self, batch: Sequence[Outgoing], written: Mapping[int, str]) -> dict[int, AmbError]:
        denied = self._link.denied("publish", set(written.values()))
        if len(self._known) > _KNOWN:
            self._known.clear()
        self._known.update(name for name in written.values() if name not in denied)
        self._known -= denied
        return {
            i: AccessDenied(
                f"publish to {batch[i].topic!r}: the server does not permit it; extend the user's publish permissions"
            )
            for i, name in written.items()
            if name in denied
        }

    @asynccontextmanager
    async def open(self, source: Source) -> AsyncIterator[Feed]:
        """See `amb_core.broker.Connection.open`."""
        feed: LiveFeed | PullFeed
        # A work queue has no room for readers beside its groups; those listen in instead.
        listens = source.group is None and self._options.stream_retention == "workqueue"
        if self._stream is None or is_inbox(source.pattern) or listens:
            feed = LiveFeed(self._options, self._link, self._names, source)
        else:
            feed = PullFeed(self._options, self._link, self._stream, self._names, source)
        try:
            await feed.start()
            yield feed
        finally:
            with anyio.move_on_after(_LEAVING, shield=True):
                await feed.stop()

    @asynccontextmanager
    async def inbox(self, address: str, deliver: Callable[[Incoming], None]) -> AsyncIterator[None]:
        """See `amb_core.broker.NativeRequests.inbox`."""

        async def arrived(message: Msg) -> None:
            headers, key = from_headers(message.headers)
            deliver(Incoming(address, message.data, headers, 0, key))

        made = await subscribe(self._link, [self._names.subject(address)], "", arrived, "open the inbox for replies")
        try:
            yield
        finally:
            if self._link.lost is None:
                with anyio.move_on_after(_LEAVING, shield=True):
                    await self._link.call("close the inbox", made[0].unsubscribe())

    def replay(self, pattern: str, since: float | str | None, until: float | None) -> AsyncIterator[Incoming]:
        """See `amb_core.broker.Replays.replay`."""
        if self._stream is None:
            raise UnsupportedError("core NATS stores nothing to replay: jetstream=True does")
        return replay(self._link, self._stream, self._names, pattern, since, until)

    async def ping(self) -> Mapping[str, str]:
        """See `amb_core.broker.ReportsHealth.ping`."""
        began = time.perf_counter()
        await self._link.flush("ask NATS for its health")
        latency = time.perf_counter() - began
        url, version = self._link.client.connected_url, self._link.client.connected_server_version
        facts = {
            "version": f"nats-server {version.major}.{version.minor}.{version.patch}",
            "server": url.netloc.rpartition("@")[2] if url else "?",
            "latency": f"{latency * 1000:.2f} ms",
        }
        return facts if self._stream is None else facts | await self._stream.facts()
