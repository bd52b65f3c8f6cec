"""A source without a group: every message from now on, and nothing left behind. Inboxes are such sources."""

from __future__ import annotations

import heapq
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from amb_core.broker import Feed, Incoming, Settlement, Source, is_inbox
from amb_core.errors import Unavailable
from amb_core.topics import is_pattern

from ._clients import running
from ._errors import NATIVE, translate
from ._pace import Pace
from ._topics import Matching
from ._wire import INBOXES, Entry, read

if TYPE_CHECKING:
    from ._connection import KafkaConnection
    from ._schemas import Schemas

__all__ = ["EXACT", "WAIT", "open_live", "position_of", "to_incoming"]

#: A receive that waits returns after this many seconds.
WAIT = 1.0
#: Subscriptions to a topic that exists look after it this often.
EXACT = 3.0


@asynccontextmanager
async def open_live(connection: KafkaConnection, source: Source) -> AsyncIterator[Feed]:
    """See `amb_core.broker.Connection.open`."""
    options = connection.options
    consumer = connection.clients.consumer()
    async with running(consumer, f"subscribe to {source.pattern!r}", options.connect_timeout):
        feed = LiveFeed(connection, source, consumer)
        await feed.start()
        yield feed


def position_of(record: ConsumerRecord) -> str:
    """Where a record is: topic, partition, offset."""
    return f"{record.topic}:{record.partition}:{record.offset}"


def to_incoming(entry: Entry, record: ConsumerRecord, token: object) -> Incoming:
    """What a record says, as the core takes it."""
    return Incoming(
        entry.topic, record.value or b"", entry.headers, token, entry.key, entry.attempt,
        entry.position or position_of(record), record,
    )  # fmt: skip


class LiveFeed:
    """`Feed` over the ends of all partitions that may carry the pattern."""

    def __init__(self, connection: KafkaConnection, source: Source, consumer: AIOKafkaConsumer) -> None:
        self._connection, self._source, self._consumer = connection, source, consumer
        self._wild = is_pattern(source.pattern)
        self._address = source.pattern if is_inbox(source.pattern) else None
        self._next: dict[TopicPartition, int] = {}
        self._pace = Pace(consumer)
        self._back: list[Incoming] = []
        self._open: dict[object, Incoming] = {}
        self._held: list[tuple[float, int, Incoming]] = []
        self._serial = 0
        self._exist = Matching(connection.topics, connection.names, source.pattern)
        self._seen: Mapping[str, int] = {}

    async def start(self) -> None:
        """Find the ends; what is published from now on is beyond them."""
        topics, source = self._connection.topics, self._source
        if self._address is not None:
            await topics.need_inboxes(INBOXES)
        elif self._wild:
            await topics.look()
        else:
            topics.forget(self._connection.names.name(source.pattern))
            await topics.need([self._connection.names.name(source.pattern)])
        partitions = self._partitions()
        try:
            with anyio.fail_after(self._connection.options.response_timeout):
                if partitions:
                    # Else the client learns of one unknown topic at a time.
                    self._consumer.assign(partitions)
                    self._consumer.pause(*partitions)
                ends = await self._consumer.end_offsets(partitions) if partitions else {}
        except NATIVE as error:
            raise translate(error, f"subscribe to {source.pattern!r}") from error
        self._read(ends)

    def _partitions(self) -> list[TopicPartition]:
        if self._address is not None:
            return [TopicPartition(INBOXES, self._connection.topics.inbox_partition(self._address))]
        found = self._exist.now()
        return [TopicPartition(name, number) for name in sorted(found) for number in range(found[name])]

    def _read(self, positions: dict[TopicPartition, int]) -> None:
        self._next = positions
        self._pace.dealt()
        if not positions:
            # The client would turn in circles.
            return
        self._consumer.assign(list(positions))
        for partition, offset in positions.items():
            self._consumer.seek(partition, offset)

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        await self._look_around(wait)
        if not (found := self._due(limit)):
            await self._fetch(limit, self._pause() if wait else 0.0)
            found = self._due(limit)
        if found and self._connection.schemas is not None:
            found = await self._described(found, self._connection.schemas)
        for one in found:
            self._open[one.token] = one
        return found

    async def _described(self, found: list[Incoming], schemas: Schemas) -> list[Incoming]:
        known = False
        try:
            known = await schemas.describe(found)
        finally:
            if not known:
                self._back[:0] = found
        return found if known else []

    def _due(self, limit: int) -> list[Incoming]:
        now = time.time()
        while self._held and self._held[0][0] <= now:
            self._back.append(heapq.heappop(self._held)[2])
        found, self._back = self._back[:limit], self._back[limit:]
        return found

    def _pause(self) -> float:
        longest = min(WAIT, self._connection.options.discovery_interval) if self._wild else WAIT
        return min(longest, max(0.0, self._held[0][0] - time.time())) if self._held else longest

    async def _fetch(self, limit: int, pause: float) -> None:
        if not self._next:
            await anyio.sleep(pause)
            return
        try:
            batches = await self._consumer.getmany(timeout_ms=int(pause * 1000), max_records=limit)
        except NATIVE as error:
            raise translate(error, f"read {self._source.pattern!r}") from error
        for partition, records in batches.items():
            for record in records:
                self._next[partition] = record.offset + 1
                self._take(record)

    def _take(self, record: ConsumerRecord[Any, Any]) -> None:
        entry = read(self._connection.names, record.topic, record.key, record.headers)
        if self._address is not None and entry.topic != self._address:
            return
        self._serial += 1
        incoming = to_incoming(entry, record, self._serial)
        if entry.due > time.time():
            heapq.heappush(self._held, (entry.due, self._serial, incoming))
        else:
            self._back.append(incoming)

    async def _look_around(self, wait: bool) -> None:
        """Read new topics and partitions from their beginning; notice that one is gone."""
        if not wait or self._address is not None:
            return
        topics = self._connection.topics
        names = None if self._wild else [self._connection.names.name(self._source.pattern)]
        await topics.look(names, self._connection.options.discovery_interval if self._wild else EXACT)
        if self._exist.now() is self._seen or not self._pace.may_change(self._next):
            return
        self._seen, found = self._exist.now(), self._partitions()
        if not self._wild and not found:
            raise Unavailable(f"Kafka's topic for {self._source.pattern!r} was deleted")
        if found and set(found) != self._next.keys():
            self._pace.hurry()
            self._read({partition: self._next.get(partition, 0) for partition in found})

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`: nobody but this process knows of these deliveries."""
        for one in outcomes:
            incoming = self._open.pop(one.token, None)
            if incoming is not None and one.verdict == "release":
                self._back.insert(0, incoming)
