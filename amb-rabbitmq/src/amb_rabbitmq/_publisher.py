"""Publishing with confirms, on a link of its own: the server blocks publishers as a whole connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from aiormq import exceptions as native
from aiormq.abc import AbstractChannel
from amb_core.broker import Outgoing
from amb_core.errors import AmbError, PartialFailure, Unavailable
from pamqp.commands import Basic

from ._errors import translate
from ._link import Link
from ._topology import Topology
from ._wire import Names, express, is_inbox, later, to_properties, units

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["Parcel", "Publisher", "raise_partial"]


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
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()

    def parcel(self, message: Outgoing, now: float) -> Parcel:
        """Address a message. Raises: MessageTooLarge."""
        properties = to_properties(message)
        if is_inbox(message.topic):
            return Parcel("", message.topic, message.body, properties, message.topic)
        exchange = self._names.express if express(message.priority) else self._names.normal
        delay = max(0.0, message.not_before - now) if message.not_before is not None else 0.0
        return Parcel(exchange, message.topic, message.body, properties, message.topic, delay)

    async def send(self, parcels: Mapping[int, Parcel]) -> dict[int, AmbError]:
        """Publish in order, pipelined; returns what failed when the server has answered for all."""
        for one in parcels.values():
            if count := units(one.delay):
                entrance = await self._topology.delays(count)
                one.key = later(one.properties, count, self._names.exit(one.exchange), one.key, one.topic)
                one.exchange = entrance
        channel = await self._ready()
        if len(parcels) == 1:
            (index,) = parcels
            error = await self._publish(channel, parcels[index])
            return {} if error is None else {index: error}
        results = await asyncio.gather(*(self._publish(channel, one) for one in parcels.values()))
        return {i: error for i, error in zip(parcels, results, strict=True) if error is not None}

    async def _ready(self) -> AbstractChannel:
        self._link.check()
        # Waits while the server blocks publishers; the caller's patience is the limit.
        await self._link.native.ready()
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._link.channel("publish", confirms=True)
            return self._channel

    async def _publish(self, channel: AbstractChannel, one: Parcel) -> AmbError | None:
        doing = f"publish to {one.topic!r}"
        try:
            await self._confirmed(channel, one)
        except native.DeliveryError as error:
            # A channel first used while a queue had no leader goes on refusing: the next one gets a new channel.
            if self._channel is channel:
                self._channel = None
            return translate(error, doing)
        except native.ChannelAccessRefused as error:
            return self._refused(one, error, doing)
        except (native.AMQPError, native.ChannelInvalidStateError, OSError, TimeoutError) as error:
            return translate(error, doing, unknown=True)
        except asyncio.CancelledError as error:
            failed = self._link.cancelled(doing, error)
            if failed is error:
                raise
            return translate(error, doing, unknown=True)
        return None

    async def _confirmed(self, channel: AbstractChannel, one: Parcel) -> None:
        await channel.basic_publish(
            one.body, exchange=one.exchange, routing_key=one.key, properties=one.properties, wait=False
        )

    def _refused(self, one: Parcel, error: Exception, doing: str) -> AmbError:
        """The server closes the channel over one message; the others on it are only its neighbours."""
        text = str(error)
        if f"'{one.topic}'" in text or "access to topic" not in text:
            return translate(error, doing)
        failed = Unavailable(f"{doing}: the channel was closed over another message; it is tried again")
        failed.__cause__ = error
        return failed


def raise_partial(batch: Sequence[object], errors: dict[int, AmbError]) -> None:
    """Raise one error for all, or for each its own."""
    if len(errors) == len(batch) and len({type(error) for error in errors.values()}) == 1:
        raise errors[min(errors)]
    raise PartialFailure(dict(errors))
