"""The page "AMB - Agent Message Bus" of Agent OS (requirement text 003)."""

from __future__ import annotations

from typing import Any

import pytest
from amb_core import MessageBus

from tests.core._help import Collector, eventually

from ._run import run

pytestmark = pytest.mark.asyncio

QUICK_START = """
from agent_os.amb import MessageBus
from agent_os.amb.adapters import RedisBroker

# Create bus with Redis backend
broker = RedisBroker(url="redis://localhost:6379")
bus = MessageBus(broker)

# Publish message
await bus.publish("agent.tasks", {
    "type": "analyze",
    "data": "sales_q4"
})

# Subscribe to messages
async def handler(message):
    print(f"Received: {message}")

await bus.subscribe("agent.results", handler)
"""


async def test_quick_start_connects_by_itself(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    names, tasks = await run(QUICK_START, {}), list[Any]()
    async with names["bus"] as bus:
        await bus.publish("agent.results", {"total": 7})
        await eventually(lambda: bus.stats.acked == 1, "the result")
        tasks = [message.data async for message in bus.replay("agent.tasks")]
    assert {"type": "analyze", "data": "sales_q4"} in tasks
    printed = capsys.readouterr().out
    assert printed.startswith("Received: Message(") and "'total': 7" in printed


@pytest.mark.parametrize("name", ["InMemoryBroker", "RedisBroker", "KafkaBroker", "NATSBroker", "SQSBroker"])
async def test_every_backend_has_its_documented_name(name: str) -> None:
    import agent_os.amb
    from agent_os.amb import adapters

    assert getattr(adapters, name) is getattr(agent_os.amb, name)
    assert MessageBus(getattr(adapters, name)()).capabilities


PUBSUB = """
# Publisher
await bus.publish("events.user.created", user_data)

# Subscriber
await bus.subscribe("events.user.*", handle_user_events)
"""

REQUEST = """
# Request
response = await bus.request("services.analyzer", {
    "action": "analyze",
    "data": payload
}, timeout=30)
"""


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_message_patterns(redis_url: str, broker: str) -> None:
    async with MessageBus(broker) as bus:
        users = Collector()
        await run(PUBSUB, {"bus": bus, "user_data": {"id": 1}, "handle_user_events": users})
        await bus.publish("events.user.deleted", {"id": 1})
        bus.responder("services.analyzer")(lambda request: len(request.data["data"]))
        names = await run(REQUEST, {"bus": bus, "payload": [1, 2, 3]})
        await users.wait()
    assert names["response"].data == 3
    assert [message.topic for message in users.messages] == ["events.user.deleted"]
