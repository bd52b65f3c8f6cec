"""CloudEvents through a real NATS: others' are understood, and others understand ours."""

from __future__ import annotations

import anyio
import pytest
from amb_core import MessageBus
from amb_nats import NatsBroker
from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent
from nats.aio.client import Client

from tests.core._help import Collector

pytestmark = pytest.mark.anyio
EVENT = CloudEvent({"id": "e-1", "source": "/köln", "type": "t", "specversion": "1.0", "partitionkey": "k"}, {"n": 1})


async def test_events_go_in_and_out(stored: NatsBroker, native: Client, word: str) -> None:
    """The binding for NATS names and encodes attributes as the one for HTTP."""
    collector = Collector()
    listening = await native.subscribe(f"{word}.orders")
    async with MessageBus(stored, envelope="cloudevents", sender="shop") as bus:
        await bus.subscribe("orders", collector, group="g")
        for message in (http.to_binary_event(EVENT), http.to_structured_event(EVENT)):
            await native.publish(f"{word}.orders", message.body, headers=message.headers)
        await native.flush()
        await collector.wait(2)
        await bus.publish("orders", {"n": 2}, key="ann", priority="low", headers={"ce-subject": "zwei Wörter"})
        theirs, also, own = await collector.wait(3)
    for got in (theirs, also):
        assert (got.id, got.sender, got.key, got.data) == ("e-1", "/köln", "k", {"n": 1})
    subject = "zwei Wörter"
    assert (own.sender, own.key, own.priority.name, own.headers["ce-subject"]) == ("shop", "ann", "LOW", subject)
    with anyio.fail_after(10):
        *_, seen = [await listening.next_msg() for _ in range(3)]
    event = http.from_http_event(http.HTTPMessage(dict(seen.headers or {}), seen.data))
    assert (event.get_id(), event.get_source(), event.get_subject()) == (own.id, "shop", subject)
    assert event.get_extension("partitionkey") == "ann" and event.get_data() == {"n": 2}
