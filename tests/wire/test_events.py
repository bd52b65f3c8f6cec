"""CloudEvents: what the official package sends is understood, and what AMB sends the official package reads."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import amb_azure._wire as azure
import amb_kafka._wire as kafka
import pytest
from amb_azure import AzureServiceBusBroker
from amb_core import InMemoryBroker, Message, MessageBus, MessageFilter, Request
from amb_core._events import Events
from amb_core.broker import Incoming, Outgoing
from amb_kafka import KafkaBroker
from amb_rabbitmq import RabbitMQBroker
from cloudevents.core.bindings import amqp as amqp_binding
from cloudevents.core.bindings import http as http_binding
from cloudevents.core.bindings import kafka as kafka_binding
from cloudevents.core.bindings import rabbitmq as rabbitmq_binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from tests.core._help import DLQ, Collector, eventually

from .conftest import Wire
from .test_fuzz import EACH, fuzz, mutated

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ATTRIBUTES = {
    "specversion": "1.0", "id": "e-1", "source": "/shop/Köln", "type": "com.example.created", "subject": '50% "off"',
    "time": datetime(2024, 1, 15, 10, 30, 0, 250_000, UTC), "datacontenttype": "application/json",
    "partitionkey": "ann", "traceparent": TRACE,
}  # fmt: skip
EVENT = CloudEvent(dict(ATTRIBUTES), {"id": 7})
STYLES = {
    "ce-%": InMemoryBroker(),
    "ce_": KafkaBroker("localhost:1"),
    "cloudEvents:": AzureServiceBusBroker("Endpoint=sb://x/;SharedAccessKeyName=k;SharedAccessKey=cw=="),
    "ce-": RabbitMQBroker("amqp://localhost:1"),
}


def theirs(style: str, mode: str) -> Incoming:
    """`EVENT` as the official package sends it, and as the backend hands it over."""
    how: dict[str, Any] = {
        "ce-%": http_binding,
        "ce_": kafka_binding,
        "cloudEvents:": amqp_binding,
        "ce-": rabbitmq_binding,
    }
    sent: Any = getattr(how[style], f"to_{mode}")(EVENT, JSONFormat())
    if style == "ce_":
        entry = kafka.read(kafka.Names({}), "orders", None, list(sent.headers.items()))
        return Incoming(entry.topic, sent.value, entry.headers, 1, entry.key)
    if style == "cloudEvents:":
        headers = {name: str(value) for name, value in sent.application_properties.items()}
        return Incoming("orders", sent.application_data, headers | {"content-type": sent.properties["content-type"]}, 1)
    headers = dict(sent.headers) | ({"content-type": sent.content_type} if style == "ce-" else {})
    return Incoming("orders", sent.body, headers, 1)


def read_by_them(style: str, outgoing: Outgoing) -> Any:
    """What the official package makes of a message, once the backend has given it its form."""
    body, headers = outgoing.body, outgoing.headers
    if style == "ce_":
        key, listed = kafka.write(outgoing, shared=False)
        return kafka_binding.from_kafka(kafka_binding.KafkaMessage(dict(listed), key, body), JSONFormat())
    if style == "cloudEvents:":
        native = azure.to_native(outgoing, "0", dedup=False)
        properties = {str(name): value for name, value in (native.application_properties or {}).items()}
        message = amqp_binding.AMQPMessage({"content-type": native.content_type}, properties, body)
        return amqp_binding.from_amqp(message, JSONFormat())
    if style == "ce-":
        read = rabbitmq_binding.RabbitMQMessage(headers, headers["content-type"], body)
        return rabbitmq_binding.from_rabbitmq(read, JSONFormat())
    return http_binding.from_http(http_binding.HTTPMessage(headers, body), JSONFormat())


@pytest.mark.parametrize("style", STYLES)
def test_a_broker_declares_how_its_binding_names_attributes(style: str) -> None:
    broker: Any = STYLES[style]
    assert broker.capabilities.cloudevents == style


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize("style", STYLES)
def test_an_event_of_the_official_package_is_a_message(style: str, mode: str) -> None:
    incoming = theirs(style, mode)
    Events(style).read(incoming)
    message = Message._delivered(incoming, None, None)
    assert (message.id, message.sender, message.key) == ("e-1", "/shop/Köln", "ann")
    assert message.timestamp == ATTRIBUTES["time"].timestamp()  # type: ignore[attr-defined]
    attributes = {name.removeprefix("ce-"): value for name, value in message.headers.items() if name.startswith("ce-")}
    assert attributes.pop("datacontenttype", "application/json") == "application/json"
    expected = {name: value for name, value in ATTRIBUTES.items() if name not in ("datacontenttype", "time")}
    assert {name: value for name, value in attributes.items() if name != "time"} == expected
    assert message.headers["traceparent"] == TRACE
    assert incoming.headers["content-type"] == "application/json" and incoming.body.replace(b" ", b"") == b'{"id":7}'


@pytest.mark.parametrize("style", STYLES)
def test_the_official_package_reads_what_is_sent(style: str) -> None:
    headers = {"amb-id": "m-1", "amb-time": "1705314600250000000", "content-type": "application/json",
               "amb-sender": "Zoë", "ce-subject": '50% "off"', "ce-extra": "x y", "user": "own", "amb-ttl": "5",
               "traceparent": TRACE}  # fmt: skip
    outgoing = Outgoing("orders.created", b'{"id":7}', headers, key="ann")
    Events(style).write(outgoing)
    event = read_by_them(style, outgoing)
    attributes = event.get_attributes()
    assert attributes.pop("time") == ATTRIBUTES["time"]
    assert attributes == {
        "specversion": "1.0", "id": "m-1", "source": "Zo%C3%AB", "type": "orders.created", "subject": '50% "off"',
        "extra": "x y", "partitionkey": "ann", "traceparent": TRACE, "datacontenttype": "application/json",
    }  # fmt: skip
    assert event.get_data() == {"id": 7}
    assert (outgoing.headers["user"], outgoing.headers["amb-ttl"]) == ("own", "5")


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_names_are_understood_in_any_case(mode: str) -> None:
    """Clients in Go write headers as HTTP does."""
    incoming = theirs("ce-%", mode)
    incoming.headers = {name.title(): value for name, value in incoming.headers.items()}
    Events("ce-%").read(incoming)
    assert incoming.headers["content-type"] == "application/json" and "Content-Type" not in incoming.headers
    assert incoming.headers["ce-subject"] == '50% "off"' and incoming.headers["amb-id"] == "e-1"


@pytest.mark.parametrize(
    ("json", "body", "kind"),
    [
        ('"data": {"n": 1.50}', b'{"n": 1.50}', "application/json"),
        ('"datacontenttype": "text/plain", "data": "Zo\\u00eb"', "Zoë".encode(), "text/plain"),
        ('"datacontenttype": "application/x", "data_base64": "//4="', b"\xff\xfe", "application/x"),
        ('"datacontenttype": "application/x+json", "data": "text"', b'"text"', "application/x+json"),
        ('"subject": null', b"null", "application/json"),
    ],
)
def test_the_data_of_a_structured_event_is_the_body(json: str, body: bytes, kind: str) -> None:
    text = f'{{"specversion":"1.0","id":"1","source":"/","type":"t","flag":true,"number":-3,{json}}}'
    incoming = Incoming("t", text.encode(), {"content-type": "Application/CloudEvents+JSON; charset=utf-8"}, 1)
    Events("ce_").read(incoming)
    assert (incoming.body, incoming.headers["content-type"]) == (body, kind)
    assert (incoming.headers["ce-flag"], incoming.headers["ce-number"]) == ("true", "-3")
    assert "ce-subject" not in incoming.headers


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"specversion":"0.3"}', b'{"specversion":"1.0","id":[1]}', b"{" * 5000, b"\xff"]
)
def test_what_is_no_event_stays_as_it_is(body: bytes) -> None:
    headers = {"content-type": "application/cloudevents+json", "ce-x": "%ff"}
    incoming = Incoming("t", body, dict(headers), 1)
    Events("ce-%").read(incoming)
    assert (incoming.body, incoming.headers) == (body, headers)


def test_an_event_of_another_version_stays_as_it_is() -> None:
    """In both directions: a dead letter of one has the headers that it came with."""
    headers = {"ce-specversion": "0.3", "ce-id": "a%20b"}
    incoming = Incoming("t", b"", dict(headers), 1)
    Events("ce-%").read(incoming)
    Events("ce-%").spell(incoming.headers)
    assert incoming.headers == headers


def test_ten_thousand_events_of_strangers_are_read() -> None:
    structured, binary = theirs("ce-%", "structured"), theirs("ce-%", "binary")

    def read(body: bytes, headers: dict[str, str]) -> None:
        incoming = Incoming("t", body, headers, 1)
        Events("ce-%").read(incoming)
        assert isinstance(incoming.body, bytes)
        assert all(isinstance(value, str) for value in incoming.headers.values())
        assert Message._delivered(incoming, None, None).timestamp is not None

    @fuzz
    @given(st.binary(max_size=300), st.text(max_size=50), st.integers(0, 2**64))
    def run(noise: bytes, text: str, seed: int) -> None:
        chance = random.Random(seed)
        read(noise, dict(structured.headers))
        read(b"", dict.fromkeys(binary.headers, text) | {"ce-specversion": "1.0"})
        for _ in range(EACH // 2 - 1):
            read(mutated(structured.body, chance), dict(structured.headers))
            changed = mutated(binary.headers[name := chance.choice(list(binary.headers))].encode(), chance)
            read(b"{}", binary.headers | {name: changed.decode(errors="surrogateescape")})

    run()


@pytest.mark.anyio
class TestOnABus:
    async def test_events_in_either_mode_are_messages(self, wire: Wire, broker: InMemoryBroker) -> None:
        collector, chosen = Collector(), Collector()
        async with MessageBus(broker) as bus:
            await bus.subscribe("orders", collector)
            await bus.subscribe("orders", chosen, filter=MessageFilter(headers={"ce-type": "com.example.created"}))
            for mode in ("binary", "structured"):
                incoming = theirs("ce-%", mode)
                await wire.connection.send([Outgoing("orders", incoming.body, incoming.headers)])
            await collector.wait(2)
        for message in (*collector.messages, *chosen.messages):
            assert (message.data, message.id, message.key) == ({"id": 7}, "e-1", "ann")
            assert message.headers["ce-subject"] == '50% "off"'
        assert len(chosen.messages) == 2

    async def test_everything_works_with_the_envelope(self, wire: Wire, broker: InMemoryBroker) -> None:
        """Attempts, priority, time to live, correlation, reply, dead letters: on a bus that sends events."""
        failing, attempts = Collector(ValueError("unlucky"), failures=2), list[int]()
        async with MessageBus(broker, envelope="cloudevents", sender="shop", dead_letter_queue=DLQ) as bus:

            @bus.responder("orders.sum")
            async def total(request: Request) -> int:
                assert request.correlation_id == "c-1" and request.headers["ce-type"] == "orders.sum"
                return sum(request.data)

            await bus.subscribe("orders.created", failing, group="g", retries=2, retry_delay=0.01)
            await bus.publish("orders.created", {"id": 7}, priority="high", ttl=60, key="ann", metadata={"a": 1})
            await failing.wait(3)
            attempts = [message.attempt for message in failing.messages]
            message = failing.messages[-1]
            answer = await bus.request("orders.sum", [1, 2], correlation_id="c-1")
            assert (answer.data, answer.correlation_id) == (3, "c-1")
            with pytest.raises(ValueError, match="'ce-Not-One' is no attribute"):
                await bus.publish("orders.created", 1, headers={"ce-Not-One": "x"})
        assert attempts == [1, 2, 3]
        assert (message.priority.name, message.ttl, message.key, message.metadata) == ("HIGH", 60.0, "ann", {"a": 1})
        assert (message.sender, message.headers["ce-source"], message.headers["ce-id"]) == ("shop", "shop", message.id)

    async def test_a_dead_letter_of_an_event_is_one_and_comes_back_as_one(
        self, broker: InMemoryBroker, wire: Wire
    ) -> None:
        failing = Collector(ValueError("unlucky"), failures=1)
        async with MessageBus(broker, dead_letter_queue=DLQ) as bus:
            await bus.subscribe("orders", failing, group="g", retries=0)
            incoming = theirs("ce-%", "structured")
            await wire.connection.send([Outgoing("orders", incoming.body, incoming.headers)])
            await eventually(lambda: bus.stats.dead_lettered == 1, "a dead letter")
            [letter] = await bus.dead_letters()
            assert (letter.id, letter.data, letter.headers["ce-subject"]) == ("e-1", {"id": 7}, '50% "off"')
            assert await bus.retry_dead_letters() == 1
            first, second = await failing.wait(2)
        assert second.headers == first.headers and second.data == first.data
        _, dead, _ = [await wire.next() for _ in range(3)]
        event = http_binding.from_http(http_binding.HTTPMessage(dead.headers, dead.body), JSONFormat())
        assert event.get_subject() == '50% "off"' and event.get_data() == {"id": 7}

    async def test_an_event_that_is_passed_on_stays_one(self, broker: InMemoryBroker, wire: Wire) -> None:
        async with MessageBus(broker) as bus:

            async def forward(message: Message) -> None:
                await bus.publish("archive", message.data, headers=message.headers)

            await bus.subscribe("orders", forward)
            incoming = theirs("ce-%", "binary")
            await wire.connection.send([Outgoing("orders", incoming.body, incoming.headers)])
            await wire.next()
            passed = await wire.next()
        event = http_binding.from_http(http_binding.HTTPMessage(passed.headers, passed.body), JSONFormat())
        assert (event.get_id(), event.get_source()) == ("e-1", "/shop/Köln")

    @pytest.mark.parametrize("envelope", ["json", None, 1])
    async def test_another_envelope_is_refused(self, envelope: Any) -> None:
        with pytest.raises(ValueError, match="envelope must be 'amb' or 'cloudevents'"):
            MessageBus(envelope=envelope)
