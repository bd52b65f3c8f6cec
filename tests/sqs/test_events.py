"""CloudEvents through SQS, which has no binding of its own: as HTTP's, in message attributes or in the envelope."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from amb_core import MessageBus
from amb_sqs import SQSBroker
from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent

from tests.core._help import Collector

from .conftest import Native

pytestmark = pytest.mark.anyio
TIME = datetime(2024, 1, 15, 10, 30, tzinfo=UTC)
EVENT = CloudEvent(
    {"id": "e-1", "source": "/köln", "type": "t", "specversion": "1.0", "time": TIME, "partitionkey": "k"}, {"n": 1}
)


async def test_events_go_in_and_out(broker: SQSBroker, native: Native, prefix: str) -> None:
    collector = Collector()
    await native.make(f"{prefix}orders-_other")
    async with MessageBus(broker, envelope="cloudevents", sender="shop") as bus:
        await bus.subscribe("orders", collector, group="g")
        for message in (http.to_binary_event(EVENT), http.to_structured_event(EVENT)):
            beside = {name: {"DataType": "String", "StringValue": value} for name, value in message.headers.items()}
            await native.send(f"{prefix}orders-_g", message.body.decode(), MessageAttributes=beside)
        await collector.wait(2)
        await bus.publish("orders", {"n": 2}, key="ann", priority="low", headers={"ce-subject": "zwei Wörter"})
        *others, own = await collector.wait(3)
        [seen] = await native.receive(f"{prefix}orders-_other")
    for got in others:
        assert (got.id, got.sender, got.key, got.data) == ("e-1", "/köln", "k", {"n": 1})
        assert got.timestamp == TIME.timestamp() and got.headers["ce-type"] == "t"
    assert (own.sender, own.key, own.priority.name) == ("shop", "ann", "LOW")
    envelope = json.loads(seen["Body"])
    event = http.from_http_event(http.HTTPMessage(envelope["headers"], json.dumps(envelope["data"]).encode()))
    assert (event.get_id(), event.get_source(), event.get_subject()) == (own.id, "shop", "zwei Wörter")
    assert event.get_extension("partitionkey") == "ann" and event.get_data() == {"n": 2}
    assert event.get_type() == "orders"
    time = event.get_time()
    assert time is not None and time.timestamp() == pytest.approx(own.timestamp, abs=1e-5)
