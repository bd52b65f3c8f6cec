"""A handler that remembers, and waiting with a deadline."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from amb_core import DeadLetterQueue, Message, MessageBus
from amb_core.testing._wait import eventually, stays

__all__ = ["DLQ", "Collector", "dead_letters", "eventually", "later", "stays"]

#: A dead-letter queue that adds no retries of its own.
DLQ = DeadLetterQueue("dead", max_retries=0)


class Collector:
    """A handler that keeps every message it is given, and raises `error` on the first `failures` of them."""

    def __init__(self, error: BaseException | None = None, failures: int = 1 << 30) -> None:
        self.messages: list[Message] = []
        self._error, self._failures = error, failures

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        if self._error is not None and len(self.messages) <= self._failures:
            raise self._error

    @property
    def data(self) -> list[Any]:
        return [message.data for message in self.messages]

    async def wait(self, count: int = 1, within: float = 10.0) -> list[Message]:
        """The messages, as soon as there are `count`."""
        await eventually(
            lambda: len(self.messages) >= count, lambda: f"{count} messages, got {len(self.messages)}", within
        )
        return self.messages


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on it is so much later for whoever looks whether a message has expired."""
    monkeypatch.setattr("amb_core._deliver.time", SimpleNamespace(time=lambda: time.time() + seconds))


async def dead_letters(bus: MessageBus) -> Collector:
    """A collector of what goes to `DLQ`."""
    collector = Collector()
    await bus.subscribe(DLQ.topic, collector)
    return collector
