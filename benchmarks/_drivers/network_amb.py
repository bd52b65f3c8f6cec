"""AMB on any broker: ``network_amb CLASS OPTIONS``, the options in JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from amb_core import Message, MessageBus, adapters

from benchmarks._drivers._child import Handle, Send, serve
from benchmarks._drivers._network import cases


def _bus() -> MessageBus:
    return MessageBus(getattr(adapters, sys.argv[1])(**json.loads(sys.argv[2])))


async def _join(bus: MessageBus, topic: str) -> None:
    """There is a group, with nobody in it: on some brokers what nobody wants is not kept."""

    async def handle(_: Any) -> None:
        pass

    await bus.unsubscribe(await bus.subscribe(topic, handle, group="g"))


class _Amb:
    @asynccontextmanager
    async def publishing(self, topic: str) -> AsyncIterator[Send]:
        async with _bus() as bus:
            await _join(bus, topic)
            yield partial(bus.publish, topic)

    @asynccontextmanager
    async def consuming(self, topic: str, waiting: int, data: Any, handle: Handle, at_once: int) -> AsyncIterator[None]:
        async with _bus() as bus:
            await _join(bus, topic)
            await bus.publish_batch([Message(topic=topic, payload=data) for _ in range(waiting)])
            await bus.subscribe(topic, handle, group="g", concurrency=at_once)
            yield

    @asynccontextmanager
    async def answering(self, topic: str, at_once: int) -> AsyncIterator[Send]:
        bus = _bus()

        @bus.responder(topic, concurrency=at_once)
        async def answer(message: Any) -> Any:
            return message.data

        async with bus:
            yield partial(bus.request, topic)


if __name__ == "__main__":
    serve(cases(_Amb()))
