"""The page of ``agent_os.amb`` (requirement text 000): JSON and MessagePack."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from amb_core import MessageBus

from tests.core._help import Collector

from ._run import run

pytestmark = pytest.mark.asyncio

JSON = """
from agent_os.amb import MessageBus, JsonSerializer

# Default JSON serialization
bus = MessageBus(serializer="json")

# Custom JSON configuration
bus = MessageBus(
    serializer=JsonSerializer(
        indent=None, # Compact output
        ensure_ascii=False, # Allow unicode
        date_format="iso", # ISO 8601 dates
        decimal_as_string=True # Preserve decimal precision
    )
)
await prepare(bus)

# Publish any JSON-serializable data
await bus.publish("events", {
    "timestamp": datetime.now(), # Automatically converted
    "data": {"nested": [1, 2, 3]},
    "agent_id": "agent-001"
})
"""

MSGPACK = """
from agent_os.amb import MessageBus, MsgPackSerializer

# Use MessagePack for smaller messages and faster serialization
bus = MessageBus(serializer="msgpack")

# Custom MessagePack configuration
bus = MessageBus(
    serializer=MsgPackSerializer(
        use_bin_type=True, # Binary vs raw strings
        strict_map_key=False, # Allow non-string keys
        datetime=True # Native datetime support
    )
)
await prepare(bus)

# Especially useful for binary data
await bus.publish("data.binary", {
    "image": image_bytes, # Efficient binary encoding
    "metadata": {"size": 1024}
})
"""


async def test_json_serialization() -> None:
    collector = Collector()
    names: dict[str, Any] = {"datetime": datetime, "prepare": lambda bus: bus.subscribe("events", collector)}
    bus: MessageBus = (await run(JSON, names))["bus"]
    await bus.publish("events", {"price": Decimal("0.10"), "name": "ü"})
    await bus.disconnect()
    event, money = collector.data
    assert abs(datetime.fromisoformat(event.pop("timestamp")) - datetime.now()).total_seconds() < 60  # noqa: DTZ005
    assert event == {"data": {"nested": [1, 2, 3]}, "agent_id": "agent-001"}
    assert money == {"price": "0.10", "name": "ü"}


async def test_messagepack_serialization() -> None:
    collector, image = Collector(), bytes(range(256)) * 4
    names: dict[str, Any] = {"image_bytes": image, "prepare": lambda bus: bus.subscribe("data.binary", collector)}
    bus: MessageBus = (await run(MSGPACK, names))["bus"]
    await bus.publish("data.binary", {1: "a key that is no text"})
    await bus.disconnect()
    assert collector.data == [{"image": image, "metadata": {"size": 1024}}, {1: "a key that is no text"}]
