"""Where a published message goes: to each subscribed queue, to SNS, or to the one queue for everything."""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from amb_core.broker import Outgoing, is_inbox
from amb_core.errors import AmbError, MessageTooLarge, NotFound, PublishUnknown, Unavailable

from ._client import BATCH, BYTES, BYTES_SNS, Aws, Entry
from ._queues import Queues
from ._wire import attributes, to_body

if TYPE_CHECKING:
    from .broker import SQSBroker

__all__ = ["DELAY", "TOPIC", "Routes", "fifo_entry"]

#: The longest delay that SQS takes when a message is sent, seconds.
DELAY = 900
#: The attribute that tells the topic, for filters and foreign consumers.
TOPIC = "amb-topic"


class _Item(msgspec.Struct):
    """A message of a batch, and how far it has got."""

    index: int
    message: Outgoing
    body: str
    size: int
    #: Queues that have it.
    stored: set[str] = msgspec.field(default_factory=set)


class _Target(msgspec.Struct, frozen=True):
    url: str
    fifo: bool
    sns: bool = False


class Routes:
    """Publishes."""

    def __init__(self, options: SQSBroker, aws: Aws, queues: Queues, topic: str | None) -> None:
        self._options, self._aws, self._queues, self._topic = options, aws, queues, topic
        self._limit = BYTES if topic is None else BYTES_SNS

    async def send(self, batch: Sequence[Outgoing]) -> dict[int, AmbError]:
        """Publish; the error of each message that did not get everywhere."""
        errors: dict[int, AmbError] = {}
        items: list[_Item] = []
        for index, message in enumerate(batch):
            body = to_body(message, not_before=message.not_before)
            size = len(body.encode()) + sum(len(name) + len(text) for name, text in attributes(message).items())
            if size > self._limit:
                errors[index] = MessageTooLarge(
                    f"the message for {message.topic!r} has {size} bytes with its headers, encoded for SQS; "
                    f"{self._limit} are allowed"
                )
            else:
                items.append(_Item(index, message, body, size))
        return errors | await self._store(items)

    async def _store(self, items: Sequence[_Item], again: bool = False) -> dict[int, AmbError]:
        planned: dict[_Target, list[_Item]] = defaultdict(list)
        errors: dict[int, AmbError] = {}
        for item in items:
            try:
                for target in await self._targets(item.message, again):
                    if target.url not in item.stored:
                        planned[target].append(item)
            except AmbError as failure:
                errors[item.index] = _partly(failure, item)
        missing: dict[int, _Item] = {}
        results = await asyncio.gather(*(self._store_in(target, chosen) for target, chosen in planned.items()))
        for (target, chosen), failed in zip(planned.items(), results, strict=True):
            for item in chosen:
                if item.index not in failed:
                    item.stored.add(target.url)
        for (target, chosen), failed in zip(planned.items(), results, strict=True):
            for item in chosen:
                error = failed.get(item.index)
                if isinstance(error, NotFound) and not again:
                    missing[item.index] = item
                elif error is not None and (not isinstance(error, NotFound) or self._options.one_queue or target.sns):
                    errors[item.index] = _partly(error, item)
        # A queue that is gone was deleted with its subscriber, or the server has lost it: look again, once.
        return errors | (await self._store(list(missing.values()), True) if missing else {})

    async def _targets(self, message: Outgoing, again: bool) -> Sequence[_Target]:
        if is_inbox(message.topic):
            return await self._inbox(message.topic, again)
        if self._options.one_queue:
            return [_Target(await self._queues.the_one(again), self._options.fifo)]
        targets = await self._subscribed(message, again)
        dead = await self._queues.dead_letters() if message.topic == self._options.dead_letter_queue else None
        return targets if dead is None else [*targets, _Target(dead, dead.endswith(".fifo"))]

    async def _subscribed(self, message: Outgoing, again: bool) -> list[_Target]:
        if self._topic is not None:
            return [_Target(self._topic, self._options.use_fifo, True)]
        found = await self._queues.listening(message.topic, now=again)
        if not found and message.confirm and not again:
            # That nobody wants it is something the server has to say.
            found = await self._queues.listening(message.topic, now=True)
        if not found and not self._options.auto_create:
            raise NotFound(
                f"publish to {message.topic!r}: no queue is subscribed to it, and auto_create is off: make "
                f"{self._queues.names.group(message.topic, 'GROUP')!r} with your group's name"
            )
        return [_Target(self._queues.lane(queue, message.priority), queue.fifo) for queue in found]

    async def _inbox(self, address: str, again: bool) -> list[_Target]:
        name = self._queues.names.inbox(address)
        if again:
            self._queues.forget(name)
        try:
            return [_Target(await self._queues.by_name(name), False)]
        except NotFound:
            return []  # whoever asked is gone

    async def _store_in(self, target: _Target, items: Sequence[_Item]) -> dict[int, AmbError]:
        entries = [self._entry(target, item) for item in items]
        send: Callable[..., Awaitable[Mapping[int, AmbError]]] = self._aws.publish if target.sns else self._aws.send
        chunks = list(_chunks(items, entries, self._limit))
        failed: dict[int, AmbError] = {}

        async def one(chunk: Sequence[Entry], names: str) -> None:
            try:
                failed.update(await send(target.url, chunk, names))
            except AmbError as error:
                failed.update(dict.fromkeys((entry.index for entry in chunk), error))

        if target.fifo:
            for chunk in chunks:
                await one(*chunk)
        else:
            await asyncio.gather(*(one(*chunk) for chunk in chunks))
        return failed

    def _entry(self, target: _Target, item: _Item) -> Entry:
        message = item.message
        beside = attributes(message) | ({TOPIC: message.topic} if target.sns else {})
        if target.fifo:
            # FIFO queues delay nothing on arrival, and neither does SNS: whoever receives it does.
            return fifo_entry(item.index, message, item.body, beside, self._options.content_based_deduplication)
        delay = 0
        if message.not_before is not None and not target.sns:
            delay = min(DELAY, max(0, math.ceil(message.not_before - time.time())))
        return Entry(item.index, item.body, delay, attributes=beside)


def fifo_entry(index: int, message: Outgoing, body: str, beside: Mapping[str, str], by_content: bool) -> Entry:
    """The entry for a FIFO queue. Messages without a key are one sequence per topic."""
    group = hashlib.sha256((message.key if message.key is not None else f"\0{message.topic}").encode()).hexdigest()
    dead = "amb-dead-topic" in message.headers or "amb-for" in message.headers
    content = (message.topic, message.key or "", message.body.hex()) if by_content else (message.topic, _id(message))
    dedup = secrets.token_hex(16) if dead else hashlib.sha256("\0".join(content).encode()).hexdigest()
    return Entry(index, body, 0, group, dedup, beside)


def _id(message: Outgoing) -> str:
    return message.headers.get("amb-id") or secrets.token_hex(16)


def _partly(error: AmbError, item: _Item) -> AmbError:
    """Some subscribers have it: publishing again may deliver it twice."""
    if not item.stored or not isinstance(error, Unavailable):
        return error
    unknown = PublishUnknown(f"{error}; {len(item.stored)} subscribed queue(s) have it")
    unknown.__cause__ = error
    return unknown


def _chunks(items: Sequence[_Item], entries: Sequence[Entry], limit: int) -> Iterator[tuple[list[Entry], str]]:
    chunk: list[Entry] = []
    size = 0
    first = ""
    for item, entry in zip(items, entries, strict=True):
        if chunk and (len(chunk) == BATCH or size + item.size > limit - 1024 * len(chunk)):
            yield chunk, _naming(first, len(chunk))
            chunk, size = [], 0
        first = first if chunk else item.message.topic
        chunk.append(entry)
        size += item.size
    if chunk:
        yield chunk, _naming(first, len(chunk))


def _naming(first: str, count: int) -> str:
    return repr(first) + (f" and {count - 1} more" if count > 1 else "")
