"""AMB on Redis: streams, and what the others do with pub/sub on pub/sub."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from amb_core import Message, MessageBus
from amb_redis import RedisBroker
from redis.asyncio import Redis

from benchmarks._drivers._child import (
    AT_ONCE,
    DATA,
    IN_FLIGHT,
    TOPIC,
    Case,
    Handle,
    Opened,
    Send,
    consuming,
    one_at_a_time,
    publishing_at_once,
    pumping_at_once,
    requesting,
    serve,
)


@asynccontextmanager
async def _bus(streams: bool = True) -> AsyncIterator[MessageBus]:
    async with Redis.from_url(sys.argv[1]) as client:
        await client.flushdb()
    async with MessageBus(RedisBroker(sys.argv[1], use_streams=streams)) as bus:
        yield bus


@asynccontextmanager
async def _silent() -> AsyncIterator[Send]:
    async with _bus() as bus:
        yield partial(bus.publish, TOPIC)


@asynccontextmanager
async def _waiting(count: int, handle: Handle) -> AsyncIterator[None]:
    async with _bus() as bus:
        await bus.publish_batch([Message(topic=TOPIC, payload=DATA) for _ in range(count)])
        await bus.subscribe(TOPIC, handle, group="g", start="earliest", concurrency=AT_ONCE)
        yield


@asynccontextmanager
async def _listening(handle: Handle) -> AsyncIterator[Send]:
    async with _bus(streams=False) as bus:
        await bus.subscribe(TOPIC, handle, concurrency=AT_ONCE)
        yield partial(bus.publish, TOPIC)


def _answering(streams: bool) -> Opened:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Send]:
        async with _bus(streams) as bus:

            @bus.responder(TOPIC, concurrency=AT_ONCE)
            async def answer(message: Any) -> Any:
                return message.data

            await bus.connect()
            while not all(each.consuming for each in (await bus.health()).subscriptions):
                pass
            yield partial(bus.request, TOPIC)

    return opened


CASES: dict[str, Case] = {
    "publish": publishing_at_once(_silent),
    "consume": consuming(_waiting),
    "broadcast": pumping_at_once(_listening, "broadcast"),
    "one at a time": one_at_a_time(_listening),
    "request": requesting(_answering(False), 1, "request"),
    "requests": requesting(_answering(False), IN_FLIGHT, "requests"),
    "stream request": requesting(_answering(True), 1, "stream request"),
    "stream requests": requesting(_answering(True), IN_FLIGHT, "stream requests"),
}

if __name__ == "__main__":
    serve(CASES)
