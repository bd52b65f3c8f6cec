"""On real servers, between two buses, and from and to clients that know nothing of AMB but the header."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from itertools import pairwise

import nats
import pytest
from amb_core import Message, MessageBus, _observe
from amb_core.adapters import AzureServiceBusBroker, KafkaBroker, NatsBroker, RabbitMQBroker, RedisBroker, SQSBroker
from amb_core.observability import metrics
from amb_core.observability._readings import METRICS
from azure.core.settings import settings as azure
from nats.aio.client import Client
from opentelemetry.instrumentation.aiokafka import AIOKafkaInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import format_span_id
from redis.asyncio import Redis

from tests.core._help import Collector, eventually
from tests.servers.nats import NatsServer
from tests.servers.redis import RedisServer

from ._brokers import SERVERS, broker, new_word
from ._spans import Spans, attributes, is_child, trace_id

pytestmark = pytest.mark.anyio
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
FOREIGN = f"00-{TRACE}-00f067aa0ba902b7-01"
GROUPED = ("topic", "group")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as client:
        yield client


def test_each_broker_has_the_name_of_the_conventions_or_its_own() -> None:
    classes = [AzureServiceBusBroker, KafkaBroker, NatsBroker, RabbitMQBroker, RedisBroker, SQSBroker]
    names = ["servicebus", "kafka", "nats", "rabbitmq", "redis", "aws_sqs"]
    assert [_observe.system_of(each) for each in classes] == names
    assert _observe.system_of(type("HomeMadeBroker", (), {})) == "homemade"


async def across(agent: MessageBus, service: MessageBus, spans: Spans, system: str) -> None:
    """A request from a handler on one bus to a responder on another: one trace."""
    replies: list[Message] = []
    word = new_word()
    orders, prices = f"{word}.orders", f"{word}.prices"

    @service.responder(prices)
    async def price(request: int) -> int:
        return request * 2

    async def order(message: Message) -> None:
        replies.append(await agent.request(prices, message.data))

    async with service, agent:
        await agent.subscribe(orders, order, group="g")
        await agent.publish(orders, 21)
        await spans.wait("receive (temporary)")
        await spans.wait(f"ack {orders}")
        await eventually(lambda: replies, "a reply")
    way = [
        f"publish {orders}",
        f"process {orders}",
        f"publish {prices}",
        f"process {prices}",
        "publish (temporary)",
        "receive (temporary)",
    ]
    for before, after in pairwise(way):
        assert is_child(spans.all(after)[0], spans.all(before)[0]), (before, after)
    assert {attributes(span)["system"] for span in spans.exporter.get_finished_spans()} == {system}
    assert replies[0].data == 42 and replies[0].trace_id == trace_id(spans.all(f"publish {orders}")[0])


@pytest.mark.parametrize("name", SERVERS)
async def test_one_trace_goes_through(name: str, request: pytest.FixtureRequest, spans: Spans) -> None:
    made = broker(name, request)
    system = {"sqs": "aws_sqs", "azure": "servicebus"}.get(name, name)
    await across(MessageBus(made), MessageBus(made), spans, system)


async def test_it_stays_one_trace_when_the_client_below_is_instrumented_too(
    request: pytest.FixtureRequest, spans: Spans
) -> None:
    """As ``opentelemetry-instrument`` does it to a whole program: there are two headers ``traceparent`` then."""
    collector, topic = Collector(ValueError("again"), failures=1), new_word()
    AIOKafkaInstrumentor().instrument(tracer_provider=spans.provider)
    try:
        async with MessageBus(broker("kafka", request)) as bus:
            await bus.subscribe(topic, collector, group="g", retries=1, retry_delay=0.01)
            await bus.publish(topic, 21)
            await spans.wait(f"ack {topic}")
    finally:
        AIOKafkaInstrumentor().uninstrument()
    way = [*spans.all(f"publish {topic}"), *spans.all(f"process {topic}")]
    assert len(way) == 3 and len({trace_id(span) for span in way}) == 1
    assert {message.trace_id for message in collector.messages} == {trace_id(way[0])}
    # What is published goes as record batches, which it does not know of; the copy that is tried again does not.
    sent = [span.name for span in spans.exporter.get_finished_spans() if span.name.endswith(" send")]
    assert sent, "the client was not instrumented"


async def test_it_stays_one_trace_when_azures_client_traces_too(
    request: pytest.FixtureRequest, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes a trace of its own over the header; others that it instruments are in that."""
    collector, topic = Collector(ValueError("again"), failures=1), new_word()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", spans.provider)
    azure.tracing_implementation = "opentelemetry"
    try:
        async with MessageBus(broker("azure", request)) as bus:
            await bus.subscribe(topic, collector, group="g", retries=1, retry_delay=0.01)
            await bus.publish(topic, 21)
            await spans.wait(f"ack {topic}")
    finally:
        azure.tracing_implementation.unset_value()
    way = [*spans.all(f"publish {topic}"), *spans.all(f"process {topic}")]
    assert len(way) == 3 and len({trace_id(span) for span in way}) == 1
    assert {message.trace_id for message in collector.messages} == {trace_id(way[0])}
    assert spans.all("ServiceBus.message"), "the client was not traced"


async def test_a_network_broker_has_every_metric(redis_server: RedisServer) -> None:
    registry, collector = metrics.registry(backlog_interval=0.1), Collector()
    async with MessageBus(RedisBroker(redis_server.url, prefix=f"t{secrets.token_hex(4)}")) as bus:
        await bus.subscribe("t", collector, group="g")
        await bus.publish("t", 1)
        labels = {"system": "redis", "topic": "t", "group": "g"}
        await eventually(lambda: bus.stats.acked == 1, "the message")
        await eventually(lambda: registry.get_sample_value("amb_lag", labels) == 0, "an answer of the server")
        told = {
            name: registry.get_sample_value(name, labels) for name in METRICS if METRICS[name].labels[1:] == GROUPED
        }
        handled = registry.get_sample_value("amb_handler_seconds_count", {**labels, "outcome": "ok"})
    assert handled == 1
    assert told.pop("amb_consuming") == 1 and set(told.values()) == {0}


async def test_a_foreign_publishers_trace_goes_on_over_nats(
    nats_server: NatsServer, client: Client, spans: Spans
) -> None:
    topic, collector = f"t{secrets.token_hex(4)}", Collector()
    async with MessageBus(NatsBroker(nats_server.url)) as bus:
        await bus.subscribe(topic, collector)
        await client.publish(topic, b"1", headers={"traceparent": FOREIGN})
        span = await spans.one(f"process {topic}")
    assert trace_id(span) == TRACE and span.parent is not None and f"{span.parent.span_id:x}" == "f067aa0ba902b7"
    assert collector.messages[0].trace_id == TRACE


async def test_a_foreign_subscriber_sees_the_trace_over_nats(
    nats_server: NatsServer, client: Client, spans: Spans
) -> None:
    topic = f"t{secrets.token_hex(4)}"
    subscription = await client.subscribe(topic)
    await client.flush()
    async with MessageBus(NatsBroker(nats_server.url)) as bus:
        await bus.publish(topic, 1)
    message = await subscription.next_msg(timeout=10)
    assert (message.headers or {})["traceparent"].startswith(carried(await spans.one(f"publish {topic}")))


def carried(span: ReadableSpan) -> str:
    """How a ``traceparent`` begins that names the span; flags follow."""
    return f"00-{trace_id(span)}-{format_span_id(span.context.span_id)}-"


async def test_a_foreign_trace_goes_on_over_redis_streams(
    redis_server: RedisServer, redis: Redis, spans: Spans
) -> None:
    prefix, collector = f"t{secrets.token_hex(4)}", Collector()
    async with MessageBus(RedisBroker(redis_server.url, prefix=prefix)) as bus:
        await bus.subscribe("t", collector)
        await bus.publish("t", 0)
        await collector.wait()
        [key] = [key async for key in redis.scan_iter(f"{prefix}:{{t}}:s")]
        entries = await redis.xrange(key)
        assert carried(await spans.one("publish t")) in repr(entries)
        await redis.xadd(key, {"body": b"1", "traceparent": FOREIGN})
        await spans.wait("process t", 2)
    assert [trace_id(span) for span in spans.all("process t")][1] == TRACE
