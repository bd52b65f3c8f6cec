"""Programs with confluent-kafka's own serializers on the same topics, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import msgspec
import pytest
from amb_core import MessageBus, ProtobufSerializer
from amb_kafka import KafkaBroker
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer as ConfluentProtobuf
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.core._help import DLQ, Collector, eventually
from tests.servers.kafka import KafkaServer
from tests.servers.registry import SchemaRegistry

from .test_foreign import read
from .test_schema_registry import ORDER, Order, record

pytestmark = pytest.mark.anyio
Make = Callable[..., KafkaBroker]
PROTOS = Path(__file__).parents[1] / "core" / "protos"


@pytest.fixture(scope="module")
def protobuf() -> ProtobufSerializer:
    return ProtobufSerializer(PROTOS)


@pytest.fixture
def client(schema_registry: SchemaRegistry) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": schema_registry.url}) as found:
        yield found


async def send(server: KafkaServer, topic: str, serialize: Any, value: object) -> None:
    """Publish as a program does that has never heard of AMB."""

    def run() -> None:
        producer = Producer({"bootstrap.servers": server.address})
        producer.produce(topic, serialize(value, SerializationContext(topic, MessageField.VALUE)))
        assert producer.flush(10) == 0

    await anyio.to_thread.run_sync(run)


async def received(server: KafkaServer, topic: str, deserialize: Any) -> Any:
    """The first record of a topic, as such a program reads it."""
    body = (await read(server, topic)).value
    context = SerializationContext(topic, MessageField.VALUE)
    return await anyio.to_thread.run_sync(lambda: deserialize(body, context))


async def test_avro_from_a_foreign_producer(
    registered: Make, name: str, kafka_server: KafkaServer, client: SchemaRegistryClient
) -> None:
    topic, typed, plain = f"{name}.orders", list[Order](), Collector()
    schema = record("com.shop.PurchaseOrder", id="string", total="double", channel=("string", "web"))

    async def handle(order: Order) -> None:
        typed.append(order)

    async with MessageBus(registered(), serializer="avro") as bus:
        await bus.subscribe(topic, handle)
        await bus.subscribe(topic, plain, group="workers")
        await send(kafka_server, topic, AvroSerializer(client, schema), {"id": "a", "total": 1.5, "channel": "shop"})
        await plain.wait()
        await eventually(lambda: bool(typed), "it did not come", 15)
    assert typed == [Order("a", 1.5)]
    assert plain.data == [{"id": "a", "total": 1.5, "channel": "shop"}]


async def test_avro_to_a_foreign_consumer(
    registered: Make, name: str, kafka_server: KafkaServer, client: SchemaRegistryClient
) -> None:
    topic = f"{name}.orders"
    async with MessageBus(registered(), serializer="avro") as bus:
        await bus.publish(topic, ORDER)
    assert await received(kafka_server, topic, AvroDeserializer(client)) == msgspec.to_builtins(ORDER)
    older = record("Order", id="string", total="double", extra=("long", 5))
    assert await received(kafka_server, topic, AvroDeserializer(client, older)) == {
        "id": ORDER.id, "total": ORDER.total, "extra": 5,
    }  # fmt: skip


async def test_a_schema_that_refers_to_others(
    registered: Make,
    name: str,
    kafka_server: KafkaServer,
    client: SchemaRegistryClient,
    schema_registry: SchemaRegistry,
) -> None:
    topic, got = f"{name}.orders", Collector()
    line = f"{name}_Line"
    schema_registry.ask("POST", f"/subjects/{line}/versions", {"schema": record(line, sku="string")})
    lines = {"type": "array", "items": line}
    reference = {"name": line, "subject": line, "version": 1}
    body = {"schema": record(f"{name}_Order", lines=lines), "references": [reference]}
    schema_registry.ask("POST", f"/subjects/{topic}-value/versions", body)
    async with MessageBus(registered(), serializer="avro") as bus:
        await bus.subscribe(topic, got)
        await bus.publish(topic, {"lines": [{"sku": "tea"}]})
        await got.wait()
    assert got.data == [{"lines": [{"sku": "tea"}]}]
    assert await received(kafka_server, topic, AvroDeserializer(client)) == got.data[0]


async def test_protobuf_from_a_foreign_producer(
    registered: Make, name: str, kafka_server: KafkaServer, client: SchemaRegistryClient, protobuf: ProtobufSerializer
) -> None:
    order: Any = protobuf.message_type("Order")
    line: Any = protobuf.message_type("shop.Order.Line")
    topic, got, typed = f"{name}.orders", Collector(), list[Any]()
    queue = msgspec.structs.replace(DLQ, topic=f"{name}.dead")
    made = order(id=7, lines=[line(item="tea", count=2)])

    async def handle(payload: Any) -> None:
        typed.append(payload)

    handle.__annotations__["payload"] = order
    async with MessageBus(registered(), serializer=protobuf, dead_letter_queue=queue) as bus:
        await bus.subscribe(topic, got)
        await bus.subscribe(topic, handle, group="workers")
        await send(kafka_server, topic, ConfluentProtobuf(order, client, {"use.deprecated.format": False}), made)
        await got.wait()
        await eventually(lambda: bool(typed), "it did not come", 15)
        # Another message of the same file: whoever takes orders only has it as a dead letter.
        await send(
            kafka_server, topic, ConfluentProtobuf(line, client, {"use.deprecated.format": False}), line(item="x")
        )
        await got.wait(2)
        await eventually(lambda: bus.stats.dead_lettered == 1, "it is no dead letter", 15)
    assert got.data == [made, line(item="x")] and typed == [made]


async def test_protobuf_to_a_foreign_consumer(
    registered: Make, name: str, kafka_server: KafkaServer, client: SchemaRegistryClient, protobuf: ProtobufSerializer
) -> None:
    order: Any = protobuf.message_type("Order")
    line: Any = protobuf.message_type("shop.Order.Line")
    async with MessageBus(registered(), serializer=protobuf) as bus:
        await bus.publish(f"{name}.orders", order(id=7, lines=[line(item="tea")]))
        await bus.publish(f"{name}.lines", line(item="tea", count=3))
        await bus.publish(f"{name}.plain", "text")

        @bus.responder(f"{name}.count")
        def count(message: Any) -> Any:
            return len(message.data.lines)

        assert (await bus.request(f"{name}.count", order(lines=[line(), line()]), timeout=15)).data == 2
    for topic, cls, expected in (
        (f"{name}.orders", order, order(id=7, lines=[line(item="tea")])),
        (f"{name}.lines", line, line(item="tea", count=3)),
    ):
        deserialize = ProtobufDeserializer(cls, {"use.deprecated.format": False}, client)
        assert await received(kafka_server, topic, deserialize) == expected


async def test_protobuf_whose_schema_is_text(
    registered: Make, name: str, kafka_server: KafkaServer, client: SchemaRegistryClient, protobuf: ProtobufSerializer
) -> None:
    """As clients of other languages register it."""
    order: Any = protobuf.message_type("Order")
    topic, got = f"{name}.orders", Collector()
    package, _, short = cast(str, order.DESCRIPTOR.full_name).rpartition(".")
    text = f"""syntax = "proto3"; // message Comment {{}}
        package {package}; /* message Other {{ }} */
        message First {{ oneof one {{ string a = 1 [json_name = "message {{"]; }}
                         message Inner {{ int32 message = 1; }} }}
        enum Kind {{ NONE = 0; }}
        message {short} {{ int64 id = 1; }}"""
    number = await anyio.to_thread.run_sync(client.register_schema, f"{topic}-value", Schema(text, "PROTOBUF"))
    async with MessageBus(registered(), serializer=protobuf) as bus:
        await bus.subscribe(topic, got)
        body = b"\0" + number.to_bytes(4, "big") + b"\x02\x02" + order(id=5).SerializeToString()
        await send(kafka_server, topic, lambda value, _: value, body)
        await got.wait()
    assert got.data == [order(id=5)]
