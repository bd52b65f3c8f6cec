"""The unpatched client of Azure on the common emulator. Opening a link takes it a second, so that tests share links."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import timedelta

import msgspec
import pytest
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from tests.servers.azure import ServiceBus


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def word() -> str:
    """In the name of every entity that the module makes."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
async def client(servicebus: ServiceBus) -> AsyncIterator[ServiceBusClient]:
    async with ServiceBusClient.from_connection_string(servicebus.connection_string, retry_total=0) as client:
        yield client


@pytest.fixture(scope="module")
async def admin(servicebus: ServiceBus) -> AsyncIterator[ServiceBusAdministrationClient]:
    string, ca = servicebus.connection_string, servicebus.ca
    async with ServiceBusAdministrationClient.from_connection_string(string, connection_verify=ca) as admin:
        yield admin


class Links(msgspec.Struct, frozen=True):
    """A queue with a lock of five seconds and three deliveries, and what is open to it."""

    name: str
    sender: ServiceBusSender
    receiver: ServiceBusReceiver


@pytest.fixture(scope="module")
async def queue(client: ServiceBusClient, admin: ServiceBusAdministrationClient, word: str) -> AsyncIterator[Links]:
    name = f"{word}-queue"
    await admin.create_queue(name, lock_duration=timedelta(seconds=5), max_delivery_count=3)
    async with client.get_queue_sender(name) as sender, client.get_queue_receiver(name) as receiver:
        yield Links(name, sender, receiver)
