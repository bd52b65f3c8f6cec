"""A queue of six priority lanes in which no lane starves.

The core keeps what it has fetched and not started in one of these; a backend that hands out
higher priorities first may do the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

__all__ = ["LANES", "PATIENCE", "Lanes", "is_express"]

T = TypeVar("T")

#: Priorities 0 (CRITICAL) to 5 (BACKGROUND).
LANES: Final = 6
#: How many items in a row may overtake one that waits in a lower lane.
PATIENCE: Final = 15


def is_express(priority: int) -> bool:
    """Whether a broker that has two lanes and no more carries it in the faster one: CRITICAL, URGENT and HIGH."""
    return priority < 3


# Which lanes hold something is one number, bit 0 for lane 0; these turn it into the highest and the
# lowest of them without a loop.
_HIGHEST: Final = tuple(max((mask & -mask).bit_length() - 1, 0) for mask in range(1 << LANES))
_LOWEST: Final = tuple(max(mask.bit_length() - 1, 0) for mask in range(1 << LANES))


class Lanes(Generic[T]):
    """First in, first out within a lane; higher lanes (lower numbers) first.

    After `PATIENCE` pops in a row that passed over a waiting lane, a lower lane gets a turn: the lowest
    that waits, and if several wait each time the next one up, so that the middle lanes progress too.
    Every operation takes constant time. Truth value: whether anything waits.
    """

    __slots__ = ("_lanes", "_overtaken", "_turn", "waiting")

    def __init__(self) -> None:
        self._lanes: tuple[deque[T], ...] = tuple(deque() for _ in range(LANES))
        #: A bit for each lane in which something waits, cheaper to ask for than the truth value. Read only.
        self.waiting = 0
        self._overtaken = 0
        self._turn = LANES

    def push(self, priority: int, item: T) -> None:
        """Put `item` behind what waits in the lane `priority`. Raises: IndexError, ValueError if it is not 0 to 5."""
        bit = 1 << priority
        self._lanes[priority].append(item)
        self.waiting |= bit

    def push_front(self, priority: int, item: T) -> None:
        """Put `item` before what waits in the lane `priority`: it was out already and came back."""
        bit = 1 << priority
        self._lanes[priority].appendleft(item)
        self.waiting |= bit

    def pop(self) -> T:
        """The next item. Raises: IndexError when nothing waits."""
        waiting = self.waiting
        index = _HIGHEST[waiting]
        if waiting & (waiting - 1):
            index = self._choose(index)
        elif self._overtaken:
            self._overtaken = 0
        lane = self._lanes[index]
        item = lane.popleft()
        if not lane:
            self.waiting = waiting & ~(1 << index)
        return item

    def _choose(self, highest: int) -> int:
        """Several lanes wait: the highest, unless it has had its share."""
        if self._overtaken < PATIENCE:
            self._overtaken += 1
            return highest
        self._overtaken = 0
        lower = self.waiting & (self.waiting - 1)
        self._turn = _LOWEST[lower & ((1 << self._turn) - 1) or lower]
        return self._turn

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def __bool__(self) -> bool:
        return self.waiting != 0

    def __iter__(self) -> Iterator[T]:
        """What waits, highest lane first, without taking it."""
        for lane in self._lanes:
            yield from lane
