"""How often a feed may change what it reads, and how soon the client notices.

Whenever the partitions change, the client drops what it has fetched, and its next question waits on the link behind the
last one, which the server answers when there is something to read, or after half a second. Where topics keep coming, a
feed that changed at once each time would never get to read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition

from ._member import keep_questions

__all__ = ["Pace"]

#: A feed that is behind reads for so long before it changes, seconds.
_READING = 1.0
#: How long the server may keep a question while topics come, milliseconds, and how long that goes on, seconds.
_SHORT, _HURRY = 200, 3.0


class Pace:
    """Of one consumer."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._dealt = self._hurried = 0.0
        self._usual: int | None = None

    def dealt(self) -> None:
        """It reads other partitions from now on."""
        self._dealt = time.monotonic()

    def hurry(self) -> None:
        """There are new topics: more may come soon."""
        self._hurried = time.monotonic()
        if self._usual is None:
            self._usual = keep_questions(self._consumer, _SHORT)

    def may_change(self, read: Mapping[TopicPartition, int]) -> bool:
        """Whether all that it reads was read to the end, or had its time. `read`: the next offset of each partition."""
        now = time.monotonic()
        if self._usual is not None and now > self._hurried + _HURRY:
            keep_questions(self._consumer, self._usual)
            self._usual = None
        if now > self._dealt + _READING:
            return True
        ends = ((offset, self._consumer.highwater(at)) for at, offset in read.items())
        return all(end is not None and offset >= end for offset, end in ends)
