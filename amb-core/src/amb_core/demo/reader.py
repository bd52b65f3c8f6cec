"""The reader: announces every commit and file, and says at the end how many there were."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from itertools import islice

from amb_core import Message, MessageBus, PartialFailure, PublishUnknown

from .messages import Commit, Done, File, Manifest
from .rollcall import wait_for
from .source import Source

BATCH = 50


async def read(bus: MessageBus, source: Source) -> None:
    """Publish one event for each commit and file of `source`, as soon as somebody listens."""
    await wait_for(bus, {"analyst", "reviewer", "governor", "watcher"})
    run, total = secrets.token_hex(4), 0
    for works in _batches([*source.files, *source.commits]):
        ids = [f"{run}-{total + n}" for n in range(len(works))]
        total += len(works)
        messages = [
            Message(_topic(work), work, id=ident, sender="reader") for ident, work in zip(ids, works, strict=True)
        ]
        await _announce(bus, messages)
        names = {ident: work.name for ident, work in zip(ids, works, strict=True)}
        await bus.publish("agents.reader.manifest", Manifest(names), sender="reader", wait_for_confirmation=True)
    await bus.publish("agents.reader.done", Done(total), sender="reader", wait_for_confirmation=True)


async def _announce(bus: MessageBus, messages: list[Message]) -> None:
    """Publish; and again, with the same ids, what nobody knows the broker to have."""
    while messages:
        try:
            await bus.publish_batch(messages)
            return
        except PartialFailure as failure:
            for error in failure.errors.values():
                if not isinstance(error, PublishUnknown):
                    raise error from failure
            messages = [messages[index] for index in failure.errors]


def _topic(work: File | Commit) -> str:
    return "agents.work.file" if isinstance(work, File) else "agents.work.commit"


def _batches(works: Iterable[File | Commit]) -> Iterator[list[File | Commit]]:
    rest = iter(works)
    while batch := list(islice(rest, BATCH)):
        yield batch
