"""The guide "Using Message Bus Adapters" (requirement text 004): its adapters for Kafka, NATS, Azure Service Bus and
SQS, event sourcing and the multi-broker setup, on real servers. The rest of it is in `test_004_adapters`."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

import anyio
import pytest
from amb_core import AgentMessageBus, Message
from amb_core.adapters import KafkaBroker
from amb_kernel import KernelSpace

from tests.core._help import Collector
from tests.servers.azure import ServiceBus
from tests.servers.kafka import KafkaServer
from tests.servers.nats import NatsServer
from tests.servers.sqs import KEY, SECRET, SqsServer

from ._run import run

pytestmark = pytest.mark.asyncio

KAFKA_ADAPTER = """
from amb_core.adapters import KafkaBroker

broker = KafkaBroker(
    bootstrap_servers="localhost:9092"
)

# Features:
# - High throughput (millions/sec)
# - Durable message storage
# - Consumer groups for load balancing
"""

NATS_ADAPTER = """
from amb_core.adapters import NATSBroker

broker = NATSBroker(
    servers=["nats://localhost:4222"],
    use_jetstream=True # Enable persistence
)

# Features:
# - Lightweight (single binary)
# - Native request-reply
# - JetStream for persistence
"""

AZURE_ADAPTER = """
from amb_core.adapters import AzureServiceBusBroker

broker = AzureServiceBusBroker(
    connection_string="Endpoint=sb://...",
    topic_name="agent-messages"
)

# Features:
# - Dead-letter queues
# - Sessions for ordering
# - Azure AD integration
"""

SQS_ADAPTER = """
from amb_core.adapters import AWSSQSBroker

broker = AWSSQSBroker(
    region_name="us-east-1",
    queue_name="agent-messages",
    use_fifo=True # For ordering
)

# Features:
# - Serverless scaling
# - FIFO queues for ordering
# - Dead-letter queues
"""


@pytest.fixture
def topic() -> str:
    return f"t{secrets.token_hex(4)}.news"


async def shares(bus: AgentMessageBus, topic: str) -> None:
    """Each message reaches one worker of a group."""
    one, two = Collector(), Collector()
    async with bus:
        for worker in (one, two):
            await bus.subscribe(topic, worker, group="workers")
        for number in range(10):
            await bus.publish(topic, number)
        with anyio.fail_after(30):
            while len(one.data) + len(two.data) < 10:
                await anyio.sleep(0.02)
    assert sorted(one.data + two.data) == list(range(10))


async def test_kafka_adapter(kafka_server: KafkaServer, topic: str) -> None:
    """Durable storage, and consumer groups for load balancing."""
    broker = (await run(KAFKA_ADAPTER, {}, {"localhost:9092": kafka_server.address}))["broker"]
    await shares(AgentMessageBus(broker), topic)
    async with AgentMessageBus(broker) as bus:
        assert sorted([message.data async for message in bus.replay(topic)]) == list(range(10))


async def test_nats_adapter(nats_server: NatsServer, topic: str) -> None:
    """Request-reply, and JetStream for persistence."""
    broker = (await run(NATS_ADAPTER, {}, {"nats://localhost:4222": nats_server.url}))["broker"]
    await shares(AgentMessageBus(broker), topic)
    async with AgentMessageBus(broker) as bus:
        assert [message.data async for message in bus.replay(topic)] == list(range(10))
        bus.responder(f"{topic}.sum")(lambda request: sum(request.data))
        assert (await bus.request(f"{topic}.sum", [1, 2, 3], timeout=10)).data == 6


async def test_azure_service_bus_adapter(servicebus: ServiceBus, topic: str) -> None:
    """Dead letters, and order by sessions. Signing in with Azure AD is in `tests.azure.test_security`."""
    theirs = {"Endpoint=sb://...": servicebus.connection_string, "agent-messages": f"agent-messages-{topic[:9]}"}
    broker = (await run(AZURE_ADAPTER, {}, theirs))["broker"]
    ordered, dead = Collector(), Collector()
    async with AgentMessageBus(broker, dead_letter_queue="dead") as bus:
        await bus.subscribe(topic, ordered, group="workers", ordered_by="key")
        await bus.subscribe(f"{topic}.bad", Collector(LookupError("on purpose")), group="workers", retries=0)
        await bus.subscribe("dead", dead)
        for number in range(10):
            await bus.publish(topic, number, key="one")
        await bus.publish(f"{topic}.bad", "bad")
        await ordered.wait(10, 30)
        await dead.wait(1, 30)
    assert ordered.data == list(range(10)) and dead.data == ["bad"]


async def test_aws_sqs_adapter(sqs_server: SqsServer, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One FIFO queue for everything: what one sender publishes with one key arrives in order. SQS wants its name to end
    in ``.fifo``, and gets it."""
    for name, value in {"ENDPOINT_URL": sqs_server.url, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    broker = (await run(SQS_ADAPTER, {}, {"agent-messages": f"agent-messages-{topic[:9]}"}))["broker"]
    seen = Collector()
    async with AgentMessageBus(broker) as bus:
        await bus.subscribe(topic, seen, ordered_by="key")
        for number in range(10):
            await bus.publish(topic, number, key="one")
        await seen.wait(10, 30)
    assert seen.data == list(range(10))


EVENT_SOURCING = """
# Publish all events to Kafka for durability
kafka_broker = KafkaBroker(bootstrap_servers="localhost:9092")
bus = AgentMessageBus(broker=kafka_broker)

# All agent actions become events
await bus.publish(Message(
    topic="agent.events",
    payload={
        "event_type": "document_analyzed",
        "agent_id": "analyzer-001",
        "document_id": "doc-123",
        "result": analysis_result,
        "timestamp": datetime.utcnow().isoformat()
    }
))

# Events can be replayed for debugging/audit
"""


@pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")  # since Python 3.12
async def test_pattern_4_event_sourcing(kafka_server: KafkaServer) -> None:
    names: dict[str, Any] = {"analysis_result": secrets.token_hex(4), "datetime": datetime, "Message": Message}
    names |= {"AgentMessageBus": AgentMessageBus, "KafkaBroker": KafkaBroker}
    bus = (await run(EVENT_SOURCING, names, {"localhost:9092": kafka_server.address}))["bus"]
    async with bus:
        events = [message.data async for message in bus.replay("agent.events")]
    (event,) = (event for event in events if event.get("result") == names["analysis_result"])
    assert (event["event_type"], event["document_id"]) == ("document_analyzed", "doc-123")
    assert datetime.fromisoformat(event["timestamp"])


MULTI_BROKER = """
from amb_core import AgentMessageBus
from amb_core.adapters import RedisBroker, KafkaBroker

# Fast path for real-time messages
redis_bus = AgentMessageBus(
    broker=RedisBroker(url="redis://localhost:6379")
)

# Durable path for events/audit
kafka_bus = AgentMessageBus(
    broker=KafkaBroker(bootstrap_servers="localhost:9092")
)

@kernel.register
async def my_agent(task: str):
    # Process task
    result = await process(task)

    # Fast response via Redis
    await redis_bus.publish(Message(
        topic="responses",
        payload=result
    ))

    # Durable event via Kafka
    await kafka_bus.publish(Message(
        topic="events",
        payload={"action": "task_completed", "result": result}
    ))
"""


async def test_multi_broker_setup(redis_url: str, kafka_server: KafkaServer) -> None:
    task, responses = secrets.token_hex(4), Collector()

    async def process(text: str) -> str:
        return text.upper()

    names: dict[str, Any] = {"kernel": KernelSpace(), "process": process, "Message": Message}
    names = await run(MULTI_BROKER, names, {"localhost:9092": kafka_server.address})
    async with names["redis_bus"] as redis_bus, names["kafka_bus"] as kafka_bus:
        await redis_bus.subscribe("responses", responses)
        await names["my_agent"](task)
        await responses.wait()
        events = [message.data async for message in kafka_bus.replay("events")]
    assert responses.data == [task.upper()]
    assert {"action": "task_completed", "result": task.upper()} in events
