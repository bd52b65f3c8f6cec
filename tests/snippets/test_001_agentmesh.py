"""The page of ``agentmesh-message-bus`` (requirement text 001).

Its tracing snippet is in `test_001_tracing`, what it installs in `test_001_installation`.
"""

from __future__ import annotations

import subprocess
import sys
import time

import anyio
import pytest
from amb_core import Message, MessageBus, MessagePriority

from tests.core._help import Collector, eventually

from ._run import run

QUICK_START = """
import asyncio
from amb_core import MessageBus, Message

async def main():
    async with MessageBus() as bus:
        async def handler(msg: Message): print(msg.payload)
        await bus.subscribe("agent.events", handler)
        await bus.publish("agent.events", {"status": "ready"})
        await asyncio.sleep(0.1)

asyncio.run(main())
"""


def test_quick_start() -> None:
    done = subprocess.run([sys.executable, "-c", QUICK_START], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'status': 'ready'}\n", "")


PRIORITIES = """
# Critical security alert - jumps ahead
await bus.publish(
    "agent.alerts",
    {"alert": "Security anomaly detected"},
    priority=MessagePriority.CRITICAL
)

# Background task - processed when system is idle
await bus.publish(
    "agent.tasks",
    {"task": "Memory consolidation"},
    priority=MessagePriority.BACKGROUND
)
"""


@pytest.mark.asyncio
@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_priority_lanes(redis_url: str, broker: str) -> None:
    async with MessageBus(broker) as bus:
        collector = Collector()
        subscription = await bus.subscribe("agent.*", collector, group="g", concurrency=1)
        for topic in ("agent.alerts", "agent.tasks"):
            await bus.publish(topic, "a topic that the wildcard knows from now on")
        await collector.wait(2)
        subscription.pause()
        await bus.publish("agent.tasks", "what may be received already when the pause begins")
        for number in range(5):
            await bus.publish("agent.tasks", {"task": number}, priority=MessagePriority.LOW)
        await run(PRIORITIES, {"bus": bus, "MessagePriority": MessagePriority})
        subscription.resume()
        await collector.wait(10)
    lanes = [message.priority for message in collector.messages if message.priority is not MessagePriority.NORMAL]
    assert lanes == [MessagePriority.CRITICAL, *[MessagePriority.LOW] * 5, MessagePriority.BACKGROUND]


def test_the_order_of_the_priorities() -> None:
    p = MessagePriority
    assert sorted(p) == [p.CRITICAL, p.URGENT, p.HIGH, p.NORMAL, p.LOW, p.BACKGROUND]


BACKPRESSURE = """
# Configure backpressure parameters
broker = InMemoryBroker(
    max_queue_size=1000, # Max messages per topic
    backpressure_threshold=0.8, # Activate at 80% capacity
    backpressure_delay=0.01 # 10ms delay when active
)

bus = MessageBus(adapter=broker)
await prepare(bus) # added

# If 100 agents spam the bus, backpressure prevents crashes
for agent_id in range(100):
    await bus.publish("agent.events", {"agent": agent_id})
# Producer automatically throttles when consumer is overwhelmed
"""


@pytest.mark.asyncio
async def test_backpressure_protocols() -> None:
    from amb_core import InMemoryBroker

    handled: list[int] = []

    async def slow(message: Message) -> None:
        await anyio.sleep(0.005)
        handled.append(message.data["agent"])

    names = {"InMemoryBroker": InMemoryBroker, "MessageBus": MessageBus,
             "prepare": lambda bus: bus.subscribe("agent.events", slow, concurrency=1)}  # fmt: skip
    small = BACKPRESSURE.replace("max_queue_size=1000", "max_queue_size=10")
    begin = time.monotonic()
    bus = (await run(small, names))["bus"]
    assert time.monotonic() - begin > 0.2 and len(handled) >= 85, "the producer did not wait for the consumer"
    await bus.disconnect()
    assert sorted(handled) == list(range(100))


TRACE_ID = """
await bus.publish(
    "agent.action",
    {"action": "execute"},
    trace_id="custom-trace-id-from-upstream"
)
"""


@pytest.mark.asyncio
@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_an_explicit_trace_id_flows_through_requests_and_replies(redis_url: str, broker: str) -> None:
    asked: list[str | None] = []
    async with MessageBus(broker) as bus:

        @bus.responder("agent.service")
        async def service(request: Message) -> str:
            asked.append(request.trace_id)
            return "done"

        @bus.subscriber("agent.action")
        async def act(message: Message) -> None:
            asked.append(message.trace_id)
            asked.append((await bus.request("agent.service", {}, timeout=5)).trace_id)

        await run(TRACE_ID, {"bus": bus})
        await eventually(lambda: len(asked) == 3, lambda: f"{asked}")
    assert asked == ["custom-trace-id-from-upstream"] * 3
