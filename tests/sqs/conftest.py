"""Brokers with a prefix of their own on the common emulator. aiobotocore runs on asyncio only."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from amb_sqs import SQSBroker

from tests.conformance.rig_sqs import broker_for
from tests.servers.sqs import SqsServer, client

Make = Callable[..., SQSBroker]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def prefix() -> str:
    return f"t{secrets.token_hex(4)}-"


@pytest.fixture
def make(sqs_server: SqsServer, prefix: str) -> Make:
    """Builds brokers that share the test's prefixes; no visibility ends during a test, unless it asks for that."""
    common = msgspec.structs.replace(
        broker_for(sqs_server.url), queue_prefix=prefix, sns_topic_prefix=prefix, visibility_timeout=30
    )

    def build(**options: Any) -> SQSBroker:
        return msgspec.structs.replace(common, **options)

    return build


@pytest.fixture
def broker(make: Make) -> SQSBroker:
    return make()


class Native:
    """aiobotocore on the same server: a program that is not AMB."""

    def __init__(self, sqs: Any, prefix: str) -> None:
        self.sqs, self.prefix = sqs, prefix

    async def queues(self) -> list[str]:
        """The names of the test's queues."""
        listed = await self.sqs.list_queues(QueueNamePrefix=self.prefix)
        return sorted(url.rpartition("/")[2] for url in listed.get("QueueUrls", ()))

    async def url(self, name: str) -> str:
        return str((await self.sqs.get_queue_url(QueueName=name))["QueueUrl"])

    async def make(self, name: str, **attributes: str) -> str:
        """A queue, and its ARN is that of the emulator's account."""
        made = await self.sqs.create_queue(QueueName=name, Attributes=attributes)
        return str(made["QueueUrl"])

    async def arn(self, name: str) -> str:
        return str((await self.attributes(name))["QueueArn"])

    async def attributes(self, name: str) -> dict[str, str]:
        found = await self.sqs.get_queue_attributes(QueueUrl=await self.url(name), AttributeNames=["All"])
        return dict(found["Attributes"])

    async def count(self, name: str) -> int:
        """How many messages the queue holds, whoever holds them now."""
        found = await self.attributes(name)
        return sum(int(number) for key, number in found.items() if key.startswith("ApproximateNumberOfMessages"))

    async def send(self, name: str, body: Any, **more: Any) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        await self.sqs.send_message(QueueUrl=await self.url(name), MessageBody=text, **more)

    async def receive(self, name: str, **more: Any) -> list[Any]:
        answer = await self.sqs.receive_message(
            QueueUrl=await self.url(name), MaxNumberOfMessages=10, WaitTimeSeconds=2, **more
        )
        return list(answer.get("Messages", ()))


@pytest.fixture
async def native(sqs_server: SqsServer, prefix: str) -> AsyncIterator[Native]:
    async with client(sqs_server.url) as sqs:
        yield Native(sqs, prefix)
