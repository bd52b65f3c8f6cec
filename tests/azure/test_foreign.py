"""Programs that are not AMB, with the unpatched client: plain JSON both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from amb_azure import AzureServiceBusBroker
from amb_core import MessageBus
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from tests.core._help import Collector

pytestmark = pytest.mark.anyio


async def test_plain_json_from_another_program_reaches_a_handler(
    broker: AzureServiceBusBroker, native: ServiceBusClient, topic: str
) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{topic}.*", seen, group="shop")
        async with native.get_topic_sender(broker.topic_name) as sender:
            properties: Any = {"amb_topic": f"{topic}.new", "colour": "red"}
            await sender.send_messages(
                ServiceBusMessage('{"item": "tea"}', application_properties=properties, content_type="application/json")
            )
        (message,) = await seen.wait()
    assert (message.topic, message.data, message.headers) == (f"{topic}.new", {"item": "tea"}, {"colour": "red"})


async def test_another_program_reads_the_json_that_amb_published(
    broker: AzureServiceBusBroker, native: ServiceBusClient, admin: ServiceBusAdministrationClient, topic: str
) -> None:
    async with MessageBus(broker, sender="shop") as bus:
        await admin.create_subscription(broker.topic_name, topic)
        id = await bus.publish(f"{topic}.new", {"item": "tea"}, headers={"colour": "red"}, key="k1", correlation_id="c")
        async with native.get_subscription_receiver(broker.topic_name, topic) as receiver:
            found = None
            while found is None:
                for message in await receiver.receive_messages(10, max_wait_time=5):
                    await receiver.complete_message(message)
                    sent = message.application_properties or {}
                    properties = {k.decode() if isinstance(k, bytes) else k: v for k, v in sent.items()}
                    found = message if properties["amb_topic"] == f"{topic}.new".encode() else found
        await admin.delete_subscription(broker.topic_name, topic)
    assert json.loads(b"".join(found.body)) == {"item": "tea"}
    assert (found.content_type, found.message_id) == ("application/json", id)
    told = {name: value.decode() for name, value in properties.items() if isinstance(value, bytes)}
    assert told["amb-id"] == id and told["amb-sender"] == "shop" and told["amb-correlation-id"] == "c"
    assert told["colour"] == "red" and told["amb_key"] == "k1"
