"""FastStream's test broker: no server, the handler is called by the publish."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from faststream.redis import RedisBroker, TestRedisBroker  # type: ignore[import-not-found, unused-ignore]

from benchmarks._drivers._child import TOPIC, Case, Handle, Send, common, serve


@asynccontextmanager
async def _listening(handle: Handle) -> AsyncIterator[Send]:
    broker = RedisBroker(logger=None)

    @broker.subscriber(TOPIC)  # type: ignore[untyped-decorator, unused-ignore]
    async def consume(data: dict[str, Any]) -> None:
        await handle(data)

    async with TestRedisBroker(broker):
        yield partial(broker.publish, channel=TOPIC)


@asynccontextmanager
async def _answering() -> AsyncIterator[Send]:
    broker = RedisBroker(logger=None)

    @broker.subscriber(TOPIC)  # type: ignore[untyped-decorator, unused-ignore]
    async def answer(data: dict[str, Any]) -> dict[str, Any]:
        return data

    async with TestRedisBroker(broker):

        async def request(data: dict[str, Any]) -> Any:
            return await (await broker.request(data, channel=TOPIC)).decode()

        yield request


CASES: dict[str, Case] = common(_listening, _answering, None)

if __name__ == "__main__":
    serve(CASES)
