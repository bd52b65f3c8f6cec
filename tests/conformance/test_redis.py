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


# Sixteen at a time leave too little of two processors to keep short leases.
_JOBS = 8

TestStreams = conformance_suite(lambda: _servers.enter_context(rig_redis.streams()), jobs=_JOBS)
TestPubSub = conformance_suite(lambda: _servers.enter_context(rig_redis.pubsub()), jobs=_JOBS)
# What differs where commands go by key; the rest is the same code as above.
TestCluster = conformance_suite(lambda: _servers.enter_context(rig_redis.cluster()), sections="BCDFH", jobs=_JOBS)
