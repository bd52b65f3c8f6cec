"""Bad input has a clear error, before any I/O, and harms nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest
from amb_core import (
    Capabilities,
    EncodeError,
    InMemoryBroker,
    Message,
    MessageBus,
    MessageTooLarge,
    PartialFailure,
    UnsupportedError,
)
from amb_core.broker import Outgoing

from tests.core._faulty import FaultyBroker
from tests.core._help import DLQ, Collector, dead_letters, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        yield bus


MALFORMED = ["", ".", "a.", ".a", "a..b", " ", "a b", "a\tb", "a\n", "\x00", "a.\x7f", "\ud800", "x" * 256, "é" * 128]
WORDS = r"topic|pattern|word"
PATTERNS = ["*", "#", "a.*", "a.#", "#.b", "a.*.c"]
MALFORMED_PATTERNS = [*MALFORMED, "a.b*", "*a", "a#", "##", "a.**", "a.#b"]


@pytest.mark.parametrize("topic", MALFORMED + PATTERNS + ["_amb.inbox.x", "_amb.y"])
async def test_publishing_to_a_malformed_topic_or_a_pattern_is_a_value_error(bus: MessageBus, topic: str) -> None:
    everything = Collector()
    await bus.subscribe("#", everything)
    with pytest.raises(ValueError, match=WORDS):
        await bus.publish(topic, 1)
    with pytest.raises(ValueError, match=WORDS):
        await bus.request(topic, 1, timeout=1)
    with pytest.raises(ValueError, match=WORDS):
        await bus.publish(Message(topic, 1))
    assert everything.messages == []


@pytest.mark.parametrize("pattern", MALFORMED_PATTERNS)
async def test_subscribing_to_a_malformed_pattern_is_a_value_error(bus: MessageBus, pattern: str) -> None:
    with pytest.raises(ValueError, match=WORDS):
        await bus.subscribe(pattern, Collector())
    with pytest.raises(ValueError, match=WORDS):
        bus.subscriber(pattern)(Collector())


@pytest.mark.parametrize("topic", [None, 1, b"a.b", ["a"], object()])
async def test_a_topic_that_is_no_text_is_a_type_error(bus: MessageBus, topic: Any) -> None:
    with pytest.raises(TypeError):
        await bus.publish(topic, 1)
    with pytest.raises(TypeError):
        await bus.subscribe(topic, Collector())


@pytest.mark.parametrize(
    "topic", ["a?b", "a[0]", "^a$", "a%b", "a_b", "a+b", "(a)", "a>b", "a:b", "a/b", "日本.語", "a-b"]
)
async def test_whatever_else_is_in_a_topic_is_literal(bus: MessageBus, topic: str) -> None:
    collector = Collector()
    await bus.subscribe(topic, collector)
    await bus.publish(topic, 1)
    await bus.publish("aXb", 2)
    await collector.wait()
    assert collector.data == [1]


MISUSES: dict[str, tuple[Any, str]] = {
    "nothing": (lambda bus: bus.publish(), "needs a topic"),
    "only a message": (lambda bus: bus.publish(message=1), "needs a topic"),
    "two contents": (lambda bus: bus.publish("t", 1, payload=2), "once"),
    "two topics": (lambda bus: bus.publish("t", 1, topic="u"), "once"),
    "message and topic": (lambda bus: bus.publish(Message("t", 1), topic="u"), "brings its own"),
    "message and content": (lambda bus: bus.publish(Message("t", 1), 2), "brings its own"),
    "unknown option": (lambda bus: bus.publish("t", 1, prioritty="high"), "no option 'prioritty'"),
    "header with a number": (lambda bus: bus.publish("t", 1, headers={"a": 1}), "header 'a'"),
    "header name of a number": (lambda bus: bus.publish("t", 1, headers={1: "a"}), "header 1"),
    "unknown subscribe option": (lambda bus: bus.subscribe("t", print, retrys=1), "retrys"),
    "no handler": (lambda bus: bus.subscribe("t", None), "callable"),
    "handler without a parameter": (lambda bus: bus.subscribe("t", lambda: None), "must take one message"),
    "handler with three": (lambda bus: bus.subscribe("t", lambda a, b, c: None), "must take one message"),
    "two group names": (lambda bus: bus.subscribe("t", print, group="a", consumer_group="b"), "two names"),
    "data and payload": (lambda bus: _raise(lambda: Message("t", 1, payload=2)), "not both"),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
async def test_a_call_that_makes_no_sense_is_a_type_error_that_says_why(bus: MessageBus, misuse: Any) -> None:
    call, text = misuse
    with pytest.raises(TypeError, match=text):
        await call(bus)


async def _raise(call: Any) -> None:
    call()


VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "concurrency 0": ({"concurrency": 0}, "concurrency"),
    "batch_size": ({"batch_size": 0, "ack_mode": "batch"}, "batch_size"),
    "ack_mode": ({"ack_mode": "sometimes"}, "sometimes"),
    "start": ({"start": "yesterday", "group": "g"}, "start"),
    "earliest without group": ({"start": "earliest"}, "group"),
    "negative retries": ({"retries": -1}, "retries.*-1"),
    "negative retry_delay": ({"retry_delay": -1}, "delay.*-1"),
}


@pytest.mark.parametrize(("options", "text"), VALUES.values(), ids=VALUES)
async def test_an_option_that_cannot_work_is_a_value_error(bus: MessageBus, options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        await bus.subscribe("t", Collector(), **options)


@pytest.mark.parametrize("name", ["concurrency", "batch_size", "retries", "retry_delay", "batch_timeout"])
async def test_an_option_of_a_wrong_type_is_refused_by_name(bus: MessageBus, name: str) -> None:
    options: dict[str, Any] = {"ack_mode": "batch", name: "many"}
    with pytest.raises((TypeError, ValueError), match=name.removeprefix("retry_")):
        await bus.subscribe("t", Collector(), **options)


@pytest.mark.parametrize("headers", [{"amb-id": "x"}, {"AMB-Anything": "x"}, {"content-type": "x"}, {"": "x"}])
async def test_headers_of_ambs_own_are_refused(bus: MessageBus, headers: Mapping[str, str]) -> None:
    with pytest.raises(ValueError, match="reserved"):
        await bus.publish("t", 1, headers=headers)


async def test_a_header_that_utf8_cannot_carry_is_refused(bus: MessageBus) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        await bus.publish("t", 1, headers={"a": "\ud800"})


class Cyclic(list[Any]):
    def __init__(self) -> None:
        super().__init__()
        self.append(self)


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@pytest.mark.parametrize("payload", [object(), {"a": object()}, lambda: None, "\ud800", Cyclic()])
async def test_a_payload_that_cannot_be_sent_is_an_encode_error(payload: Any, serializer: str) -> None:
    async with MessageBus(serializer=serializer) as bus:
        with pytest.raises(EncodeError):
            await bus.publish("t", payload)
        with pytest.raises(EncodeError):
            await bus.request("t", payload, timeout=1)
        assert bus.stats.published == 0


async def send_raw(bus: MessageBus, body: bytes, **headers: str) -> None:
    """Publish as a foreign producer might."""
    wire = {name.replace("_", "-"): value for name, value in headers.items()}
    await bus.publisher.send(Outgoing("t", body, wire))


UNDECODABLE: list[tuple[bytes, dict[str, str]]] = [
    (b"", {}), (b"{", {}), (b"\xff\xfe", {}), (b"nul", {"content_type": "application/json"}),
    (b"\xc1", {"content_type": "application/msgpack"}), (b"1", {"content_type": "application/x-unknown"}),
    (b"[" * 100_000, {}),
]  # fmt: skip


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize(("body", "headers"), UNDECODABLE)
async def test_undecodable_bytes_are_a_dead_letter_and_the_next_message_is_handled(
    bus: MessageBus, body: bytes, headers: dict[str, str], group: str | None
) -> None:
    collector = Collector()
    await bus.subscribe("t", collector, group=group, retries=3, retry_delay=0)
    await send_raw(bus, body, **headers)
    await bus.publish("t", "good")
    await collector.wait()
    await eventually(lambda: bus.stats.dead_lettered == 1, "the dead letter")
    (letter,) = await bus.dead_letters()
    assert (letter.body, letter.data, letter.info.reason, letter.info.attempts) == (body, None, "undecodable", 1)
    assert collector.data == ["good"]


async def test_a_foreign_message_without_headers_is_a_message(bus: MessageBus) -> None:
    collector = Collector()
    await bus.subscribe("t", collector)
    await send_raw(bus, b'{"a": 1}')
    (message,) = await collector.wait()
    assert (message.data, message.headers, message.priority.name, message.sender) == ({"a": 1}, {}, "NORMAL", None)


@pytest.mark.parametrize(
    "headers",
    [{"amb_time": "yesterday"}, {"amb_ttl": "x"}, {"amb_expires": "x"}, {"amb_priority": "top"}, {"amb_metadata": "["}],
)
async def test_malformed_headers_have_their_default(bus: MessageBus, headers: dict[str, str]) -> None:
    collector = Collector()
    await bus.subscribe("t", collector)
    await send_raw(bus, b"1", **headers)
    (message,) = await collector.wait()
    assert (float(message.timestamp), message.ttl, message.priority.name) == (0.0, None, "NORMAL")
    assert message.metadata == {}


class Limited(FaultyBroker):
    """A broker with limits."""

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, max_message=1000, max_headers=5, delay="none")


async def test_an_oversized_message_is_refused_before_the_network_with_both_sizes() -> None:
    async with MessageBus(Limited()) as bus:
        collector = Collector()
        await bus.subscribe("t", collector)
        for publish in (bus.publish("t", "x" * 1000), bus.request("t", "x" * 1000, timeout=1)):
            with pytest.raises(MessageTooLarge, match="'t' has 1002 bytes, the broker takes 1000"):
                await publish
        with pytest.raises(MessageTooLarge, match="headers, the broker takes 5"):
            await bus.publish("t", 1, headers={f"h{n}": "" for n in range(9)})
        await bus.publish("t", "x" * 998)
        await collector.wait()


async def test_an_oversized_reply_reaches_the_caller_as_an_error() -> None:
    async with MessageBus(Limited()) as bus:
        bus.responder("t")(lambda request: "x" * 2000)
        with pytest.raises(Exception, match="MessageTooLarge"):
            await bus.request("t", 1, timeout=5)


async def test_what_is_not_declared_is_refused_before_any_io() -> None:
    broker = Limited()
    with pytest.raises(UnsupportedError, match=r"Limited does not support delayed publishing.*memory"):
        await MessageBus(broker).publish("t", 1, delay=1)
    assert broker.attempts == 0


async def test_a_full_queue_that_raises_names_the_queue_and_the_cure() -> None:
    async with MessageBus(InMemoryBroker(max_queue_size=2, overflow="raise", backpressure_delay=0)) as bus:
        subscription = await bus.subscribe("t", Collector(), group="g", concurrency=1)
        subscription.pause()
        for number in range(2):
            await bus.publish("t", number)
        with pytest.raises(Exception, match=r"'g' on 't' is full.*overflow='wait'"):
            await bus.publish("t", 3)


async def test_a_batch_with_a_bad_message_publishes_nothing(bus: MessageBus) -> None:
    everything, dead = Collector(), await dead_letters(bus)
    await bus.subscribe("#", everything)
    with pytest.raises((ValueError, PartialFailure)):
        await bus.publish_batch([Message("t", 1), Message("a..b", 2)])
    assert everything.messages == dead.messages == []
