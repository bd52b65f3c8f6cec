"""Where messages go that failed for good, and how they come back."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from ._message import DEAD_TOPIC, EXPIRES, FOR_GROUP, INBOX, DeadInfo, priority_of, read_dead, read_envelope
from ._retry import DeadLetterQueue
from ._texts import describe, header
from .broker import Capabilities, Connection, Incoming, Outgoing, Settlement, Source
from .errors import AmbError, DecodeError, PartialFailure

if TYPE_CHECKING:
    from ._consumer import Consumer
    from ._deliver import Delivery
    from ._publish import Publisher

log = logging.getLogger("amb")
#: When a dead letter cannot be stored, its original is tried again after this many seconds.
STORE_AGAIN = 5.0
#: The group that `browse` and `redrive` read with.
READERS = "amb.dlq"
#: How many dead letters that stay `redrive` and `drop` go past.
MOST = 10_000


class Undertaker:
    """Stores dead letters, then lets the originals go: never the other way round."""

    def __init__(
        self, publisher: Publisher, queue: DeadLetterQueue | None, handler: str, capabilities: Capabilities
    ) -> None:
        self._publisher, self._queue, self._handler = publisher, queue, handler
        # Where a topic without a group keeps nothing, the readers' group is there before the first dead letter.
        self._reserves = capabilities.durable and capabilities.durable_groups and capabilities.replay == "none"

    async def bury(self, deliveries: Sequence[Delivery], consumer: Consumer) -> list[Delivery]:
        """Store a dead letter for each. Returns those that could not be stored, and must be kept."""
        kept = [d for d in deliveries if DEAD_TOPIC in d.incoming.headers]
        for delivery in kept:
            log.error(
                "dead letter %s failed again (%s): it stays on %r",
                _id(delivery),
                _error(delivery),
                delivery.incoming.topic,
            )
        fresh = [d for d in deliveries if DEAD_TOPIC not in d.incoming.headers]
        if self._queue is None:
            self._drop(fresh, consumer)
            return kept
        try:
            if fresh:
                await self._reserve(self._queue.topic, consumer)
            await self._publisher.send_all([self._letter(d, self._queue, consumer.source.group) for d in fresh])
            errors: dict[int, Exception] = {}
        except PartialFailure as failure:
            errors = failure.errors
        except AmbError as error:
            errors = dict.fromkeys(range(len(fresh)), error)
        for index, delivery in enumerate(fresh):
            if index in errors:
                log.error(
                    "no dead letter could be stored on %r for %s of %r (%s); the message is kept, and tried again",
                    self._queue.topic,
                    _id(delivery),
                    delivery.incoming.topic,
                    errors[index],
                )
                kept.append(delivery)
            else:
                consumer.host.stats.dead_lettered += 1
                log.error("message %s on %r is a dead letter on %r: %s: %s", _id(delivery), delivery.incoming.topic,
                          self._queue.topic, delivery.reason, _error(delivery))  # fmt: skip
        return kept

    async def _reserve(self, topic: str, consumer: Consumer) -> None:
        """See to it that a dead letter waits for whoever looks for it, also if nobody has subscribed to its topic."""
        if not self._reserves:
            return
        connection = await consumer.host.connection_up(self._publisher.timeout)
        async with connection.open(
            Source(id=f"dlq-{self._publisher.new_id()}", pattern=topic, group=READERS, max_in_flight=1)
        ):
            self._reserves = False

    def _drop(self, deliveries: Sequence[Delivery], consumer: Consumer) -> None:
        for delivery in deliveries:
            consumer.host.stats.dropped += 1
            consumer.host.emit("message.dropped", delivery.incoming.topic)
            log.error(
                "message %s on %r is dropped: %s: %s; give the bus a DeadLetterQueue to keep such messages",
                _id(delivery),
                delivery.incoming.topic,
                delivery.reason,
                _error(delivery),
                exc_info=delivery.error,
            )

    def _letter(self, delivery: Delivery, queue: DeadLetterQueue, group: str | None) -> Outgoing:
        incoming, now = delivery.incoming, time.time()
        expires = now + queue.retention_days * 86400
        headers = {name: value for name, value in incoming.headers.items() if name != INBOX}
        headers |= {
            "amb-id": headers.get("amb-id") or incoming.position or "",
            DEAD_TOPIC: incoming.topic,
            "amb-dead-reason": header(delivery.reason),
            "amb-dead-error": header(_error(delivery)),
            "amb-dead-attempts": str(incoming.attempt),
            "amb-dead-first": str(read_envelope(incoming).timestamp or now),
            "amb-dead-last": str(now),
            "amb-dead-group": group or "",
            "amb-dead-handler": self._handler,
            "amb-dead-position": incoming.position or "",
            EXPIRES: str(expires),
        }
        self._publisher.spell(headers)
        return Outgoing(queue.topic, incoming.body, headers, incoming.key, priority_of(headers), None, expires, True)


def _id(delivery: Delivery) -> str:
    return delivery.incoming.headers.get("amb-id") or str(delivery.incoming.position)


def _error(delivery: Delivery) -> str:
    error = delivery.error
    return "" if error is None else f"{type(error).__name__}: {describe(error)}"


class DeadLetter(msgspec.Struct, frozen=True):
    """One entry of a dead-letter topic."""

    id: str
    info: DeadInfo
    headers: dict[str, str]
    #: The payload, or None if it cannot be decoded (see `body`).
    data: Any
    body: bytes


class DeadLetterBox:
    """Reads a dead-letter topic with a group of its own; what is put back or dropped is gone for that group."""

    def __init__(
        self, publisher: Publisher, decode: Callable[[Incoming], Any], connection: Connection, topic: str, waits: bool
    ) -> None:
        """`waits`: what the topic has comes from the broker by and by, and all has come when a receive that waits
        ends with nothing."""
        self._publisher, self._decode = publisher, decode
        self._connection, self._topic, self._waits = connection, topic, waits

    async def browse(self, limit: int) -> list[DeadLetter]:
        """The oldest `limit` dead letters; they stay where they are."""
        found: list[DeadLetter] = []

        async def look(incoming: Incoming) -> bool:
            found.append(self._read(incoming))
            return False

        await self._each(limit, look)
        return found

    async def redrive(self, ids: Collection[str] | None) -> int:
        """Publish the originals (all, or those with the ids) to their topics again, for the group that failed
        only, with attempts starting anew. Returns how many."""

        async def again(incoming: Incoming) -> bool:
            if not _is_among(incoming, ids):
                return False
            await self._publisher.send(_original(incoming))
            return True

        return await self._each(MOST, again)

    async def drop(self, ids: Collection[str] | None) -> int:
        """Remove dead letters (all, or those with the ids). Returns how many."""

        async def away(incoming: Incoming) -> bool:
            return _is_among(incoming, ids)

        return await self._each(MOST, away)

    async def _each(self, limit: int, visit: Callable[[Incoming], Awaitable[bool]]) -> int:
        """Visit every dead letter once, until `limit` of them stay; those for which `visit` returns True are removed,
        the rest released."""
        id = f"dlq-{self._publisher.new_id()}"
        source = Source(id=id, pattern=self._topic, group=READERS, start="earliest", max_in_flight=limit)
        done, seen = 0, set[tuple[str, ...]]()
        async with self._connection.open(source) as feed:
            kept: list[Settlement] = []
            try:
                while len(kept) < limit:
                    batch = await feed.receive(min(100, limit - len(kept)), wait=self._waits)
                    if not batch:
                        break
                    letters = {letter for incoming in batch if (letter := _letter_of(incoming))}
                    if letters & seen:  # a lease has ended: this is the second time round
                        kept += [Settlement(incoming.token, "release") for incoming in batch]
                        break
                    seen |= letters
                    for incoming in batch:
                        if _letter_of(incoming) and await visit(incoming):
                            await feed.settle([Settlement(incoming.token, "ack")])
                            done += 1
                        else:
                            kept.append(Settlement(incoming.token, "release"))
            finally:
                if kept:
                    with suppress(PartialFailure):  # a lease that has ended: the dead letter is back already
                        await feed.settle(kept)
        return done

    def _read(self, incoming: Incoming) -> DeadLetter:
        self._publisher.events.read(incoming)
        info, envelope = read_dead(incoming.headers), read_envelope(incoming)
        assert info is not None
        try:
            data = self._decode(incoming)
        except DecodeError:
            data = None
        return DeadLetter(envelope.id, info, envelope.headers, data, incoming.body)


def _letter_of(incoming: Incoming) -> tuple[str, ...] | None:
    """What two deliveries of one dead letter have in common, and no other dead letter has; None: it is none."""
    get = incoming.headers.get
    return (get("amb-id", ""), get("amb-dead-group", ""), get("amb-dead-last", "")) if get(DEAD_TOPIC) else None


def _is_among(incoming: Incoming, ids: Collection[str] | None) -> bool:
    names = [ids] if isinstance(ids, str) else ids
    return names is None or read_envelope(incoming).id in names


def _original(incoming: Incoming) -> Outgoing:
    headers = {
        k: v for k, v in incoming.headers.items() if not k.startswith("amb-dead-") and k not in (EXPIRES, "amb-ttl")
    }
    # Empty: those without a group. The groups have handled it, or have dead letters of their own.
    headers[FOR_GROUP] = incoming.headers.get("amb-dead-group", "")
    return Outgoing(
        incoming.headers[DEAD_TOPIC], incoming.body, headers, incoming.key, priority_of(headers), None, None, True
    )
