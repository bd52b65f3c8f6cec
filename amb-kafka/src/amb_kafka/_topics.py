"""The Kafka topics there are: looked up for everybody at once, made when they are missing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import anyio
from aiokafka import errors as native
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from amb_core.errors import NotFound, Unavailable

from ._errors import NATIVE, translate

if TYPE_CHECKING:
    from .broker import KafkaBroker

__all__ = ["Topics"]

#: Replies are worthless soon; retries wait up to a week.
_INBOX_CONFIG = {"retention.ms": "600000", "segment.ms": "600000"}
_RETRY_CONFIG = {"retention.ms": str(30 * 86_400_000), "cleanup.policy": "delete"}
_MANY = 200


class Topics:
    """What the cluster said last, by name: the number of partitions."""

    def __init__(self, options: KafkaBroker, admin: AIOKafkaAdminClient) -> None:
        self._options, self._admin = options, admin
        self._known: dict[str, int] = {}
        self._asked = 0.0
        self._asking, self._making = anyio.Lock(), anyio.Lock()

    @property
    def known(self) -> Mapping[str, int]:
        """As of the last answer."""
        return self._known

    def forget(self, name: str) -> None:
        """Ask again before this one is used."""
        self._known.pop(name, None)
        self._asked = 0.0

    async def look(self, age: float = 0.0) -> Mapping[str, int]:
        """What there is, as of `age` seconds ago at most. Raises: as a request."""
        called = time.monotonic()
        async with self._asking:
            # Whoever waited for somebody else's question has an answer that is fresh enough.
            if self._asked < called - age:
                await self._look()
        return self._known

    async def _look(self) -> None:
        began = time.monotonic()
        try:
            with anyio.fail_after(self._options.response_timeout):
                found = await self._admin.describe_topics()
        except NATIVE as error:
            raise translate(error, "ask Kafka for its topics") from error
        self._known = {one["topic"]: len(one["partitions"]) for one in found if not one["error_code"]}
        self._asked = began

    async def need(self, names: Iterable[str], partitions: int | None = None, **config: str) -> None:
        """Return when the topics are there. Raises: NotFound, where they are not and may not be made."""
        if not (missing := {name for name in names if name not in self._known}):
            return
        async with self._making:
            await self.look()
            missing = {name for name in missing if name not in self._known}
            if missing and not self._options.create_topics:
                raise NotFound(
                    f"Kafka has no topic {min(missing)!r}: create it, or let AMB do so with create_topics=True"
                )
            if missing:
                await self._make(sorted(missing), partitions or self._options.partitions, config)

    async def need_inboxes(self, name: str) -> None:
        """As `need`, for the topic of replies."""
        await self.need([name], 8, **_INBOX_CONFIG)

    async def need_retries(self, name: str, tiers: int) -> None:
        """As `need`, for a group's delayed messages: a partition for each tier of delays."""
        await self.need([name], tiers, **_RETRY_CONFIG)

    async def _make(self, names: list[str], partitions: int, config: Mapping[str, str]) -> None:
        copies, patience = self._options.replication_factor, self._options.response_timeout
        for at in range(0, len(names), _MANY):
            new = [NewTopic(name, partitions, copies, topic_configs=dict(config)) for name in names[at : at + _MANY]]
            try:
                with anyio.fail_after(patience):
                    answer = await self._admin.create_topics(new, timeout_ms=int(patience * 1000))
            except NATIVE as error:
                raise translate(error, f"create the Kafka topic {names[at]!r}") from error
            for name, code, text in (one[:3] for one in answer.topic_errors):
                if code not in (0, native.TopicAlreadyExistsError.errno):
                    raise translate(native.for_code(code)(text), f"create the Kafka topic {name!r}")
        await self._until_seen(names)

    async def _until_seen(self, names: list[str]) -> None:
        """A controller makes topics, other servers hear of it a little later."""
        with anyio.move_on_after(self._options.response_timeout):
            while True:
                await self._look()
                if all(name in self._known for name in names):
                    return
                await anyio.sleep(0.02)
        raise Unavailable(f"Kafka has made the topic {names[0]!r}, but does not list it yet")
