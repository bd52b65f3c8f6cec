"""Order per key: one member at a time gets a group's messages, and when that changes, or its link broke, the next
message waits until everything before it is accounted for. The server pins the member; see NATS's ADR-42."""

from __future__ import annotations

from typing import Any

import msgspec
from amb_core.errors import AccessDenied, NotFound, UnsupportedError

from ._lease import Standing
from ._stream import Stream
from ._wire import NANO

__all__ = ["Pin"]

_GROUP = "amb"
_HEADER = "Nats-Pin-Id"
_SINCE = (2, 11)
#: The server gives up on a silent member after so many seconds, or this part of a lease: it is heard from every four
#: seconds while it has nothing to do, and every half of a lease otherwise.
_SILENCE, _OF_LEASE = 6.0, 0.75


class Pin:
    """Whether we are the member whose turn it is."""

    def __init__(self, stream: Stream, consumer: str, standing: Standing, lease: float) -> None:
        if stream.version < _SINCE:
            raise UnsupportedError("order per key needs a NATS server 2.11 or newer")
        self._stream, self._consumer, self._standing = stream, consumer, standing
        self._timeout = int(max(_SILENCE, _OF_LEASE * lease) * NANO)
        #: Everything that is under way in the group is ours.
        self.sure = False

    @property
    def id(self) -> str | None:
        """What the server calls the member whose turn it is, if that is us."""
        return self._standing.pin

    @property
    def config(self) -> dict[str, Any]:
        """What makes the server pin."""
        return {"priority_groups": [_GROUP], "priority_policy": "pinned_client", "priority_timeout": self._timeout}

    def request(self) -> dict[str, str]:
        """What a request for messages says."""
        return {"group": _GROUP} if self.id is None else {"group": _GROUP, "id": self.id}

    def keep(self) -> bytes:
        """A request that keeps the pin and gets nothing."""
        return msgspec.json.encode({"batch": 1, "max_bytes": 1, "no_wait": True, **self.request()})

    def seen(self, headers: dict[str, str]) -> None:
        """A message has come: it is our turn."""
        given = headers.pop(_HEADER, None)
        if given != self.id:
            self._standing.pin, self.sure = given, False

    def lost(self) -> None:
        """It is somebody else's turn."""
        self._standing.pin, self.sure = None, False

    async def check(self, ours: int) -> None:
        """Find out whether others still have something under way; until not, nothing new is handed out to us."""
        found = await self._stream.consumer(self._consumer)
        if found is None:
            raise NotFound(f"the consumer {self._consumer!r} is gone")
        self.sure = found["num_ack_pending"] <= ours
        wanted = -1 if self.sure else 1
        if found["config"].get("max_ack_pending") != wanted:
            config = found["config"] | {"max_ack_pending": wanted}
            await self._stream.make_consumer(self._consumer, config, "keep the order of keys")

    async def leave(self) -> None:
        """Let another member have its turn at once."""
        if self.id is not None:
            try:
                await self._stream.ask(
                    f"CONSUMER.UNPIN.{self._stream.name}.{self._consumer}", {"group": _GROUP}, "leave"
                )
            except (AccessDenied, NotFound):
                pass
