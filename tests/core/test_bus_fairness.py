"""A handler that hands everything back at once keeps nobody else from running."""

from __future__ import annotations

import anyio
import pytest
from amb_core import Message, MessageBus

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("group", [None, "workers"])
async def test_a_message_that_is_always_handed_back_does_not_stop_the_rest(group: str | None) -> None:
    calls = 0

    async def refuse(message: Message) -> None:
        nonlocal calls
        calls += 1
        message.nack()

    async with MessageBus(drain_timeout=0.2) as bus:
        await bus.subscribe("refused", refuse, group=group, concurrency=1)
        with anyio.fail_after(10):
            await bus.publish("refused", 1)
            while calls < 1000:
                await anyio.sleep(0.001)


async def test_the_only_worker_tries_again_although_nothing_else_comes() -> None:
    """It waits for the broker when the next try is due."""
    attempts: list[int] = []

    async def fail(message: Message) -> None:
        attempts.append(message.attempt)
        raise ValueError("fails on purpose")

    async with MessageBus() as bus:
        await bus.subscribe("failing", fail, concurrency=1, retries=3, retry_delay=0.01)
        await bus.publish("failing", 1)
        with anyio.fail_after(10):
            while len(attempts) < 4:
                await anyio.sleep(0.01)
    assert attempts == [1, 2, 3, 4]
