"""How much of some partitions a group has not settled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition
from amb_core.broker import Backlog

from ._errors import NATIVE, translate
from ._member import Member

__all__ = ["backlog"]


async def backlog(consumer: Any, member: Member, counts: Mapping[str, int], doing: str) -> Backlog:
    """Of the topics with so many partitions each, whoever reads them; without what waits for another try."""
    partitions = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
    if not partitions:
        return Backlog(unsettled=0)
    try:
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        settled = await member.progress(partitions)
    except NATIVE as error:
        raise translate(error, doing) from error
    return Backlog(unsettled=sum(settled[at].left(begins[at], ends[at]) for at in partitions))
