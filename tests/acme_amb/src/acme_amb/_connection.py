"""A folder, and who listens to it in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.lowlevel
from amb_core.broker import Connection, Feed, Outgoing, Source

from ._feed import AcmeFeed
from ._spool import Spool, translated
from .broker import AcmeBroker


@asynccontextmanager
async def connect(broker: AcmeBroker) -> AsyncIterator[Connection]:
    """See `amb_core.broker.Broker.connect`."""
    yield AcmeConnection(broker, Path(broker.folder.removeprefix("acme://")))


class AcmeConnection:
    """Implements `amb_core.broker.Connection` and `ReportsHealth`."""

    def __init__(self, broker: AcmeBroker, folder: Path) -> None:
        self._broker, self._folder = broker, folder
        with translated(folder):
            self._spool = Spool(folder, broker.sync)
        self._feeds: set[AcmeFeed] = set()

    async def send(self, batch: Sequence[Outgoing]) -> None:
        await anyio.lowlevel.checkpoint()
        with translated(self._folder):
            for message in batch:
                self._spool.put(message)
        for feed in self._feeds:
            feed.news.set()

    @asynccontextmanager
    async def open(self, source: Source) -> AsyncIterator[Feed]:
        with translated(self._folder):
            queue = self._spool.join(source.pattern, source.group)
        feed = AcmeFeed(queue, self._broker, source)
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)
            with translated(self._folder):
                if source.group is None:
                    self._spool.drop(queue)
                else:
                    feed.leave()

    async def ping(self) -> Mapping[str, str]:
        with translated(self._folder):
            return {"folder": str(self._folder), "queues": str(len(list(self._folder.glob("[ao]*-*"))))}
