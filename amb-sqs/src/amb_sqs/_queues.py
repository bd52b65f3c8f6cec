"""Which queues there are: found by listing them, made on demand, swept up when their process is gone."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
import msgspec
from amb_core.errors import AmbError, NotFound
from amb_core.lanes import is_express
from amb_core.topics import PatternTable

from ._client import BATCH, Aws
from ._names import EXPRESS, Names, pattern_tags, tagged_pattern

if TYPE_CHECKING:
    from .broker import SQSBroker

__all__ = ["Queue", "Queues"]

logger = logging.getLogger("amb.sqs")

#: A queue of one subscriber says so often that its process lives, and is swept up after so long without, seconds.
PULSE, FORGOTTEN = 300.0, 3600.0
_ALIVE = "amb-alive"
#: The most queues that are looked at in one sweep.
_SWEPT = 200
#: How long an inbox keeps replies, seconds.
_REPLIES = 300
#: The most addresses that are remembered.
_KNOWN = 4096


class Queue(msgspec.Struct, frozen=True):
    """Where to send to."""

    url: str
    fifo: bool

    @property
    def express(self) -> str:
        """The queue beside it for what is urgent."""
        return self.url + EXPRESS


class Queues:
    """What is known of the queues under a prefix."""

    def __init__(self, options: SQSBroker, aws: Aws) -> None:
        self._options, self._aws = options, aws
        self.names = Names(options.queue_prefix, options.use_fifo)
        self._table: PatternTable[Queue] = PatternTable()
        self._listed: dict[str, tuple[str, Queue]] = {}
        self._express: set[str] = set()
        self._tagged: dict[str, str | None] = {}
        self._lock = anyio.Lock()
        self._at = self._swept = float("-inf")
        self._urls: dict[str, str] = {}

    # --- finding them

    async def listening(self, topic: str, *, now: bool = False) -> Sequence[Queue]:
        """The queues of everybody who subscribed to the topic. `now`: whatever was known before is wrong."""
        asked = time.monotonic()
        oldest = asked if now else asked - self._options.discovery_interval
        if self._at < oldest:
            async with self._lock:
                if self._at < oldest:
                    await self._list()
        return self._table.match(topic)

    async def _list(self) -> None:
        began = time.monotonic()
        found = await self._aws.list_queues(self.names.prefix)
        names = {url.rpartition("/")[2]: url for url in found}
        self._express = {url for name, url in names.items() if name.endswith(EXPRESS)}
        for name in self._listed.keys() - names.keys():
            self._table.remove(*self._listed.pop(name))
            self._tagged.pop(name, None)
        for name in names.keys() - self._listed.keys():
            pattern = self.names.pattern(name)
            if pattern == "":
                pattern = await self._read_tags(name, names[name])
            if pattern:
                self._listed[name] = (pattern, Queue(names[name], name.endswith(".fifo")))
                self._table.add(*self._listed[name])
        self._at = began

    async def _read_tags(self, name: str, url: str) -> str | None:
        if name not in self._tagged:
            try:
                self._tagged[name] = tagged_pattern(await self._aws.tags(url))
            except NotFound:
                return None
        return self._tagged[name]

    def lane(self, queue: Queue, priority: int) -> str:
        """The URL of the queue, or of the one beside it for what is urgent."""
        urgent = is_express(priority) and self._options.priority_lanes and queue.express in self._express
        return queue.express if urgent else queue.url

    async def by_name(self, name: str) -> str:
        """The URL of a queue that somebody else has made. Raises: NotFound."""
        if name not in self._urls:
            if len(self._urls) >= _KNOWN:
                del self._urls[next(iter(self._urls))]
            self._urls[name] = await self._aws.queue_url(name)
        return self._urls[name]

    def forget(self, name: str) -> None:
        """The queue is gone."""
        self._urls.pop(name, None)

    async def known(self, name: str) -> None:
        """Return when every publisher must have seen the queue, which exists now."""
        seen = self._at if name in self._listed else time.monotonic()
        await anyio.sleep(max(0.0, seen + self._options.discovery_interval - time.monotonic()))

    # --- making them

    async def group(self, pattern: str, group: str) -> str:
        """The name of the group's queue, which exists. Raises: NotFound."""
        name = self.names.group(pattern, group)
        if self._options.auto_create:
            await self._make(name, self._attributes(), pattern_tags(pattern))
            return name
        try:
            await self.by_name(name)
        except NotFound as error:
            raise NotFound(
                f"{pattern!r} has no queue for the group {group!r}: make the queue {name!r}, or let AMB do it "
                "(auto_create=True)"
            ) from error
        return name

    async def alone(self, pattern: str, id: str) -> str:
        """The name of a queue for one subscriber, which is made. Raises: NotFound."""
        if not self._options.auto_create:
            raise NotFound(
                f"a subscription to {pattern!r} without a group needs a queue of its own, and auto_create is off: "
                "give a group that has a queue"
            )
        attributes = self._attributes() | {"MessageRetentionPeriod": str(min(86400, self._options.message_retention))}
        attributes.pop("RedrivePolicy", None)
        name = self.names.alone(pattern, id)
        await self._make(name, attributes, pattern_tags(pattern) | self._alive())
        return name

    async def inbox(self, address: str) -> str:
        """The name of a queue for replies, which is made."""
        name = self.names.inbox(address)
        await self._make(name, {"MessageRetentionPeriod": str(_REPLIES)}, self._alive())
        return name

    async def election(self, name: str, retention: int) -> str:
        """The URL of the queue of an election. Raises: NotFound."""
        if not self._options.auto_create:
            return await self.by_name(name)
        attributes = {"FifoQueue": "true", "MessageRetentionPeriod": str(retention)}
        return await self._aws.create_queue(name, attributes, {})

    async def the_one(self, again: bool = False) -> str:
        """The URL of the queue for everything. `again`: where it was, it is no more."""
        if self._options.queue_url is not None:
            return self._options.queue_url
        name = self._options.queue_name or ""
        if self._options.fifo and not name.endswith(".fifo"):
            name += ".fifo"
        if again:
            self.forget(name)
        if self._options.auto_create and name not in self._urls:
            self._urls[name] = await self._aws.create_queue(name, self._attributes(), {})
        return await self.by_name(name)

    async def _make(self, name: str, attributes: dict[str, str], tags: dict[str, str]) -> None:
        lanes = [name] if not self._options.priority_lanes or "FifoQueue" in attributes else [name + EXPRESS, name]
        for one in lanes:
            self._urls[one] = await self._aws.create_queue(one, attributes, tags)

    def _attributes(self) -> dict[str, str]:
        options = self._options
        attributes = {
            "VisibilityTimeout": str(options.visibility_timeout),
            "MessageRetentionPeriod": str(options.message_retention),
        }
        if options.fifo:
            attributes["FifoQueue"] = "true"
            attributes["ContentBasedDeduplication"] = str(options.content_based_deduplication).lower()
        if options.dlq_arn is not None:
            redrive = {"deadLetterTargetArn": options.dlq_arn, "maxReceiveCount": str(options.max_receive_count)}
            attributes["RedrivePolicy"] = json.dumps(redrive)
        return attributes

    async def dead_letters(self) -> str | None:
        """The URL of the queue of `dlq_arn`."""
        if self._options.dlq_arn is None:
            return None
        if self._options.dlq_arn not in self._urls:
            owner, name = self._options.dlq_arn.split(":")[4:6]
            self._urls[self._options.dlq_arn] = await self._aws.queue_url(name, owner or None)
        return self._urls[self._options.dlq_arn]

    # --- and what is left of subscribers without a group that were killed

    def _alive(self) -> dict[str, str]:
        return {_ALIVE: str(int(time.time()))}

    async def pulse(self, url: str) -> None:
        """Say that the queue of one subscriber is in use; now and then, delete those that are not. Never fails."""
        try:
            await self._aws.tag(url, self._alive())
            if time.monotonic() > self._swept + FORGOTTEN:
                self._swept = time.monotonic()
                await self._sweep()
        except AmbError as error:
            logger.warning("queues of subscribers that are gone could not be looked for: %s", error)

    async def _sweep(self) -> None:
        found = await self._aws.list_queues(self.names.prefix)
        alone = [url for url in found if self.names.is_alone(url.rpartition("/")[2])]
        # All processes do this: there is no need for any of them to see to all queues at once.
        random.shuffle(alone)
        for at in range(0, min(len(alone), _SWEPT), BATCH):
            await asyncio.gather(*(self._sweep_one(url) for url in alone[at : at + BATCH]))

    async def _sweep_one(self, url: str) -> None:
        try:
            alive = (await self._aws.tags(url)).get(_ALIVE, "")
            if alive.isdigit() and int(alive) < time.time() - FORGOTTEN:
                logger.info("deleting %s: its subscriber is gone", url)
                await self._aws.delete_queue(url)
        except NotFound:
            return
