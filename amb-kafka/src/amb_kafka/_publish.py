"""Publishing: what is sent at once travels as one record batch for each partition."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from random import randrange
from typing import Any, TypeAlias

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.partitioner import DefaultPartitioner
from amb_core.broker import Outgoing
from amb_core.errors import AmbError

from ._clients import settled, watched
from ._errors import NATIVE, translate
from ._topics import Topics
from ._wire import INBOXES, Headers, Names, write

__all__ = ["Publishing"]

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
#: So many keys are not hashed twice.
_REMEMBERED = 10_000
_hash = DefaultPartitioner()

#: Which message, its key and its headers.
_Record: TypeAlias = tuple[int, bytes | None, Headers]


@lru_cache(_REMEMBERED)
def _partition(key: bytes, count: int) -> int:
    """Where Kafka's own clients put the key."""
    return int(_hash(key, range(count), ()))


class _Line:
    """What waits for a partition. A record batch is stored, or refused, before the next is sent: the order stays."""

    __slots__ = ("most", "name", "partition", "waiting")

    def __init__(self, name: str, partition: int) -> None:
        self.name, self.partition = name, partition
        self.waiting: list[_Record] = []
        #: Records in a batch; None: as many as go in.
        self.most: int | None = None

    def fill(self, builder: Any, batch: Sequence[Outgoing]) -> list[_Record]:
        """Take what goes into the record batch; the first does in any case."""
        count = 0
        for index, key, headers in self.waiting[: self.most]:
            if builder.append(timestamp=None, key=key, value=batch[index].body, headers=headers) is None:
                break
            count += 1
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def halve(self, refused: list[_Record]) -> None:
        """All of them were too large together: no single one need be."""
        self.most, self.waiting = len(refused) // 2, refused + self.waiting


class _Lines:
    """The partitions of a topic."""

    def __init__(self, name: str, partitions: set[int], led: set[int]) -> None:
        self._name, self._count, self.lines = name, len(partitions), dict[int, _Line]()
        self._usable = list(led or partitions)
        self._turn = randrange(len(self._usable))

    def for_key(self, key: bytes | None) -> _Line:
        if key is not None:
            return self.at(_partition(key, self._count))
        # Each in turn, from anywhere: so a burst is work for all members of a group.
        self._turn += 1
        return self.at(self._usable[self._turn % len(self._usable)])

    def at(self, partition: int) -> _Line:
        if (line := self.lines.get(partition)) is None:
            line = self.lines[partition] = _Line(self._name, partition)
        return line


class Publishing:
    """Stores messages in Kafka. `largest`: about so many bytes in a request."""

    def __init__(self, producer: AIOKafkaProducer, names: Names, topics: Topics, largest: int) -> None:
        self._producer, self._names, self._topics, self._largest = producer, names, topics, largest

    async def store(self, batch: Sequence[Outgoing], names: Sequence[str], errors: dict[int, AmbError]) -> None:
        """Return when it is known what became of each message. Adds the errors, and leaves out who has one already.
        `names`: their Kafka topics. A wait that is cancelled leaves on its way what is sent."""
        lines = await self._lines(batch, names, errors)
        while lines:
            await self._round(batch, lines, errors)
            lines = [line for line in lines if line.waiting]

    async def _lines(self, batch: Sequence[Outgoing], names: Sequence[str], errors: dict[int, AmbError]) -> list[_Line]:
        topics: dict[str, _Lines | AmbError] = {}
        shared = {name for name in {*names} if self._names.is_shared(name)}
        for index, (message, name) in enumerate(zip(batch, names, strict=True)):
            if index in errors:
                continue
            if (topic := topics.get(name)) is None:
                topic = topics[name] = await self._topic(name)
            if isinstance(topic, AmbError):
                errors[index] = topic
                continue
            key, headers = write(message, name in shared)
            line = topic.at(self._topics.inbox_partition(message.topic)) if name == INBOXES else topic.for_key(key)
            line.waiting.append((index, key, headers))
        return [line for topic in topics.values() if isinstance(topic, _Lines) for line in topic.lines.values()]

    async def _topic(self, name: str) -> _Lines | AmbError:
        try:
            partitions = await self._producer.partitions_for(name)
        except NATIVE as error:
            self._topics.forget(name)
            return translate(error, f"publish to {name!r}")
        return _Lines(name, partitions, self._producer.client.cluster.available_partitions_for_topic(name) or set())

    async def _round(self, batch: Sequence[Outgoing], lines: list[_Line], errors: dict[int, AmbError]) -> None:
        sent: list[tuple[_Line, list[_Record], asyncio.Future[Any]]] = []
        size = 0
        for line in lines:
            builder = self._producer.create_batch()
            records = line.fill(builder, batch)
            size += builder.size()
            try:
                if builder.size() > self._largest:
                    raise MessageSizeTooLargeError(f"{builder.size()} bytes exceed max_request_size, {self._largest}")
                future = await self._producer.send_batch(builder, line.name, partition=line.partition)
            except NATIVE as error:
                self._failed(batch, line, records, error, errors)
                continue
            sent.append((line, records, watched(self._producer, future)))
            if size >= self._largest:
                break
        for index, failure in (await settled({index: future for index, (_, _, future) in enumerate(sent)})).items():
            line, records, _ = sent[index]
            self._topics.forget(line.name)
            self._failed(batch, line, records, failure, errors, unknown=True)

    def _failed(
        self, batch: Sequence[Outgoing], line: _Line, records: list[_Record], failure: BaseException,
        errors: dict[int, AmbError], unknown: bool = False,
    ) -> None:  # fmt: skip
        if isinstance(failure, _TOO_LARGE) and len(records) > 1:
            line.halve(records)
            return
        for index, _, _ in records:
            errors[index] = translate(failure, f"publish to {batch[index].topic!r}", unknown=unknown)
