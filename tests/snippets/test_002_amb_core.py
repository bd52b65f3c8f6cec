"""The page of ``amb-core`` (requirement text 002). What it installs is in `test_002_installation`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import anyio
import pytest
from amb_core import Message, MessageBus, MessagePriority

from tests.core._help import Collector
from tests.servers.kafka import KafkaServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer

from ._run import run

BASIC = """
import asyncio
from amb_core import MessageBus, Message

async def main():
    # Create message bus (uses in-memory broker by default)
    # No external dependencies required!
    async with MessageBus() as bus:
        # Subscribe to a topic
        async def handle_message(msg: Message):
            print(f"Received: {msg.payload}")

        await bus.subscribe("agent.thoughts", handle_message)

        # Publish a message (fire and forget)
        await bus.publish("agent.thoughts", {"thought": "Hello World!"})

        # Wait a bit for async processing
        await asyncio.sleep(0.1)

asyncio.run(main())
"""


def test_basic_usage_with_in_memory_broker() -> None:
    done = subprocess.run([sys.executable, "-c", BASIC], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Received: {'thought': 'Hello World!'}\n", "")


SIGNALS = """
# Agent emits a thinking signal
await bus.publish("agent.thinking", {
    "agent_id": "agent-1",
    "thought": "Analyzing user request..."
})

# Agent emits a stuck signal
await bus.publish("agent.stuck", {
    "agent_id": "agent-1",
    "reason": "Insufficient context",
    "needs": "user_clarification"
})

# Agent requests verification
response = await bus.request("agent.verification", {
    "agent_id": "agent-1",
    "action": "delete_file",
    "requires_approval": True
})
"""

FIRE_AND_FORGET = """
# Fast publishing without waiting for confirmation
await bus.publish(
    "agent.actions",
    {"action": "process", "data": "..."},
    wait_for_confirmation=False # Default
)
"""

CONFIRMED = """
# Slower but ensures message was acknowledged by the broker
msg_id = await bus.publish(
    "critical.task",
    {"task": "important"},
    wait_for_confirmation=True # Wait for broker acknowledgment
)
print(f"Message {msg_id} acknowledged by broker!")
"""

REQUEST_RESPONSE = """
# Set up a responder
async def handle_request(msg: Message):
    # Process request
    result = process(msg.payload)
    # Send response
    await bus.reply(msg, {"result": result})

await bus.subscribe("agent.query", handle_request)

# Send request and wait for response
response = await bus.request(
    "agent.query",
    {"query": "What is the status?"},
    timeout=10.0
)
print(f"Response: {response.payload}")
"""
BROKERS = pytest.mark.parametrize("broker", ["memory", "redis"])


@BROKERS
@pytest.mark.asyncio
async def test_agent_signal_examples(redis_url: str, broker: str) -> None:
    async with MessageBus(broker) as bus:
        signals = Collector()
        for topic in ("agent.thinking", "agent.stuck"):
            await bus.subscribe(topic, signals)
        bus.responder("agent.verification")(lambda request: {"approved": request.data["action"] != "delete_file"})
        names = await run(SIGNALS, {"bus": bus})
        await signals.wait(2)
    assert names["response"].payload == {"approved": False}
    assert sorted(message.topic for message in signals.messages) == ["agent.stuck", "agent.thinking"]


@BROKERS
@pytest.mark.asyncio
async def test_fire_and_forget_and_acknowledgement_patterns(
    redis_url: str, broker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with MessageBus(broker) as bus:
        collector = Collector()
        for topic in ("agent.actions", "critical.task"):
            await bus.subscribe(topic, collector)
        names = await run(FIRE_AND_FORGET + CONFIRMED, {"bus": bus})
        await collector.wait(2)
    assert capsys.readouterr().out == f"Message {names['msg_id']} acknowledged by broker!\n"
    assert names["msg_id"] in [message.id for message in collector.messages]


@BROKERS
@pytest.mark.asyncio
async def test_request_response_pattern(redis_url: str, broker: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with MessageBus(broker) as bus:
        names: dict[str, Any] = {"bus": bus, "Message": Message, "process": lambda payload: payload["query"].upper()}
        await run(REQUEST_RESPONSE, names)
    assert capsys.readouterr().out == "Response: {'result': 'WHAT IS THE STATUS?'}\n"


REDIS = """
from amb_core import MessageBus
from amb_core.adapters.redis_broker import RedisBroker

async def main():
    # Create Redis broker
    redis_broker = RedisBroker("redis://localhost:6379/0")

    # Use with message bus
    async with MessageBus(adapter=redis_broker) as bus:
        await bus.publish("agent.topic", {"data": "hello"})

asyncio.run(main())
"""


RABBITMQ = """
from amb_core import MessageBus
from amb_core.adapters.rabbitmq_broker import RabbitMQBroker

async def main():
    # Create RabbitMQ broker
    rabbitmq_broker = RabbitMQBroker("amqp://guest:guest@localhost/")

    async with MessageBus(adapter=rabbitmq_broker) as bus:
        await bus.publish("agent.topic", {"data": "hello"})

asyncio.run(main())
"""

KAFKA = """
from amb_core import MessageBus
from amb_core.adapters.kafka_broker import KafkaBroker

async def main():
    # Create Kafka broker
    kafka_broker = KafkaBroker("localhost:9092")

    async with MessageBus(adapter=kafka_broker) as bus:
        await bus.publish("agent.topic", {"data": "hello"})

asyncio.run(main())
"""


async def greets(program: str, written: str, url: str, listener: MessageBus) -> None:
    """The program, which the page shows without its first line, says hello to somebody else on that server."""
    collector = Collector()
    async with listener as bus:
        await bus.subscribe("agent.topic", collector)
        text = "import asyncio" + program.replace(written, url)
        done = await anyio.run_process([sys.executable, "-W", "error", "-c", text], check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        await collector.wait()
    assert {"data": "hello"} in collector.data


@pytest.mark.asyncio
async def test_using_redis_broker(redis_server: RedisServer) -> None:
    await greets(REDIS, "redis://localhost:6379/0", redis_server.url, MessageBus(redis_server.url))


@pytest.mark.asyncio
async def test_using_rabbitmq_broker(rabbitmq_server: RabbitServer) -> None:
    await greets(RABBITMQ, "amqp://guest:guest@localhost/", rabbitmq_server.url, MessageBus(rabbitmq_server.url))


@pytest.mark.asyncio
async def test_using_kafka_broker(kafka_server: KafkaServer) -> None:
    address = kafka_server.address
    await greets(KAFKA, "localhost:9092", address, MessageBus("kafka", broker_url=address))


MODEL = """
from amb_core import Message, MessagePriority

msg = Message(
    id="unique-id",
    topic="agent.topic",
    payload={"key": "value"},
    priority=MessagePriority.HIGH,
    sender="agent-1",
    correlation_id="request-123", # For request-response
    reply_to="reply.topic", # Where to send replies
    ttl=60, # Time to live in seconds
    metadata={"custom": "data"} # Additional metadata
)
"""


@BROKERS
@pytest.mark.asyncio
async def test_message_model(redis_url: str, broker: str) -> None:
    names, collector = await run(MODEL, {}), Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("agent.topic", collector)
        assert await bus.publish(names["msg"]) == "unique-id"
        (message,) = await collector.wait()
    assert (message.id, message.topic, message.payload) == ("unique-id", "agent.topic", {"key": "value"})
    assert (message.priority, message.sender, message.ttl) == (MessagePriority.HIGH, "agent-1", 60)
    assert (message.correlation_id, message.reply_to) == ("request-123", "reply.topic")
    assert message.metadata == {"custom": "data"}


def test_message_priorities() -> None:
    assert MessagePriority.URGENT < MessagePriority.HIGH < MessagePriority.NORMAL < MessagePriority.LOW
    assert Message("t").priority is MessagePriority.NORMAL
