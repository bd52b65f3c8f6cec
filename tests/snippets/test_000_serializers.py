"""The page of ``agent_os.amb`` (requirement text 000): JSON, MessagePack and Protocol Buffers."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime
from decimal import Decimal
from pathlib import Path
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
await prepare(bus) # added

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
await prepare(bus) # added

# Especially useful for binary data
await bus.publish("data.binary", {
    "image": image_bytes, # Efficient binary encoding
    "metadata": {"size": 1024}
})
"""

PROTO = """
syntax = "proto3";

message AgentEvent {
    string agent_id = 1;
    string event_type = 2;
    int64 timestamp = 3;
    map<string, string> metadata = 4;
}
"""

PROTOBUF = """
from agent_os.amb import MessageBus, ProtobufSerializer

# Use Protobuf for maximum efficiency
bus = MessageBus(
    serializer=ProtobufSerializer(
        proto_path="./schemas",
        default_message_type="AgentEvent"
    )
)
await prepare(bus) # added

# Publish with strong typing
from schemas.agent_events_pb2 import AgentEvent

event = AgentEvent(
    agent_id="agent-001",
    event_type="task_completed",
    timestamp=int(time.time())
)
event.metadata["task_id"] = "task-123"

await bus.publish("agents.events", event)

# Subscribe with type hints
@bus.subscriber("agents.events")
async def handle_event(msg: AgentEvent):
    print(f"Agent {msg.agent_id}: {msg.event_type}")
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


async def test_protobuf_serialization(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page defines the file, and imports what protoc generates from it."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "agent_events.proto").write_text(PROTO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "schemas/agent_events.proto"]
    subprocess.run(protoc, check=True)
    collector = Collector()
    names = await run(PROTOBUF, {"time": time, "prepare": lambda bus: bus.subscribe("agents.events", collector)})
    await names["bus"].publish("agents.events", names["AgentEvent"](agent_id="agent-002", event_type="started"))
    await names["bus"].disconnect()
    event, _ = collector.data
    assert (event.agent_id, event.metadata["task_id"]) == ("agent-001", "task-123")
    assert abs(event.timestamp - time.time()) < 60
    assert capsys.readouterr().out == "Agent agent-002: started\n"
