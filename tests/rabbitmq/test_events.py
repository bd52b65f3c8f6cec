"""CloudEvents through a real RabbitMQ: others' are understood, and others understand ours."""

from __future__ import annotations

import aio_pika
import anyio
import pytest
from aio_pika.abc import AbstractChannel
from amb_core import MessageBus
from amb_rabbitmq import RabbitMQBroker
from cloudevents.core.bindings import rabbitmq
from cloudevents.core.v1.event import CloudEvent

from tests.core._help import Collector

pytestmark = pytest.mark.anyio
EVENT = CloudEvent({"id": "e-1", "source": "/köln", "type": "t", "specversion": "1.0", "partitionkey": "k"}, {"n": 1})


async def test_events_go_in_and_out(broker: RabbitMQBroker, native: AbstractChannel) -> None:
    """The binding for AMQP 0-9-1 has the names of HTTP's, and values as they are."""
    collector = Collector()
    async with MessageBus(broker, envelope="cloudevents", sender="shop") as bus:
        await bus.subscribe("orders", collector, group="g")
        exchange = await native.get_exchange(broker.exchange)
        queue = await native.declare_queue(exclusive=True)
        await queue.bind(exchange, "orders")
        for message in (rabbitmq.to_binary_event(EVENT), rabbitmq.to_structured_event(EVENT)):
            sent = aio_pika.Message(message.body, headers=dict(message.headers), content_type=message.content_type)
            await exchange.publish(sent, "orders")
        await collector.wait(2)
        await bus.publish("orders", {"n": 2}, key="ann", priority="low", headers={"ce-subject": "50% für zwei"})
        theirs, also, own = await collector.wait(3)
        with anyio.fail_after(10):
            *_, seen = [await queue.get() for _ in range(3)]
    for got in (theirs, also):
        assert (got.id, got.sender, got.key, got.data) == ("e-1", "/köln", "k", {"n": 1})
    subject = "50% für zwei"
    assert (own.sender, own.key, own.priority.name, own.headers["ce-subject"]) == ("shop", "ann", "LOW", subject)
    headers = {name: str(value) for name, value in seen.headers.items()}
    event = rabbitmq.from_rabbitmq_event(rabbitmq.RabbitMQMessage(headers, seen.content_type, seen.body))
    assert (event.get_id(), event.get_source(), event.get_subject()) == (own.id, "shop", subject)
    assert event.get_extension("partitionkey") == "ann" and event.get_data() == {"n": 2}
