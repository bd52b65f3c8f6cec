"""Order per key: of the deliveries that share one, the first is being handled and the others wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._deliver import Delivery


class Keys:
    """Which deliveries hold their key, and which wait for it. A delivery without a key waits for nothing."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Delivery]] = {}

    def take(self, delivery: Delivery) -> bool:
        """Whether `delivery` may be handled now; else it waits here."""
        key = delivery.incoming.key
        if key is None or delivery.held_key:
            return True
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(delivery)
            return False
        self._waiting[key] = deque()
        delivery.held_key = True
        return True

    def free(self, delivery: Delivery) -> Delivery | None:
        """`delivery` lets go of its key. Returns which one holds it now, and is to be handled next."""
        key = delivery.incoming.key
        if not delivery.held_key or key is None:
            return None
        delivery.held_key = False
        waiting = self._waiting[key]
        while waiting:
            following = waiting.popleft()
            if not following.lost:
                following.held_key = True
                return following
        del self._waiting[key]
        return None

    def drain(self) -> Iterator[Delivery]:
        """Take everything that waits for a key."""
        for waiting in self._waiting.values():
            while waiting:
                yield waiting.popleft()
