"""A member of a group, as far as aiokafka's public consumer does not tell: the one place that looks inside it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import anyio
from aiokafka import AIOKafkaConsumer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata

from ._progress import Progress

__all__ = ["Member", "has_commits", "keep_questions"]

#: As whom the group knows the last feed of each source: its next one is another member.
_former: OrderedDict[str, str] = OrderedDict()
_REMEMBERED = 1000
#: Those that have joined a group, in this process.
_here: WeakSet[Member] = WeakSet()
#: What Kafka answers while a group is not there yet: its coordinator is loading, or another server.
_NOT_YET = (14, 15, 16)

#: What it answers to a commit when the partition may be somebody else's.
_MOVED = (errors.UnknownMemberIdError, errors.IllegalGenerationError, errors.RebalanceInProgressError)


class Member:
    """The coordinator's side of a started consumer. Raises native errors."""

    def __init__(self, consumer: AIOKafkaConsumer, source: str) -> None:
        self._consumer: Any = consumer
        self._source = source

    @property
    def id(self) -> str:
        """Under which the group knows it; empty: not yet, or not any more."""
        return str(self._consumer._coordinator.member_id or "")

    def check(self) -> None:
        """Raise what went wrong in the background, a missing permission for instance."""
        self._consumer._coordinator.check_errors()

    def remember(self) -> None:
        """It has joined: a later member of the same source has this one sent away."""
        _former[self._source] = self.id
        _former.move_to_end(self._source)
        if len(_former) > _REMEMBERED:
            _former.popitem(last=False)

    async def replace(self) -> None:
        """Have the group forget the source's former member. Where that could not say goodbye, because the server was
        away, the group would wait for the end of its session before it gives its partitions to anybody."""
        former = _former.pop(self._source, "")
        coordinator = self._consumer._coordinator
        while former:
            await coordinator.ensure_coordinator_known()
            answer = await coordinator._send_req(LeaveGroupRequest(coordinator.group_id, former))
            if answer.error_code not in _NOT_YET:
                return
            await anyio.sleep(0.1)

    def read(self, topics: Sequence[str]) -> None:
        """Read these from the next dealing on. The consumer's own `subscribe` would have it dealt once more."""
        self._consumer._subscription.subscription._topics = frozenset(topics)
        self._consumer._client.set_topics(topics)

    def call_others(self) -> None:
        """It asks to join: have the group's other members in this process make room now. They would hear of it with
        their next heartbeat."""
        if self in _here or not self.id:
            return
        mine = self._where()
        for other in list(_here):
            if other._where() == mine:
                other.rejoin()
        _here.add(self)

    def _where(self) -> object:
        client = self._consumer._client
        return client._loop, client._bootstrap_servers, self._consumer._coordinator.group_id

    def rejoin(self) -> None:
        """Have the partitions dealt out anew."""
        self._consumer._coordinator.request_rejoin()

    async def refresh(self) -> None:
        """Learn of new partitions now; the one that deals notices them by itself, but late."""
        await self._consumer._client.force_metadata_update()

    async def progress(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Progress]:
        """What of each partition the group has settled."""
        wanted: dict[str, list[int]] = {}
        for topic, number in partitions:
            wanted.setdefault(topic, []).append(number)
        coordinator = self._consumer._coordinator
        await coordinator.ensure_coordinator_known()
        found = _commits(await coordinator._send_req(OffsetFetchRequest(coordinator.group_id, [*wanted.items()])))
        return {at: Progress(*found.get(at, (0, ""))) for at in partitions}

    async def commit(self, progress: Mapping[TopicPartition, Progress]) -> None:
        """Commit how far each partition is. The consumer's own `commit` refuses this while partitions are dealt out,
        which is when it matters most; what that calls does not."""
        coordinator, subscription = self._consumer._coordinator, self._consumer._subscription.subscription
        offsets = {partition: OffsetAndMetadata(*one.commit()) for partition, one in progress.items()}
        while True:
            await coordinator.ensure_coordinator_known()
            try:
                async with coordinator._commit_lock:
                    # Not its `commit_offsets`: cut off, that leaves a task behind, whose failure nobody hears of.
                    await coordinator._do_commit_offsets(subscription and subscription.assignment, offsets)
                return
            except _MOVED as error:
                raise errors.CommitFailedError("the group has moved on") from error
            except errors.KafkaError as error:
                if not error.retriable:
                    raise
            await anyio.sleep(0.1)


def keep_questions(consumer: Any, milliseconds: int) -> int:
    """Let the server keep a question so long while there is nothing to read. Returns how long it was."""
    fetcher = consumer._fetcher
    before, fetcher._fetch_max_wait_ms = fetcher._fetch_max_wait_ms, milliseconds
    return int(before)


async def has_commits(admin: AIOKafkaAdminClient, group: str) -> bool:
    """Whether the group has committed anything, ever. Raises native errors."""
    node, client = await admin.find_coordinator(group), admin._client
    return bool(_commits(await client.send(node, OffsetFetchRequest(group, None))))


def _commits(answer: Any) -> dict[TopicPartition, tuple[int, str]]:
    """Offset and metadata of each partition that has a commit.

    aiokafka's own questions overlook an error about the whole group, such as that it is being loaded after a restart:
    no commits and an answer that has none yet would be the same."""
    found: dict[TopicPartition, tuple[int, str]] = {}
    if answer.error_code:
        raise errors.for_code(answer.error_code)()
    for topic, partitions in answer.topics:
        for number, offset, metadata, code in partitions:
            if code:
                raise errors.for_code(code)()
            if offset >= 0:
                found[TopicPartition(topic, number)] = offset, metadata or ""
    return found
