"""Reads what the streams hold, oldest first, disturbing no group."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from typing import NamedTuple

from amb_core.broker import Incoming
from amb_core.errors import ConfigurationError
from amb_core.topics import compile_pattern, is_pattern

from . import _scripts
from ._servers import Servers
from ._wire import Names, from_entry

__all__ = ["replay"]

_PAGE = 100


class _Place(NamedTuple):
    """Where an entry stands among those of all topics and lanes."""

    ms: int
    serial: int
    topic: str
    lane: str


def _place(text: str) -> _Place:
    try:
        entry, lane, topic = text.split("/", 2)
        ms, _, serial = entry.partition("-")
        return _Place(int(ms), int(serial), topic, lane)
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is no position in a Redis stream: take one from a message") from error


async def replay(
    found: Servers, names: Names, pattern: str, since: float | str | None, until: float | None
) -> AsyncIterator[Incoming]:
    """See `amb_core.broker.Replays.replay`."""
    after = _place(since) if isinstance(since, str) else None
    first = (
        f"{after.ms}-{after.serial}"
        if after
        else f"{max(0, int(since * 1000))}-0"
        if isinstance(since, float | int)
        else "-"
    )
    lanes = [_Lane(found, names, topic, lane) for topic in await _topics(found, names, pattern) for lane in ("s", "x")]
    heap = list[tuple[_Place, int, list[bytes]]]()
    for index, lane in enumerate(lanes):
        await lane.begin(first, None if until is None else int(until * 1000))
        await lane.advance(heap, index)
    while heap:
        place, index, fields = heapq.heappop(heap)
        if after is None or place > after:
            entry = from_entry(fields)
            where = f"{place.ms}-{place.serial}/{place.lane}/{place.topic}"
            yield Incoming(place.topic, entry.body, entry.headers, None, entry.key, 1, where)
        await lanes[index].advance(heap, index)


async def _topics(found: Servers, names: Names, pattern: str) -> list[str]:
    if not is_pattern(pattern):
        return [pattern]
    known = await found.one(names.topics, ("SMEMBERS", names.topics), "list topics")
    return sorted(filter(compile_pattern(pattern), (topic.decode() for topic in known)))


class _Lane:
    """One stream, read page by page."""

    def __init__(self, found: Servers, names: Names, topic: str, lane: str) -> None:
        self._servers = found
        self._base = names.base(topic)
        self._key = self._base + lane.encode()
        self._topic = topic
        self._lane = lane
        self._from = "-"
        self._to = "+"
        self._page = list[tuple[bytes, list[bytes]]]()
        self._done = False

    async def begin(self, first: str, until_ms: int | None) -> None:
        """Fix both ends."""
        tails = await self._servers.one(
            self._base, _scripts.BIND.call([self._base], "", 0, 0, 0), "read the end of a stream"
        )
        self._from = first
        self._to = tails[0 if self._lane == "x" else 2].decode()
        if until_ms is not None and until_ms < int(self._to.partition("-")[0]):
            self._to = str(until_ms)

    async def advance(self, heap: list[tuple[_Place, int, list[bytes]]], index: int) -> None:
        """Put the next entry on the heap."""
        if not self._page and not self._done:
            command = ("XRANGE", self._key, self._from, self._to, "COUNT", _PAGE)
            self._page = (await self._servers.one(self._key, command, f"replay {self._topic!r}"))[::-1]
            self._done = len(self._page) < _PAGE
        if self._page:
            entry, fields = self._page.pop()
            self._from = f"({entry.decode()}"
            ms, _, serial = entry.decode().partition("-")
            heapq.heappush(heap, (_Place(int(ms), int(serial), self._topic, self._lane), index, fields))
