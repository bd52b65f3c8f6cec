"""Brokers with subjects and a stream of their own on the common server. The client runs on asyncio only."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import nats
import pytest
from amb_nats import NatsBroker
from nats.aio.client import Client

from tests.servers.nats import NatsServer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def word() -> str:
    """The first word of everything that the test puts on the server."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def core(nats_server: NatsServer) -> NatsBroker:
    return NatsBroker(nats_server.url)


@pytest.fixture
def make(nats_server: NatsServer, word: str) -> Callable[..., NatsBroker]:
    """Builds JetStream brokers that share the test's stream."""
    common = NatsBroker(nats_server.url, jetstream=True, stream_name=word, subject_prefix=word)

    def build(**options: Any) -> NatsBroker:
        return msgspec.structs.replace(common, **options)

    return build


@pytest.fixture
def stored(make: Callable[..., NatsBroker]) -> NatsBroker:
    return make()


@pytest.fixture
async def native(nats_server: NatsServer) -> AsyncIterator[Client]:
    """nats-py on the same server, to look behind AMB."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()
