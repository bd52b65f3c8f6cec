"""Brokers on the common emulator, topics of each test's own, and the unpatched client beside them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from amb_azure import AzureServiceBusBroker
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from tests.servers.azure import ServiceBus


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def topic() -> str:
    """The first word of a test's topics."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def make(servicebus: ServiceBus) -> Callable[..., AzureServiceBusBroker]:
    """Builds brokers whose locks do not run out during a test, unless it asks for that."""
    common = AzureServiceBusBroker(servicebus.connection_string, lock_duration=30.0, response_timeout=4.0)

    def build(**options: Any) -> AzureServiceBusBroker:
        return msgspec.structs.replace(common, **options)

    return build


@pytest.fixture
def broker(make: Callable[..., AzureServiceBusBroker]) -> AzureServiceBusBroker:
    return make()


@pytest.fixture
async def native(servicebus: ServiceBus) -> AsyncIterator[ServiceBusClient]:
    """azure-servicebus itself."""
    async with ServiceBusClient.from_connection_string(servicebus.connection_string) as client:
        yield client


@pytest.fixture
async def admin(servicebus: ServiceBus) -> AsyncIterator[ServiceBusAdministrationClient]:
    """The administration, to look behind AMB."""
    async with ServiceBusAdministrationClient.from_connection_string(
        servicebus.connection_string, connection_verify=servicebus.ca
    ) as client:
        yield client
