"""CloudEvents through a real Redis: others' are understood, and others understand ours."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from amb_core import MessageBus, Request
from amb_redis import RedisBroker
from amb_redis._wire import from_entry
from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent

from tests.core._help import Collector

pytestmark = pytest.mark.anyio
EVENT = CloudEvent({"id": "e-1", "source": "/köln", "type": "t", "specversion": "1.0", "partitionkey": "k"}, {"n": 1})


async def test_events_go_in_and_out(broker: RedisBroker, native: redis.Redis, prefix: str) -> None:
    collector, key = Collector(), f"{prefix}:{{orders}}:s"
    bus = MessageBus(broker, envelope="cloudevents", sender="shop")

    @bus.responder("sums")
    async def add(request: Request) -> int:
        return sum(request.data)

    async with bus:
        await bus.subscribe("orders", collector, group="g")
        for message in (http.to_binary_event(EVENT), http.to_structured_event(EVENT)):
            fields: Any = {"body": message.body, **message.headers}
            native.xadd(key, fields)
        await bus.publish("orders", {"n": 2}, key="ann", priority="low", headers={"ce-subject": "two words"})
        theirs, also, own = sorted(await collector.wait(3), key=lambda message: message.data["n"])
        assert (await bus.request("sums", [1, 2])).data == 3
    for got in (theirs, also):
        assert (got.id, got.sender, got.key, got.data) == ("e-1", "/köln", "k", {"n": 1})
    assert (own.sender, own.key, own.priority.name, own.headers["ce-subject"]) == ("shop", "ann", "LOW", "two words")
    entries: Any = native.xrange(key)
    entry = from_entry([part for pair in entries[-1][1].items() for part in pair])
    event = http.from_http_event(http.HTTPMessage(entry.headers, entry.body))
    assert (event.get_id(), event.get_source(), event.get_subject()) == (own.id, "shop", "two words")
    assert event.get_extension("partitionkey") == "ann" and event.get_data() == {"n": 2}
