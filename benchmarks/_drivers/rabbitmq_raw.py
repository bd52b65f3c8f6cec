"""aio-pika used well: a quorum queue, publisher confirms, a prefetch of as many as may be handled at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count as counter
from typing import Any

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage, AbstractQueue

from benchmarks._drivers._child import Handle, Send, serve
from benchmarks._drivers._network import cases

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}


@asynccontextmanager
async def _channel() -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(sys.argv[1]) as connection, connection.channel() as channel:
        yield channel


async def _queue(channel: AbstractChannel, topic: str) -> tuple[AbstractExchange, AbstractQueue]:
    exchange = await channel.declare_exchange("raw", "topic", durable=True)
    queue = await channel.declare_queue(topic, durable=True, arguments=_QUORUM)
    await queue.bind(exchange, topic)
    return exchange, queue


def _message(body: bytes, **fields: Any) -> aio_pika.Message:
    return aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **fields)


class _Rabbit:
    @asynccontextmanager
    async def publishing(self, topic: str) -> AsyncIterator[Send]:
        async with _channel() as channel:
            exchange, queue = await _queue(channel, topic)

            async def send(data: Any) -> None:
                await exchange.publish(_message(_encode(data)), topic, mandatory=False)

            yield send
            await queue.delete(if_unused=False, if_empty=False)

    @asynccontextmanager
    async def consuming(self, topic: str, waiting: int, data: Any, handle: Handle, at_once: int) -> AsyncIterator[None]:
        async with _channel() as channel:
            exchange, queue = await _queue(channel, topic)
            for begin in range(0, waiting, 100):
                batch = range(min(100, waiting - begin))
                await asyncio.gather(*(exchange.publish(_message(_encode(data)), topic) for _ in batch))
            await channel.set_qos(at_once)

            async def consume(message: AbstractIncomingMessage) -> None:
                await handle(_decode(message.body))
                await message.ack()

            await queue.consume(consume)
            try:
                yield
            finally:
                await queue.delete(if_unused=False, if_empty=False)

    @asynccontextmanager
    async def answering(self, topic: str, at_once: int) -> AsyncIterator[Send]:
        """Both queues exclusive, replies matched by number."""
        waiting: dict[str | None, asyncio.Future[bytes]] = {}
        number = counter()
        async with _channel() as channel:
            asked = await channel.declare_queue(topic, exclusive=True)
            told = await channel.declare_queue(exclusive=True)
            exchange = channel.default_exchange

            async def answer(message: AbstractIncomingMessage) -> None:
                reply = aio_pika.Message(_encode(_decode(message.body)), correlation_id=message.correlation_id)
                await exchange.publish(reply, str(message.reply_to))

            async def collect(message: AbstractIncomingMessage) -> None:
                waiting.pop(message.correlation_id).set_result(message.body)

            async def request(data: Any) -> Any:
                key, reply = str(next(number)), asyncio.get_running_loop().create_future()
                waiting[key] = reply
                await exchange.publish(
                    aio_pika.Message(_encode(data), correlation_id=key, reply_to=told.name), asked.name
                )
                return _decode(await reply)

            await asked.consume(answer, no_ack=True)
            await told.consume(collect, no_ack=True)
            yield request


if __name__ == "__main__":
    serve(cases(_Rabbit()))
