"""Every documented spelling of publishing, with one meaning behind it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from amb_core import AgentMessageBus, InMemoryBroker, Message, MessageBus, MessagePriority, Priority

from tests.core._help import Collector

pytestmark = pytest.mark.anyio
Publish = Callable[[MessageBus], Awaitable[str]]


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus() as bus:
        yield bus


async def delivered(bus: MessageBus, publish: Publish) -> Message:
    """What arrives when `publish` has published to the topic "t"."""
    collector = Collector()
    await bus.subscribe("t", collector)
    id = await publish(bus)
    (message,) = await collector.wait()
    assert message.id == id
    return message


SPELLINGS: dict[str, Publish] = {
    "positional": lambda bus: bus.publish("t", {"a": 1}),
    "message=": lambda bus: bus.publish("t", message={"a": 1}),
    "payload=": lambda bus: bus.publish("t", payload={"a": 1}),
    "data=": lambda bus: bus.publish("t", data={"a": 1}),
    "topic= and message=": lambda bus: bus.publish(topic="t", message={"a": 1}),
    "topic= and data=": lambda bus: bus.publish(topic="t", data={"a": 1}),
    "Message(payload=)": lambda bus: bus.publish(Message(topic="t", payload={"a": 1})),
    "Message(data=)": lambda bus: bus.publish(Message(topic="t", data={"a": 1})),
    "Message(positional)": lambda bus: bus.publish(Message("t", {"a": 1})),
    "wait_for_confirmation=False": lambda bus: bus.publish("t", {"a": 1}, wait_for_confirmation=False),
    "wait_for_confirmation=True": lambda bus: bus.publish("t", {"a": 1}, wait_for_confirmation=True),
}


@pytest.mark.parametrize("publish", SPELLINGS.values(), ids=SPELLINGS)
async def test_every_spelling_publishes_the_same(bus: MessageBus, publish: Publish) -> None:
    message = await delivered(bus, publish)
    assert (message.topic, message.data, message.payload) == ("t", {"a": 1}, {"a": 1})
    assert message == {"a": 1}


async def test_publish_batch_publishes_in_order_and_returns_the_ids(bus: MessageBus) -> None:
    collector = Collector()
    await bus.subscribe("t", collector)
    ids = await bus.publish_batch([Message("t", number) for number in range(5)])
    await collector.wait(5)
    assert collector.data == [0, 1, 2, 3, 4]
    assert [message.id for message in collector.messages] == ids


async def test_two_names_mean_one_class() -> None:
    assert AgentMessageBus is MessageBus
    assert Priority is MessagePriority


async def test_the_broker_may_be_named_positionally_by_keyword_or_as_adapter() -> None:
    broker = InMemoryBroker()
    buses = MessageBus(broker), MessageBus(broker=broker), MessageBus(adapter=broker)
    assert all(bus.broker is broker for bus in buses)
    assert type(MessageBus("memory").broker) is type(MessageBus(adapter="memory").broker) is InMemoryBroker


@pytest.mark.parametrize("value", [6, 1.5, "text", True, None, [], {}, [1, {"a": [None]}], ""])
@pytest.mark.parametrize("serializer", ["json", "msgpack"])
async def test_a_payload_is_any_value(value: Any, serializer: str) -> None:
    async with MessageBus(serializer=serializer) as bus:
        message = await delivered(bus, lambda bus: bus.publish("t", value))
    assert message.data == value and type(message.data) is type(value)


async def test_bytes_arrive_as_bytes_with_msgpack() -> None:
    async with MessageBus(serializer="msgpack") as bus:
        assert (await delivered(bus, lambda bus: bus.publish("t", b"\x00\xff"))).data == b"\x00\xff"


async def test_publishers_with_different_serializers_share_a_topic() -> None:
    broker, collector = InMemoryBroker(), Collector()
    async with MessageBus(broker, serializer="json") as one, MessageBus(broker, serializer="msgpack") as other:
        await one.subscribe("t", collector)
        await one.publish("t", {"by": "json"})
        await other.publish("t", {"by": "msgpack"})
        await collector.wait(2)
    assert collector.data == [{"by": "json"}, {"by": "msgpack"}]


async def test_what_travels_beside_the_data_arrives(bus: MessageBus) -> None:
    before = time.time()
    message = await delivered(
        bus,
        lambda bus: bus.publish(
            "t", 1, headers={"a": "b", "X": "ü"}, priority=MessagePriority.HIGH, ttl=60, sender="agent-1", key="k",
            trace_id="abc", correlation_id="req-1", reply_to="answers", metadata={"n": [1, {"x": None}]},
        ),
    )  # fmt: skip
    assert message.headers == {"a": "b", "X": "ü"}
    assert (message.priority, message.ttl, message.sender, message.key) == (MessagePriority.HIGH, 60, "agent-1", "k")
    assert (message.trace_id, message.correlation_id, message.reply_to) == ("abc", "req-1", "answers")
    assert message.metadata == {"n": [1, {"x": None}]}
    assert before - 1 <= message.timestamp <= time.time() and message.attempt == 1


async def test_what_a_message_object_holds_arrives(bus: MessageBus) -> None:
    given = Message(
        id="unique-id", topic="t", payload={"key": "value"}, priority=MessagePriority.HIGH, sender="agent-1",
        correlation_id="request-123", reply_to="reply.topic", ttl=60, metadata={"custom": "data"}, headers={"h": "1"},
    )  # fmt: skip
    message = await delivered(bus, lambda bus: bus.publish(given))
    for field in ("id", "topic", "data", "priority", "sender", "correlation_id", "reply_to", "ttl", "metadata"):
        assert getattr(message, field) == getattr(given, field), field
    assert message.headers == {"h": "1"} and message == given


async def test_options_win_over_what_a_message_object_holds(bus: MessageBus) -> None:
    given = Message("t", 1, sender="a", priority="low")
    message = await delivered(bus, lambda bus: bus.publish(given, sender="b"))
    assert (message.sender, message.priority) == ("b", MessagePriority.LOW)


async def test_a_delivered_message_can_be_published_again(bus: MessageBus) -> None:
    forwarded = Collector()
    await bus.subscribe("u", forwarded)
    message = await delivered(bus, lambda bus: bus.publish("t", 1, headers={"a": "b"}, sender="x"))
    message.topic = "u"
    await bus.publish(message)
    (copy,) = await forwarded.wait()
    assert (copy.id, copy.data, copy.headers, copy.sender) == (message.id, 1, {"a": "b"}, "x")


@pytest.mark.parametrize("priority", [MessagePriority.URGENT, "urgent", "URGENT", "Urgent", 1])
async def test_a_priority_is_a_member_a_name_or_a_number(bus: MessageBus, priority: Any) -> None:
    message = await delivered(bus, lambda bus: bus.publish("t", 1, priority=priority))
    assert message.priority is MessagePriority.URGENT


async def test_a_priority_header_sets_the_priority(bus: MessageBus) -> None:
    message = await delivered(bus, lambda bus: bus.publish("t", 1, headers={"priority": "high"}))
    assert message.priority is MessagePriority.HIGH and message.headers == {"priority": "high"}


async def test_the_bus_signs_what_it_publishes() -> None:
    async with MessageBus(sender="agent-7") as bus:
        assert (await delivered(bus, lambda bus: bus.publish("t", 1))).sender == "agent-7"


async def test_a_timestamp_is_a_number_and_a_date(bus: MessageBus) -> None:
    timestamp = (await delivered(bus, lambda bus: bus.publish("t", 1))).timestamp
    assert abs(time.time() - timestamp) < 5
    assert timestamp.datetime == datetime.fromtimestamp(float(timestamp), UTC)
    assert datetime.fromisoformat(timestamp.isoformat()) == timestamp.datetime


async def test_ids_are_unique_across_buses() -> None:
    async with MessageBus() as one, MessageBus() as two:
        ids = [await bus.publish("t", 1) for bus in (one, two) for _ in range(50)]
    assert len(set(ids)) == 100


async def test_a_trace_id_flows_through_a_handler_to_what_it_publishes_and_asks(bus: MessageBus) -> None:
    second, asked = Collector(), list[str | None]()
    await bus.subscribe("second", second)

    @bus.responder("service")
    async def service(request: Message) -> int:
        asked.append(request.trace_id)
        return 1

    async def first(message: Message) -> None:
        await bus.request("service", 1, timeout=5)
        await bus.publish("second", 1)

    await bus.subscribe("first", first)
    await bus.publish("first", 1, trace_id="trace-1")
    (message,) = await second.wait()
    assert (message.trace_id, asked) == ("trace-1", ["trace-1"])


async def test_a_confirmed_publish_does_not_wait_for_handlers(bus: MessageBus) -> None:
    handled = anyio.Event()

    async def slow(message: Message) -> None:
        await handled.wait()

    await bus.subscribe("t", slow)
    with anyio.fail_after(2):
        assert await bus.publish("t", 1, wait_for_confirmation=True)
    handled.set()


async def test_a_mutable_default_is_not_shared_between_messages() -> None:
    one, two = Message("t"), Message("t")
    one.headers["a"] = "b"
    one.metadata["a"] = 1
    assert two.headers == {} and two.metadata == {}
