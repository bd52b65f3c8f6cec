"""Fixtures for servers: each is started once per test run, when the first test asks for it.

``AMB_TEST_REDIS_URL`` names a server to use instead of a new one. Where a server's program is missing, its tests are
skipped with a line that says how to get it; under ``CI=true`` they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import pytest

from . import azure, kafka, nats, rabbitmq, redis, registry, sqs
from .process import MissingServer, in_ci

T = TypeVar("T")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[redis.RedisServer]:
    """A Redis of its own, or the one of ``AMB_TEST_REDIS_URL``."""
    yield from _provide(redis.alone(os.environ.get("AMB_TEST_REDIS_URL")))


@pytest.fixture(scope="session")
def own_redis_server() -> Iterator[redis.RedisServer]:
    """A Redis that a test may stop, kill and freeze."""
    yield from _provide(redis.alone())


@pytest.fixture(scope="session")
def secure_redis() -> Iterator[redis.SecureRedis]:
    """A Redis with TLS and users."""
    yield from _provide(redis.secure())


@pytest.fixture
def redis_sentinel() -> Iterator[redis.RedisSentinel]:
    """A master and a replica under a Sentinel. For one test: after a failover they have changed places."""
    yield from _provide(redis.sentinel())


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[redis.RedisCluster]:
    """A Redis Cluster of three masters."""
    yield from _provide(redis.cluster())


@pytest.fixture(scope="session")
def nats_server() -> Iterator[nats.NatsServer]:
    """A NATS server with JetStream."""
    yield from _provide(nats.alone())


@pytest.fixture(scope="session")
def secure_nats() -> Iterator[nats.SecureNats]:
    """A NATS server with TLS and users, that wants a certificate too."""
    yield from _provide(nats.secure(verify=True))


@pytest.fixture
def own_nats_server() -> Iterator[nats.NatsServer]:
    """A NATS server that a test may stop, kill and freeze."""
    yield from _provide(nats.alone())


@pytest.fixture(scope="session")
def nats_cluster() -> Iterator[nats.NatsCluster]:
    """Three NATS servers that keep streams together."""
    yield from _provide(nats.cluster())


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[kafka.KafkaServer]:
    """A Kafka with a listener for each way of connecting."""
    yield from _provide(kafka.alone())


@pytest.fixture(scope="session")
def own_kafka_server() -> Iterator[kafka.KafkaServer]:
    """A Kafka that a test may stop, kill and freeze."""
    yield from _provide(kafka.alone())


@pytest.fixture(scope="session")
def schema_registry() -> Iterator[registry.SchemaRegistry]:
    """A schema registry that speaks the Confluent API; subjects are to stay backward compatible."""
    yield from _provide(registry.alone())


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[rabbitmq.RabbitServer]:
    """A RabbitMQ node, also with TLS."""
    yield from _provide(rabbitmq.alone())


@pytest.fixture
def own_rabbitmq_server() -> Iterator[rabbitmq.RabbitServer]:
    """A RabbitMQ node that a test may stop, kill and freeze."""
    yield from _provide(rabbitmq.alone())


@pytest.fixture(scope="session")
def servicebus() -> Iterator[azure.ServiceBus]:
    """A Service Bus without TLS and keys, and without entities."""
    yield from _provide(azure.alone())


@pytest.fixture
def own_servicebus() -> Iterator[azure.ServiceBus]:
    """A Service Bus that a test may stop, kill and freeze; it loses nothing by that."""
    yield from _provide(azure.alone())


@pytest.fixture(scope="session")
def secure_servicebus() -> Iterator[azure.SecureServiceBus]:
    """A Service Bus with TLS and keys."""
    yield from _provide(azure.secure())


@pytest.fixture(scope="session")
def sqs_server() -> Iterator[sqs.SqsServer]:
    """An emulator of SQS and SNS."""
    yield from _provide(sqs.alone())


@pytest.fixture
def own_sqs_server() -> Iterator[sqs.SqsServer]:
    """An emulator of SQS and SNS that a test may stop, kill and freeze."""
    yield from _provide(sqs.alone())


def _provide(server: AbstractContextManager[T]) -> Iterator[T]:
    try:
        value = server.__enter__()
    except MissingServer as missing:
        if in_ci():
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    try:
        yield value
    finally:
        server.__exit__(None, None, None)
