"""What the memory broker remembers of past messages: for replay, and for groups that start "earliest"."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from .broker import Outgoing

__all__ = ["History", "Record"]

#: The message's number, when it was accepted, and the message.
Record: TypeAlias = tuple[int, float, Outgoing]

#: All topics together keep this many times the messages of one topic, and about this many bytes.
TOPICS: Final = 10
BYTES: Final = 64 * 1024 * 1024
#: The bounds over all topics are checked after about this many bytes, counting `OVERHEAD` for each message.
CHECK_AFTER: Final = 16 * 1024 * 1024
OVERHEAD: Final = 4096


class History:
    """The last messages of each topic; the oldest of all are forgotten first."""

    def __init__(self, per_topic: int) -> None:
        self.per_topic = per_topic
        #: Falls with every message; below zero, `trim` is due.
        self.credit = CHECK_AFTER
        self._topics: dict[str, deque[Record]] = {}

    def of(self, topic: str) -> deque[Record] | None:
        """Where the messages of `topic` are kept; None: nothing is."""
        if not self.per_topic:
            return None
        records = self._topics.get(topic)
        if records is None:
            records = self._topics[topic] = deque(maxlen=self.per_topic)
        return records

    def forget_unused(self) -> None:
        """Drop topics of which nothing is kept, such as those to which publishing failed."""
        for topic in [topic for topic, records in self._topics.items() if not records]:
            del self._topics[topic]

    def trim(self) -> bool:
        """Forget what exceeds the bounds over all topics. True: some topics are gone altogether."""
        self.credit = CHECK_AFTER
        cut = self._cut()
        if not cut:
            return False
        before = len(self._topics)
        for records in self._topics.values():
            while records and records[0][0] <= cut:
                records.popleft()
        self.forget_unused()
        return len(self._topics) < before

    def _cut(self) -> int:
        """The number of the newest message to forget; 0: none."""
        messages, size = self.per_topic * TOPICS, 0
        for count, (number, _, message) in enumerate(reversed(self._sorted(self._topics.values()))):
            size += len(message.body)
            if count >= messages or size > BYTES:
                return number
        return 0

    def matching(self, matches: Callable[[str], bool]) -> list[Record]:
        """The messages whose topic `matches`, oldest first."""
        return self._sorted(records for topic, records in self._topics.items() if matches(topic))

    @staticmethod
    def _sorted(topics: Iterable[deque[Record]]) -> list[Record]:
        # Each topic is in order already, which makes this a merge; numbers are unique, so no message is compared.
        return sorted(record for records in topics for record in records)
