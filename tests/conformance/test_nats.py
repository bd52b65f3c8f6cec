"""The conformance kit on NATS: core NATS and JetStream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from amb_core.testing import conformance_suite

from . import rig_nats

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

TestCore = conformance_suite(lambda: _servers.enter_context(rig_nats.core()), jobs=_JOBS)
TestJetStream = conformance_suite(lambda: _servers.enter_context(rig_nats.jetstream()), jobs=_JOBS)
