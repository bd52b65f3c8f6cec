"""What is stored, oldest first."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from amb_core.broker import Incoming
from amb_core.errors import NotFound, Unavailable
from amb_core.topics import compile_pattern, is_pattern

from ._clients import running
from ._errors import NATIVE, translate
from ._live import to_incoming
from ._wire import read

if TYPE_CHECKING:
    from ._connection import KafkaConnection

__all__ = ["replay"]

_BATCH = 500
#: Order: nanoseconds, topic, partition, offset.
_Rank = tuple[int, str, int, int]


async def replay(
    connection: KafkaConnection, pattern: str, since: float | str | None, until: float | None
) -> AsyncIterator[Incoming]:
    """See `amb_core.broker.Replays.replay`."""
    known = await connection.topics.look(None if is_pattern(pattern) else [connection.names.name(pattern)])
    names = connection.names.read_by(pattern, known)
    if not is_pattern(pattern) and not names & known.keys():
        raise NotFound(f"Kafka has no topic for {pattern!r}: nothing was ever published to it")
    partitions = [TopicPartition(name, number) for name in sorted(names) for number in range(known.get(name, 0))]
    consumer, doing = connection.clients.consumer(), f"replay {pattern!r}"
    matches = compile_pattern(pattern)
    async with running(consumer, doing, connection.options.connect_timeout):
        try:
            runs = await _Runs(connection, consumer, partitions).begin(since)
            while (one := await runs.next()) is not None:
                (time, *_), record = one
                if until is not None and time / 10**9 > until:
                    continue
                entry = read(connection.names, record.topic, record.key, record.headers)
                if matches(entry.topic):
                    incoming = to_incoming(entry, record, None)
                    if connection.schemas is not None:
                        await connection.schemas.look_up(incoming)
                    yield incoming
        except NATIVE as error:
            raise translate(error, doing) from error


class _Runs:
    """Each partition is in order; together they are merged by time."""

    def __init__(
        self, connection: KafkaConnection, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]
    ) -> None:
        self._connection, self._consumer, self._partitions = connection, consumer, partitions
        self._left: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._heap: list[tuple[_Rank, ConsumerRecord[Any, Any]]] = []
        self._buffered: dict[TopicPartition, int] = {}
        self._after: _Rank | None = None
        self._from: float | None = None

    async def begin(self, since: float | str | None) -> _Runs:
        """Find where each partition begins and ends."""
        consumer, partitions = self._consumer, self._partitions
        if not partitions:
            return self
        # Before anything is asked, else the client learns of one unknown topic at a time.
        consumer.assign(partitions)
        self._ends = await consumer.end_offsets(partitions)
        starts = await consumer.beginning_offsets(partitions)
        moment = None if isinstance(since, str) else since
        self._from = moment
        if isinstance(since, str):
            self._after = await self._rank_at(since, starts)
            moment = self._after[0] / 10**9
        if moment is not None:
            # A record's own time is in whole milliseconds, and when it was sent; the exact one is compared below.
            times = dict.fromkeys(partitions, max(0, int(moment * 1000) - 1000))
            for partition, found in (await consumer.offsets_for_times(times)).items():
                starts[partition] = self._ends[partition] if found is None else found.offset
        for partition, start in starts.items():
            consumer.seek(partition, start)
            if start < self._ends[partition]:
                self._left[partition] = self._ends[partition]
            else:
                consumer.pause(partition)
        return self

    async def _rank_at(self, position: str, starts: dict[TopicPartition, int]) -> _Rank:
        name, _, rest = position.partition(":")
        number, _, offset = rest.partition(":")
        try:
            partition, at = TopicPartition(name, int(number)), int(offset)
        except ValueError:
            raise NotFound(f"{position!r} is no position on Kafka: topic:partition:offset") from None
        if partition not in self._ends or not starts[partition] <= at < self._ends[partition]:
            raise NotFound(f"the position {position!r} is not stored (any more)")
        self._consumer.seek(partition, at)
        with anyio.fail_after(self._connection.options.response_timeout):
            while True:
                for record in (await self._consumer.getmany(partition, timeout_ms=1000, max_records=1)).get(
                    partition, []
                ):
                    return _rank(record)

    async def next(self) -> tuple[_Rank, ConsumerRecord[Any, Any]] | None:
        """The oldest record that was not returned yet; None at the end."""
        while True:
            # The oldest is known when every partition that is not finished has something to compare.
            while any(not self._buffered.get(partition) for partition in self._left):
                await self._fetch()
            if not self._heap:
                return None
            rank, record = heapq.heappop(self._heap)
            self._buffered[TopicPartition(record.topic, record.partition)] -= 1
            if (self._after is None or rank > self._after) and (self._from is None or rank[0] / 10**9 >= self._from):
                return rank, record

    async def _fetch(self) -> None:
        wanted = [partition for partition in self._left if not self._buffered.get(partition)]
        with anyio.move_on_after(self._connection.options.response_timeout):
            while not (batches := await self._consumer.getmany(*wanted, timeout_ms=500, max_records=_BATCH)):
                # What is left may be no records, but the marks of transactions, or was deleted meanwhile.
                for partition in wanted:
                    if await self._consumer.position(partition) >= self._ends[partition]:
                        self._left.pop(partition, None)
                wanted = [partition for partition in wanted if partition in self._left]
                if not wanted:
                    return
            for partition, records in batches.items():
                for record in records:
                    if record.offset < self._ends[partition]:
                        heapq.heappush(self._heap, (_rank(record), record))
                        self._buffered[partition] = self._buffered.get(partition, 0) + 1
                if records and records[-1].offset + 1 >= self._ends[partition]:
                    self._left.pop(partition, None)
            return
        raise Unavailable(f"Kafka does not answer while {wanted[0].topic!r} is read")


def _rank(record: ConsumerRecord[Any, Any]) -> _Rank:
    for name, value in record.headers:
        if name == "amb-time":
            try:
                return int(value), record.topic, record.partition, record.offset
            except ValueError:
                break
    return record.timestamp * 1_000_000, record.topic, record.partition, record.offset
