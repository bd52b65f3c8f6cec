"""The least that a bus in one process can do: a bounded queue, msgspec both ways, an awaited handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgspec

from benchmarks._drivers._child import Case, Handle, Send, beside, common, serve

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


@asynccontextmanager
async def _listening(handle: Handle) -> AsyncIterator[Send]:
    queue: asyncio.Queue[bytes] = asyncio.Queue(1000)

    async def consume() -> None:
        while True:
            await handle(_decode(await queue.get()))

    async def send(data: dict[str, Any]) -> None:
        await queue.put(_encode(data))

    async with beside(consume()):
        yield send


@asynccontextmanager
async def _answering() -> AsyncIterator[Send]:
    """A reply is a message: it has a queue and a consumer of its own, which wakes who asked. Nobody asks without
    an end to the waiting."""
    requests: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue(1000)
    replies: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue(1000)
    waiting: dict[int, asyncio.Future[Any]] = {}
    number = count()

    async def handle(data: Any) -> Any:
        return data

    async def answer() -> None:
        while True:
            key, body = await requests.get()
            await replies.put((key, _encode(await handle(_decode(body)))))

    async def collect() -> None:
        while True:
            key, body = await replies.get()
            waiting.pop(key).set_result(_decode(body))

    async def request(data: dict[str, Any]) -> Any:
        loop = asyncio.get_running_loop()
        key, reply = next(number), loop.create_future()
        waiting[key] = reply
        too_late = loop.call_later(30.0, reply.set_exception, TimeoutError())
        await requests.put((key, _encode(data)))
        try:
            return await reply
        finally:
            too_late.cancel()

    async with beside(answer(), collect()):
        yield request


CASES: dict[str, Case] = common(_listening, _answering, None)

if __name__ == "__main__":
    serve(CASES)
