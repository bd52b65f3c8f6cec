"""Deliveries whose partition goes to another member while their handlers run.

Before a partition is given up, its unfinished deliveries move: a copy of each is stored in a partition of the group's
retry topic that is kept for this, under the id of the member whose handler runs, and the original counts as settled.
When the handler is done, a note of it follows the copy. Whoever reads that partition hands out the copies that were
given back, and those whose member is gone without a note. So a rebalance waits for no handler, and no message is
handled twice because of one.
"""

from __future__ import annotations

from typing import Any

from amb_core.broker import Incoming

from ._wire import Entry

__all__ = ["HOLDS", "TIERS", "Held", "members_in"]

#: Delays up to so many seconds share a partition of the group's retry topic, and so do longer ones: a long delay is
#: never in front of a short one.
TIERS = (2.0, 30.0, 600.0)
#: The number of the partition for copies of unfinished deliveries.
HOLDS = len(TIERS) + 1


class Held:
    """The copies that were read and have no note yet, by id: the member whose handler runs, and a number."""

    def __init__(self) -> None:
        self._held: dict[str, Incoming] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def clear(self) -> None:
        """Somebody else reads them from now on."""
        self._held.clear()

    def read(self, entry: Entry, incoming: Incoming) -> tuple[list[Incoming], list[Incoming]]:
        """Take a record of the partition. Returns what is to be handed out, and what is finished."""
        assert entry.held is not None
        if entry.note is None:
            self._held[entry.held] = incoming
            return [], []
        copy = self._held.pop(entry.held, None)
        if copy is None:
            return [], [incoming]
        return ([copy], [incoming]) if entry.note == "back" else ([], [copy, incoming])

    def without(self, members: set[str]) -> list[str]:
        """The ids of those whose member is not among these."""
        return [held for held in self._held if held.rpartition("/")[0] not in members]

    def give(self, ids: list[str]) -> list[Incoming]:
        """Hand these out."""
        return [self._held.pop(held) for held in ids if held in self._held]


def members_in(descriptions: Any) -> set[str]:
    """The ids in Kafka's description of a group; empty where it gave none."""
    return {member[0] for answer in descriptions for one in answer.groups if not one[0] for member in one[5]}
