"""CloudEvents through Service Bus: others' are understood, and others understand ours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from amb_azure import AzureServiceBusBroker
from amb_core import MessageBus
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from cloudevents.core.bindings import amqp
from cloudevents.core.v1.event import CloudEvent

from tests.core._help import Collector

pytestmark = pytest.mark.anyio
TIME = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
EVENT = CloudEvent(
    {"id": "e-1", "source": "/köln", "type": "t", "specversion": "1.0", "time": TIME, "partitionkey": "k"}, {"n": 1}
)


async def test_events_go_in_and_out(
    broker: AzureServiceBusBroker, native: ServiceBusClient, admin: ServiceBusAdministrationClient, topic: str
) -> None:
    collector = Collector()
    async with MessageBus(broker, envelope="cloudevents", sender="shop") as bus:
        await bus.subscribe(f"{topic}.*", collector, group="g")
        await admin.create_subscription(broker.topic_name, topic)
        async with native.get_topic_sender(broker.topic_name) as sender:
            for message in (amqp.to_binary_event(EVENT), amqp.to_structured_event(EVENT)):
                properties: Any = {"amb_topic": f"{topic}.new", **message.application_properties}
                if "cloudEvents_time" in properties:
                    properties["cloudEvents_time"] = TIME  # which the client sends as AMQP's timestamp
                content_type = message.properties.get("content-type")
                sent = ServiceBusMessage(
                    message.application_data, application_properties=properties, content_type=content_type
                )
                await sender.send_messages(sent)
        await collector.wait(2)
        await bus.publish(f"{topic}.new", {"n": 2}, key="ann", priority="low", headers={"ce-subject": "50% für zwei"})
        theirs, also, own = await collector.wait(3)
        seen = await from_others(native, broker.topic_name, topic, "shop")
        await admin.delete_subscription(broker.topic_name, topic)
    for got in (theirs, also):
        assert (got.id, got.sender, got.key, got.data) == ("e-1", "/köln", "k", {"n": 1})
        assert got.timestamp == TIME.timestamp() and got.headers["ce-type"] == "t"
    subject = "50% für zwei"
    assert (own.sender, own.key, own.priority.name, own.headers["ce-subject"]) == ("shop", "ann", "LOW", subject)
    event = amqp.from_amqp_event(seen)
    assert (event.get_id(), event.get_source(), event.get_subject()) == (own.id, "shop", subject)
    assert event.get_extension("partitionkey") == "ann" and event.get_data() == {"n": 2}
    assert event.get_type() == f"{topic}.new"
    time = event.get_time()
    assert time is not None and time.timestamp() == pytest.approx(own.timestamp, abs=1e-5)


async def from_others(native: ServiceBusClient, entity: str, subscription: str, source: str) -> amqp.AMQPMessage:
    """The event from there, as another program gets it."""
    async with native.get_subscription_receiver(entity, subscription) as receiver:
        while True:
            for message in await receiver.receive_messages(10, max_wait_time=5):
                await receiver.complete_message(message)
                found = as_amqp(message)
                if found.application_properties.get("cloudEvents:source") == source:
                    return found


def as_amqp(message: ServiceBusReceivedMessage) -> amqp.AMQPMessage:
    properties = {text(name): text(value) for name, value in (message.application_properties or {}).items()}
    return amqp.AMQPMessage({"content-type": message.content_type}, properties, b"".join(message.body))


def text(value: Any) -> Any:
    """Azure's client gives texts as bytes."""
    return value.decode() if isinstance(value, bytes) else value
