"""Programs that are not AMB, on the same queues."""

from __future__ import annotations

import json

import pytest
from amb_core import MessageBus
from amb_sqs import SQSBroker

from tests.core._help import Collector
from tests.servers.sqs import SqsServer, client

from .conftest import Make, Native

pytestmark = pytest.mark.anyio


async def test_plain_json_reaches_a_handler(broker: SQSBroker, native: Native, prefix: str) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("orders.created", seen, group="billing")
        attributes = {"tenant": {"DataType": "String", "StringValue": "acme"}}
        await native.send(f"{prefix}orders_created-_billing", {"id": 7}, MessageAttributes=attributes)
        (message,) = await seen.wait()
        assert (message.topic, message.data, message.headers) == ("orders.created", {"id": 7}, {"tenant": "acme"})
    assert await native.count(f"{prefix}orders_created-_billing") == 0


async def test_a_foreign_message_may_name_its_topic(broker: SQSBroker, native: Native, prefix: str) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("orders.*", seen, group="billing")
        named = {"amb-topic": {"DataType": "String", "StringValue": "orders.paid"}}
        await native.send(f"{prefix}orders_-2A-_billing", 1, MessageAttributes=named)
        await native.send(f"{prefix}orders_-2A-_billing", 2)
        await native.send(f"{prefix}orders_-2A-_billing", {"amb": 1, "topic": "orders.sent", "data": 3})
        await seen.wait(3)
        topics = {message.data: message.topic for message in seen.messages}
        assert topics == {1: "orders.paid", 2: "orders.foreign", 3: "orders.sent"}


async def test_the_envelope_is_readable(broker: SQSBroker, native: Native, prefix: str) -> None:
    await native.make(f"{prefix}orders_-23-_lambda")
    async with MessageBus(broker) as bus:
        id = await bus.publish("orders.created", {"id": 7}, headers={"tenant": "acme"}, key="k")
    (message,) = await native.receive(f"{prefix}orders_-23-_lambda")
    envelope = json.loads(message["Body"])
    assert (envelope["amb"], envelope["topic"], envelope["key"]) == (1, "orders.created", "k")
    assert envelope["data"] == {"id": 7}
    assert envelope["headers"]["amb-id"] == id and envelope["headers"]["tenant"] == "acme"


async def test_a_foreign_queue_subscribes_to_the_sns_topic(
    make: Make, native: Native, prefix: str, sqs_server: SqsServer
) -> None:
    await native.make(f"{prefix}legacy")
    async with MessageBus(make(use_sns_fanout=True)) as bus, client(sqs_server.url, "sns") as sns:
        topic = (await sns.create_topic(Name=f"{prefix}messages"))["TopicArn"]
        await sns.subscribe(
            TopicArn=topic,
            Protocol="sqs",
            Endpoint=await native.arn(f"{prefix}legacy"),
            Attributes={"RawMessageDelivery": "true", "FilterPolicy": '{"amb-topic": ["orders.created"]}'},
        )
        await bus.publish("orders.created", 1)
        await bus.publish("orders.paid", 2)
        (message,) = await native.receive(f"{prefix}legacy", MessageAttributeNames=["All"])
        assert json.loads(message["Body"])["data"] == 1
        assert message["MessageAttributes"]["amb-topic"]["StringValue"] == "orders.created"
