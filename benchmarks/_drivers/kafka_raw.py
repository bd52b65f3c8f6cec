"""aiokafka used well: all replicas confirm, batches of as many as may be handled at once, committed after them.

Its record batches may be as large as AMB's: with its default, 16 KiB, publishing 10 kB takes it ten times as long."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count as counter
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks._drivers._child import Handle, Send, beside, serve
from benchmarks._drivers._network import cases, run

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_PARTITIONS = 4


async def _make(*topics: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=sys.argv[1])
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, _PARTITIONS, 1) for topic in topics])
    finally:
        await admin.close()


def _producer() -> AIOKafkaProducer:
    return AIOKafkaProducer(
        bootstrap_servers=sys.argv[1], acks="all", enable_idempotence=True, max_batch_size=512 * 1024
    )


def _consumer(topic: str, group: str | None) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        topic,
        bootstrap_servers=sys.argv[1],
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )


class _Kafka:
    @asynccontextmanager
    async def publishing(self, topic: str) -> AsyncIterator[Send]:
        await _make(topic)
        async with _producer() as producer:

            async def send(data: Any) -> None:
                await producer.send_and_wait(topic, _encode(data))

            yield send

    @asynccontextmanager
    async def consuming(self, topic: str, waiting: int, data: Any, handle: Handle, at_once: int) -> AsyncIterator[None]:
        await _make(topic)
        async with _producer() as producer:
            await asyncio.gather(*[await producer.send(topic, _encode(data)) for _ in range(waiting)])
        async with _consumer(topic, f"g-{topic}") as consumer:

            async def consume() -> None:
                while True:
                    fetched = await consumer.getmany(timeout_ms=500, max_records=at_once)
                    records = [record for batch in fetched.values() for record in batch]
                    if not records:
                        continue
                    await run(handle, [_decode(record.value) for record in records], at_once)
                    await consumer.commit({part: batch[-1].offset + 1 for part, batch in fetched.items()})

            async with beside(consume()):
                yield

    @asynccontextmanager
    async def answering(self, topic: str, at_once: int) -> AsyncIterator[Send]:
        """Requests on one topic, replies on another, matched by number."""
        waiting: dict[bytes, asyncio.Future[bytes]] = {}
        number, replies = counter(), f"{topic}.replies"
        await _make(topic, replies)
        async with _producer() as producer, _consumer(topic, None) as asked, _consumer(replies, None) as told:
            for consumer in (asked, told):
                await _placed(consumer)

            async def answer() -> None:
                async for record in asked:
                    await producer.send(replies, _encode(_decode(record.value)), key=record.key)

            async def collect() -> None:
                async for record in told:
                    waiting.pop(record.key).set_result(record.value)

            async def request(data: Any) -> Any:
                key, reply = b"%d" % next(number), asyncio.get_running_loop().create_future()
                waiting[key] = reply
                await producer.send(topic, _encode(data), key=key)
                return _decode(await reply)

            async with beside(answer(), collect()):
                yield request


async def _placed(consumer: AIOKafkaConsumer) -> None:
    """Its positions are known: what comes now is seen."""
    parts: set[TopicPartition] = consumer.assignment()
    for part in parts:
        await consumer.position(part)


if __name__ == "__main__":
    serve(cases(_Kafka()))
