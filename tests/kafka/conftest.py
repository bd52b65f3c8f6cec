"""Brokers on the common server, with topics of their own. Kafka's client runs on asyncio only."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from amb_kafka import KafkaBroker

from tests.servers.kafka import KafkaServer


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
def broker(make: Callable[..., KafkaBroker]) -> KafkaBroker:
    return make()
