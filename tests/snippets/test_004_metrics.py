"""The guide "Using Message Bus Adapters" (requirement text 004): section "Monitor Lag"."""

from __future__ import annotations

import time

import pytest
from amb_core import AgentMessageBus, Message
from amb_core.observability import metrics

from ._run import run

LAG = """
from amb_core.observability import metrics

# Track message processing lag
@metrics.track("message_processing")
async def handle_message(msg: Message):
    lag = time.time() - msg.timestamp
    metrics.gauge("message_lag_seconds", lag)
    await process(msg)
"""


@pytest.mark.asyncio
async def test_monitor_lag() -> None:
    processed: list[Message] = []

    async def process(msg: Message) -> None:
        processed.append(msg)

    registry = metrics.registry()
    try:
        names = await run(LAG, {"Message": Message, "time": time, "process": process})
        async with AgentMessageBus() as bus:
            await bus.subscribe("t", names["handle_message"])
            await bus.publish("t", 1)
        assert processed == [1]
        assert registry.get_sample_value("amb_message_processing_seconds_count", {"outcome": "ok"}) == 1
        assert 0 <= (registry.get_sample_value("amb_message_lag_seconds") or -1) < 5
    finally:
        metrics.stop()
