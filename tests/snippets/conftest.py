"""A Redis where the snippets expect one."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from amb_core import MessageBus

from tests.servers.redis import RedisServer


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
