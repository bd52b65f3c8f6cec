"""How the partitions of a group are dealt out: evenly, but none to a member that is stuck.

A member whose handlers are all busy takes nothing more, and a partition goes to one member at a time. So that messages
do not wait behind a handler that runs for minutes, a busy member says so when it joins, and sits out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

__all__ = ["Assignor"]

_BUSY = b"busy"


class Assignor:
    """What aiokafka asks for this; one for each member."""

    name = "amb"

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        #: It was busy when it joined last.
        self.sat_out = False
        #: How many members there were then.
        self.members = 1

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """What this member tells whoever deals."""
        self.sat_out = self._busy()
        return ConsumerProtocolMemberMetadata(0, sorted(topics), _BUSY if self.sat_out else b"")

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """What this member is told."""
        self.members = int(assignment.user_data or b"1")

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Deal for all."""
        topics = sorted({topic for one in members.values() for topic in one.subscription})
        hands: dict[str, list[tuple[str, list[int]]]] = {member: [] for member in members}
        loads = dict.fromkeys(members, 0)
        for topic in topics:
            takers = sorted(member for member, one in members.items() if topic in one.subscription)
            takers = [member for member in takers if members[member].user_data != _BUSY] or takers
            dealt: dict[str, list[int]] = {member: [] for member in takers}
            for partition in sorted(cluster.partitions_for_topic(topic) or ()):
                next_one = min(takers, key=lambda member: (len(dealt[member]), loads[member], member))
                dealt[next_one].append(partition)
                loads[next_one] += 1
            for member, partitions in dealt.items():
                if partitions:
                    hands[member].append((topic, partitions))
        count = str(len(members)).encode()
        return {member: ConsumerProtocolMemberAssignment(0, hand, count) for member, hand in hands.items()}
