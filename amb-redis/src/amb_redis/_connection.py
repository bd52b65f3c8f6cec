"""A live connection: publishing, subscribing, replay and health."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from amb_core.broker import Connection, Feed, Incoming, Outgoing, Source, is_inbox
from amb_core.concurrency import require_asyncio
from amb_core.errors import AmbError, NoResponders, PartialFailure, PublishUnknown, UnsupportedError

from . import _scripts
from ._elections import Elections
from ._errors import translate
from ._feed import StreamFeed
from ._links import Command, Reply, checked
from ._pubsub import PubSubFeed
from ._replay import replay
from ._servers import Servers
from ._topology import servers
from ._trim import Trimmer
from ._wire import Names, entry_fields, lane_of, to_frame

if TYPE_CHECKING:
    from .broker import RedisBroker

__all__ = ["connect"]

logger = logging.getLogger("amb.redis")

#: A topic is entered into the registry again after this long, in case the registry was lost.
_REGISTERED = 30.0
#: What leaving a feed may take, seconds.
_LEAVING = 3.0


@asynccontextmanager
async def connect(options: RedisBroker) -> AsyncIterator[Connection]:
    """See `amb_core.broker.Broker.connect`."""
    require_asyncio("RedisBroker")
    async with servers(options) as found:
        yield RedisConnection(options, found)


class RedisConnection:
    """`Connection`, `Replays`, `Elects` and `ReportsHealth` on Redis."""

    def __init__(self, options: RedisBroker, found: Servers) -> None:
        self._options = options
        self._servers = found
        self._names = Names(options.prefix)
        self._trimmer = Trimmer(options, found, self._names)
        elections = Elections(found, self._names, options.wait_replicas, options.response_timeout)
        #: See `amb_core.broker.Elects`.
        self.acquire, self.renew, self.release = elections.acquire, elections.renew, elections.release
        self._consumer = secrets.token_hex(6)
        self._serial = itertools.count()
        self._registered: dict[str, float] = {}
        self._resting: dict[str, StreamFeed] = {}

    async def send(self, batch: Sequence[Outgoing]) -> None:
        """See `amb_core.broker.Connection.send`."""
        commands = [self._publish(message) for message in batch]
        extra = self._waits(batch) + self._registrations(batch)
        doing = f"publish to {batch[0].topic!r}" + (f" and {len(batch) - 1} more" if len(batch) > 1 else "")
        replies = await self._servers.call([*commands, *extra], doing, unknown=True)
        errors = {i: error for i in range(len(batch)) if (error := self._failure(batch[i], replies[i])) is not None}
        for (key, _), reply in zip(extra, replies[len(batch) :], strict=True):
            self._not_replicated(batch, key, reply, errors)
        if errors:
            self._registered.clear()
            if len(errors) == len(batch) and len({type(error) for error in errors.values()}) == 1:
                raise errors[0]
            raise PartialFailure(errors)
        if self._options.use_streams:
            await self._trimmer.published(batch)

    def _publish(self, message: Outgoing) -> tuple[bytes, Command]:
        if not self._options.use_streams or is_inbox(message.topic):
            channel = self._names.channel(message.topic)
            return channel, ("PUBLISH", channel, to_frame(message))
        base, lane = self._names.base(message.topic), lane_of(message.priority)
        if message.not_before is not None and message.not_before > time.time():
            unique = f"{self._consumer}{next(self._serial)}"
            due = int(message.not_before * 1000)
            return base, _scripts.DELAY.call([base], due, unique, lane, *entry_fields(message))
        return base, ("XADD", base + lane, "*", *entry_fields(message))

    def _registrations(self, batch: Sequence[Outgoing]) -> list[tuple[bytes, Command]]:
        if not self._options.use_streams:
            return []
        now, new = time.monotonic(), list[str]()
        for message in batch:
            if self._registered.get(message.topic, 0.0) <= now and not is_inbox(message.topic):
                self._registered[message.topic] = now + _REGISTERED
                new.append(message.topic)
        return [self._register(new)] if new else []

    def _register(self, topics: Sequence[str]) -> tuple[bytes, Command]:
        return self._names.topics, _scripts.REGISTER.call([self._names.topics, self._names.bell], *topics)

    def _waits(self, batch: Sequence[Outgoing]) -> list[tuple[bytes, Command]]:
        count = self._options.wait_replicas
        if not count:
            return []
        bases = {self._names.base(m.topic) for m in batch if m.confirm and not is_inbox(m.topic)}
        limit = int(self._options.response_timeout * 1000)
        return [(base, ("WAIT", count, limit)) for base in bases]

    def _failure(self, message: Outgoing, reply: Reply) -> AmbError | None:
        if isinstance(reply, Exception):
            return translate(reply, f"publish to {message.topic!r}")
        if message.mandatory and reply == 0:
            return NoResponders(f"nobody is subscribed to {message.topic!r}")
        return None

    def _not_replicated(
        self, batch: Sequence[Outgoing], base: bytes, reply: Reply, errors: dict[int, AmbError]
    ) -> None:
        """Note who was confirmed by too few replicas. `base` is the registry's for a registration."""
        wanted = self._options.wait_replicas
        for i, message in enumerate(batch):
            if message.confirm and self._names.base(message.topic) == base and i not in errors:
                if isinstance(reply, Exception):
                    errors[i] = translate(reply, f"wait for the replicas of {message.topic!r}")
                elif reply < wanted:
                    errors[i] = PublishUnknown(
                        f"{message.topic!r}: the master has the message, but only {reply} of {wanted} replicas do; "
                        "a failover now would lose it"
                    )

    def open(self, source: Source) -> AbstractAsyncContextManager[Feed]:
        """See `amb_core.broker.Connection.open`."""
        if self._options.use_streams and not is_inbox(source.pattern):
            return self._open_streams(source)
        if source.group is not None:
            raise UnsupportedError("plain Redis pub/sub has no groups: use_streams=True has")
        return self._open_pubsub(source)

    @asynccontextmanager
    async def _open_pubsub(self, source: Source) -> AsyncIterator[Feed]:
        feed = PubSubFeed(self._options, self._servers, self._names, source)
        try:
            await feed.start()
            yield feed
        finally:
            await feed.stop()

    @asynccontextmanager
    async def _open_streams(self, source: Source) -> AsyncIterator[Feed]:
        # A feed that broke knows what is still being handled: it goes on where it was.
        feed = self._resting.pop(source.id, None)
        if feed is None or feed.source != source:
            feed = StreamFeed(self._options, self._servers, self._names, source, f"{self._consumer}-{source.id}")
        try:
            await feed.start()
            yield feed
        finally:
            if feed.broken:
                self._resting[source.id] = feed
            with anyio.move_on_after(_LEAVING, shield=True):
                await feed.stop()

    def replay(self, pattern: str, since: float | str | None, until: float | None) -> AsyncIterator[Incoming]:
        """See `amb_core.broker.Replays.replay`."""
        if not self._options.use_streams:
            raise UnsupportedError("plain Redis pub/sub stores nothing to replay: use_streams=True does")
        return replay(self._servers, self._names, pattern, since, until)

    async def ping(self) -> Mapping[str, str]:
        """See `amb_core.broker.ReportsHealth.ping`."""
        began = time.perf_counter()
        raw = checked(await self._servers.one(b"", ("HELLO",), "ask Redis for its health"), "health")
        facts = {
            k.decode(): v.decode() if isinstance(v, bytes) else str(v) for k, v in zip(raw[::2], raw[1::2], strict=True)
        }
        return {
            "version": f"{facts.get('server', 'redis')} {facts.get('version', '?')}",
            "role": facts.get("role", "?"),
            "mode": facts.get("mode", "?"),
            "latency": f"{(time.perf_counter() - began) * 1000:.2f} ms",
            **{
                f"beyond stream_max_len: {topic}": f"group {group} lags"
                for topic, group in self._trimmer.lagging.items()
            },
        }
