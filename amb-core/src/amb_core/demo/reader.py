"""The reader: announces every commit and file, and says at the end how many there were."""

from __future__ import annotations

from amb_core import MessageBus

from .messages import Done, Manifest
from .rollcall import wait_for
from .source import Source

CHUNK = 100


async def read(bus: MessageBus, source: Source) -> None:
    """Publish one event for each commit and file of `source`, as soon as somebody listens."""
    await wait_for(bus, {"analyst", "reviewer", "governor", "watcher"})
    announced: dict[str, str] = {}
    for topic, works in (("agents.work.file", source.files), ("agents.work.commit", source.commits)):
        for work in works:
            announced[await bus.publish(topic, work, sender="reader", wait_for_confirmation=True)] = work.name
    entries = list(announced.items())
    for begin in range(0, len(entries), CHUNK):
        await bus.publish("agents.reader.manifest", Manifest(dict(entries[begin : begin + CHUNK])), sender="reader")
    await bus.publish("agents.reader.done", Done(len(entries)), sender="reader")
