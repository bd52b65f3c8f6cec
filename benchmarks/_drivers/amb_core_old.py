"""`amb-core` 0.1.0 of the package index, on its memory broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from amb_core import MessageBus

from benchmarks._drivers._child import TOPIC, Case, Figures, Handle, Send, common, idle_cpu, serve


@asynccontextmanager
async def _listening(handle: Handle) -> AsyncIterator[Send]:
    async with MessageBus() as bus:
        await bus.subscribe(TOPIC, handle)
        yield partial(bus.publish, TOPIC)


@asynccontextmanager
async def _answering() -> AsyncIterator[Send]:
    async with MessageBus() as bus:

        async def answer(message: Any) -> None:
            # Replies travel on the request's topic, so the responder sees its own.
            if message.sender == "client":
                await bus.reply(message, message.payload)

        await bus.subscribe(TOPIC, answer)
        yield partial(bus.request, TOPIC, sender="client")


@asynccontextmanager
async def _silent() -> AsyncIterator[Send]:
    async with MessageBus() as bus:
        yield partial(bus.publish, TOPIC)


async def _idle(_: int) -> Figures:
    async def handle(_: Any) -> None:
        pass

    async with MessageBus() as bus:
        for number in range(200):
            await bus.subscribe(f"agents.a{number}.steps", handle)
            await bus.publish(f"agents.a{number}.steps", {"step": number})
        return {"idle": await idle_cpu()}


CASES: dict[str, Case] = {**common(_listening, _answering, _silent), "idle": _idle}

if __name__ == "__main__":
    serve(CASES)
