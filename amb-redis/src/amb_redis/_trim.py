"""Keeps streams at their cap without losing what a group still needs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from amb_core.broker import Outgoing, is_inbox
from amb_core.topics import compile_pattern

from . import _scripts
from ._servers import Servers
from ._wire import Names, lane_of

if TYPE_CHECKING:
    from .broker import RedisBroker

__all__ = ["Trimmer"]

logger = logging.getLogger("amb.redis")

#: How long the list of wildcard groups may be out of date, seconds. It only delays trimming.
_GROUPS = 30.0


class Trimmer:
    """Looks at a stream's length whenever this process has added a twentieth of the cap to it."""

    def __init__(self, options: RedisBroker, found: Servers, names: Names) -> None:
        self._cap = options.stream_max_len
        self._every = max(1, self._cap // 20)
        self._servers = found
        self._names = names
        self._added: dict[tuple[str, bytes], int] = {}
        self._groups: list[tuple[bytes, Callable[[str], bool]]] = []
        self._groups_until = 0.0
        #: Topics that are longer than the cap because a group needs them so.
        self.lagging: dict[str, str] = {}

    async def published(self, batch: Sequence[Outgoing]) -> None:
        """Count what was published, and trim where it is time. Never raises: the messages are safe."""
        due = set[tuple[str, bytes]]()
        for message in batch:
            if not is_inbox(message.topic):
                lane = (message.topic, lane_of(message.priority))
                count = self._added.get(lane, self._every) + 1
                self._added[lane] = count
                if count > self._every:
                    due.add(lane)
        for lane in due:
            self._added[lane] = 0
            await self._trim(*lane)

    async def _trim(self, topic: str, lane: bytes) -> None:
        key = self._names.base(topic) + lane
        claims = [group for group, matches in await self._wildcard_groups() if matches(topic)]
        reply = (await self._servers.call([(key, _scripts.TRIM.call([key], self._cap, *claims))], "trim a stream"))[0]
        if isinstance(reply, Exception):
            logger.warning("the stream of %r could not be trimmed: %s", topic, reply)
            return
        length, holder = int(reply[0]), reply[1].decode()
        # Whole nodes of up to 100 entries are trimmed while something is pending.
        if length <= self._cap + max(200, 2 * self._every):
            self.lagging.pop(topic, None)
        elif holder and topic not in self.lagging:
            self.lagging[topic] = holder
            logger.warning(
                "topic %r holds %d messages, more than stream_max_len=%d, because group %r has not settled them; "
                "they are kept. Start members of the group, or remove it: XGROUP DESTROY %s %s",
                topic, length, self._cap, holder, key.decode(), holder,
            )  # fmt: skip

    async def _wildcard_groups(self) -> list[tuple[bytes, Callable[[str], bool]]]:
        """Groups that want topics they may not have met yet, for lack of a live member."""
        if time.monotonic() >= self._groups_until:
            raw = (await self._servers.call([(self._names.groups, ("HGETALL", self._names.groups))], "list groups"))[0]
            if not isinstance(raw, Exception):
                found = zip(raw[::2], raw[1::2], strict=True)
                self._groups = [(group, compile_pattern(pattern.decode())) for group, pattern in found]
                self._groups_until = time.monotonic() + _GROUPS
        return self._groups
