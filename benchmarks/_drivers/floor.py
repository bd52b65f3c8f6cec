"""The least that a bus in one process can do: a bounded queue, msgspec both ways, an awaited handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    queue: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue(1000)

    async def handle(data: Any) -> Any:
        return data

    async def consume() -> None:
        while True:
            body, reply = await queue.get()
            reply.set_result(_encode(await handle(_decode(body))))

    async def request(data: dict[str, Any]) -> Any:
        reply = asyncio.get_running_loop().create_future()
        await queue.put((_encode(data), reply))
        return _decode(await reply)

    async with beside(consume()):
        yield request


CASES: dict[str, Case] = common(_listening, _answering, None)

if __name__ == "__main__":
    serve(CASES)
