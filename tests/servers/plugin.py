"""Fixtures for servers: each is started once per test run, when the first test asks for it.

``AMB_TEST_REDIS_URL`` names a server to use instead of a new one. Where a server's program is missing, its tests are
skipped with a line that says how to get it; under ``CI=true`` they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import pytest

from . import redis
from .process import MissingServer, in_ci

T = TypeVar("T")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[redis.RedisServer]:
    """A Redis of its own, or the one of ``AMB_TEST_REDIS_URL``."""
    yield from _provide(redis.alone(os.environ.get("AMB_TEST_REDIS_URL")))


@pytest.fixture(scope="session")
def own_redis_server() -> Iterator[redis.RedisServer]:
    """A Redis that a test may stop, kill and freeze."""
    yield from _provide(redis.alone())


@pytest.fixture(scope="session")
def secure_redis() -> Iterator[redis.SecureRedis]:
    """A Redis with TLS and users."""
    yield from _provide(redis.secure())


@pytest.fixture
def redis_sentinel() -> Iterator[redis.RedisSentinel]:
    """A master and a replica under a Sentinel. For one test: after a failover they have changed places."""
    yield from _provide(redis.sentinel())


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[redis.RedisCluster]:
    """A Redis Cluster of three masters."""
    yield from _provide(redis.cluster())


def _provide(server: AbstractContextManager[T]) -> Iterator[T]:
    try:
        value = server.__enter__()
    except MissingServer as missing:
        if in_ci():
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    try:
        yield value
    finally:
        server.__exit__(None, None, None)
