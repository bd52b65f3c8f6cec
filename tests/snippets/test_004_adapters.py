"""The guide "Using Message Bus Adapters" (requirement text 004).

Its adapters for Kafka, NATS, Azure Service Bus and SQS, event sourcing and the multi-broker setup are in
`test_004_brokers`; `metrics` of ``amb_core.observability`` in `test_004_metrics`, what it installs in
`test_004_installation`, its containers in `test_004_containers`.
"""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest
from amb_core import AgentMessageBus, Message, RedisBroker

from tests.core._help import Collector, eventually

from ._run import run

pytestmark = pytest.mark.asyncio

QUICK_START = """
from amb_core.adapters import RedisBroker
from amb_core import AgentMessageBus, Message

# Create broker
broker = RedisBroker(url="redis://localhost:6379/0")

# Create message bus
bus = AgentMessageBus(broker=broker)

# Connect
await bus.connect()

# Subscribe to messages
async def handle_task(msg: Message):
    print(f"Received task: {msg.payload}")

    # Process and respond
    result = await process_task(msg.payload)

    # Send response
    await bus.publish(Message(
        topic="results",
        payload=result,
        correlation_id=msg.correlation_id
    ))

await prepare(bus) # added
await bus.subscribe("tasks", handle_task)

# Publish a message
await bus.publish(Message(
    topic="tasks",
    payload={"action": "analyze", "file": "data.txt"}
))
"""


async def test_quick_start_with_redis(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def process_task(task: Any) -> Any:
        return {"done": task["file"]}

    results = Collector()
    names = {"process_task": process_task, "prepare": lambda bus: bus.subscribe("results", results)}
    bus = (await run(QUICK_START, names))["bus"]
    (result,) = await results.wait()
    await bus.disconnect()
    assert (result.payload, result.correlation_id) == ({"done": "data.txt"}, None)
    assert capsys.readouterr().out == "Received task: {'action': 'analyze', 'file': 'data.txt'}\n"


REQUEST = """
from amb_core import Message

# Agent A sends request
response = await bus.request(
    Message(
        topic="calculate",
        payload={"operation": "sum", "values": [1, 2, 3]}
    ),
    timeout=30.0
)

print(f"Result: {response.payload}") # Result: 6
"""

PUBSUB = """
# Agent A subscribes to events
await bus.subscribe("events.user.*", handle_user_event)

# Agent B publishes events
await bus.publish(Message(
    topic="events.user.created",
    payload={"user_id": "123", "email": "user@example.com"}
))
"""

WORK_QUEUE = """
# Multiple workers subscribe to same queue
# Each message delivered to only one worker

async def worker(msg: Message):
    result = await process_work(msg.payload)
    await bus.publish(Message(
        topic="results",
        payload=result,
        correlation_id=msg.id
    ))

# Start multiple workers
for i in range(4):
    await bus.subscribe("work-queue", worker, consumer_group=f"workers")
"""
BROKERS = pytest.mark.parametrize("broker", ["memory", "redis", "kafka", "nats", "rabbitmq", "sqs", "azure"])
EVERYWHERE = pytest.mark.usefixtures("everywhere")


@BROKERS
@EVERYWHERE
async def test_pattern_1_request_response(broker: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with AgentMessageBus(broker) as bus:
        bus.responder("calculate")(lambda request: sum(request.data["values"]))
        await run(REQUEST, {"bus": bus})
    assert capsys.readouterr().out == "Result: 6\n"


@BROKERS
@EVERYWHERE
async def test_pattern_2_pub_sub(broker: str) -> None:
    events = Collector()
    async with AgentMessageBus(broker) as bus:
        await run(PUBSUB, {"bus": bus, "Message": Message, "handle_user_event": events})
        (event,) = await events.wait(1, 30)
    assert (event.topic, event.payload["user_id"]) == ("events.user.created", "123")


@BROKERS
@EVERYWHERE
async def test_pattern_3_work_queue(broker: str) -> None:
    worked: list[int] = []

    async def process_work(number: int) -> int:
        worked.append(number)
        return number * 2

    results = Collector()
    async with AgentMessageBus(broker) as bus:
        await bus.subscribe("results", results)
        await run(WORK_QUEUE, {"bus": bus, "Message": Message, "process_work": process_work})
        ids = [await bus.publish("work-queue", number) for number in range(20)]
        await results.wait(20, 30)
    assert sorted(worked) == list(range(20))
    assert {message.correlation_id: message.payload for message in results.messages} == {
        id: number * 2 for number, id in enumerate(ids)
    }


REDIS_ADAPTER = """
from amb_core.adapters import RedisBroker

broker = RedisBroker(
    url="redis://localhost:6379/0"
)

# Features:
# - Pub/sub for real-time messaging
# - Streams for message persistence
# - Native request-response support
"""

ENVIRONMENT = """
import os

broker = RedisBroker(
    url=os.environ.get("REDIS_URL", "redis://localhost:6379")
)
"""

DEAD_LETTERS = """
# Configure DLQ for failed messages
broker = RedisBroker(
    url="redis://localhost:6379",
    dead_letter_queue="dlq:agent-messages"
)
"""


@pytest.mark.parametrize("snippet", [REDIS_ADAPTER, ENVIRONMENT])
async def test_a_broker_configured_as_documented_carries_messages(redis_url: str, snippet: str) -> None:
    collector = Collector()
    async with AgentMessageBus(broker=(await run(snippet, {"RedisBroker": RedisBroker}))["broker"]) as bus:
        await bus.subscribe("adapters.check", collector)
        await bus.publish("adapters.check", 1)
        await collector.wait()


async def test_the_environment_names_the_redis_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://redis:6379")
    assert (await run(ENVIRONMENT, {"RedisBroker": RedisBroker}))["broker"].url == "redis://redis:6379"


async def test_a_brokers_dead_letter_queue_gets_what_fails(redis_url: str) -> None:
    dead = Collector()
    async with AgentMessageBus(broker=(await run(DEAD_LETTERS, {"RedisBroker": RedisBroker}))["broker"]) as bus:
        await bus.subscribe("dlq:agent-messages", dead)
        await bus.subscribe("adapters.failing", Collector(LookupError("no")), retries=0)
        await bus.publish("adapters.failing", {"n": 1})
        (letter,) = await dead.wait()
    assert letter.data == {"n": 1} and letter.dead is not None and letter.dead.topic == "adapters.failing"


RECONNECT = """
async def with_reconnect(bus: AgentMessageBus):
    while True:
        try:
            await bus.connect()
            break
        except ConnectionError:
            print("Connection failed, retrying in 5s...")
            await asyncio.sleep(5)
"""


async def test_handling_disconnections(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed = anyio.Event()

    class Sleeper:
        """Stands for ``asyncio``: five seconds are too long for a test."""

        @staticmethod
        async def sleep(seconds: float) -> None:
            failed.set()
            await anyio.sleep(0.05)

    names = await run(RECONNECT, {"AgentMessageBus": AgentMessageBus, "asyncio": Sleeper})
    bus = AgentMessageBus(RedisBroker("redis://127.0.0.1:1"), connect_timeout=0.2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(names["with_reconnect"], bus)
        with anyio.fail_after(10):
            await failed.wait()
        tasks.cancel_scope.cancel()
    assert "Connection failed" in capsys.readouterr().out and not bus.connected
    bus = AgentMessageBus(RedisBroker(redis_url))
    await names["with_reconnect"](bus)
    assert bus.connected
    await bus.disconnect()


async def test_the_lag_of_a_message_is_a_subtraction() -> None:
    lags: list[float] = []

    async def handle_message(msg: Message) -> None:
        lags.append(time.time() - msg.timestamp)

    async with AgentMessageBus() as bus:
        await bus.subscribe("t", handle_message)
        await bus.publish("t", 1)
        await eventually(lambda: lags, "the message")
    assert 0 <= lags[0] < 5
