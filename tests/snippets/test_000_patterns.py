"""The page of ``agent_os.amb`` (requirement text 000): request patterns and topic wildcards; on Redis."""

from __future__ import annotations

import time
from typing import Any

import pytest
from amb_core import MessageBus

from tests.core._help import Collector, eventually

from ._run import on, run

pytestmark = pytest.mark.asyncio

REQUEST_PATTERNS = """
from agent_os.amb import MessageBus
import asyncio

async with MessageBus(broker="redis") as bus:
    # Scatter-gather: request from multiple responders
    responses = await bus.scatter(
        topic="agents.vote",
        message={"proposal": "increase_budget"},
        timeout=5.0,
        min_responses=3,
        max_responses=10
    )
    votes = [r.data["vote"] for r in responses]
    approved = votes.count("yes") > votes.count("no")

    # First-response-wins (for redundancy)
    response = await bus.request_first(
        topics=[
            "agents.primary.query",
            "agents.backup.query"
        ],
        message={"query": "status"},
        timeout=5.0
    )

    # Parallel requests to different services
    async with asyncio.TaskGroup() as tg:
        status_task = tg.create_task(
            bus.request("service.status", {}, timeout=5.0)
        )
        config_task = tg.create_task(
            bus.request("service.config", {}, timeout=5.0)
        )
    status = status_task.result()
    config = config_task.result()
"""


async def test_request_patterns(other: MessageBus) -> None:
    for vote in ("yes", "no", "yes"):
        other.responder("agents.vote")(lambda request, vote=vote: {"vote": vote})
    other.responder("agents.backup.query")(lambda request: {"from": "backup"})
    other.responder("service.status")(lambda request: "status")
    other.responder("service.config")(lambda request: "config")
    await other.publish("ready.now", None)
    begin = time.monotonic()
    names = await run(REQUEST_PATTERNS, {})
    assert sorted(names["votes"]) == ["no", "yes", "yes"] and names["approved"]
    assert names["response"].data == {"from": "backup"}
    assert (names["status"].data, names["config"].data) == ("status", "config")
    assert 5 <= time.monotonic() - begin < 15  # a scatter without its maximum waits for its time-out


WILDCARDS = """
from agent_os.amb import MessageBus

async with MessageBus(broker="redis") as bus:
    # Single-level wildcard (*)
    # Matches: agents.agent-001.status, agents.agent-002.status
    # Does NOT match: agents.team.agent-001.status
    @bus.subscriber("agents.*.status")
    async def on_any_agent_status(msg):
        agent_id = msg.topic.split(".")[1]
        print(f"Agent {agent_id} status: {msg.data}")

    # Multi-level wildcard (#)
    # Matches: agents.events, agents.team.events, agents.team.sub.events
    @bus.subscriber("agents.#")
    async def on_all_agent_messages(msg):
        print(f"Agent message on {msg.topic}: {msg.data}")

    # Combined patterns
    # Matches: tasks.agent-001.completed, tasks.agent-002.completed
    @bus.subscriber("tasks.*.completed")
    async def on_task_completed(msg):
        print(f"Task completed: {msg.data}")

    # Matches: logs.error, logs.agent.error, logs.agent.task.error
    @bus.subscriber("logs.#.error")
    async def on_any_error(msg):
        await alert_team(msg.data)

    # Publishing to specific topics
    await bus.publish("agents.agent-001.status", {"state": "active"})
    await bus.publish("agents.agent-002.status", {"state": "idle"})
    await bus.publish("tasks.agent-001.completed", {"task_id": "123"})
    await bus.publish("logs.agent.task.error", {"message": "Failed"})

    await body(bus) # added
"""


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_topic_wildcards(redis_url: str, broker: str, capsys: pytest.CaptureFixture[str]) -> None:
    alerts: list[Any] = []

    async def alert_team(data: Any) -> None:
        alerts.append(data)

    async def body(bus: MessageBus) -> None:
        await bus.publish("agents.team.agent-001.status", "deep")
        await bus.publish("agents.events", "events")
        for topic in ("logs.error", "logs.agent.error", "logs.agent.warning"):
            await bus.publish(topic, topic)
        await eventually(lambda: len(alerts) == 3 and bus.stats.acked >= 10, lambda: f"{alerts} {bus.stats}")

    await run(on(broker, WILDCARDS), {"alert_team": alert_team, "body": body})
    assert sorted(capsys.readouterr().out.splitlines()) == sorted([
        "Agent agent-001 status: {'state': 'active'}", "Agent agent-002 status: {'state': 'idle'}",
        "Agent message on agents.agent-001.status: {'state': 'active'}",
        "Agent message on agents.agent-002.status: {'state': 'idle'}",
        "Agent message on agents.team.agent-001.status: deep", "Agent message on agents.events: events",
        "Task completed: {'task_id': '123'}",
    ])  # fmt: skip
    assert sorted(map(str, alerts)) == ["logs.agent.error", "logs.error", "{'message': 'Failed'}"]


@pytest.mark.parametrize("broker", ["memory", "redis"])
@pytest.mark.parametrize(
    "topic", ["agents.task.created", "agents.agent-001.heartbeat", "api.v1.query", "prod.us-east.agents"]
)
async def test_every_naming_convention_is_a_topic(redis_url: str, broker: str, topic: str) -> None:
    async with MessageBus(broker=broker) as bus:
        collector = Collector()
        await bus.subscribe(topic, collector)
        await bus.publish(topic, 1)
        assert (await collector.wait())[0].topic == topic
