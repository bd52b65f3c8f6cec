"""The page of ``agent_os.amb`` (requirement text 000): the Kafka backend, on a real Kafka."""

from __future__ import annotations

import secrets

import msgspec
import pytest
from amb_core import MessageBus

from tests.core._help import Collector, eventually
from tests.servers.kafka import KafkaServer
from tests.servers.registry import SchemaRegistry

from ._run import run

pytestmark = pytest.mark.asyncio

KAFKA_BASIC = """
from agent_os.amb import MessageBus, KafkaBroker

# Basic Kafka configuration
bus = MessageBus(
    broker="kafka",
    broker_url="localhost:9092"
)
"""

KAFKA_ADVANCED = """
from agent_os.amb import MessageBus, KafkaBroker # added

# Advanced Kafka configuration
bus = MessageBus(
    broker=KafkaBroker(
        bootstrap_servers=["kafka1:9092", "kafka2:9092", "kafka3:9092"],
        client_id="agent-os-producer",
        group_id="agent-os-consumers",
        auto_offset_reset="earliest", # "earliest" or "latest"
        enable_auto_commit=True,
        max_poll_records=500,
        session_timeout_ms=30000,
        # Security
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="user",
        sasl_password="password"
    )
)
"""


KAFKA_REGISTRY = """
from agent_os.amb import MessageBus, KafkaBroker # added

# Kafka with Schema Registry (Avro/Protobuf)
bus = MessageBus(
    broker=KafkaBroker(
        bootstrap_servers=["kafka:9092"],
        schema_registry_url="http://schema-registry:8081"
    ),
    serializer="avro"
)
"""


async def test_basic_kafka_configuration(kafka_server: KafkaServer) -> None:
    topic, collector = f"t{secrets.token_hex(4)}.basic", Collector()
    async with (await run(KAFKA_BASIC, {}, {"localhost:9092": kafka_server.address}))["bus"] as bus:
        await bus.subscribe(topic, collector)
        await bus.publish(topic, {"n": 1})
        await collector.wait()
        assert [message.data async for message in bus.replay(topic)] == [{"n": 1}]
    assert collector.data == [{"n": 1}]


async def test_advanced_kafka_configuration_with_sasl_over_tls(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group, that begins with the oldest message: two subscribers share what was there before them. Only the first
    of the three servers is up."""
    kafka_server.need_security()
    monkeypatch.setenv("SSL_CERT_FILE", kafka_server.ca)  # who signed the test server's certificate is nobody known
    theirs = {
        "kafka1:9092": f"localhost:{kafka_server.sasl_tls_port}",
        "kafka2:9092": "localhost:1", "kafka3:9092": "localhost:2",
        '"user"': f'"{kafka_server.user}"', '"password"': f'"{kafka_server.password}"',
    }  # fmt: skip
    topic, one, two = f"t{secrets.token_hex(4)}.advanced", Collector(), Collector()
    async with MessageBus("kafka", broker_url=kafka_server.address) as publisher:
        for number in range(20):
            await publisher.publish(topic, number)
    async with (await run(KAFKA_ADVANCED, {}, theirs))["bus"] as bus:
        await bus.subscribe(topic, one)
        await bus.subscribe(topic, two)
        await eventually(lambda: len(one.data) + len(two.data) >= 20, lambda: f"{one.data} {two.data}", 30)
    assert sorted(one.data + two.data) == list(range(20))


class Reading(msgspec.Struct):
    """What the page leaves to its reader: a payload that has a schema."""

    sensor: str
    value: float


async def test_kafka_with_schema_registry(kafka_server: KafkaServer, schema_registry: SchemaRegistry) -> None:
    """An object brings its schema; a dict has the topic's."""
    theirs = {"kafka:9092": kafka_server.address, "http://schema-registry:8081": schema_registry.url}
    topic, collector = f"t{secrets.token_hex(4)}.readings", Collector()
    async with (await run(KAFKA_REGISTRY, {}, theirs))["bus"] as bus:
        await bus.subscribe(topic, collector)
        await bus.publish(topic, Reading("a", 1.5))
        await bus.publish(topic, {"sensor": "b", "value": 2})
        await collector.wait(2)
    assert sorted(collector.data, key=str) == [{"sensor": "a", "value": 1.5}, {"sensor": "b", "value": 2.0}]
    assert f"{topic}-value" in schema_registry.ask("GET", "/subjects")
