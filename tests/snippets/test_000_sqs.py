"""The page of ``agent_os.amb`` (requirement text 000): the AWS SQS backend, on an emulator of SQS and SNS.

The page leaves AWS's address to AWS's own libraries, and so do these tests: the emulator's is in ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from amb_core import MessageBus

from tests.core._help import Collector
from tests.servers.sqs import KEY, SECRET, SqsServer, client

from ._run import run

pytestmark = pytest.mark.asyncio

SQS_BASIC = """
from agent_os.amb import MessageBus, SQSBroker

# Basic SQS configuration (uses AWS credentials from environment)
bus = MessageBus(
    broker="sqs",
    broker_url="https://sqs.us-east-1.amazonaws.com"
)
"""

SQS_ADVANCED = """
from agent_os.amb import MessageBus, SQSBroker # added

# Advanced SQS configuration
bus = MessageBus(
    broker=SQSBroker(
        region_name="us-east-1",
        queue_prefix="agent-os-", # Prefix for auto-created queues
        visibility_timeout=30, # Seconds before message reappears
        wait_time_seconds=20, # Long polling duration
        max_number_of_messages=10, # Messages per receive call
        # FIFO queue support
        use_fifo=True,
        content_based_deduplication=True,
        # Dead letter queue
        dlq_arn="arn:aws:sqs:us-east-1:123456789:agent-os-dlq",
        max_receive_count=3,
        # Explicit credentials (prefer IAM roles instead)
        aws_access_key_id="AKIA...",
        aws_secret_access_key="secret"
    )
)
"""

SQS_FANOUT = """
from agent_os.amb import MessageBus, SQSBroker # added

# SQS with SNS for fan-out (pub/sub pattern)
bus = MessageBus(
    broker=SQSBroker(
        region_name="us-east-1",
        use_sns_fanout=True,
        sns_topic_prefix="agent-os-"
    )
)
"""


@pytest.fixture
def aws(sqs_server: SqsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where AWS is for everything in this process."""
    settings = {"ENDPOINT_URL": sqs_server.url, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return sqs_server.url


@pytest.fixture
def topic() -> str:
    return f"t{secrets.token_hex(4)}.news"


async def test_basic_sqs_configuration(aws: str, topic: str) -> None:
    collector = Collector()
    async with (await run(SQS_BASIC, {}, {"https://sqs.us-east-1.amazonaws.com": aws}))["bus"] as bus:
        await bus.subscribe(topic, collector)
        await bus.publish(topic, {"n": 1})
        await collector.wait()
    assert collector.data == [{"n": 1}]


async def test_advanced_sqs_configuration_with_fifo_queues(aws: str, topic: str) -> None:
    """Equal bodies are copies; what fails three times goes to the queue of the ARN. (The page's is no FIFO queue, as
    SQS wants for FIFO queues.)"""
    async with client(aws) as sqs:
        made = await sqs.create_queue(QueueName="agent-os-dlq.fifo", Attributes={"FifoQueue": "true"})
        found = await sqs.get_queue_attributes(QueueUrl=made["QueueUrl"], AttributeNames=["QueueArn"])
        arn = found["Attributes"]["QueueArn"]
        names = await run(SQS_ADVANCED, {}, {"arn:aws:sqs:us-east-1:123456789:agent-os-dlq": arn})
        done, failing = Collector(), Collector(LookupError("on purpose"))
        async with names["bus"] as bus:
            await bus.subscribe(topic, done, group="workers", concurrency=1)
            for body in ("same", "same", "other"):
                await bus.publish(topic, body)
            await done.wait(2, 30)
            await bus.subscribe(f"{topic}.bad", failing, group="workers", retry_delay=0.1)
            await bus.publish(f"{topic}.bad", {"n": 1})
            await failing.wait(3, 30)
        queues = [url.rpartition("/")[2] for url in (await sqs.list_queues())["QueueUrls"]]
        letters = await sqs.receive_message(QueueUrl=made["QueueUrl"], WaitTimeSeconds=5)
    assert done.data == ["same", "other"] and [message.attempt for message in failing.messages] == [1, 2, 3]
    assert [name for name in queues if name.startswith("agent-os-") and name.endswith("-_workers.fifo")]
    (letter,) = (json.loads(letter["Body"]) for letter in letters["Messages"])
    assert letter["data"] == {"n": 1} and letter["headers"]["amb-dead-topic"] == f"{topic}.bad"


async def test_sqs_with_sns_for_fan_out(aws: str, topic: str) -> None:
    billing, shipping = Collector(), Collector()
    async with (await run(SQS_FANOUT, {}))["bus"] as bus:
        await bus.subscribe(topic, billing, group="billing")
        await bus.subscribe(topic, shipping, group="shipping")
        await bus.publish(topic, {"n": 1})
        await billing.wait(1, 30)
        await shipping.wait(1, 30)
    async with client(aws, "sns") as sns:
        topics: list[Any] = (await sns.list_topics())["Topics"]
    assert billing.data == shipping.data == [{"n": 1}]
    assert [one for one in topics if one["TopicArn"].rpartition(":")[2].startswith("agent-os-")]


async def test_credentials_are_no_part_of_what_is_shown() -> None:
    bus: MessageBus = (await run(SQS_ADVANCED, {}))["bus"]
    assert "AKIA" not in repr(bus.broker) and "'secret'" not in repr(bus.broker)
