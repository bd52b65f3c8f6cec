"""The page of ``agent_os.amb`` (requirement text 000): publish/subscribe, filters, requests, wildcards; on Redis."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from amb_core import Message, MessageBus, MessagePriority

from tests.core._help import Collector, eventually

from ._run import on, run

pytestmark = pytest.mark.asyncio

PUBSUB = """
from agent_os.amb import MessageBus, Message

async with MessageBus(broker="redis") as bus:
    # Simple publish
    await bus.publish("agents.notifications", {
        "type": "task_completed",
        "agent_id": "agent-001",
        "task_id": "task-123"
    })

    # Publish with metadata
    await bus.publish(
        topic="agents.events",
        message={"event": "started"},
        headers={
            "correlation_id": "req-456",
            "timestamp": "2024-01-15T10:30:00Z",
            "priority": "high"
        }
    )

    # Subscribe with async handler
    async def handle_notification(msg: Message):
        print(f"Received: {msg.data}")
        print(f"Topic: {msg.topic}")
        print(f"Headers: {msg.headers}")
        print(f"Timestamp: {msg.timestamp}")

    await bus.subscribe("agents.notifications", handle_notification)

    # Subscribe with decorator pattern
    @bus.subscriber("agents.events")
    async def on_event(msg: Message):
        print(f"Event: {msg.data['event']}")

    # Multiple handlers for same topic
    @bus.subscriber("agents.notifications")
    async def log_notification(msg: Message):
        logger.info(f"Notification: {msg.data}")

    @bus.subscriber("agents.notifications")
    async def store_notification(msg: Message):
        await database.insert("notifications", msg.data)

    # Keep running to receive messages
    await bus.run_forever()
"""


class Database:
    """What the page calls `database`."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, Any]] = []

    async def insert(self, table: str, row: Any) -> None:
        self.rows.append((table, row))


async def test_publish_subscribe(
    other: MessageBus, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    database, everything = Database(), Collector()
    await other.subscribe("agents.*", everything)
    names: dict[str, Any] = {"logger": logging.getLogger("page"), "database": database}
    running = asyncio.ensure_future(run(PUBSUB, names))
    await eventually(lambda: "store_notification" in names, "the snippet to subscribe")
    bus: MessageBus = names["bus"]
    await bus.publish("ready.now", "the declared subscriptions are live before the next publish returns")
    await other.publish("agents.notifications", {"n": 1})
    await other.publish("agents.events", {"event": "moved"})
    await eventually(lambda: database.rows == [("notifications", {"n": 1})], "the stored row")
    await eventually(lambda: bus.stats.acked == 4, "four deliveries")
    await bus.disconnect()
    await running
    printed = capsys.readouterr().out
    for line in ("Received: {'n': 1}", "Topic: agents.notifications", "Headers: {}", "Event: moved"):
        assert line in printed
    assert "Notification: {'n': 1}" in caplog.text
    await everything.wait(4)  # of two topics, and one is more urgent: in any order
    notification = next(message for message in everything.messages if message.topic == "agents.notifications")
    event = next(message for message in everything.messages if message.topic == "agents.events")
    assert notification.data == {"type": "task_completed", "agent_id": "agent-001", "task_id": "task-123"}
    assert event.priority is MessagePriority.HIGH
    assert event.headers == {"correlation_id": "req-456", "timestamp": "2024-01-15T10:30:00Z", "priority": "high"}


FILTERS = """
from agent_os.amb import MessageBus, MessageFilter

async with MessageBus(broker="redis") as bus:
    # Filter messages by content
    high_priority_filter = MessageFilter(
        headers={"priority": "high"}
    )

    @bus.subscriber("agents.tasks", filter=high_priority_filter)
    async def handle_high_priority(msg: Message):
        print(f"Urgent task: {msg.data}")

    # Filter by message data
    error_filter = MessageFilter(
        data_match={"status": "error"}
    )

    @bus.subscriber("agents.status", filter=error_filter)
    async def handle_errors(msg: Message):
        await alert_team(msg.data)

    # Custom filter function
    def is_my_agent(msg: Message) -> bool:
        return msg.data.get("agent_id") == "agent-001"

    @bus.subscriber("agents.commands", filter=is_my_agent)
    async def handle_my_commands(msg: Message):
        await execute_command(msg.data)

    await body(bus) # added
"""


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_message_filtering(redis_url: str, broker: str, capsys: pytest.CaptureFixture[str]) -> None:
    alerts, commands = list[Any](), list[Any]()

    async def alert_team(data: Any) -> None:
        alerts.append(data)

    async def execute_command(data: Any) -> None:
        commands.append(data)

    async def body(bus: MessageBus) -> None:
        for priority in ("high", "low"):
            await bus.publish("agents.tasks", priority, headers={"priority": priority})
        await bus.publish("agents.tasks", "by option", priority="high")
        for status in ("ok", "error"):
            await bus.publish("agents.status", {"status": status})
        for agent in ("agent-002", "agent-001"):
            await bus.publish("agents.commands", {"agent_id": agent})
        await eventually(lambda: bus.stats.acked == 7, lambda: f"seven acknowledgements: {bus.stats}")
        assert (bus.stats.filtered, bus.stats.failed) == (3, 0)

    names = {"Message": Message, "alert_team": alert_team, "execute_command": execute_command, "body": body}
    await run(on(broker, FILTERS), names)
    assert sorted(capsys.readouterr().out.splitlines()) == ["Urgent task: by option", "Urgent task: high"]
    assert (alerts, commands) == ([{"status": "error"}], [{"agent_id": "agent-001"}])


RESPONDERS = """
from agent_os.amb import MessageBus, Request, Response # added

async with MessageBus(broker="redis") as bus: # added
    # === Responder Side ===
    # Handle requests and send replies
    @bus.responder("agents.query")
    async def handle_query(request: Request) -> dict:
        # Return value is automatically sent as reply
        return {"status": "active", "uptime": 3600}

    # Explicit reply control
    @bus.responder("agents.calculate")
    async def handle_calculation(request: Request, reply: Response):
        try:
            values = request.data["values"]
            result = sum(values)
            await reply.send({"result": result})
        except Exception as e:
            await reply.error(str(e))

    # Multiple responders with load balancing
    @bus.responder("agents.process", group="workers")
    async def worker_1(request: Request) -> dict:
        return await process_request(request.data)

    # Another instance (could be different process/machine)
    @bus.responder("agents.process", group="workers")
    async def worker_2(request: Request) -> dict:
        return await process_request(request.data)

    await body(bus) # added
"""

REQUESTER = """
from agent_os.amb import MessageBus, Request, Response

async with MessageBus(broker="redis") as bus:
    # === Requester Side ===
    # Simple request with timeout
    response = await bus.request(
        topic="agents.query",
        message={"query": "What is the current status?"},
        timeout=5.0 # seconds
    )
    print(f"Response: {response.data}")
    status = response # added

    # Request with correlation ID tracking
    response = await bus.request(
        topic="agents.calculate",
        message={"operation": "sum", "values": [1, 2, 3]},
        timeout=10.0,
        correlation_id="calc-001"
    )
"""


async def test_request_reply_between_two_buses(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    processed: list[Any] = []

    async def process_request(data: Any) -> dict[str, Any]:
        processed.append(data)
        return {"processed": data}

    async def body(bus: MessageBus) -> None:
        await bus.publish("ready.now", None)  # the declared responders are live when it returns
        names = await run(REQUESTER, {})
        assert names["status"].data == {"status": "active", "uptime": 3600}
        assert (names["response"].data, names["response"].correlation_id) == ({"result": 6}, "calc-001")
        with pytest.raises(Exception, match="values"):
            await bus.request("agents.calculate", {}, timeout=5)
        for number in range(6):
            assert (await bus.request("agents.process", number, timeout=5)).data == {"processed": number}

    await run(RESPONDERS, {"process_request": process_request, "body": body})
    assert capsys.readouterr().out == "Response: {'status': 'active', 'uptime': 3600}\n"
    assert processed == list(range(6))
