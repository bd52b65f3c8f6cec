"""redis-py used well: pipelines of a hundred, reads in batches, acknowledgements on the way of the next read."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count as counter
from typing import Any

import msgspec
from redis.asyncio import Redis

from benchmarks._drivers._child import (
    DATA,
    IN_FLIGHT,
    TOPIC,
    Case,
    Figures,
    Handle,
    Send,
    Waiting,
    beside,
    consuming,
    elapsed,
    one_at_a_time,
    requesting,
    serve,
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_BATCH, _GROUP, _KEPT = 100, "g", 10_000


@asynccontextmanager
async def _client() -> AsyncIterator[Redis]:
    async with Redis.from_url(sys.argv[1], protocol=2) as client:
        await client.flushdb()
        yield client


async def _publish(count: int) -> Figures:
    async with _client() as client:
        begin = elapsed()
        await _add(client, count)
        return {"publish": (elapsed() - begin) / count}


async def _add(client: Redis, count: int) -> None:
    for start in range(0, count, _BATCH):
        pipeline = client.pipeline(transaction=False)
        for _ in range(min(_BATCH, count - start)):
            pipeline.xadd(TOPIC, {"body": _encode(DATA)}, maxlen=_KEPT)
        await pipeline.execute()


def _waiting(run: Callable[[Handle, list[bytes]], Awaitable[None]]) -> Waiting:
    @asynccontextmanager
    async def waiting(count: int, handle: Handle) -> AsyncIterator[None]:
        async with _client() as client:
            await _add(client, count)
            await client.xgroup_create(TOPIC, _GROUP, id="0")
            ended = asyncio.Event()
            consumer = asyncio.ensure_future(_consume(client, partial(run, handle), ended))
            yield
            ended.set()
            await consumer

    return waiting


async def _one_by_one(handle: Handle, bodies: list[bytes]) -> None:
    for body in bodies:
        await handle(_decode(body))


async def _at_once(handle: Handle, bodies: list[bytes]) -> None:
    """A handler that waits keeps none of the others waiting, as with AMB's ``concurrency=100``."""
    async with asyncio.TaskGroup() as group:
        for body in bodies:
            group.create_task(handle(_decode(body)))  # type: ignore[arg-type]  # handlers are coroutine functions


async def _consume(client: Redis, run: Callable[[list[bytes]], Awaitable[None]], ended: asyncio.Event) -> None:
    done: Sequence[bytes] = ()
    while not ended.is_set():
        pipeline = client.pipeline(transaction=False)
        if done:
            pipeline.xack(TOPIC, _GROUP, *done)
        pipeline.xreadgroup(_GROUP, "c", {TOPIC: ">"}, count=_BATCH, block=100)
        streams = (await pipeline.execute())[-1]
        entries = streams[0][1] if streams else ()
        await run([fields[b"body"] for _, fields in entries])
        done = [entry for entry, _ in entries]


@asynccontextmanager
async def _subscribed(handle: Handle) -> AsyncIterator[Redis]:
    async with _client() as client, client.pubsub(ignore_subscribe_messages=True) as channel:
        await channel.subscribe(TOPIC)

        async def consume() -> None:
            async for message in channel.listen():
                await handle(_decode(message["data"]))

        async with beside(consume()):
            await _until_heard(client, TOPIC)
            yield client


async def _until_heard(client: Redis, *channels: str) -> None:
    while not all(listeners for _, listeners in await client.pubsub_numsub(*channels)):
        pass


@asynccontextmanager
async def _listening(handle: Handle) -> AsyncIterator[Send]:
    async with _subscribed(handle) as client:

        async def send(data: dict[str, Any]) -> None:
            await client.publish(TOPIC, _encode(data))

        yield send


async def _broadcast(count: int) -> Figures:
    left, done = count, asyncio.Event()

    async def handle(_: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async with _subscribed(handle) as client:
        begin = elapsed()
        for start in range(0, count, _BATCH):
            pipeline = client.pipeline(transaction=False)
            for _ in range(min(_BATCH, count - start)):
                pipeline.publish(TOPIC, _encode(DATA))
            await pipeline.execute()
        await done.wait()
        return {"broadcast": (elapsed() - begin) / count}


@asynccontextmanager
async def _answering() -> AsyncIterator[Send]:
    """Requests on one channel, replies on another, matched by number."""
    waiting: dict[int, asyncio.Future[bytes]] = {}
    number = counter()

    async with _client() as client:
        requests, replies = (client.pubsub(ignore_subscribe_messages=True) for _ in range(2))
        async with requests, replies:
            await requests.subscribe(TOPIC)
            await replies.subscribe("replies")

            async def answer() -> None:
                async for message in requests.listen():
                    key, _, body = message["data"].partition(b" ")
                    await client.publish("replies", key + b" " + _encode(_decode(body)))

            async def collect() -> None:
                async for message in replies.listen():
                    key, _, body = message["data"].partition(b" ")
                    waiting.pop(int(key)).set_result(body)

            async def request(data: dict[str, Any]) -> Any:
                key, reply = next(number), asyncio.get_running_loop().create_future()
                waiting[key] = reply
                await client.publish(TOPIC, b"%d %b" % (key, _encode(data)))
                return _decode(await reply)

            async with beside(answer(), collect()):
                await _until_heard(client, TOPIC, "replies")
                yield request


CASES: dict[str, Case] = {
    "publish": _publish,
    "consume": consuming(_waiting(_at_once)),
    "consume inline": consuming(_waiting(_one_by_one), " inline"),
    "broadcast": _broadcast,
    "one at a time": one_at_a_time(_listening),
    "request": requesting(_answering, 1, "request"),
    "requests": requesting(_answering, IN_FLIGHT, "requests"),
}

if __name__ == "__main__":
    serve(CASES)
