"""A source with a group: Kafka deals out the partitions, AMB commits what its handlers have settled."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka import errors as native
from aiokafka.structs import OffsetAndMetadata
from amb_core.broker import Feed, Incoming, Settlement, Source
from amb_core.concurrency import Wakeup
from amb_core.errors import AmbError, LeaseLost, PartialFailure, Unavailable
from amb_core.topics import is_pattern

from ._clients import running, settled
from ._errors import NATIVE, translate
from ._live import WAIT, position_of, to_incoming
from ._progress import Progress
from ._wire import group_of, later, read

if TYPE_CHECKING:
    from ._connection import KafkaConnection

__all__ = ["TIERS", "open_group"]

logger = logging.getLogger("amb.kafka")

#: Delays up to so many seconds share a partition of the group's retry topic, and so do longer ones: a long delay is
#: never in front of a short one.
TIERS = (2.0, 30.0, 600.0)
#: What is due later than this goes from its topic into the group's retry topic, so that the topic can be committed.
_SOON = 5.0
#: The most messages that a feed keeps for later; beyond that it stops reading the retry topic.
_KEPT = 1000
#: A member that joins a group waits no longer than this for the others to make room, seconds.
_JOINING = 5.0
#: Subscriptions to a topic that exists look after it this often.
_EXACT = 3.0

_epochs = itertools.count(1)


@asynccontextmanager
async def open_group(connection: KafkaConnection, source: Source) -> AsyncIterator[Feed]:
    """See `amb_core.broker.Connection.open`."""
    options, names, topics = connection.options, connection.names, connection.topics
    group, retries = group_of(source)
    doing = f"join the group {source.group!r} on {source.pattern!r}"
    await topics.look()
    if not is_pattern(source.pattern):
        await topics.need([names.name(source.pattern)])
    await topics.need_retries(retries, len(TIERS) + 1)
    found = await _found(connection, source, group, retries, doing)
    consumer = connection.clients.consumer(group)
    async with running(consumer, doing, options.connect_timeout):
        feed = GroupFeed(connection, source, consumer, group, retries)
        await feed.join(found)
        yield feed


async def _found(connection: KafkaConnection, source: Source, group: str, retries: str, doing: str) -> bool:
    """Make the group, if it is not there: commit where it begins. True: it was not there.

    A topic without a commit is then a new one, to be read from its beginning. Kafka refuses the commit of somebody
    who is no member once there are members, so of several that come at once the first to join decides.
    """
    try:
        if await _committed(connection, group):
            return False
        known, options = connection.topics.known, connection.options
        reads = connection.names.read_by(source.pattern, known)
        partitions = [TopicPartition(name, number) for name in reads for number in range(known.get(name, 0))]
        consumer = connection.clients.consumer(group)
        async with running(consumer, doing, options.connect_timeout):
            with anyio.fail_after(options.response_timeout):
                earliest = "earliest" in (source.start, options.auto_offset_reset)
                where = consumer.beginning_offsets if earliest else consumer.end_offsets
                mark = TopicPartition(retries, 0)
                consumer.assign([*partitions, mark])
                offsets = await where(partitions) if partitions else {}
                await consumer.commit({mark: 0, **offsets})
    except native.CommitFailedError:
        return False
    except NATIVE as error:
        raise translate(error, doing) from error
    return True


async def _committed(connection: KafkaConnection, group: str) -> bool:
    """Whether the group has any commit."""
    with anyio.fail_after(connection.options.response_timeout):
        while True:
            try:
                found = await connection.admin.list_consumer_group_offsets(group)
            except (native.GroupCoordinatorNotAvailableError, native.GroupLoadInProgressError):
                # A cluster makes its topic of offsets when the first group asks for it.
                await anyio.sleep(0.1)
            else:
                return any(one.offset >= 0 for one in found.values())


class _Place:
    """A token: a record, and the assignment under which it was read."""

    __slots__ = ("copy", "epoch", "partition", "record")

    def __init__(self, partition: TopicPartition, record: ConsumerRecord[Any, Any], epoch: int) -> None:
        self.partition, self.record, self.epoch = partition, record, epoch
        #: The later copy on its way: whoever is told to settle again waits for that one.
        self.copy: asyncio.Future[Any] | None = None


class GroupFeed(ConsumerRebalanceListener):  # type: ignore[misc]  # the client calls no other listeners
    """`Feed` over the partitions that the group gives this member."""

    def __init__(
        self, connection: KafkaConnection, source: Source, consumer: AIOKafkaConsumer, group: str, retries: str
    ) -> None:
        self._connection, self._source, self._consumer = connection, source, consumer
        self._group, self._retries, self._wild = group, retries, is_pattern(source.pattern)
        self._epoch = 0
        self._assignment: Any = None
        self._progress: dict[TopicPartition, Progress] = {}
        self._early: dict[TopicPartition, list[ConsumerRecord[Any, Any]]] = {}
        self._ready: list[Incoming] = []
        self._later: list[tuple[float, int, Incoming]] = []
        self._open: dict[_Place, Incoming] = {}
        self._serial = itertools.count()
        self._broken: BaseException | None = None
        self._joined, self._settled = anyio.Event(), Wakeup()
        self._reads: set[str] | None = None
        self._paused = False

    # --- membership

    async def join(self, made: bool) -> None:
        """Become a member. Who made the group waits for that, since until then others could make it anew; in a group
        that exists nothing can be missed, so a member that is slow to make room holds up nobody for long."""
        self._subscribe()
        with anyio.move_on_after(self._connection.options.connect_timeout if made else _JOINING):
            while not self._joined.is_set() and self._broken is None:
                try:
                    with anyio.move_on_after(0.2):
                        await self._joined.wait()
                    # Shows what went wrong, a missing permission for instance.
                    self._consumer._coordinator.check_errors()
                except NATIVE as error:
                    raise translate(error, f"join the group {self._source.group!r}") from error
        if made and not self._joined.is_set():
            raise Unavailable(f"join the group {self._source.group!r}: Kafka gave no partitions in time")
        self._check()

    def _subscribe(self) -> None:
        reads = self._connection.names.read_by(self._source.pattern, self._connection.topics.known)
        if reads != self._reads:
            self._reads = reads
            self._consumer.subscribe([*sorted(reads), self._retries], listener=self)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Let what was begun be finished; what was not begun is somebody else's. The client waits, and goes on with
        its heartbeats."""
        self._joined = anyio.Event()
        self._ready.clear()
        self._later.clear()
        self._early.clear()
        with anyio.move_on_after(self._connection.options.rebalance_timeout * 0.9):
            while self._open:
                await self._settled.wait()
        if self._open:
            logger.warning(
                "%d handlers of %r take longer than rebalance_timeout: their messages come again",
                len(self._open), self._source.pattern,
            )  # fmt: skip
        self._open.clear()
        self._progress.clear()
        self._epoch = 0

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Learn what of each partition is settled."""
        partitions = list(assigned)
        try:
            with anyio.fail_after(self._connection.options.response_timeout):
                found = await self._consumer._coordinator.fetch_committed_offsets(partitions) if partitions else {}
        except NATIVE as error:
            self._broken = error
            return
        for partition in partitions:
            one = found.get(partition)
            self._progress[partition] = Progress(one.offset if one else 0, one.metadata or "" if one else "")
        self._assignment = self._consumer._subscription.subscription.assignment
        self._epoch, self._paused = next(_epochs), False
        early, self._early = self._early, {}
        for partition, records in early.items():
            self._take(partition, records)
        self._joined.set()

    def _check(self) -> None:
        if self._broken is not None:
            raise translate(self._broken, f"read the group {self._source.group!r}") from self._broken

    # --- receiving

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        self._check()
        limit = min(limit, self._connection.options.max_poll_records)
        if wait:
            await self._look_around()
        if not (found := self._due(limit)):
            await self._fetch(limit, self._pause() if wait else 0.0)
            await self._put_off()
            found = self._due(limit)
        for one in found:
            assert isinstance(one.token, _Place)
            self._open[one.token] = one
        return found

    def _due(self, limit: int) -> list[Incoming]:
        now = time.time()
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        found, self._ready = self._ready[:limit], self._ready[limit:]
        return found

    def _pause(self) -> float:
        longest = min(WAIT, self._connection.options.discovery_interval) if self._wild else WAIT
        return min(longest, max(0.0, self._later[0][0] - time.time())) if self._later else longest

    async def _fetch(self, limit: int, pause: float) -> None:
        self._throttle()
        try:
            # While partitions are dealt out the client waits without a limit.
            with anyio.move_on_after(pause + 0.5):
                batches = await self._consumer.getmany(timeout_ms=int(pause * 1000), max_records=limit)
                for partition, records in batches.items():
                    if self._joined.is_set():
                        self._take(partition, records)
                    else:
                        self._early.setdefault(partition, []).extend(records)
        except NATIVE as error:
            raise translate(error, f"read {self._source.pattern!r}") from error

    def _throttle(self) -> None:
        """Read no more of what is for later than can be kept."""
        if not self._joined.is_set() or (len(self._later) >= _KEPT) == self._paused:
            return
        mine = [partition for partition in self._progress if partition.topic == self._retries]
        if not self._paused:
            self._paused = True
            self._consumer.pause(*mine)
        elif len(self._later) < _KEPT // 2:
            self._paused = False
            self._consumer.resume(*mine)

    def _take(self, partition: TopicPartition, records: Sequence[ConsumerRecord[Any, Any]]) -> None:
        progress, now = self._progress.get(partition), time.time()
        for record in records:
            if progress is None or not progress.take(record.offset):
                continue
            entry = read(self._connection.names, record.topic, record.key, record.headers)
            incoming = to_incoming(entry, record, _Place(partition, record, self._epoch))
            if entry.due > now:
                heapq.heappush(self._later, (entry.due, next(self._serial), incoming))
            else:
                self._ready.append(incoming)

    async def _put_off(self) -> None:
        """Move what is due much later out of its topic, so that it does not hold back the commit."""
        soon = time.time() + _SOON
        far = [
            (due, serial, one, one.token) for due, serial, one in self._later
            if due > soon and isinstance(one.token, _Place) and one.token.partition.topic != self._retries
        ]  # fmt: skip
        if not far:
            return
        with anyio.CancelScope(shield=True):
            outcomes = [Settlement(place, "retry", due - time.time(), one.attempt - 1) for due, _, one, place in far]
            self._open |= {place: one for _, _, one, place in far}
            gone = {serial for _, serial, _, _ in far}
            self._later = [one for one in self._later if one[1] not in gone]
            heapq.heapify(self._later)
            await self._settle(outcomes)

    async def _look_around(self) -> None:
        """Join the topics that are new; notice that one is gone."""
        topics = self._connection.topics
        await topics.look(self._connection.options.discovery_interval if self._wild else _EXACT)
        if not self._wild and not (self._reads or set()) <= topics.known.keys():
            raise Unavailable(f"Kafka's topic for {self._source.pattern!r} was deleted")
        if self._joined.is_set():
            self._subscribe()

    # --- settling

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`."""
        await self._settle(outcomes)

    async def _settle(self, outcomes: Sequence[Settlement]) -> None:
        errors: dict[int, Exception] = {}
        mine: dict[int, _Place] = {}
        for index, one in enumerate(outcomes):
            place = one.token
            if not isinstance(place, _Place) or place.epoch != self._epoch:
                errors[index] = LeaseLost(f"a delivery of {self._source.pattern!r} went to another member of the group")
            elif place in self._open:
                mine[index] = place
        self._release([mine.pop(index) for index in list(mine) if outcomes[index].verdict == "release"])
        errors |= await self._copy({index: outcomes[index] for index in mine if outcomes[index].verdict == "retry"})
        done = {index: place for index, place in mine.items() if index not in errors}
        if done and (error := await self._commit(done.values())) is not None:
            errors |= dict.fromkeys(done, error)
        for index, place in done.items():
            if not isinstance(errors.get(index), Unavailable):
                self._open.pop(place, None)
        self._settled.set()
        if errors:
            raise PartialFailure(errors)

    def _release(self, places: Sequence[_Place]) -> None:
        back = [one for place in places if (one := self._open.pop(place, None)) is not None]
        if self._joined.is_set():
            self._ready[:0] = back

    async def _copy(self, outcomes: dict[int, Settlement]) -> dict[int, Exception]:
        """Store the later copies in the group's retry topic."""
        futures: dict[int, asyncio.Future[Any]] = {}
        for index, one in outcomes.items():
            assert isinstance(one.token, _Place)
            try:
                futures[index] = await self._copied(one.token, one)
            except NATIVE as error:
                failure = translate(error, f"retry {self._source.pattern!r}")
                return {i: failure for i in outcomes}
        # Whether a copy was stored is not known where one failed: one too many is better than none.
        failed = await settled(futures)
        return {index: translate(error, f"retry {self._source.pattern!r}") for index, error in failed.items()}

    async def _copied(self, place: _Place, one: Settlement) -> asyncio.Future[Any]:
        if place.copy is None or (place.copy.done() and place.copy.exception() is not None):
            incoming, record = self._open[place], place.record
            position = incoming.position or position_of(record)
            headers = later(record.headers, incoming.topic, time.time() + one.delay, one.attempt + 1, position)
            place.copy = await self._connection.producer.send(
                self._retries, record.value or b"", key=record.key, headers=headers,
                partition=sum(one.delay > limit for limit in TIERS),
            )  # fmt: skip
        return place.copy

    async def _commit(self, places: Iterable[_Place]) -> AmbError | None:
        """Commit how far each partition is. The client's own `commit` refuses this while partitions are dealt out,
        which is when it matters most; what it calls does not."""
        touched: dict[TopicPartition, Progress] = {}
        for place in places:
            touched[place.partition] = progress = self._progress[place.partition]
            progress.settle(place.record.offset)
        offsets = {partition: OffsetAndMetadata(*progress.commit()) for partition, progress in touched.items()}
        try:
            with anyio.fail_after(self._connection.options.response_timeout):
                await self._consumer._coordinator.commit_offsets(self._assignment, offsets)
        except NATIVE as error:
            return translate(error, f"settle {self._source.pattern!r}")
        return None
