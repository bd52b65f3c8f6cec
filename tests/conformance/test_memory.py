"""The conformance kit on the memory broker, on three event loops."""

from __future__ import annotations

import msgspec
import pytest
from amb_core.testing import Rig, conformance_suite

from .backends import memory

# The first test of a class runs all of its cases.
pytestmark = pytest.mark.timeout(300)


def whole() -> Rig:
    """Everything, once."""
    with memory() as rig:
        return rig


def quick() -> Rig:
    """Without what takes long by its nature, and with small numbers."""
    return msgspec.structs.replace(whole(), quick=True)


TestMemory = conformance_suite(whole)
TestMemoryOnUvloop = conformance_suite(quick, backend="uvloop")
TestMemoryOnTrio = conformance_suite(quick, backend="trio")
