"""What holds for every test."""

from __future__ import annotations

import gc

import pytest


def pytest_collection_finish() -> None:
    """Leave the collected tests and everything they import out of the garbage collector's sight.

    A full collection walks some hundred thousand objects that live as long as the run; on a busy machine the event
    loop stood still for more than half a second at a time, which is half a lease of the conformance kit."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """What comes now looks at who refers to whom: hypothesis does, once it is imported for its summary."""
    gc.unfreeze()
