"""What holds for every test."""

from __future__ import annotations

import gc

from hypothesis import settings

# How long an example takes is the machine's doing. All else is as hypothesis has it, in CI not as elsewhere.
# It is imported before anything is frozen: as it is, it looks at who refers to whom.
settings.register_profile("amb", deadline=None)
settings.load_profile("amb")


def pytest_collection_finish() -> None:
    """Leave the collected tests and everything they import out of the garbage collector's sight.

    A full collection walks some hundred thousand objects that live as long as the run; on a busy machine the event
    loop stood still for more than half a second at a time, which is half a lease of the conformance kit."""
    gc.collect()
    gc.freeze()
