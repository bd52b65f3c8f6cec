"""The page of ``agent_os.amb`` (requirement text 000): integration with KernelSpace; its own broker is Redis."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus, NoResponders, RemoteError, RequestTimeout
from amb_kernel import KernelSpace, PolicyDenied, RateLimited

from tests.core._help import Collector, eventually

from ._run import on, run

pytestmark = pytest.mark.asyncio

INTEGRATION = """
from agent_os import KernelSpace, Policy
from agent_os.amb import MessageBus

# Create message bus
bus = MessageBus(broker="redis")

# Define messaging policy
messaging_policy = Policy(
    name="agent-messaging",
    rules=[
        {
            "topic": "agents.*.commands",
            "allow": ["admin", "supervisor"],
            "deny": ["guest"]
        },
        {
            "topic": "agents.*.status",
            "allow": ["*"], # Everyone can publish status
            "rate_limit": "100/minute"
        },
        {
            "topic": "system.#",
            "allow": ["system"],
            "audit": True
        }
    ]
)

# Initialize kernel with message bus
kernel = KernelSpace(
    policies=[messaging_policy],
    message_bus=bus
)

# Register agent with messaging capabilities
@kernel.agent("worker-agent")
class WorkerAgent:
    async def run(self, kernel):
        # Subscribe through kernel (policy enforced)
        @kernel.subscribe("agents.worker.commands")
        async def on_command(msg):
            await self.execute_command(msg.data)

        # Publish through kernel (policy enforced)
        await kernel.publish("agents.worker.status", {
            "state": "ready",
            "capabilities": ["task-execution"]
        })

# Cross-agent communication
@kernel.agent("supervisor-agent")
class SupervisorAgent:
    async def assign_task(self, agent_id: str, task: dict):
        # Request/reply through kernel
        response = await kernel.request(
            f"agents.{agent_id}.commands",
            {"type": "execute_task", "task": task},
            timeout=30.0
        )
        return response.data
"""


async def integrated(broker: str) -> tuple[dict[str, Any], list[Any]]:
    """The program of the page, and what its worker was told to execute."""
    names = await run(on(broker, INTEGRATION), {})
    executed = list[Any]()

    async def execute_command(self: Any, data: Any) -> None:
        executed.append(data)

    names["WorkerAgent"].execute_command = execute_command
    return names, executed


BROKERS = pytest.mark.parametrize("broker", ["memory", "redis", "kafka", "nats", "rabbitmq", "sqs", "azure"])


@BROKERS
@pytest.mark.usefixtures("everywhere")
async def test_a_supervisor_commands_a_worker_through_the_kernel(broker: str) -> None:
    names, executed = await integrated(broker)
    status = Collector()

    async def on_status(message: Message) -> None:
        await status(message)

    names["kernel"].subscribe("agents.*.status")(on_status)
    async with names["kernel"]:
        [ready] = await status.wait(1, 30)
        assert await names["SupervisorAgent"]().assign_task("worker", {"id": 7}) is None
    assert ready.sender == "worker-agent" and ready.data["state"] == "ready"
    assert executed == [{"type": "execute_task", "task": {"id": 7}}]


@BROKERS
@pytest.mark.usefixtures("everywhere")
async def test_the_policy_holds_as_it_is_written(broker: str) -> None:
    names, executed = await integrated(broker)
    kernel: KernelSpace = names["kernel"]
    audit = Collector()

    async def on_audit(message: Message) -> None:
        await audit(message)

    kernel.subscribe("kernel.audit")(on_audit)
    async with kernel:
        await eventually(lambda: kernel.agents["worker-agent"].state == "serving", "the worker", 30)
        for name, role in (("guest", None), ("worker-agent", None), ("bob", "guest"), ("guest", "admin")):
            with pytest.raises(PolicyDenied):
                await kernel.as_agent(name, [role] if role else []).publish("agents.worker.commands", name)
        for name, role in (("admin", None), ("supervisor", None), ("supervisor-agent", None), ("bob", "admin")):
            await kernel.as_agent(name, [role] if role else []).publish("agents.worker.commands", name)
        with pytest.raises(PolicyDenied):
            await kernel.as_agent("admin").publish("system.halt", 1)
        await kernel.as_agent("system").publish("system.halt", 1)
        await kernel.as_agent("anybody").publish("something.else", 1)
        await eventually(lambda: len(executed) == 4, lambda: f"{executed}", 30)
        expected = Counter(sent=1, denied=5)
        await eventually(
            lambda: Counter(record["event"] for record in audit.data) >= expected, lambda: f"{audit.data}", 30
        )
    assert sorted(executed) == ["admin", "bob", "supervisor", "supervisor-agent"]
    records = [(record["event"], record["agent"], record["topic"]) for record in audit.data]
    assert [record for record in records if record[0] == "sent"] == [("sent", "system", "system.halt")]
    assert len([record for record in records if record[0] == "denied"]) == 5


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_everyone_may_publish_status_a_hundred_times_a_minute(redis_url: str, broker: str) -> None:
    names, _ = await integrated(broker)
    kernel, through = names["kernel"], dict.fromkeys(["guest", "other"], 0)

    async def publish(name: str) -> None:
        try:
            await kernel.as_agent(name).publish("agents.guest.status", {"state": "ready"})
        except RateLimited:
            return
        through[name] += 1

    async with kernel, anyio.create_task_group() as group:
        for name in through:
            for _ in range(150):
                group.start_soon(publish, name)
    assert through == {"guest": 100, "other": 100}


EVENTS = """
from agent_os import KernelSpace, Policy
from agent_os.amb import MessageBus

kernel = KernelSpace()

# React to messages with policy enforcement
@kernel.on_message("agents.*.error")
async def handle_agent_error(msg, context):
    # Automatic audit logging
    await context.audit_log({
        "event": "agent_error",
        "agent_id": msg.topic.split(".")[1],
        "error": msg.data
    })

    # Policy-based escalation
    if msg.data.get("severity") == "critical":
        await kernel.publish("alerts.critical", {
            "source": msg.topic,
            "error": msg.data
        })

# Message transformation pipeline
@kernel.message_pipeline("external.api.response")
async def transform_api_response(msg, context):
    # Transform before delivery to subscribers
    return {
        **msg.data,
        "received_at": datetime.now().isoformat(),
        "processed_by": context.kernel_id
    }

# Message validation
@kernel.message_validator("agents.*.commands")
async def validate_command(msg, context):
    schema = CommandSchema()
    errors = schema.validate(msg.data)
    if errors:
        raise ValidationError(errors)
    return True
"""


class CommandSchema:
    """What the page's reader has."""

    def validate(self, data: Any) -> list[str]:
        return [] if "type" in data else ["type is missing"]


class ValidationError(Exception):
    """Another thing the page's reader has."""


async def test_event_driven_policies() -> None:
    names = {"datetime": datetime, "CommandSchema": CommandSchema, "ValidationError": ValidationError}
    names = await run(EVENTS, names)
    kernel: KernelSpace = names["kernel"]  # type: ignore[assignment]
    got: dict[str, Collector] = {}
    for topic in ("alerts.critical", "external.api.response", "agents.a.commands", "kernel.audit"):
        got[topic] = Collector()

        async def keep(message: Message, into: Collector = got[topic]) -> None:
            await into(message)

        kernel.subscribe(topic, answers=topic == "agents.a.commands")(keep)
    async with kernel:
        await kernel.publish("agents.a.error", {"severity": "minor"})
        await kernel.publish("agents.a.error", {"severity": "critical"})
        [alert] = await got["alerts.critical"].wait()
        await kernel.publish("external.api.response", {"status": 200})
        [response] = await got["external.api.response"].wait()
        await kernel.request("agents.a.commands", {"type": "start"}, timeout=5)
        with pytest.raises(RemoteError, match="type is missing"):
            await kernel.request("agents.a.commands", {}, timeout=5)
        await eventually(lambda: any(r["event"] == "refused" for r in got["kernel.audit"].data), "the refusal")
    assert alert.data == {"source": "agents.a.error", "error": {"severity": "critical"}}
    assert response.data["status"] == 200 and response.data["processed_by"] == kernel.kernel_id
    assert datetime.fromisoformat(response.data["received_at"])
    assert got["agents.a.commands"].data == [{"type": "start"}]
    logged = [record["detail"] for record in got["kernel.audit"].data if record["event"] == "agent_error"]
    assert [(detail["agent_id"], detail["error"]["severity"]) for detail in logged] == [
        ("a", "minor"),
        ("a", "critical"),
    ]


COORDINATION = """
from agent_os import KernelSpace
from agent_os.amb import MessageBus

kernel = KernelSpace(message_bus=MessageBus(broker="redis"))

# Leader election via message bus
@kernel.agent("coordinator")
class CoordinatorAgent:
    async def run(self, kernel):
        # Attempt to become leader
        is_leader = await kernel.elect_leader(
            topic="cluster.leader",
            ttl=30 # Leadership expires after 30s
        )
        if is_leader:
            await self.run_as_leader(kernel)
        else:
            await self.run_as_follower(kernel)

    async def run_as_leader(self, kernel):
        # Broadcast work to followers
        @kernel.schedule(interval=5)
        async def distribute_work():
            tasks = await self.get_pending_tasks()
            for task in tasks:
                await kernel.publish(
                    "cluster.tasks",
                    task,
                    headers={"assigned_by": "leader"}
                )

    async def run_as_follower(self, kernel):
        @kernel.subscribe("cluster.tasks")
        async def on_task(msg):
            await self.execute_task(msg.data)
            await kernel.publish("cluster.results", {
                "task_id": msg.data["id"],
                "result": "completed"
            })
"""


async def serving(kernel: KernelSpace) -> None:
    await eventually(lambda: kernel.agents["coordinator"].state == "serving", "it runs", 30)


@pytest.mark.parametrize("broker", ["redis", "kafka", "rabbitmq", "sqs", "azure"])
@pytest.mark.usefixtures("everywhere")
async def test_distributed_coordination(broker: str) -> None:
    """Three of the page's program: one leads, two follow, and each task reaches both."""
    tasks, executed, results = [{"id": 1}, {"id": 2}], list[Any](), Collector()
    followers_ready = anyio.Event()

    async def get_pending_tasks(self: Any) -> list[Any]:
        await followers_ready.wait()
        given, tasks[:] = list(tasks), []  # done once, however often the leader looks
        return given

    async def execute_task(self: Any, task: Any) -> None:
        executed.append(task["id"])

    kernels: list[KernelSpace] = []
    for _ in range(3):
        names = await run(on(broker, COORDINATION), {})
        names["CoordinatorAgent"].get_pending_tasks = get_pending_tasks
        names["CoordinatorAgent"].execute_task = execute_task
        kernels.append(names["kernel"])
    async with MessageBus(broker) as other, kernels[0], kernels[1], kernels[2]:
        await other.subscribe("cluster.results", results)
        for kernel in kernels:
            await serving(kernel)
            await kernel.publish("warm.up", 1)  # now what it subscribed is live
        followers_ready.set()
        await results.wait(4, 30)
    assert sorted(executed) == [1, 1, 2, 2]
    assert sorted(message.data["task_id"] for message in results.messages) == [1, 1, 2, 2]
    assert {message.sender for message in results.messages} == {"coordinator"}


async def test_nobody_there_to_answer_is_said_at_once_or_in_time() -> None:
    """What the page's supervisor gets when no worker is there."""
    names, _ = await integrated("memory")
    async with names["kernel"]:
        with pytest.raises((NoResponders, RequestTimeout)):
            await names["SupervisorAgent"]().assign_task("nobody", {})
