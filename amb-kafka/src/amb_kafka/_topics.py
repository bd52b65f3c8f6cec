"""The Kafka topics there are: looked up for everybody at once, made when they are missing."""

from __future__ import annotations

import time
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from aiokafka import errors as native
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from amb_core.errors import AmbError, NotFound, Unavailable

from ._errors import NATIVE, translate
from ._listing import Listing
from ._wire import INBOXES

if TYPE_CHECKING:
    from ._wire import Names
    from .broker import KafkaBroker

__all__ = ["Matching", "Topics"]

#: Replies are worthless soon; retries wait up to a week.
_INBOX_CONFIG = {"retention.ms": "600000", "segment.ms": "600000"}
_RETRY_CONFIG = {"retention.ms": str(30 * 86_400_000), "cleanup.policy": "delete"}
_MANY = 200


class Topics:
    """What the cluster said last, by name: the number of partitions."""

    def __init__(self, options: KafkaBroker, admin: AIOKafkaAdminClient) -> None:
        self._options, self._admin = options, admin
        self._known: dict[str, int] = {}
        #: Another number whenever `known` has changed.
        self.version = 0
        #: What somebody waits for: whoever makes topics next makes these too.
        self._wanted: dict[str, NewTopic] = {}
        #: When each was asked for, and when all were.
        self._asked: dict[str, float] = {}
        self._all_asked = 0.0
        self._asking, self._making = anyio.Lock(), anyio.Lock()

    @property
    def known(self) -> Mapping[str, int]:
        """As of the last answer."""
        return self._known

    def forget(self, name: str) -> None:
        """Ask again before this one is used."""
        self._known.pop(name, None)
        self.version += 1
        self._asked.pop(name, None)
        self._all_asked = 0.0

    async def look(self, names: Collection[str] | None = None, age: float = 0.0) -> Mapping[str, int]:
        """What there is, as of `age` seconds ago at most: of these names, or of all. Raises: as a request."""
        called = time.monotonic()
        if names is not None:
            if any(self._asked.get(name, 0.0) < called - age for name in names):
                found = await self._ask(list(names), f"ask Kafka for its topic {min(names)!r}")
                self._asked |= dict.fromkeys(names, called)
                self._learn({name: one for name, one in self._known.items() if name not in names} | found)
            return self._known
        async with self._asking:
            # Whoever waited for somebody else's question has an answer that is fresh enough.
            if self._all_asked < called - age:
                began = time.monotonic()
                self._learn(await self._ask(None, "ask Kafka for its topics"))
                self._all_asked = began
        return self._known

    def _learn(self, known: dict[str, int]) -> None:
        if known != self._known:
            self._known = known
            self.version += 1

    async def _ask(self, names: list[str] | None, doing: str) -> dict[str, int]:
        client = self._admin._client
        try:
            with anyio.fail_after(self._options.response_timeout):
                found: dict[str, int] = await client.send(client.get_random_node(), Listing(names))
        except NATIVE as error:
            raise translate(error, doing) from error
        return found

    async def need(self, names: Iterable[str], partitions: int | None = None, **config: str) -> None:
        """Return when the topics are there. Raises: NotFound, where they are not and may not be made."""
        if not (missing := {name for name in names if name not in self._known}):
            return
        size, copies = partitions or self._options.partitions, self._options.replication_factor
        mine = {name: NewTopic(name, size, copies, topic_configs=dict(config)) for name in sorted(missing)}
        self._wanted |= mine
        async with self._making:
            # Who was here before has made what was wanted then. What failed is tried again by whoever needs it.
            mine = {name: one for name, one in mine.items() if name not in self._known}
            if mine:
                wanted, self._wanted = mine | self._wanted, {}
                await self._find_or_make(wanted, mine)

    async def _find_or_make(self, wanted: Mapping[str, NewTopic], mine: Collection[str]) -> None:
        await self.look(wanted)
        missing = [name for name in wanted if name not in self._known]
        if lacking := [name for name in missing if name in mine and not self._options.create_topics]:
            raise NotFound(f"Kafka has no topic {lacking[0]!r}: create it, or let AMB do so with create_topics=True")
        for at in range(0, len(missing) if self._options.create_topics else 0, _MANY):
            await self._make([wanted[name] for name in missing[at : at + _MANY]], mine)

    async def need_inboxes(self, name: str) -> None:
        """As `need`, for the topic of replies."""
        await self.need([name], 8, **_INBOX_CONFIG)

    def inbox_partition(self, address: str) -> int:
        """Where the replies to an address are."""
        return zlib.crc32(address.encode()) % max(1, self._known.get(INBOXES, 1))

    async def need_retries(self, name: str, tiers: int) -> None:
        """As `need`, for a group's delayed messages: a partition for each tier of delays."""
        await self.need([name], tiers, **_RETRY_CONFIG)

    async def _make(self, new: list[NewTopic], mine: Collection[str]) -> None:
        patience, made = self._options.response_timeout, list[str]()
        try:
            with anyio.fail_after(patience):
                answer: Any = await self._admin.create_topics(new, timeout_ms=int(patience * 1000))
        except NATIVE as error:
            raise translate(error, f"create the Kafka topic {new[0].name!r}") from error
        failed: AmbError | None = None
        for name, code, text in (one[:3] for one in answer.topic_errors):
            if code in (0, native.TopicAlreadyExistsError.errno):
                made.append(name)
            elif name in mine:
                failed = translate(native.for_code(code)(text), f"create the Kafka topic {name!r}")
        await self._until_seen(made)
        if failed is not None:
            raise failed

    async def _until_seen(self, names: list[str]) -> None:
        """A controller makes topics, other servers hear of it a little later."""
        with anyio.move_on_after(self._options.response_timeout):
            while True:
                await self.look(names)
                if all(name in self._known for name in names):
                    return
                await anyio.sleep(0.02)
        raise Unavailable(f"Kafka has made the topic {names[0]!r}, but does not list it yet")


class Matching:
    """The topics that can hold what a pattern matches. Matched anew only when the topics have changed."""

    def __init__(self, topics: Topics, names: Names, pattern: str) -> None:
        self._topics, self._names, self._pattern = topics, names, pattern
        self._version, self._found = -1, dict[str, int]()

    def now(self) -> Mapping[str, int]:
        """As of the last answer: how many partitions each has."""
        if self._version != self._topics.version:
            self._version, known = self._topics.version, self._topics.known
            self._found = {name: known.get(name, 0) for name in self._names.read_by(self._pattern, known)}
        return self._found
