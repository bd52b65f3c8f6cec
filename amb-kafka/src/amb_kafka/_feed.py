"""A source with a group: Kafka deals out the partitions, AMB commits what its handlers have settled."""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from amb_core.broker import Backlog, Incoming, Settlement, Source
from amb_core.concurrency import Wakeup
from amb_core.errors import AmbError, LeaseLost, PartialFailure, Unavailable
from amb_core.topics import is_pattern

from ._assign import Assignor
from ._copies import Copies, Place
from ._errors import NATIVE, translate
from ._holds import HOLDS, Held, members_in
from ._lag import backlog
from ._live import EXACT, WAIT, to_incoming
from ._member import Member
from ._pace import Pace
from ._progress import Progress
from ._stuck import Stuck
from ._topics import Matching
from ._wire import read

if TYPE_CHECKING:
    from ._connection import KafkaConnection
    from ._schemas import Schemas

__all__ = ["GroupFeed"]

logger = logging.getLogger("amb.kafka")

#: What is due later than this goes from its topic into the group's retry topic, so that the topic can be committed.
_SOON = 5.0
#: The most messages that a feed keeps for later; beyond that it stops reading the retry topic.
_KEPT = 1000
#: A member that joins a group waits no longer than this for the others to make room, seconds.
_JOINING = 5.0
#: Handlers that end so soon need no copy when their partition moves, seconds.
_ENDING = 0.2
#: So often a member asks whether those are alive for whom copies are held, seconds.
_ALIVE = 1.0
#: Before partitions are dealt out a member knows all topics that there were so long ago, seconds.
_FRESH = 0.1

_epochs = itertools.count(1)


@ConsumerRebalanceListener.register  # the client calls no other listeners
class GroupFeed:
    """`Feed` and `TellsBacklog` over the partitions that the group gives this member."""

    def __init__(self, connection: KafkaConnection, source: Source, group: str, retries: str) -> None:
        self._connection, self._source = connection, source
        self._group, self._retries, self._wild = group, retries, is_pattern(source.pattern)
        self._stuck = Stuck(self._is_stuck, self._rejoin)
        self._assignor = Assignor(lambda: not source.ordered_by and self._stuck.now())
        self.consumer: Any = connection.clients.consumer(group, self._assignor)
        self._member, self._pace = Member(self.consumer, source.id), Pace(self.consumer)
        self._copies = Copies(connection.producer, retries, source.pattern)
        self._epoch = 0
        self._progress: dict[TopicPartition, Progress] = {}
        self._early: dict[TopicPartition, list[ConsumerRecord[Any, Any]]] = {}
        self._ready: list[Incoming] = []
        self._later: list[tuple[float, int, Incoming]] = []
        self._open: dict[Place, Incoming] = {}
        self._held, self._asked = Held(), 0.0
        self._finished: list[Place] = []
        self._serial = itertools.count()
        self._broken: BaseException | None = None
        self._joined, self._settled, self._settling = anyio.Event(), Wakeup(), anyio.Lock()
        self._exist, self._paused = Matching(connection.topics, connection.names, source.pattern), False
        self._reads: Mapping[str, int] = {}

    # --- membership

    async def join(self, made: bool) -> None:
        """Become a member. Who made the group waits for that, since until then others could make it anew; in a group
        that exists nothing can be missed, so a member that is slow to make room holds up nobody for long."""
        with anyio.move_on_after(self._connection.options.response_timeout), suppress(*NATIVE):
            await self._member.replace()
        self._reads = self._exist.now()
        self.consumer.subscribe([*sorted(self._reads), self._retries], listener=self)
        with anyio.move_on_after(self._connection.options.connect_timeout if made else _JOINING):
            while not self._joined.is_set() and self._broken is None:
                try:
                    with anyio.move_on_after(0.02):
                        await self._joined.wait()
                    self._member.check()
                    self._member.call_others()
                except NATIVE as error:
                    raise translate(error, f"join the group {self._source.group!r}") from error
        if made and not self._joined.is_set():
            raise Unavailable(f"join the group {self._source.group!r}: Kafka gave no partitions in time")
        self._check()

    def close(self) -> None:
        """Nothing of it is called any more."""
        self._open.clear()
        self._stuck.close()
        self._settled.set()

    def _is_stuck(self) -> bool:
        """Whether somebody else should read what this member was given."""
        alone = self._assignor.members < 2
        return not self._source.ordered_by and not alone and bool(self._progress)

    def _rejoin(self) -> None:
        self._member.rejoin()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Keep what was begun; what was not begun is somebody else's. The client waits, and goes on with its
        heartbeats."""
        if self._joined.is_set():
            self._joined = anyio.Event()
        for waiting in (self._ready, self._later, self._early, self._held, self._finished):
            waiting.clear()
        with anyio.move_on_after(
            self._connection.options.rebalance_timeout * 0.9 if self._source.ordered_by else _ENDING
        ):
            while any(not place.held for place in self._open):
                await self._settled.wait()
        if not self._source.ordered_by:
            await self._hold()
        lost = [place for place in self._open if not place.held]
        for place in lost:
            del self._open[place]
        if lost:
            logger.warning(
                "%d messages of %r come again, though their handlers run: the group has moved on",
                len(lost), self._source.pattern,
            )  # fmt: skip
        self._progress.clear()
        self._epoch = 0
        if self._wild:
            await self._widen()

    async def _widen(self) -> None:
        """Read what has come since: whichever member saw it first, the partitions are dealt once."""
        with anyio.move_on_after(1.0), suppress(AmbError):
            await self._connection.topics.look(None, _FRESH)
            before, self._reads = self._reads, self._exist.now()
            if self._reads.keys() != before.keys():
                self._pace.hurry()
                self._member.read([*self._reads, self._retries])

    async def _hold(self) -> None:
        """Copy what is unfinished, so that its partition can go to another member."""
        member = self._member.id
        async with self._settling:
            moving = {index: place for index, place in enumerate(self._open) if not place.held}
            if not moving or not member:
                return
            for place in moving.values():
                place.held = f"{member}/{next(self._serial)}"
            failed: Iterable[int] = moving
            try:
                with anyio.fail_after(self._connection.options.response_timeout):
                    copies = await self._copies.hold({i: (place, self._open[place]) for i, place in moving.items()})
                    stored = [place for index, place in moving.items() if index not in copies]
                    if await self._commit(stored) is None:
                        failed = copies
            except NATIVE as error:
                logger.debug("no copies of what is unfinished: %r", error)
            for index in failed:
                moving[index].held = ""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Learn what of each partition is settled."""
        try:
            with anyio.fail_after(self._connection.options.response_timeout):
                self._progress = await self._member.progress(list(assigned))
        except NATIVE as error:
            self._broken = error
            return
        self._member.remember()
        self._epoch, self._paused = next(_epochs), False
        self._open = {place: one for place, one in self._open.items() if self._is_ours(place)}
        early, self._early = self._early, {}
        for partition, records in early.items():
            self._take(partition, records)
        for partition, progress in self._progress.items():
            # Else the client would ask where to begin, once more.
            if partition not in early:
                self.consumer.seek(partition, progress.next)
        self._pace.dealt()
        self._joined.set()

    def _check(self) -> None:
        if self._broken is not None:
            raise translate(self._broken, f"read the group {self._source.group!r}") from self._broken

    # --- receiving

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        self._check()
        with self._stuck.not_now():
            if self._assignor.sat_out and self._joined.is_set():
                self._assignor.sat_out = False
                if not self._progress:
                    self._rejoin()
            return await self._receive(min(limit, self._connection.options.max_poll_records), wait)

    async def _receive(self, limit: int, wait: bool) -> Sequence[Incoming]:
        if wait:
            await self._look_around()
            await self._look_after_held()
        if not (found := self._due(limit)):
            await (self._fetch(limit, self._pause()) if wait else self._fetch_stored(limit))
            await self._put_off()
            found = self._due(limit)
        if found and self._connection.schemas is not None:
            found = await self._described(found, self._connection.schemas)
        for one in found:
            assert isinstance(one.token, Place)
            self._open[one.token] = one
        return found

    async def _described(self, found: list[Incoming], schemas: Schemas) -> list[Incoming]:
        known = False
        try:
            known = await schemas.describe(found)
        finally:
            # Meanwhile their partition may have gone to another member.
            found = [one for one in found if self._is_ours(one.token)]
            if not known:
                self._ready[:0] = found
        return found if known else []

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
                batches = await self.consumer.getmany(timeout_ms=int(pause * 1000), max_records=limit)
                for partition, records in batches.items():
                    if self._joined.is_set():
                        self._take(partition, records)
                    else:
                        self._early.setdefault(partition, []).extend(records)
        except NATIVE as error:
            raise translate(error, f"read {self._source.pattern!r}") from error
        if self._finished:
            finished, self._finished = self._finished, []
            async with self._settling:
                # If this fails, they are read again and finished again.
                await self._commit([place for place in finished if self._is_ours(place)])

    async def _fetch_stored(self, limit: int) -> None:
        """Fetch something, if anything is stored: that the client has fetched nothing yet says little."""
        with anyio.move_on_after(self._connection.options.response_timeout):
            await self._joined.wait()
            try:
                ends = await self.consumer.end_offsets(list(self._progress)) if self._progress else {}
                while not self._ready and self._joined.is_set():
                    await self._fetch(limit, 0.05)
                    if all([await self.consumer.position(at) >= end for at, end in ends.items()]):
                        break
            except NATIVE as error:
                raise translate(error, f"read {self._source.pattern!r}") from error

    def _throttle(self) -> None:
        """Read no more of what is for later than can be kept."""
        if not self._joined.is_set() or (len(self._later) >= _KEPT) == self._paused:
            return
        mine = [partition for partition in self._progress if partition.topic == self._retries]
        if not self._paused:
            self._paused = True
            self.consumer.pause(*mine)
        elif len(self._later) < _KEPT // 2:
            self._paused = False
            self.consumer.resume(*mine)

    def _take(self, partition: TopicPartition, records: Sequence[ConsumerRecord[Any, Any]]) -> None:
        progress, now = self._progress.get(partition), time.time()
        for record in records:
            if progress is None or not progress.take(record.offset):
                continue
            entry = read(self._connection.names, record.topic, record.key, record.headers)
            incoming = to_incoming(entry, record, Place(partition, record, self._epoch))
            if entry.held is not None and partition.topic == self._retries:
                ready, finished = self._held.read(entry, incoming)
                self._ready += ready
                self._finished += [one.token for one in finished if isinstance(one.token, Place)]
            elif entry.due > now:
                heapq.heappush(self._later, (entry.due, next(self._serial), incoming))
            else:
                self._ready.append(incoming)

    async def _put_off(self) -> None:
        """Move what is due much later out of its topic, so that it does not hold back the commit."""
        soon = time.time() + _SOON
        far = [
            (due, serial, one, one.token) for due, serial, one in self._later
            if due > soon and isinstance(one.token, Place) and one.token.partition.topic != self._retries
        ]  # fmt: skip
        if not far:
            return
        with anyio.CancelScope(shield=True):
            outcomes = [Settlement(place, "retry", due - time.time(), one.attempt - 1) for due, _, one, place in far]
            self._open |= {place: one for _, _, one, place in far}
            gone = {serial for _, serial, _, _ in far}
            self._later = [one for one in self._later if one[1] not in gone]
            heapq.heapify(self._later)
            await self.settle(outcomes)

    async def _look_around(self) -> None:
        """Join the topics that are new; notice that one is gone."""
        topics = self._connection.topics
        age = self._connection.options.discovery_interval if self._wild else EXACT
        await topics.look(None if self._wild else self._reads, age)
        if not self._wild and not self._reads.keys() <= topics.known.keys():
            raise Unavailable(f"Kafka's topic for {self._source.pattern!r} was deleted")
        if not self._joined.is_set() or (exist := self._exist.now()) == self._reads:
            return
        if exist.keys() == self._reads.keys():
            self._reads = exist
            await self._member.refresh()
        elif self._pace.may_change({at: one.next for at, one in self._progress.items()}):
            self._rejoin()

    async def _look_after_held(self) -> None:
        """Hand out the copies whose member is gone, when every note that it may have left was read."""
        partition, now = TopicPartition(self._retries, HOLDS), time.monotonic()
        if not self._held or now < self._asked + _ALIVE or not self._joined.is_set():
            return
        self._asked = now
        try:
            with anyio.fail_after(self._connection.options.response_timeout):
                members = members_in(await self._connection.admin.describe_consumer_groups([self._group]))
                gone = self._held.without(members) if self._member.id in members else []
                end = (await self.consumer.end_offsets([partition]))[partition] if gone else 0
        except NATIVE as error:
            raise translate(error, f"ask Kafka who is in the group {self._source.group!r}") from error
        progress = self._progress.get(partition)
        if gone and progress is not None and progress.next >= end:
            self._ready += self._held.give(gone)

    # --- settling

    async def backlog(self) -> Backlog:
        """See `amb_core.broker.TellsBacklog`."""
        return await backlog(self.consumer, self._member, self._reads, f"count what waits for {self._source.pattern!r}")

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`."""
        async with self._settling:
            errors = await self._settle(outcomes)
        self._settled.set()
        if errors:
            raise PartialFailure(errors)

    def _is_ours(self, place: object) -> bool:
        if not isinstance(place, Place):
            return False
        if place.held:
            return place.held.startswith(f"{self._member.id or '?'}/")
        return place.epoch == self._epoch

    async def _settle(self, outcomes: Sequence[Settlement]) -> dict[int, Exception]:
        errors: dict[int, Exception] = {}
        mine: dict[int, Place] = {}
        for index, one in enumerate(outcomes):
            if not self._is_ours(one.token):
                errors[index] = LeaseLost(f"a delivery of {self._source.pattern!r} went to another member of the group")
            elif isinstance(one.token, Place) and one.token in self._open:
                mine[index] = one.token
        back = {index for index in mine if outcomes[index].verdict == "release"}
        self._release([mine.pop(index) for index in sorted(back) if not mine[index].held])
        again = {index for index in mine if outcomes[index].verdict == "retry"}
        errors |= await self._copies.postpone({i: (mine[i], self._open[mine[i]], outcomes[i]) for i in again})
        done = {index: place for index, place in mine.items() if index not in errors}
        owned = [index for index, place in done.items() if not place.held]
        if owned and (error := await self._commit([done[index] for index in owned])) is not None:
            errors |= dict.fromkeys(owned, error)
        held = {i: (place, "back" if i in back else "done") for i, place in done.items() if place.held}
        errors |= await self._copies.note(held)
        for index, place in done.items():
            if not isinstance(errors.get(index), Unavailable):
                self._open.pop(place, None)
        return errors

    def _release(self, places: Sequence[Place]) -> None:
        back = [one for place in places if (one := self._open.pop(place, None)) is not None]
        if self._joined.is_set():
            self._ready[:0] = back

    async def _commit(self, places: Iterable[Place]) -> AmbError | None:
        """Commit how far the partitions of these are, these included."""
        touched: dict[TopicPartition, Progress] = {}
        for place in places:
            touched[place.partition] = progress = self._progress[place.partition]
            progress.settle(place.record.offset)
        try:
            with anyio.fail_after(self._connection.options.response_timeout):
                await self._member.commit(touched)
        except NATIVE as error:
            return translate(error, f"settle {self._source.pattern!r}")
        return None
