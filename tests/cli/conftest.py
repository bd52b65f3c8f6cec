"""A corner of the Redis server for each test: its own key prefix, handed over by the environment."""

from __future__ import annotations

import secrets

import pytest

from tests.servers.redis import RedisServer


@pytest.fixture
def redis(redis_server: RedisServer) -> dict[str, str]:
    """The variables that lead ``amb`` to a Redis where nobody else is."""
    return {
        "AMB_BROKER": "redis",
        "AMB_REDIS_URL": redis_server.url,
        "AMB_REDIS_PREFIX": f"cli-{secrets.token_hex(4)}",
    }
