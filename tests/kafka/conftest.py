"""Brokers on the common server, with topics of their own. Kafka's client runs on asyncio only."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from amb_kafka import KafkaBroker

from tests.servers.kafka import KafkaServer
from tests.servers.registry import PASSWORD, USER, Front, SchemaRegistry


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def name() -> str:
    """The first word of a test's topics."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def make(kafka_server: KafkaServer) -> Callable[..., KafkaBroker]:
    """Builds brokers that are quick to notice."""
    common = KafkaBroker(kafka_server.address, partitions=2, discovery_interval=0.2, heartbeat_interval_ms=200)

    def build(**options: Any) -> KafkaBroker:
        return msgspec.structs.replace(common, **options)

    return build


@pytest.fixture
async def admin(kafka_server: KafkaServer) -> AsyncIterator[AIOKafkaAdminClient]:
    """aiokafka on the same server, to look behind AMB."""
    client = AIOKafkaAdminClient(bootstrap_servers=kafka_server.address)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
def broker(make: Callable[..., KafkaBroker]) -> KafkaBroker:
    return make()


@pytest.fixture
def front(schema_registry: SchemaRegistry) -> Iterator[Front]:
    """What stands before the registry, with a password, and counts."""
    found = Front(schema_registry)
    with found.up():
        yield found


@pytest.fixture
def registered(make: Callable[..., KafkaBroker], front: Front) -> Callable[..., KafkaBroker]:
    """Builds brokers with a schema registry."""

    def build(**options: Any) -> KafkaBroker:
        given = {"schema_registry_url": front.url, "response_timeout": 5.0}
        user = {"schema_registry_username": USER, "schema_registry_password": PASSWORD}
        return make(**given | user | options)

    return build
