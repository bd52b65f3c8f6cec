"""AMB on its memory broker, with nothing configured."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from amb_core import MessageBus

from benchmarks._drivers._child import TOPIC, Case, Figures, Handle, Send, common, idle_cpu, one_at_a_time, serve

TOPICS = 200


@asynccontextmanager
async def _listening(handle: Handle) -> AsyncIterator[Send]:
    async with MessageBus("memory") as bus:
        await bus.subscribe(TOPIC, handle)
        yield partial(bus.publish, TOPIC)


@asynccontextmanager
async def _answering() -> AsyncIterator[Send]:
    bus = MessageBus("memory")

    @bus.responder(TOPIC)
    async def answer(message: Any) -> Any:
        return message.data

    async with bus:
        yield partial(bus.request, TOPIC)


@asynccontextmanager
async def _silent() -> AsyncIterator[Send]:
    async with MessageBus("memory") as bus:
        yield partial(bus.publish, TOPIC)


async def _idle(_: int) -> Figures:
    async def handle(_: Any) -> None:
        pass

    async with MessageBus("memory") as bus:
        for number in range(TOPICS):
            await bus.subscribe(f"agents.a{number}.steps", handle)
            await bus.publish(f"agents.a{number}.steps", {"step": number})
        return {"idle": await idle_cpu()}


def _among(patterns: int, name: str) -> Case:
    """One at a time to one topic, while so many patterns are subscribed to."""

    @asynccontextmanager
    async def listening(handle: Handle) -> AsyncIterator[Send]:
        async def other(_: Any) -> None:
            pass

        async with MessageBus("memory") as bus:
            for number in range(patterns - 1):
                await bus.subscribe(f"agents.a{number}.*", other)
            await bus.subscribe("agents.planner.*", handle)
            yield partial(bus.publish, TOPIC)

    async def case(count: int) -> Figures:
        return {name: (await one_at_a_time(listening)(count))["cycle"]}

    return case


CASES: dict[str, Case] = {
    **common(_listening, _answering, _silent),
    "idle": _idle,
    "ten patterns": _among(10, "ten patterns"),
    "many patterns": _among(10_000, "many patterns"),
}

if __name__ == "__main__":
    serve(CASES)
