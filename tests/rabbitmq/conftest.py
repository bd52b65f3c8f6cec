"""Brokers with an exchange of their own on the common server. The client runs on asyncio only."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aio_pika
import msgspec
import pytest
from aio_pika.abc import AbstractChannel
from amb_rabbitmq import RabbitMQBroker

from tests.servers import rabbitmq as servers
from tests.servers.plugin import _provide
from tests.servers.rabbitmq import RabbitServer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def node() -> Iterator[RabbitServer]:
    """A node that a test may do anything to, as long as it is well again afterwards. Its certificate has expired."""
    yield from _provide(servers.alone(expired=True))


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


@pytest.fixture
async def native(rabbitmq_server: RabbitServer) -> AsyncIterator[AbstractChannel]:
    """aio-pika on the same server: a client that knows nothing of AMB."""
    async with await aio_pika.connect(rabbitmq_server.url) as connection:
        yield await connection.channel()
