"""The page of ``agent_os.amb`` (requirement text 000): the environment variables, also on real servers."""

from __future__ import annotations

import secrets

import pytest
from agent_os.amb import InMemoryBroker, JsonSerializer, MessageBus, MsgPackSerializer, ProtobufSerializer
from amb_core.adapters import KafkaBroker, NatsBroker, RedisBroker, SQSBroker

from tests.core._help import Collector
from tests.servers.kafka import KafkaServer
from tests.servers.nats import NatsServer
from tests.servers.redis import RedisServer
from tests.servers.sqs import KEY, SECRET, SqsServer

ENVIRONMENT = """
# .env file
AMB_BROKER=redis # redis, kafka, nats, sqs, memory
AMB_REDIS_URL=redis://localhost:6379
AMB_KAFKA_BROKERS=localhost:9092
AMB_NATS_URL=nats://localhost:4222
AMB_SQS_REGION=us-east-1
AMB_SERIALIZER=json # json, msgpack, protobuf
"""


def set_environment(monkeypatch: pytest.MonkeyPatch, **other: str) -> None:
    """Everything that the page's file sets, except for what is `other`."""
    for line in ENVIRONMENT.split("\n")[2:-1]:
        name, _, value = line.partition("#")[0].strip().partition("=")
        monkeypatch.setenv(name, other.get(name, value))


@pytest.mark.parametrize("broker", ["redis", "kafka", "nats", "sqs", "memory"])
def test_the_environment_file_configures_every_broker(monkeypatch: pytest.MonkeyPatch, broker: str) -> None:
    set_environment(monkeypatch, AMB_BROKER=broker)
    assert (
        MessageBus().broker
        == {
            "redis": RedisBroker(url="redis://localhost:6379"),
            "kafka": KafkaBroker(bootstrap_servers="localhost:9092"),
            "nats": NatsBroker(url="nats://localhost:4222"),
            "sqs": SQSBroker(region_name="us-east-1"),
            "memory": InMemoryBroker(),
        }[broker]
    )


@pytest.mark.parametrize("name", ["json", "msgpack", "protobuf"])
def test_the_environment_file_configures_every_serializer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    set_environment(monkeypatch, AMB_BROKER="memory", AMB_SERIALIZER=name)
    kinds = {"json": JsonSerializer, "msgpack": MsgPackSerializer, "protobuf": ProtobufSerializer}
    assert type(MessageBus().codec.serializer) is kinds[name]


async def carries(bus: MessageBus) -> None:
    topic, collector = f"t{secrets.token_hex(4)}.news", Collector()
    async with bus:
        await bus.subscribe(topic, collector)
        await bus.publish(topic, {"n": 1})
        await collector.wait(1, 30)
    assert collector.data == [{"n": 1}]


@pytest.mark.asyncio
async def test_redis_of_the_environment(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, AMB_REDIS_URL=redis_server.url)
    await carries(MessageBus())


@pytest.mark.asyncio
async def test_kafka_of_the_environment(kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, AMB_BROKER="kafka", AMB_KAFKA_BROKERS=kafka_server.address)
    await carries(MessageBus())


@pytest.mark.asyncio
async def test_nats_of_the_environment(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, AMB_BROKER="nats", AMB_NATS_URL=nats_server.url)
    await carries(MessageBus())


@pytest.mark.asyncio
async def test_sqs_of_the_environment(sqs_server: SqsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": sqs_server.url, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    set_environment(monkeypatch, AMB_BROKER="sqs")
    await carries(MessageBus())
