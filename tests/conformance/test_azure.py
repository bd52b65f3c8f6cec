"""The conformance kit on Service Bus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from amb_core.testing import conformance_suite

from . import rig_azure

# The first test of a class runs all of its cases.
pytestmark = pytest.mark.timeout(900)

_servers = ExitStack()


@pytest.fixture(scope="module", autouse=True)
def stop_servers() -> Iterator[None]:
    """What the suite started ends with the module."""
    with _servers:
        yield


# The client is Python, as are the service and the cases: more at a time leave each too little of two processors.
TestServiceBus = conformance_suite(lambda: _servers.enter_context(rig_azure.servicebus()), jobs=6)
