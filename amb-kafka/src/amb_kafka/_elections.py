"""Elections: a topic of one partition whose records say who wants what. The order and the times that the cluster gave
them decide, and everybody who reads them decides the same."""

from __future__ import annotations

import math
import secrets
import time
from contextlib import AsyncExitStack
from math import ceil
from typing import TYPE_CHECKING, Literal

import anyio
import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from amb_core.errors import ConfigurationError, Unavailable, UnsupportedError

from ._clients import running, watched
from ._errors import NATIVE, translate
from ._wire import ELECTIONS

if TYPE_CHECKING:
    from ._connection import KafkaConnection

__all__ = ["LONGEST", "Elections", "Wish", "Wishes"]

#: The longest that a name can be held for at a time, seconds. What is older than twice that decides nothing.
LONGEST = 8 * 3600
_CONFIG = {
    "message.timestamp.type": "LogAppendTime",
    "cleanup.policy": "delete",
    "retention.ms": str(3 * LONGEST * 1000),
    "segment.ms": str(LONGEST * 1000 // 8),
}
_APPENDED = 1
_PARTITION = TopicPartition(ELECTIONS, 0)
_BATCH = 1000


class Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record's value, as JSON."""

    do: Literal["acquire", "renew", "release"]
    name: str
    #: Whose it is: one more than the place of the wish that was granted.
    token: int = 0
    #: For so long from the record's time on, in milliseconds.
    length: int = 0
    #: Until when it was held before, in milliseconds of the cluster's time.
    until: int = 0
    #: For whoever reads the topic.
    who: str = ""


class _Term:
    """Who held a name last, and until when."""

    def __init__(self, token: int, until: int) -> None:
        self.token, self.until = token, until


class Wishes:
    """What has been granted, given all records in order."""

    def __init__(self) -> None:
        self.terms: dict[str, _Term] = {}
        #: The cluster's time, as far as the records tell, in milliseconds.
        self._now = 0
        #: How far it is ahead of ours at least.
        self._ahead = -math.inf
        self._last = -1

    def see(self, place: int, moment: int, wish: Wish) -> None:
        """The next record."""
        if place <= self._last:  # the topic has been made anew
            self.terms, self._now, self._ahead = {}, 0, -math.inf
        self._last, self._now = place, max(self._now, moment)
        self._ahead = max(self._ahead, moment - time.monotonic() * 1000)
        term = self.terms.get(wish.name)
        if wish.do == "acquire":
            if term is None or self._now >= term.until:
                self.terms[wish.name] = _Term(place + 1, self._now + wish.length)
        elif wish.do == "renew":
            # It says itself until when it was held, so it can be judged without what the topic has forgotten.
            known = term is None or wish.token > term.token or (wish.token == term.token and term.until > 0)
            if known and self._now < wish.until:
                self.terms[wish.name] = _Term(wish.token, self._now + wish.length)
        elif term is not None and term.token == wish.token:
            term.until = 0

    def holds(self, name: str, token: int) -> bool:
        """Whether the last that held a name has this token, and has not given it up."""
        term = self.terms.get(name)
        return term is not None and term.token == token and term.until > 0

    def is_held(self, name: str) -> bool:
        """Whether it is held by somebody now, as far as we know the time: it is at least this late. Who has seen only
        old records knows it badly; who has just seen one of its own knows it well."""
        term = self.terms.get(name)
        return term is not None and self._ahead + time.monotonic() * 1000 < term.until


class Elections:
    """What `amb_core.broker.Elects` says, on Kafka."""

    def __init__(self, connection: KafkaConnection, stack: AsyncExitStack) -> None:
        self._connection, self._stack = connection, stack
        self._wishes = Wishes()
        #: We have seen a record of our own, and so know the cluster's time.
        self._timed = False
        self._consumer: AIOKafkaConsumer | None = None
        self._turn = anyio.Lock()
        self._decode = msgspec.json.Decoder(Wish).decode

    async def acquire(self, name: str, seconds: float) -> int | None:
        """The token, if nobody holds `name`."""
        doing = f"elect a leader of {name!r}"
        wish = Wish("acquire", name, length=_length(seconds, doing), who=secrets.token_hex(4))
        async with self._turn:
            # Candidates that wait write nothing, but for their first time.
            await self._read(None, doing)
            if self._timed and self._wishes.is_held(name):
                return None
            place = await self._said(wish, doing)
            return place + 1 if self._wishes.holds(name, place + 1) else None

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """Whether `token` held it until now, and does from now on."""
        doing = f"stay the leader of {name!r}"
        length = _length(seconds, doing)
        async with self._turn:
            await self._read(None, doing)
            if not self._wishes.holds(name, token):
                return False
            before = self._wishes.terms[name]
            await self._said(Wish("renew", name, token, length, before.until), doing)
            # It was granted if it is another term now, of the same holder.
            return self._wishes.terms[name] is not before and self._wishes.holds(name, token)

    async def release(self, name: str, token: int) -> None:
        """Nobody holds it, if `token` did."""
        doing = f"resign from {name!r}"
        async with self._turn:
            await self._read(None, doing)
            if self._wishes.holds(name, token):
                await self._said(Wish("release", name, token), doing)

    async def _said(self, wish: Wish, doing: str) -> int:
        """Add a record, and read on to it; returns its place."""
        try:
            with anyio.fail_after(self._connection.options.response_timeout):
                sent = await self._connection.producer.send(
                    ELECTIONS, msgspec.json.encode(wish), key=wish.name.encode(), partition=0
                )
                record = await watched(self._connection.producer, sent)
        except NATIVE as error:
            self._connection.topics.forget(ELECTIONS)
            raise translate(error, doing) from error
        if record.timestamp_type != _APPENDED:
            raise ConfigurationError(
                f"{doing}: the Kafka topic {ELECTIONS!r} must have message.timestamp.type=LogAppendTime: the "
                "cluster's clock says how long a name is held, not the candidates'"
            )
        await self._read(record.offset + 1, doing)
        self._timed = True
        return int(record.offset)

    async def _read(self, end: int | None, doing: str) -> None:
        """Read up to `end`; None: to what is the end now."""
        try:
            with anyio.fail_after(self._connection.options.response_timeout):
                consumer = self._consumer or await self._begun(doing)
                goal = int((await consumer.end_offsets([_PARTITION]))[_PARTITION]) if end is None else end
        except NATIVE as error:
            raise translate(error, doing) from error
        while await self._position(consumer, doing) < goal:
            await self._more(consumer, doing)

    async def _begun(self, doing: str) -> AIOKafkaConsumer:
        await self._connection.topics.need([ELECTIONS], 1, **_CONFIG)
        consumer = self._connection.clients.consumer()
        await self._stack.enter_async_context(running(consumer, doing, self._connection.options.connect_timeout))
        consumer.assign([_PARTITION])
        await consumer.seek_to_beginning(_PARTITION)
        self._consumer = consumer
        return consumer

    async def _position(self, consumer: AIOKafkaConsumer, doing: str) -> int:
        try:
            with anyio.fail_after(self._connection.options.response_timeout):
                return int(await consumer.position(_PARTITION))
        except NATIVE as error:
            raise translate(error, doing) from error

    async def _more(self, consumer: AIOKafkaConsumer, doing: str) -> None:
        patience = self._connection.options.response_timeout
        try:
            found = await consumer.getmany(_PARTITION, timeout_ms=int(patience * 1000), max_records=_BATCH)
        except NATIVE as error:
            raise translate(error, doing) from error
        if not (records := found.get(_PARTITION)):
            raise Unavailable(f"{doing}: Kafka does not answer while {ELECTIONS!r} is read")
        for record in records:
            try:
                wish = self._decode(record.value or b"")
            except msgspec.MsgspecError:
                continue  # a stranger's
            self._wishes.see(record.offset, record.timestamp, wish)


def _length(seconds: float, doing: str) -> int:
    """In milliseconds; one more, as the cluster cuts its moments to whole ones. Raises: UnsupportedError."""
    if seconds > LONGEST:
        raise UnsupportedError(f"{doing}: on Kafka a name is held for at most {LONGEST} s at a time, not {seconds:g} s")
    return ceil(seconds * 1000) + 1
