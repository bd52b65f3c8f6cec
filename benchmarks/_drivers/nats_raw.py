"""nats-py used well: JetStream, a shared pull consumer, batches of as many as may be handled at once, core requests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import nats
from nats.aio.client import Client
from nats.errors import TimeoutError as NothingYet
from nats.js.api import ConsumerConfig, DeliverPolicy, StorageType, StreamConfig

from benchmarks._drivers._child import Handle, Send, beside, serve
from benchmarks._drivers._network import cases, run

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_STREAM = "RAW"


@asynccontextmanager
async def _client() -> AsyncIterator[Client]:
    client = await nats.connect(sys.argv[1])
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def _stream(topic: str) -> AsyncIterator[Client]:
    async with _client() as client:
        manager = client.jsm()
        await manager.add_stream(StreamConfig(_STREAM, subjects=[topic], storage=StorageType.FILE))
        try:
            yield client
        finally:
            await manager.delete_stream(_STREAM)


class _Nats:
    @asynccontextmanager
    async def publishing(self, topic: str) -> AsyncIterator[Send]:
        async with _stream(topic) as client:
            jetstream = client.jetstream()

            async def send(data: Any) -> None:
                await jetstream.publish(topic, _encode(data))

            yield send

    @asynccontextmanager
    async def consuming(self, topic: str, waiting: int, data: Any, handle: Handle, at_once: int) -> AsyncIterator[None]:
        async with _stream(topic) as client:
            jetstream, body = client.jetstream(), _encode(data)
            for _ in range(waiting // 100):
                await asyncio.gather(*(jetstream.publish(topic, body) for _ in range(100)))
            await asyncio.gather(*(jetstream.publish(topic, body) for _ in range(waiting % 100)))
            config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, max_ack_pending=1000)
            pull = await jetstream.pull_subscribe(topic, durable="g", config=config)

            async def consume() -> None:
                while True:
                    try:
                        batch = await pull.fetch(at_once, timeout=1)
                    except NothingYet:
                        continue
                    await run(handle, [_decode(message.data) for message in batch], at_once)
                    for message in batch:
                        await message.ack()

            async with beside(consume()):
                yield

    @asynccontextmanager
    async def answering(self, topic: str, at_once: int) -> AsyncIterator[Send]:
        async with _client() as client:

            async def answer(message: Any) -> None:
                await message.respond(_encode(_decode(message.data)))

            await client.subscribe(topic, queue="g", cb=answer)
            await client.flush()

            async def request(data: Any) -> Any:
                return _decode((await client.request(topic, _encode(data), timeout=30)).data)

            yield request


if __name__ == "__main__":
    serve(cases(_Nats()))
