"""Publishing with confirms, on a link of its own: the server blocks publishers as a whole connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from aiormq import Channel
from aiormq import exceptions as native
from aiormq.abc import ChannelFrame
from amb_core.broker import Outgoing, is_inbox
from amb_core.concurrency import bounded
from amb_core.errors import (
    AccessDenied,
    AmbError,
    Blocked,
    MessageTooLarge,
    PartialFailure,
    PublishUnknown,
    Unavailable,
)
from amb_core.lanes import is_express
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from ._errors import translate
from ._link import Link
from ._topology import Topology
from ._wire import Names, later, to_properties, units

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["Parcel", "Publisher", "raise_partial"]

#: Bytes that are written without waiting for more.
_ENOUGH = 2**18
#: Seconds to wait for a server that blocks publishers, before the core hears of it.
_PATIENCE = 1.0


class Parcel(msgspec.Struct):
    """A message as it goes to the server."""

    exchange: str
    key: str
    body: bytes
    properties: Basic.Properties
    #: What the user calls its destination.
    topic: str
    delay: float = 0.0


class Publisher:
    """Hands parcels to the server, and knows what became of each."""

    def __init__(self, options: RabbitMQBroker, link: Link, topology: Topology, names: Names) -> None:
        self._options, self._link, self._topology, self._names = options, link, topology, names
        self._channel: Channel | None = None
        self._doubtful = False
        self._opening = anyio.Lock(fast_acquire=True)

    def parcel(self, message: Outgoing, now: float) -> Parcel:
        """Address a message. Raises: MessageTooLarge."""
        properties = to_properties(message)
        if is_inbox(message.topic):
            return Parcel("", message.topic, message.body, properties, message.topic)
        exchange = self._names.express if is_express(message.priority) else self._names.normal
        delay = max(0.0, message.not_before - now) if message.not_before is not None else 0.0
        return Parcel(exchange, message.topic, message.body, properties, message.topic, delay)

    async def send(self, parcels: Mapping[int, Parcel]) -> dict[int, AmbError]:
        """Publish in order, pipelined; returns what failed when the server has answered for all."""
        for one in parcels.values():
            if count := units(one.delay):
                entrance = await self._topology.delays(count)
                one.key = later(one.properties, count, self._names.exit(one.exchange), one.key, one.topic)
                one.exchange = entrance
        channel, answers = await self._ready(), list[asyncio.Future[Any]]()
        try:
            await _write(channel, parcels.values(), answers)
            results = [await self._outcome(channel, *each) for each in zip(parcels.values(), answers, strict=True)]
        except asyncio.CancelledError:
            # Whoever asked for it has waited long enough: is the link still alive?
            self._doubtful = True
            raise
        except native.ChannelInvalidStateError as error:
            results = [translate(error, f"publish to {one.topic!r}", unknown=True) for one in parcels.values()]
        finally:
            for answer in answers:
                answer.cancel()
        return _never_read({i: error for i, error in zip(parcels, results, strict=True) if error is not None})

    async def _ready(self) -> Channel:
        self._link.check()
        try:
            await bounded(self._link.native.ready(), _PATIENCE)
        except TimeoutError:
            raise Blocked(
                "publish: RabbitMQ takes no messages, it is low on memory or disk (connection.blocked); "
                "nothing was published"
            ) from None
        if self._doubtful:
            await self._link.pulse()
            self._doubtful = False
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = channel = await self._link.channel("publish", confirms=True)
                channel.closing.add_done_callback(lambda _: _closed(channel))
            return self._channel

    async def _outcome(self, channel: Channel, one: Parcel, answer: asyncio.Future[Any]) -> AmbError | None:
        doing = f"publish to {one.topic!r}"
        try:
            await answer
        except native.DeliveryError as error:
            # A channel first used while a queue had no leader goes on refusing: the next one gets a new channel.
            if self._channel is channel:
                self._channel = None
            return translate(error, doing)
        except (native.ChannelAccessRefused, native.ChannelPreconditionFailed) as error:
            return translate(error, doing) if _is_to_blame(one, str(error)) else _neighbour(error, doing)
        except native.ChannelNotFoundEntity as error:
            return self._missing(error, doing)
        except (native.AMQPError, native.ChannelInvalidStateError, OSError, TimeoutError) as error:
            return translate(error, doing, unknown=True)
        return None

    def _missing(self, error: Exception, doing: str) -> AmbError:
        """An exchange was deleted; one that may be made is made with the next connection."""
        failed = translate(error, doing)
        if self._options.auto_create:
            self._link.lose(failed)
            return self._link.lost()
        return failed


async def _write(channel: Channel, parcels: Iterable[Parcel], answers: list[asyncio.Future[Any]]) -> None:
    """Write the parcels, many at once: the library's own way costs each a lock, a timer and a write of its own. Adds
    what the server will say of each to the answers."""
    loop = asyncio.get_running_loop()
    async with channel.lock:
        for frames, count in _bundles(channel, parcels):
            if not channel.is_closed:
                await channel.write_queue.put(ChannelFrame(frames, should_close=False))
            for _ in range(count):
                channel.delivery_tag += 1
                channel.confirmations[channel.delivery_tag] = answer = loop.create_future()
                answers.append(answer)
    if channel.is_closed:
        _closed(channel)


def _bundles(channel: Channel, parcels: Iterable[Parcel]) -> Iterable[tuple[bytes, int]]:
    """Frames, and of how many parcels they are."""
    frames, size, count = list[bytes](), 0, 0
    for one in parcels:
        header = ContentHeader(body_size=len(one.body), properties=one.properties)
        frames += (_command(channel.number, one.exchange, one.key), marshal(header, channel.number))
        for begin in range(0, len(one.body), channel.max_content_size):
            frames.append(marshal(ContentBody(one.body[begin : begin + channel.max_content_size]), channel.number))
        size, count = size + len(one.body), count + 1
        if size >= _ENOUGH:
            yield b"".join(frames), count
            frames, size, count = [], 0, 0
    if count:
        yield b"".join(frames), count


@lru_cache(maxsize=4096)
def _command(number: int, exchange: str, key: str) -> bytes:
    return marshal(Basic.Publish(exchange=exchange, routing_key=key), number)


def _closed(channel: Channel) -> None:
    """Nobody will answer any more."""
    error = None if channel.closing.cancelled() else channel.closing.exception()
    if not isinstance(error, Exception):
        error = native.ChannelInvalidStateError(f"channel {channel.number} was closed")
    for answer in channel.confirmations.values():
        if not answer.done():
            answer.set_exception(error)


def _is_to_blame(one: Parcel, text: str) -> bool:
    """The server closes the channel over one message; all that wait on it hear why."""
    if "access to topic" in text:
        return f"'{one.key}'" in text
    return "message size" not in text or f"message size {len(one.body)} " in text


def _neighbour(error: Exception, doing: str) -> AmbError:
    unknown = PublishUnknown(f"{doing}: the channel was closed over another message before the answer came")
    unknown.__cause__ = error
    return unknown


def _never_read(errors: dict[int, AmbError]) -> dict[int, AmbError]:
    """What came after the message that closed the channel has surely not been read, and may be sent again."""
    blamed = [i for i, error in errors.items() if isinstance(error, AccessDenied | MessageTooLarge)]
    for i, error in errors.items():
        if blamed and i > blamed[0] and isinstance(error, PublishUnknown):
            errors[i] = Unavailable(f"{error}; it was not read")
            errors[i].__cause__ = error.__cause__
    return errors


def raise_partial(batch: Sequence[object], errors: dict[int, AmbError]) -> None:
    """Raise one error for all, or for each its own."""
    if len(errors) == len(batch) and len({type(error) for error in errors.values()}) == 1:
        raise errors[min(errors)]
    raise PartialFailure(dict(errors))
