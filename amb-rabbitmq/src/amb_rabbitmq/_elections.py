"""Elections: a queue that the server deletes when nobody asks for it in time, and whose settings name its holder. One
that is never read counts them."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil
from typing import TYPE_CHECKING

import anyio
import msgspec
from aiormq import Channel
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelPreconditionFailed
from amb_core.errors import AmbError, ConnectionLost, NotFound, Unavailable, UnsupportedError
from pamqp.commands import Basic, Queue
from pamqp.common import FieldValue

from ._link import Link
from ._publisher import Parcel, Publisher
from ._topology import Maker
from ._wire import Names

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["Elections"]

#: A virtual host may make others unless it is told. Only these end, and count, to the moment.
_CLASSIC: dict[str, FieldValue] = {"x-queue-type": "classic"}
#: What closing a channel may take, seconds.
_LEAVING = 1.0


class _Term(msgspec.Struct, frozen=True):
    """One leadership, as it can be seen in the broker."""

    name: str
    #: Different for each election.
    holder: str
    #: How long it holds the name each time, in milliseconds.
    length: int


#: What was won by this process, by server, exchange and name: connections come and go.
_won: dict[tuple[str, str, str], tuple[int, _Term]] = {}


class Elections:
    """What `amb_core.broker.Elects` says, on RabbitMQ.

    A queue with ``x-expires`` is deleted when nobody has declared it for so long. Declaring it with other settings than
    it was made with is refused, and does not count. One of these settings is a word of the holder's own, so making the
    queue is winning, and declaring it again is renewing. No message is ever in it.
    """

    def __init__(self, options: RabbitMQBroker, link: Link, publisher: Publisher, names: Names) -> None:
        self._options, self._link, self._publisher, self._names = options, link, publisher, names
        self._ready = False

    async def acquire(self, name: str, seconds: float) -> int | None:
        """The token, if nobody holds `name`."""
        doing = f"elect a leader of {name!r}"
        await self._prepare(doing)
        term = _Term(name, secrets.token_hex(12), ceil(seconds * 1000))
        async with self._channel(doing) as channel:
            if not await self._declared(channel, term, doing):
                return None
            await self._noted(channel, term, doing)
        # Only now: who counts first and wins later may have a token that is lower than somebody's in between.
        token = await self._counted(doing)
        _won[self._key(name)] = token, term
        return token if await self._prolonged(term, doing) else None

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """Whether `token` held it until now, and does from now on."""
        doing = f"stay the leader of {name!r}"
        if (term := self._term(name, token)) is None:
            return False
        if seconds * 1000 > term.length:
            raise UnsupportedError(
                f"{doing}: RabbitMQ holds a name for {term.length / 1000:g} s each time, as long as was asked for at "
                f"first, not for {seconds:g} s: ask for as long when you acquire it"
            )
        return await self._prolonged(term, doing)

    async def release(self, name: str, token: int) -> None:
        """Nobody holds it, if `token` did."""
        doing = f"resign from {name!r}"
        if (term := self._term(name, token)) is None:
            return
        del _won[self._key(name)]
        queue = self._names.election(name)
        both = [
            Queue.Declare(queue=queue, durable=True, arguments=self._settings(term), nowait=True),
            Queue.Delete(queue=queue, nowait=True),
        ]
        async with self._channel(doing) as channel:
            # In one piece: frozen between the two, we would delete what is somebody else's by then.
            await self._link.native.write_queue.put(ChannelFrame.marshall(channel.number, both))
            try:
                await self._link.call(doing, channel.basic_qos(prefetch_count=1))
            except Unavailable:
                self._link.check()  # else the channel was closed over the first, as it is not ours

    async def _prolonged(self, term: _Term, doing: str) -> bool:
        """Whether it was held until now, and is again for its whole length."""
        began = time.monotonic()
        async with self._channel(doing) as channel:
            try:
                # Else what is over would be made anew. This prolongs it too, so it is still there for the second.
                await self._link.call(doing, channel.queue_declare(self._names.election(term.name), passive=True))
            except NotFound as error:
                if "no queue" in str(error):
                    return False
                raise _away(error, doing) from error
            held = await self._declared(channel, term, doing)
        # If it took longer, it may have ended, and been somebody else's, in between.
        return held and time.monotonic() - began < term.length / 1000

    async def _declared(self, channel: Channel, term: _Term, doing: str) -> bool:
        """Whether the queue is there with these settings; it is made if it is not there at all."""
        declare = channel.queue_declare(
            self._names.election(term.name), durable=True, arguments=self._settings(term)
        )  # fmt: skip
        try:
            await self._link.call(doing, declare)
        except NotFound as error:
            raise _away(error, doing) from error
        except AmbError as error:
            if isinstance(error.__cause__, ChannelPreconditionFailed):
                return False
            raise
        return True

    async def _noted(self, channel: Channel, term: _Term, doing: str) -> None:
        """Have the server note something else. One that is killed in that moment was seen to forget the last queue that
        it had made, though it had answered: a durable one of a node that had just been started for the first time."""
        other, settings = f"{self._names.elections}.{term.holder}", {**_CLASSIC, "x-expires": 60_000}
        await self._link.call(doing, channel.queue_declare(other, durable=True, arguments=settings))
        await self._link.call(doing, channel.queue_delete(other))

    def _settings(self, term: _Term) -> dict[str, FieldValue]:
        return {
            **_CLASSIC,
            "x-expires": term.length,
            # There is nothing to be sent there; it is compared like every setting.
            "x-dead-letter-exchange": self._names.normal,
            "x-dead-letter-routing-key": term.holder,
        }

    def _key(self, name: str) -> tuple[str, str, str]:
        return self._options.url, self._options.exchange, name

    def _term(self, name: str, token: int) -> _Term | None:
        won, term = _won.get(self._key(name), (None, None))
        return term if won == token else None

    async def _counted(self, doing: str) -> int:
        """How many elections there have been with this one."""
        queue = self._names.elections
        parcel = Parcel("", queue, b"", Basic.Properties(delivery_mode=2), queue)
        try:
            with anyio.fail_after(self._options.response_timeout):
                for error in (await self._publisher.send({0: parcel})).values():
                    raise error
        except TimeoutError as error:
            raise Unavailable(f"{doing}: it is not counted in time in the queue {queue!r}") from error
        async with self._channel(doing) as channel:
            count = (await self._link.call(doing, channel.queue_declare(queue, passive=True))).message_count
        return int(count or 0)

    async def _prepare(self, doing: str) -> None:
        """Make the queue that counts, or see that it is there, once."""
        if not self._ready:
            async with self._channel(doing) as channel:
                maker = Maker(self._link, channel, doing, self._options.auto_create)
                await maker.queue(self._names.elections, {**_CLASSIC})
                await maker.done()
        self._ready = True

    @asynccontextmanager
    async def _channel(self, doing: str) -> AsyncIterator[Channel]:
        """One of its own: whatever is refused closes it."""
        channel = await self._link.channel(doing)
        try:
            yield channel
        finally:
            if not channel.is_closed:
                with anyio.move_on_after(_LEAVING, shield=True):
                    try:
                        await self._link.call(doing, channel.close())
                    except (Unavailable, ConnectionLost):
                        pass


def _away(error: NotFound, doing: str) -> Unavailable:
    return Unavailable(f"{doing}: {error}: the node that keeps it is down")
