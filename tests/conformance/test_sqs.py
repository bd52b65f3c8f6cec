"""The conformance kit on SQS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from amb_core.testing import conformance_suite

from . import rig_sqs

# The first test of a class runs all of its cases.
pytestmark = pytest.mark.timeout(900)

_servers = ExitStack()


@pytest.fixture(scope="module", autouse=True)
def stop_servers() -> Iterator[None]:
    """What the suites started ends with the module."""
    with _servers:
        yield


# The emulator takes one processor and the client another: more at a time only wait for each other.
_JOBS = 6

TestSqs = conformance_suite(lambda: _servers.enter_context(rig_sqs.sqs()), jobs=_JOBS)
