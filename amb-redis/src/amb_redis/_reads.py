"""The commands of a read, and what their replies mean."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

from amb_core.broker import Incoming
from redis.exceptions import ResponseError

from . import _scripts
from ._lanes import Delivery, Lane, Topic
from ._leases import Leases
from ._links import Command, Reply
from ._wire import from_entry

__all__ = ["Read", "Reader"]

logger = logging.getLogger("amb.redis")

#: Of so many express messages one may be a normal one, if it waits.
_FAIR = 16
#: From so many on, a topic that is read at full speed gets its normal messages by a command of their own, which
#: costs the server half; a part of them is kept for the express ones, which the script still reads first.
_HOT, _KEPT = 16, 8
#: Leftovers are looked for when a lease may have run out; a little later rather than twice.
_LATE = 0.02


class Read:
    """Commands that were or will be sent together."""

    __slots__ = ("began", "commands", "expected", "full", "limit", "plain", "replies", "topics", "waited")

    def __init__(self, commands: list[Command], topics: list[Topic], limit: int, began: float) -> None:
        self.commands = commands
        self.topics = topics
        self.limit = limit
        #: Leases begin at or after this; answers are expected by that (monotonic).
        self.began = self.expected = began
        #: The first command waits for news.
        self.waited = False
        #: So many normal messages were asked for by a command of their own, the last one.
        self.plain = 0
        self.replies: list[Reply] = []
        #: As much came as was asked for: there may be more.
        self.full = False

    def then(self, other: Read) -> None:
        """Let `other` follow in the same breath. Its replies count topics in its own order."""
        self.commands += other.commands
        self.topics = other.topics
        self.limit, self.plain = other.limit, other.plain


class Reader:
    """Builds reads for one feed, and keeps its lanes up to date with the replies."""

    def __init__(self, leases: Leases, group: bytes, consumer: bytes, lease: float, ordered: bool) -> None:
        self._leases = leases
        self._group = group
        self._consumer = consumer
        self._lease = lease
        self._ordered = ordered and bool(group)
        self._sweeps = bool(group) and not ordered
        self._streak = 0
        self._turn = 0

    def read(self, topics: list[Topic], limit: int, now: float) -> Read:
        """Take up to `limit` messages from the topics, express first."""
        self._turn += 1
        turn = self._turn % len(topics)
        topics = topics[turn:] + topics[:turn]
        fair = max(1, limit // _FAIR) if self._streak >= _FAIR else 0
        hot = self._sweeps and limit >= _HOT and len(topics) == 1 and topics[0].hot
        sweep = self._sweeps and any(topic.sweep <= now for topic in topics)
        args: list[object] = [
            self._group,
            self._consumer,
            limit // _KEPT if hot else limit,
            -1 if hot else fair,
            int(self._lease * 1000),
            int(sweep),
            int(self._ordered),
        ]
        for topic in topics:
            args += (topic.express.last, topic.normal.last, 0 if topic.overtaken else 1)
        read = Read([_scripts.READ.call([topic.base for topic in topics], *args)], topics, limit, now)
        if hot:
            read.plain = limit - limit // _KEPT
            where = ("COUNT", read.plain, "STREAMS", topics[0].normal.key, ">")
            read.commands.append(("XREADGROUP", "GROUP", self._group, self._consumer, *where))
        return read

    def wait(self, topics: list[Topic], bell: tuple[bytes, bytes] | None, pause: float | None, now: float) -> Read:
        """Return when a topic has news, or after `pause` seconds; at once if it is None."""
        keys, ids = list[bytes](), list[bytes]()
        for topic in topics:
            if not topic.locked:
                lanes = topic.lanes.values() if self._group else (topic.express, topic.normal)
                keys += [lane.key for lane in lanes]
                ids += [lane.last for lane in lanes]
            keys.append(topic.base + b"w")
            ids.append(topic.bell)
        if bell is not None:
            keys.append(bell[0])
            ids.append(bell[1])
        block = () if pause is None else ("BLOCK", max(1, math.ceil(pause * 1000)))
        read = Read([("XREAD", "COUNT", 1, *block, "STREAMS", *keys, *ids)], topics, 0, now)
        read.expected += max(0.0, pause or 0.0)
        read.waited = True
        return read

    def digest(self, read: Read) -> tuple[list[Incoming], list[Lane]]:
        """The messages, and lanes whose group is gone. Notes when each topic wants to be read again."""
        out, states, gone = read.replies[0]
        found = list[Incoming]()
        for index, name, entries, *counts in out:
            lane = read.topics[index - 1].lanes[name]
            self._streak = self._streak + len(entries) if name == b"x" else 0
            lane.read += len(entries)
            if counts:
                found += [
                    self.incoming(lane, e[0], e[1], n, read.began) for e, n in zip(entries, counts[0], strict=True)
                ]
            else:
                found += [self.incoming(lane, entry, fields, 0, read.began) for entry, fields in entries]
                lane.last = entries[-1][0]
        now = time.monotonic()
        for topic, state in zip(read.topics, states, strict=True):
            self._note(topic, state, now)
        missing = [read.topics[index - 1].lanes[name] for index, name in gone]
        if read.plain:
            more, lost = self.plain(read)
            read.full = read.topics[0].hot = len(more) >= read.plain
            return found + more, missing + lost
        read.full = len(found) >= read.limit
        if len(read.topics) == 1:
            read.topics[0].hot = read.full and len(out) == 1 and out[0][1] == b"s"
        return found, missing

    def plain(self, read: Read) -> tuple[list[Incoming], list[Lane]]:
        """What the last command of a hot read brought."""
        lane, reply = read.topics[0].normal, read.replies[-1]
        if isinstance(reply, ResponseError) and "NOGROUP" in str(reply):
            return [], [lane]
        entries = reply[0][1] if reply and not isinstance(reply, Exception) else ()
        if entries:
            self._streak = 0
            lane.last = entries[-1][0]
        return [self.incoming(lane, entry, fields, 0, read.began) for entry, fields in entries], []

    def _note(self, topic: Topic, state: Sequence[Reply], now: float) -> None:
        due, sweep, locked, overtaken, *tails = state
        topic.locked = locked >= 0
        topic.overtaken = bool(overtaken) and not topic.locked
        wishes = [now + ms / 1000 for ms in (due, locked) if ms >= 0]
        if sweep >= 0:
            topic.sweep = now + sweep / 1000 + _LATE
        if self._sweeps:
            wishes.append(topic.sweep)
        if self._ordered:
            wishes.append(now + self._lease / 3)
        topic.wake = min(wishes, default=float("inf"))
        for lane, tail, added in zip((topic.express, topic.normal, topic.retried), tails[:3], tails[3:], strict=False):
            if self._group:
                lane.last = tail
            else:
                _note_trimmed(lane, added)

    def incoming(self, lane: Lane, entry: bytes, fields: Sequence[bytes], earlier: int, began: float) -> Incoming:
        """The message of an entry, in our hands from now on."""
        said = from_entry(fields or (), lane.again)
        attempt = said.base + earlier + 1
        position = said.position or entry.decode() + lane.tail
        delivery = Delivery(lane, entry, attempt, position, began)
        lane.open[entry] = delivery
        incoming = Incoming(lane.topic.name, said.body, said.headers, delivery, said.key, attempt, position)
        if not self._group:
            delivery.incoming = incoming
        return incoming


def _note_trimmed(lane: Lane, added: int) -> None:
    """Without a group nothing keeps the trimming off: say so when it was faster."""
    missed = added - lane.added - lane.read
    if missed > 0:
        logger.warning(
            "%d message(s) of topic %r were trimmed before this subscription had read them: "
            "raise stream_max_len, or subscribe with a group", missed, lane.topic.name,
        )  # fmt: skip
    lane.added, lane.read = added, 0
