"""Brokers with a prefix of their own on the common server. Redis clients run on asyncio only."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis
from amb_redis import RedisBroker

from tests.servers.redis import RedisServer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def prefix() -> str:
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def make(redis_server: RedisServer, prefix: str) -> Callable[..., RedisBroker]:
    """Builds brokers that share the test's prefix, with a lease that nothing outlasts by accident."""
    common = RedisBroker(redis_server.url, prefix=prefix, lease=30.0)

    def build(**options: Any) -> RedisBroker:
        return msgspec.structs.replace(common, **options)

    return build


@pytest.fixture
def broker(make: Callable[..., RedisBroker]) -> RedisBroker:
    return make()


@pytest.fixture
def native(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """redis-py on the same server, to look behind AMB."""
    with redis.Redis.from_url(redis_server.url) as client:
        yield client
