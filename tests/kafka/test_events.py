"""CloudEvents through a real Kafka: others' are understood, and others understand ours."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import pytest
from aiokafka import AIOKafkaProducer
from amb_core import MessageBus
from amb_kafka import KafkaBroker
from cloudevents.core.bindings import kafka
from cloudevents.core.v1.event import CloudEvent

from tests.core._help import Collector
from tests.servers.kafka import KafkaServer

from .test_foreign import reader

pytestmark = pytest.mark.anyio
TIME = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
EVENT = CloudEvent(
    {"id": "e-1", "source": "/köln", "type": "t", "specversion": "1.0", "time": TIME, "partitionkey": "k"}, {"n": 1}
)


async def test_events_go_in_and_out(broker: KafkaBroker, kafka_server: KafkaServer, name: str) -> None:
    collector = Collector()
    async with (
        MessageBus(broker, envelope="cloudevents", sender="shop") as bus,
        AIOKafkaProducer(bootstrap_servers=kafka_server.address) as producer,
    ):
        await bus.subscribe(name, collector, group="g")
        for message in (kafka.to_binary_event(EVENT), kafka.to_structured_event(EVENT)):
            assert isinstance(message.key, str)
            await producer.send_and_wait(name, message.value, message.key.encode(), headers=[*message.headers.items()])
        await collector.wait(2)
        await bus.publish(name, {"n": 2}, key="ann", priority="low", headers={"ce-subject": "50% für zwei"})
        theirs, also, own = await collector.wait(3)
    for got in (theirs, also):
        assert (got.id, got.sender, got.key, got.data) == ("e-1", "/köln", "k", {"n": 1})
        assert got.timestamp == TIME.timestamp() and got.headers["ce-type"] == "t"
    subject = "50% für zwei"
    assert (own.sender, own.key, own.priority.name, own.headers["ce-subject"]) == ("shop", "ann", "LOW", subject)
    async with reader(kafka_server, name) as consumer:
        with anyio.fail_after(10):
            records = [await consumer.getone() for _ in range(3)]
    [seen] = [record for record in records if record.key == b"ann"]
    event = kafka.from_kafka_event(kafka.KafkaMessage(dict(seen.headers), seen.key, seen.value))
    assert (event.get_id(), event.get_source(), event.get_subject()) == (own.id, "shop", subject)
    assert event.get_extension("partitionkey") == "ann" and event.get_data() == {"n": 2}
    assert event.get_type() == name
    time = event.get_time()
    assert time is not None and time.timestamp() == pytest.approx(own.timestamp, abs=1e-5)
