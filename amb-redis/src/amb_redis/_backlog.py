"""How much of some streams a group has not read, or not settled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amb_core.broker import Backlog
from redis.exceptions import ResponseError

from ._lanes import Lane
from ._links import checked
from ._servers import Servers

__all__ = ["backlog"]

#: The most streams that a server is asked about.
_MANY = 3000


async def backlog(servers: Servers, group: bytes, lanes: Sequence[Lane], doing: str) -> Backlog:
    """What there is in all of them. Redis says it from 7.0 on, unless entries were deleted by hand."""
    if len(lanes) > _MANY:
        return Backlog()
    calls: list[tuple[bytes, tuple[Any, ...]]] = []
    for lane in lanes:
        calls += [(lane.key, ("XLEN", lane.key)), (lane.key, ("XINFO", "GROUPS", lane.key))]
    replies = await servers.call(calls, doing)
    waiting: int | None = 0
    unsettled: int | None = 0
    for lane, length, groups in zip(lanes, replies[::2], replies[1::2], strict=True):
        if isinstance(groups, ResponseError):  # nobody has published to it
            continue
        size = int(checked(length, doing))
        found = next((facts for facts in map(_facts, checked(groups, doing)) if facts[b"name"] == group), None)
        if found is None:
            continue
        pending, lag = int(found[b"pending"]), found.get(b"lag")
        # What a group gets again is deleted when it is settled, so Redis cannot count what was not read.
        new = size - pending if lane.again else lag
        waiting = None if waiting is None or new is None else waiting + int(new)
        unsettled = None if unsettled is None or new is None else unsettled + int(new) + pending
    return Backlog(waiting=waiting, unsettled=unsettled)


def _facts(raw: Any) -> dict[bytes, Any]:
    return dict(raw) if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=True))
