"""How long things take: the metrics that cannot be read afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from ..broker import Incoming, Outgoing, Settlement, Source

HISTOGRAMS = {
    "amb_publish_seconds": "Until the broker has accepted a message, or a batch.",
    "amb_handler_seconds": "Until a handler has returned or raised.",
    "amb_settle_seconds": "Until the broker has carried out a batch of verdicts.",
}
#: In seconds: a handler takes microseconds, or as long as a language model.
BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60)


class Durations:
    """Times what one bus does. Implements `Observer`."""

    def __init__(self, system: str, record: Callable[[str, float, dict[str, str]], None]) -> None:
        self._system, self._record = system, record

    @contextmanager
    def _timed(self, name: str, **labels: str) -> Iterator[None]:
        begin, outcome = time.perf_counter(), "error"
        try:
            yield
            outcome = "ok"
        finally:
            self._record(name, time.perf_counter() - begin, {"system": self._system, **labels, "outcome": outcome})

    def sending(self, batch: Sequence[Outgoing]) -> AbstractContextManager[None]:
        """By system and outcome: topics may be many."""
        return self._timed("amb_publish_seconds")

    def received(self, source: Source, batch: Sequence[Incoming], began: int) -> None:
        """Nothing: it takes as long as nobody publishes."""

    def handling(self, source: Source, batch: Sequence[Incoming]) -> AbstractContextManager[None]:
        """By subscription too."""
        return self._timed("amb_handler_seconds", topic=source.pattern, group=source.group or "")

    def settling(
        self, source: Source, batch: Sequence[Incoming], told: Sequence[Settlement]
    ) -> AbstractContextManager[None]:
        """By subscription too."""
        return self._timed("amb_settle_seconds", topic=source.pattern, group=source.group or "")
