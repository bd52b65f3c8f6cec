"""Brokers with an exchange of their own on the common server. The client runs on asyncio only."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from amb_rabbitmq import RabbitMQBroker

from tests.servers.rabbitmq import RabbitServer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make(rabbitmq_server: RabbitServer) -> Callable[..., RabbitMQBroker]:
    """Builds brokers that share the test's exchange."""
    common = RabbitMQBroker(rabbitmq_server.url, exchange=f"t{secrets.token_hex(4)}")

    def build(**options: Any) -> RabbitMQBroker:
        return msgspec.structs.replace(common, **options)

    return build


@pytest.fixture
def broker(make: Callable[..., RabbitMQBroker]) -> RabbitMQBroker:
    return make()
