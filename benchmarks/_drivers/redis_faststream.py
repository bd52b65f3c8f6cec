"""FastStream on Redis, without its log: streams with a group, channels, and its request."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from faststream.redis import RedisBroker, StreamSub  # type: ignore[import-not-found, unused-ignore]
from redis.asyncio import Redis

from benchmarks._drivers._child import (
    AT_ONCE,
    DATA,
    IN_FLIGHT,
    TOPIC,
    Case,
    Handle,
    Send,
    consuming,
    one_at_a_time,
    publishing_at_once,
    pumping_at_once,
    requesting,
    serve,
)

_GROUP, _KEPT = "g", 10_000


async def _emptied() -> Redis:
    async with Redis.from_url(sys.argv[1]) as client:
        await client.flushdb()
    return client


def _broker() -> Any:
    return RedisBroker(sys.argv[1], logger=None, max_connections=4 * AT_ONCE)


@asynccontextmanager
async def _silent() -> AsyncIterator[Send]:
    await _emptied()
    async with _broker() as broker:
        yield partial(broker.publish, stream=TOPIC, maxlen=_KEPT)


@asynccontextmanager
async def _waiting(count: int, handle: Handle) -> AsyncIterator[None]:
    await _emptied()
    broker = _broker()
    stream = StreamSub(TOPIC, group=_GROUP, consumer="c", last_id=">", max_records=100, polling_interval=1000)

    @broker.subscriber(stream=stream, max_workers=AT_ONCE)  # type: ignore[untyped-decorator, unused-ignore]
    async def consume(data: dict[str, Any]) -> None:
        await handle(data)

    async with Redis.from_url(sys.argv[1]) as client:
        async with _broker() as publisher:
            for _ in range(count):
                await publisher.publish(DATA, stream=TOPIC)
        await client.xgroup_create(TOPIC, _GROUP, id="0")
    async with broker:
        await broker.start()
        yield


@asynccontextmanager
async def _listening(handle: Handle) -> AsyncIterator[Send]:
    await _emptied()
    broker = _broker()

    @broker.subscriber(TOPIC)  # type: ignore[untyped-decorator, unused-ignore]
    async def consume(data: dict[str, Any]) -> None:
        await handle(data)

    async with broker:
        await broker.start()
        await _until_heard()
        yield partial(broker.publish, channel=TOPIC)


@asynccontextmanager
async def _answering() -> AsyncIterator[Send]:
    await _emptied()
    broker = _broker()

    @broker.subscriber(TOPIC)  # type: ignore[untyped-decorator, unused-ignore]
    async def answer(data: dict[str, Any]) -> dict[str, Any]:
        return data

    async with broker:
        await broker.start()
        await _until_heard()

        async def request(data: dict[str, Any]) -> Any:
            return await (await broker.request(data, channel=TOPIC)).decode()

        yield request


async def _until_heard() -> None:
    async with Redis.from_url(sys.argv[1]) as client:
        while not all(listeners for _, listeners in await client.pubsub_numsub(TOPIC)):
            pass


CASES: dict[str, Case] = {
    "publish": publishing_at_once(_silent),
    "consume": consuming(_waiting),
    "broadcast": pumping_at_once(_listening, "broadcast"),
    "one at a time": one_at_a_time(_listening),
    "request": requesting(_answering, 1, "request"),
    "requests": requesting(_answering, IN_FLIGHT, "requests"),
}

if __name__ == "__main__":
    serve(CASES)
