"""The reader: announces every commit and file, and says at the end how many there were."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from itertools import islice

from amb_core import Message, MessageBus

from .messages import Commit, Done, File, Manifest
from .rollcall import wait_for
from .source import Source
from .tell import tell

BATCH = 50


async def read(bus: MessageBus, source: Source) -> None:
    """Publish one event for each commit and file of `source`, as soon as somebody listens."""
    await wait_for(bus, {"analyst", "reviewer", "governor", "watcher"})
    run, total = secrets.token_hex(4), 0
    for works in _batches([*source.files, *source.commits]):
        ids = [f"{run}-{total + n}" for n in range(len(works))]
        total += len(works)
        await tell(bus, *(_message(_topic(work), work, ident) for ident, work in zip(ids, works, strict=True)))
        names = {ident: work.name for ident, work in zip(ids, works, strict=True)}
        await tell(bus, _message("agents.reader.manifest", Manifest(names), f"{ids[0]}-manifest"))
    await tell(bus, _message("agents.reader.done", Done(total), f"{run}-done"))


def _message(topic: str, data: object, ident: str) -> Message:
    return Message(topic, data, id=ident, sender="reader")


def _topic(work: File | Commit) -> str:
    return "agents.work.file" if isinstance(work, File) else "agents.work.commit"


def _batches(works: Iterable[File | Commit]) -> Iterator[list[File | Commit]]:
    rest = iter(works)
    while batch := list(islice(rest, BATCH)):
        yield batch
