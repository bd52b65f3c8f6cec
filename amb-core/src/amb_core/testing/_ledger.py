"""The accounting rule: what was published, what became of it, and who got it how often."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from .._message import Message
from ..errors import PublishUnknown
from ._wait import eventually, stays

Fate = Literal["ok", "failed", "unknown"]
Then = Callable[[Message], Any]


class Seen(msgspec.Struct, frozen=True):
    """One call of a handler."""

    id: str
    topic: str
    data: Any
    headers: dict[str, str]
    attempt: int
    time: float
    group: str | None
    handler: str
    message: Message


class Recorder:
    """A handler that remembers every call, then does `then(message)`, which may be async."""

    def __init__(self, ledger: Ledger, name: str, group: str | None, then: Then | None) -> None:
        self._ledger, self.name, self.group, self.then = ledger, name, group, then
        self.seen: list[Seen] = []

    async def __call__(self, message: Message) -> Any:
        data = list(message.data) if isinstance(message.data, list) else message.data
        seen = Seen(
            message.id,
            message.topic,
            data,
            dict(message.headers),
            message.attempt,
            time.monotonic(),
            self.group,
            self.name,
            message,
        )
        self.seen.append(seen)
        self._ledger.deliveries.append(seen)
        result = None if self.then is None else self.then(message)
        return await result if inspect.isawaitable(result) else result

    @property
    def ids(self) -> list[str]:
        """The id of every call's message."""
        return [seen.id for seen in self.seen]

    @property
    def data(self) -> list[Any]:
        """The data of every call's message."""
        return [seen.data for seen in self.seen]

    @property
    def attempts(self) -> list[int]:
        """The attempt of every call's message."""
        return [seen.attempt for seen in self.seen]

    async def reaches(self, count: int, within: float = 10.0) -> None:
        """Wait until there were `count` calls."""
        await eventually(
            lambda: len(self.seen) >= count, lambda: f"{self.name} was called {len(self.seen)} of {count} times", within
        )

    async def stays_at(self, count: int, seconds: float) -> None:
        """Watch for `seconds` that there are no more than `count` calls."""
        await stays(
            lambda: len(self.seen) <= count,
            lambda: (
                f"{self.name} was called {len(self.seen)} times instead of {count}; the last with {self.data[-1]!r}"
            ),
            seconds,
        )


class Ledger:
    """Records each publish as ok, failed or unknown and each delivery; says what was lost."""

    def __init__(self, prefix: str, confirm: bool) -> None:
        self._prefix, self._confirm, self._count = prefix, confirm, 0
        self.fates: dict[str, Fate] = {}
        self.deliveries: list[Seen] = []

    def recorder(self, name: str = "the handler", group: str | None = None, then: Then | None = None) -> Recorder:
        """A handler that this ledger counts."""
        return Recorder(self, name, group, then)

    async def publish(
        self, bus: Any, topic: str, data: Any = None, *, delay: float | None = None, **fields: Any
    ) -> str:
        """Publish and return the id. Raises what the bus raises, after recording it."""
        self._count += 1
        id = f"{self._prefix}-{self._count}"
        message = Message(topic, data, id=id, **fields)
        options: dict[str, Any] = {} if delay is None else {"delay": delay}
        try:
            await bus.publish(message, wait_for_confirmation=self._confirm, **options)
        except PublishUnknown:
            self.fates[id] = "unknown"
            raise
        except BaseException:
            self.fates[id] = "failed"
            raise
        self.fates[id] = "ok"
        return id

    async def publish_many(self, bus: Any, topic: str, values: Iterable[Any], **fields: Any) -> list[str]:
        """Publish each of `values` in order and return the ids."""
        return [await self.publish(bus, topic, value, **fields) for value in values]

    def fated(self, *fates: Fate) -> set[str]:
        """The ids of the publishes that ended so."""
        return {id for id, fate in self.fates.items() if fate in fates}

    def missing(self, recorders: Sequence[Recorder], ids: Iterable[str] | None = None) -> set[str]:
        """What was accepted and none of the recorders got."""
        expected = self.fated("ok") if ids is None else set(ids)
        return expected.difference(*(recorder.ids for recorder in recorders))

    async def drained(self, *recorders: Recorder, ids: Iterable[str] | None = None, within: float = 20.0) -> None:
        """Wait until the recorders together got everything that was accepted."""
        expected = self.fated("ok") if ids is None else set(ids)
        await eventually(
            lambda: (
                sum(len(recorder.seen) for recorder in recorders) >= len(expected)
                and not self.missing(recorders, expected)
            ),
            lambda: _lost(self.missing(recorders, expected), expected),
            within,
        )

    def check(self, *recorders: Recorder, ids: Iterable[str] | None = None, duplicates: int = 0) -> None:
        """Nothing accepted is lost, nothing came that was not tried, and at most `duplicates` came twice."""
        expected = self.fated("ok") if ids is None else set(ids)
        counts = Counter(id for recorder in recorders for id in recorder.ids)
        tried = set(self.fates) if ids is None else expected
        lost, unexpected = expected - set(counts), set(counts) - tried
        twice = sum(count - 1 for count in counts.values())
        assert not lost, _lost(lost, expected)
        assert not unexpected, f"{len(unexpected)} deliveries of nothing that was published: {sorted(unexpected)[:8]}"
        again = sorted(id for id, count in counts.items() if count > 1)[:8]
        assert twice <= duplicates, f"{twice} duplicates, {duplicates} allowed: {again}"


def _lost(lost: set[str], expected: set[str]) -> str:
    return f"lost {len(lost)} of {len(expected)}: {sorted(lost)[:8]}"
