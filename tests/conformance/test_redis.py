"""The conformance kit on Redis: Streams, pub/sub and a Cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from amb_core.testing import conformance_suite

from . import rig_redis

# The first test of a class runs all of its cases.
pytestmark = pytest.mark.timeout(900)

_servers = ExitStack()


@pytest.fixture(scope="module", autouse=True)
def stop_servers() -> Iterator[None]:
    """What the suites started ends with the module."""
    with _servers:
        yield


TestStreams = conformance_suite(lambda: _servers.enter_context(rig_redis.streams()))
TestPubSub = conformance_suite(lambda: _servers.enter_context(rig_redis.pubsub()))
TestCluster = conformance_suite(lambda: _servers.enter_context(rig_redis.cluster()))
