"""Protocol Buffers through a real server: the type travels with the bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from amb_core import MessageBus, ProtobufSerializer
from amb_redis import RedisBroker

from tests.core._help import DLQ, Collector, eventually

pytestmark = pytest.mark.anyio
PROTOS = Path(__file__).parents[1] / "core" / "protos"


async def test_messages_and_requests_are_typed_on_both_sides(broker: RedisBroker) -> None:
    serializer = ProtobufSerializer(PROTOS, "AgentEvent")
    event: Any = serializer.message_type("AgentEvent")
    seen = list[Any]()

    async def handler(payload: Any) -> None:
        seen.append(payload)

    handler.__annotations__["payload"] = event
    async with (
        MessageBus(broker, serializer=serializer) as sender,
        MessageBus(
            broker, serializer=ProtobufSerializer(PROTOS / "agent_events.proto", types=[event]), dead_letter_queue=DLQ
        ) as receiver,
    ):
        collector = Collector()
        await receiver.subscribe("agents.events", handler, group="typed")
        await receiver.subscribe("agents.events", collector, group="any")
        await sender.publish("agents.events", event(agent_id="a", metadata={"k": "ü"}))
        await collector.wait(1)
        assert collector.data == [event(agent_id="a", metadata={"k": "ü"})]
        # The receiver has no such type.
        await sender.publish("agents.events", serializer.message_type("shop.Order")())
        await eventually(lambda: receiver.stats.dead_lettered == 2, "two dead letters")
        assert seen == collector.data
        letters = await receiver.dead_letters()
        assert {letter.info.group for letter in letters} == {"typed", "any"}
