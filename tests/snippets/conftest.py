"""Servers where the snippets expect them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from amb_core import MessageBus

from tests.servers.redis import RedisServer
from tests.servers.sqs import KEY, SECRET


@pytest.fixture
def redis_url(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server that ``broker="redis"`` means from now on, with keys that no other test has."""
    monkeypatch.setenv("AMB_REDIS_URL", redis_server.url)
    monkeypatch.setenv("AMB_REDIS_PREFIX", f"snippet-{uuid.uuid4().hex[:8]}")
    return redis_server.url


@pytest_asyncio.fixture
async def other(redis_url: str) -> AsyncIterator[MessageBus]:
    """Somebody else on the same Redis."""
    async with MessageBus("redis") as bus:
        yield bus


#: By the broker's name: the fixture of its server, and what of it the variables tell.
VARIABLES = {
    "redis": ("redis_server", {"URL": "url"}),
    "kafka": ("kafka_server", {"BROKERS": "address"}),
    "nats": ("nats_server", {"URL": "url"}),
    "rabbitmq": ("rabbitmq_server", {"URL": "url"}),
    "sqs": ("sqs_server", {"ENDPOINT_URL": "url"}),
    "azure": ("servicebus", {"CONNECTION_STRING": "connection_string"}),
}
#: What keeps tests on one server apart, where a broker has such a thing.
APART = {"redis": "PREFIX", "rabbitmq": "EXCHANGE", "sqs": "QUEUE_PREFIX", "azure": "TOPIC_NAME"}


@pytest.fixture
def everywhere(broker: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``broker=`` with the name of the test's broker mean a real server of it."""
    if broker == "memory":
        return
    fixture, told = VARIABLES[broker]
    server = request.getfixturevalue(fixture)
    settings = {name: getattr(server, field) for name, field in told.items()}
    if broker in APART:
        settings[APART[broker]] = f"snippet-{uuid.uuid4().hex[:8]}"
    if broker == "sqs":
        settings |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    for name, value in settings.items():
        monkeypatch.setenv(f"AMB_{broker}_{name}".upper(), value)
