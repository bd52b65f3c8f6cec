"""A feed on streams: what is read, when, and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import anyio
from amb_core.broker import Backlog, Incoming, Settlement, Source, Token
from amb_core.errors import AmbError, Unavailable
from amb_core.topics import compile_pattern, is_pattern
from redis.exceptions import AskError, MovedError, NoScriptError, TryAgainError

from . import _scripts
from ._backlog import backlog
from ._errors import NATIVE, translate
from ._lanes import Lane, Topic
from ._leases import Leases
from ._links import Link, checked
from ._reads import Read, Reader
from ._servers import Servers
from ._wire import Names

if TYPE_CHECKING:
    from .broker import RedisBroker

__all__ = ["StreamFeed"]

logger = logging.getLogger("amb.redis")

#: A waiting receive returns empty after this, seconds; the server is asked to wait a little less.
_WAIT, _BLOCK = 4.8, 4.5
#: What calling back a read may take, seconds.
_CALL_BACK = 1.0
#: While there is work, other topics are looked for this often; in a Cluster also without work.
_LOOK = 0.25
#: So many topics are read at once, without asking first which of them have news.
_FEW = 16
#: While some of many topics have work, the others are asked for news this often.
_NEWS = 0.05
#: After a node has said that a slot is moving away from it, its topic is polled for so long, seconds.
_MOVING = 1.0
#: A consumer that holds nothing and was not seen for so long is forgotten, seconds.
_FORGET = 60.0


class StreamFeed:
    """`Feed`, `Withdraws`, `ExtendsLease` and `TellsBacklog` on the streams of a topic, or of all a pattern matches."""

    def __init__(self, options: RedisBroker, found: Servers, names: Names, source: Source, consumer: str) -> None:
        self.source = source
        self.broken = False
        self._servers = found
        self._names = names
        self._patience = options.response_timeout
        self._forget = int(max(_FORGET, 4 * options.lease) * 1000)
        self._group = names.group(source.group, source.pattern).encode() if source.group is not None else b""
        self._matches: Callable[[str], bool] | None = (
            compile_pattern(source.pattern) if is_pattern(source.pattern) else None
        )
        #: A Cluster reads each topic on its own node, so nothing can wait for all of them.
        self._polls = found.clustered and self._matches is not None
        self._topics: dict[str, Topic] = {}
        self._by_key: dict[bytes, Topic] = {}
        self._ready: dict[str, Topic] = {}
        self._wake = 0.0
        self._idle = False
        self._looked = self._news_at = self._moving = 0.0
        self._bell = b"0-0"
        self._stash: list[Incoming] = []
        self._withdrawn = False
        self._link: Link | None = None
        self._asked: Read | None = None
        self._leases = Leases(found, self._group, consumer.encode(), options.lease)
        self._reader = Reader(
            self._leases, self._group, consumer.encode(), options.lease, source.ordered_by is not None
        )

    # --- begin and end ---------------------------------------------------------------------------

    @property
    def _doing(self) -> str:
        return f"subscribe to {self.source.pattern!r}"

    async def start(self) -> None:
        """Bind the topics there are; what is published from now on will be read."""
        again, self.broken = self.broken, True
        self._asked, self._idle = None, False
        await (self._bind_exact() if self._matches is None else self._bind_matching())
        if again and self._group:
            lanes = [lane for topic in self._topics.values() for lane in topic.lanes.values()]
            for lane, entry, fields, earlier in await self._leases.orphans(lanes):
                self._stash.append(self._reader.incoming(lane, entry, fields, earlier, time.monotonic()))
        self._link = await self._servers.link(self._names.base(self.source.pattern))
        self.broken = False

    async def _bind_exact(self) -> None:
        register = _scripts.REGISTER.call([self._names.topics, self._names.bell], self.source.pattern)
        await self._servers.one(self._names.topics, register, self._doing)
        await self._bind([self.source.pattern], b"$" if self.source.start == "latest" else b"0")

    async def _bind_matching(self) -> None:
        """Who was here before, this feed or its group, wants all of a topic it has not met; a new one what comes."""
        known = self._names.groups
        old = bool(self._group and await self._servers.one(known, ("HEXISTS", known, self._group), self._doing))
        await self._bind(list(self._topics), b"0")
        was_live = self._link is not None
        await self._look(b"0" if old or self.source.start == "earliest" or was_live else b"$")
        if self._group and not old:
            await self._servers.one(known, ("HSET", known, self._group, self.source.pattern), self._doing)

    async def _bind(self, names: Iterable[str], start: bytes) -> None:
        """Make groups where they are missing, and know where reading begins."""
        topics = [self._topics.get(name) or Topic(name, self._names.base(name), self._group) for name in names]
        calls = [
            (t.base, _scripts.BIND.call([t.base], self._group, *self._from(t, start), self._forget)) for t in topics
        ]
        for topic, reply in zip(topics, await self._servers.call(calls, self._doing), strict=True):
            tails = checked(reply, self._doing)
            if topic.name not in self._topics:
                self._topics[topic.name] = topic
                self._by_key |= dict.fromkeys([lane.key for lane in topic.lanes.values()] + [topic.base + b"w"], topic)
                if start == b"$":
                    topic.express.begin(tails[0], tails[1])
                    topic.normal.begin(tails[2], tails[3])
            topic.wake = topic.sweep = 0.0
        self._wake = 0.0

    def _from(self, topic: Topic, start: bytes) -> tuple[bytes, bytes]:
        """Where a group begins that is missing: a topic that was read before goes on from there."""
        return (topic.express.last, topic.normal.last) if topic.name in self._topics else (start, start)

    async def _look(self, start: bytes = b"0") -> None:
        """Bind the matching topics that are in the registry and not bound."""
        assert self._matches is not None
        self._looked = time.monotonic()
        known = await self._servers.one(self._names.topics, ("SMEMBERS", self._names.topics), self._doing)
        new = [name for raw in known if (name := raw.decode()) not in self._topics and self._matches(name)]
        if new:
            await self._bind(new, start)

    async def stop(self) -> None:
        """Give back what was not settled, and leave nothing of this consumer behind."""
        try:
            if not self.broken and self._group and self._link is not None:
                await self._finish(self._link)
                await self._leases.leave(self._topics.values())
        except (*NATIVE, AmbError) as error:
            logger.debug("leaving %r: %s", self.source.pattern, error)
        finally:
            if self._link is not None:
                await self._link.close()

    async def _finish(self, link: Link) -> list[Incoming]:
        """A read that waits may be granted messages any time: wake it, and take the answer."""
        if self._asked is None or not link.alive:
            return []
        key = self._asked.topics[0].base + b"w" if self._asked.topics else self._names.bell
        await self._servers.one(key, ("XADD", key, "MAXLEN", 1, "*", "wake", 1), "wake a read")
        return await self._answer(link, time.monotonic() + self._patience)

    # --- receive ---------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        self._withdrawn = False
        try:
            while True:
                found = await self._receive(limit, wait, time.monotonic() + _WAIT)
                ours = await self._leases.still_ours(found) if self._group else found
                if ours or not found:
                    return ours
        except asyncio.CancelledError:
            await self._call_back()
            raise
        except AmbError:
            self.broken = True
            raise
        except NATIVE as error:
            self.broken = True
            raise translate(error, f"receive from {self.source.pattern!r}") from error

    async def _receive(self, limit: int, wait: bool, until: float) -> list[Incoming]:
        if not wait:
            self._looked = 0.0  # a topic that was new just before this call counts too
        while not self._stash:
            old = self._asked is not None  # its answer may be older than what was published before this call
            found = await self._step(limit, wait, until)
            if found:
                if len(found) <= limit:
                    return found
                self._stash = found
            elif time.monotonic() >= until or (not wait and self._idle and not old):
                return []
        found, self._stash = self._stash[:limit], self._stash[limit:]
        return found

    async def _call_back(self) -> None:
        """A read that goes on while nobody waits for it would be granted messages, to age here."""
        if not self._group or self._asked is None or self._link is None:
            return
        with anyio.move_on_after(_CALL_BACK, shield=True):
            try:
                self._stash += await self._finish(self._link)
            except (*NATIVE, AmbError) as error:
                self.broken = True
                logger.debug("calling a read of %r back: %s", self.source.pattern, error)
                return
            if self._withdrawn:
                await self._return_unseen()

    async def withdraw(self) -> None:
        """See `amb_core.broker.Withdraws`. A read that is being called back right now may bring something yet."""
        self._withdrawn = True
        await self._return_unseen()

    async def _return_unseen(self) -> None:
        stash, self._stash = self._stash, []
        if not stash:
            return
        try:
            await self.settle([Settlement(each.token, "release") for each in stash])
        except AmbError as error:
            logger.info("up to %d message(s) on %r come again later: %s", len(stash), self.source.pattern, error)

    async def _step(self, limit: int, wait: bool, until: float) -> list[Incoming]:
        """One round trip at most: a read, or a look at who has news."""
        link = self._link
        if link is None or not link.alive:
            raise Unavailable(f"the subscription to {self.source.pattern!r} has lost its link")
        if self._asked is not None:
            return await (self._answer(link, until) if wait else self._finish(link))
        now = time.monotonic()
        if self._matches is not None and now >= self._looked + (_WAIT if self._idle and not self._polls else _LOOK):
            await self._look()
        if self._polls or now < self._moving:
            return await self._poll(limit, wait, until)
        self._asked = read = self._plan(limit, wait, until, now)
        try:
            await link.ask(read.commands)
        except BaseException:
            self._asked, self.broken = None, True
            raise
        return await self._answer(link, until)

    def _plan(self, limit: int, wait: bool, until: float, now: float) -> Read:
        """What to ask: few topics are waited for and read in one go; of many, first who has news."""
        every, topics = list(self._topics.values()), self._due(_FEW)
        few = 0 < len(every) <= _FEW
        if few and (topics or not (wait and self._idle)):
            return self._reader.read(every, limit, now)
        if topics and now < self._news_at:
            return self._reader.read(topics, limit, now)
        self._ready |= {topic.name: topic for topic in topics}
        self._news_at = now + _NEWS
        look = self._looked + _WAIT if self._matches is not None else until
        pause = max(0.0, min(until - (_WAIT - _BLOCK), self._wake, look) - now)
        bell = (self._names.bell, self._bell) if self._matches is not None else None
        read = self._reader.wait(every, bell, pause if wait and not topics else None, now)
        if few:
            read.then(self._reader.read(every, limit, now + pause))
        return read

    def _due(self, most: int) -> list[Topic]:
        """Topics that had something when last read, or whose time has come; taking turns."""
        now = time.monotonic()
        if now >= self._wake:
            self._ready |= {topic.name: topic for topic in self._topics.values() if topic.wake <= now}
            self._wake = min((topic.wake for topic in self._topics.values() if topic.wake > now), default=now + _WAIT)
        names = list(self._ready)[:most]
        return [self._ready.pop(name) for name in names]

    async def _answer(self, link: Link, until: float) -> list[Incoming]:
        """Take the answers to what was asked, whenever that was."""
        read = self._asked
        assert read is not None
        now = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(until, read.expected + self._patience) - now)):
                while link.owed:
                    read.replies.append(await link.answer())
        except TimeoutError:
            if time.monotonic() >= read.expected + self._patience:
                raise Unavailable(f"no answer within {self._patience:g} s") from None
            return []
        self._asked = None
        if any(map(_moves, read.replies)):
            self._moving = time.monotonic() + _MOVING
            if read.waited and _moves(read.replies[0]):
                read.replies[0] = ()  # no news
            if any(map(_moves, read.replies[: len(read.replies) - bool(read.plain)])):
                return await self._again(read)
        return await self._digest(read)

    async def _again(self, read: Read) -> list[Incoming]:
        """The pooled connections teach a server that has restarted, and follow a slot that moves."""
        if read.plain:
            self._stash += self._reader.plain(read)[0]
        return await self._aside(read.topics, read.limit)

    async def _digest(self, read: Read) -> list[Incoming]:
        if any(isinstance(reply, NoScriptError) for reply in read.replies):
            return await self._again(read)
        for reply in read.replies[: len(read.replies) - bool(read.plain)]:
            checked(reply, f"receive from {self.source.pattern!r}")
        if read.waited:
            self._news(read.replies.pop(0) or ())
        found = list[Incoming]()
        if read.replies:
            found, gone = self._reader.digest(read)
            for topic in read.topics:
                self._ready.pop(topic.name, None)
            if read.full:
                self._ready |= {topic.name: topic for topic in read.topics}
            self._wake = min(self._wake, *(topic.wake for topic in read.topics))
            for lane in gone:
                await self._regroup(lane)
        self._idle = not self._ready
        return found

    async def _regroup(self, lane: Lane) -> None:
        group, topic = self.source.group, lane.topic.name
        logger.warning("group %r of topic %r was gone: made again; what it held open may be lost", group, topic)
        await self._leases.regroup(lane)
        self._ready[topic] = lane.topic

    def _news(self, streams: Iterable[tuple[bytes, list[tuple[bytes, object]]]]) -> None:
        """Who has something new, according to XREAD."""
        for key, entries in streams:
            topic = self._by_key.get(key)
            if topic is None:
                self._bell, self._looked = entries[-1][0], 0.0
                continue
            if key == topic.base + b"w":
                topic.bell = entries[-1][0]
            self._ready[topic.name] = topic

    async def _aside(self, topics: Sequence[Topic], limit: int) -> list[Incoming]:
        """Read over pooled connections, beside a read that waits, or on the nodes of a Cluster."""
        self._ready |= {topic.name: topic for topic in topics[limit:]}
        now, share = time.monotonic(), max(1, limit // max(1, len(topics)))
        reads = [self._reader.read([topic], share, now) for topic in topics[:limit]]
        found = list[Incoming]()
        # Cancelled after the server has granted them, they would be lost for a lease.
        with anyio.CancelScope(shield=True):
            try:
                calls = [(read.topics[0].base, read.commands[0]) for read in reads]
                for read, reply in zip(reads, await self._servers.call(calls, "receive"), strict=True):
                    read.replies.append(reply)
                    found += await self._digest(read)
            except BaseException:
                self._stash += found
                raise
        return found

    async def _poll(self, limit: int, wait: bool, until: float) -> list[Incoming]:
        """Ask every topic's node for news, then read where there is some, or where nobody can tell."""
        moving = list[Topic]()
        if not self._ready:
            asked = list(self._topics.values())
            calls = [(topic.base, self._reader.wait([topic], None, None, 0.0).commands[0]) for topic in asked]
            for topic, reply in zip(asked, await self._servers.call(calls, "look for news"), strict=True):
                if _moves(reply):
                    moving.append(topic)
                else:
                    self._news(checked(reply, "look for news") or ())
        topics = self._due(_FEW)
        self._idle = not topics
        if self._idle and wait:
            await anyio.sleep(max(0.0, min(_LOOK, until - time.monotonic(), self._wake - time.monotonic())))
        return await self._aside([*topics, *(topic for topic in moving if topic not in topics)], limit)

    # --- settle ----------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`."""
        if self._group:
            await self._leases.settle(outcomes)
        else:
            self._stash += self._leases.given_back(outcomes)

    async def backlog(self) -> Backlog:
        """See `amb_core.broker.TellsBacklog`. Without a group the server knows of no reader."""
        if not self._group:
            return Backlog()
        lanes = [lane for topic in self._topics.values() for lane in topic.lanes.values()]
        return await backlog(self._servers, self._group, lanes, f"count what waits for {self.source.pattern!r}")

    async def extend(self, tokens: Sequence[Token]) -> None:
        """See `amb_core.broker.ExtendsLease.extend`."""
        if self._group:
            await self._leases.extend(tokens)


def _moves(reply: object) -> bool:
    """Whether a node says that it is giving a slot away: not all keys are here, or none is here any more."""
    return isinstance(reply, TryAgainError | AskError) and not isinstance(reply, MovedError)
