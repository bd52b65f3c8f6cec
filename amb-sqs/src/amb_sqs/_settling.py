"""What becomes of deliveries: deleted, hidden for a while, or stored again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from amb_core.broker import Outgoing, Settlement, Token
from amb_core.errors import AmbError, LeaseLost

from ._client import BATCH, Aws, Entry, Received
from ._poll import Polls
from ._routes import DELAY, fifo_entry
from ._wire import Content, attributes, to_body

if TYPE_CHECKING:
    from .broker import SQSBroker

__all__ = ["LONGEST", "Lease", "Settling", "attempted"]

#: SQS hides a message for so long from when it was received, at most; a little less, for the way there.
LONGEST = 43200 - 60
#: SQS counts whole seconds. What it hides for so much too long is shown when its time has come, but not if that
#: would be so late that somebody may have it already.
_WORTH, _LATE = 0.2, 0.1
#: So many of the messages that were given back unstarted are remembered.
_NOTED = 2000
#: A lease counts as over a little early: SQS's clock began before ours.
_MARGIN = 0.95


class Lease:
    """A token: where the delivery is, until when it is ours, and what it said. Works on any feed and connection."""

    __slots__ = (
        "attempt",
        "content",
        "count",
        "group",
        "handle",
        "id",
        "settled",
        "since",
        "stored",
        "topic",
        "tried",
        "until",
        "url",
    )

    def __init__(self, url: str, message: Received, content: Content, topic: str, attempt: int, lease: int) -> None:
        self.url, self.handle, self.id, self.group = url, message.handle, message.id, message.group
        self.content, self.topic, self.attempt, self.count = content, topic, attempt, message.count
        self.since, self.settled = time.monotonic(), False
        #: Somebody began to delete it, and may not have heard what came of that; its later copy is stored.
        self.tried = self.stored = False
        self.until = self.since + lease * _MARGIN


class _Plan(msgspec.Struct):
    """What is to be done, by the index of the outcome."""

    delete: dict[int, Lease]
    hide: dict[int, tuple[Lease, int]]
    copies: dict[int, Settlement]
    errors: dict[int, Exception]


class Settling:
    """Carries out what was decided. `alone`: the queue has one subscriber, whose leases nobody else takes over."""

    def __init__(self, options: SQSBroker, aws: Aws, polls: Polls, pattern: str, alone: bool) -> None:
        self._options, self._aws, self._polls, self._pattern, self._alone = options, aws, polls, pattern, alone
        #: How often messages, by their ids, were received and given back unstarted: SQS counts that too.
        self._unstarted: dict[str, int] = {}

    def attempts(self, message: Received) -> int:
        """How many receives of the message were attempts, this one included, as far as this subscription knows."""
        return message.count - self._unstarted.get(message.id, 0)

    async def settle(self, outcomes: Sequence[Settlement]) -> dict[int, Exception]:
        """Do it; the error of each that failed."""
        plan = self._plan(outcomes)
        failed = await self._copy(plan.copies)
        for index in plan.copies.keys() - failed.keys():
            plan.delete[index] = _token(plan.copies[index])
            plan.delete[index].stored = True
        again = {index for index, lease in plan.delete.items() if lease.tried}
        for lease in plan.delete.values():
            lease.tried = True
        deleted, hidden = await asyncio.gather(self._delete(plan.delete), self.hide(plan.hide))
        done = {index: plan.hide[index] for index in plan.hide.keys() - hidden.keys()}
        self.note_unstarted([lease for index, (lease, _) in done.items() if outcomes[index].verdict == "release"])
        self._show_in_time(outcomes, done)
        # What was cancelled, or not answered, the first time has worked after all.
        deleted = {i: error for i, error in deleted.items() if i not in again or not isinstance(error, LeaseLost)}
        return plan.errors | failed | deleted | hidden

    def _plan(self, outcomes: Sequence[Settlement]) -> _Plan:
        plan = _Plan({}, {}, {}, {})
        for index, outcome in enumerate(outcomes):
            lease = outcome.token
            if not isinstance(lease, Lease) or not self._is_ours(lease):
                plan.errors[index] = LeaseLost("its visibility timeout has run out: it comes again")
            elif lease.settled:
                continue
            elif outcome.verdict in ("ack", "discard") or lease.stored:
                plan.delete[index] = lease
            elif outcome.verdict == "release" and not self._is_worn(lease):
                plan.hide[index] = lease, 0
            elif outcome.verdict == "release":
                plan.copies[index] = Settlement(lease, "retry", attempt=lease.attempt - 1)
            elif self._needs_copy(outcome, lease):
                plan.copies[index] = outcome
            else:
                plan.hide[index] = lease, _seconds(outcome.delay)
        return plan

    def _is_ours(self, lease: Lease) -> bool:
        return self._alone or lease.settled or lease.until > time.monotonic()

    def _needs_copy(self, outcome: Settlement, lease: Lease) -> bool:
        """SQS cannot do it with the message that is there: it hides for twelve hours at most, moves what was received
        too often to another queue, and in the one queue the count tells nothing."""
        late = outcome.delay > LONGEST - (time.monotonic() - lease.since)
        return self._options.one_queue or late or self._is_worn(lease)

    def _is_worn(self, lease: Lease) -> bool:
        """The redrive policy would take it next."""
        often = self._options.max_receive_count
        return often is not None and lease.count >= often

    def note_unstarted(self, leases: Sequence[Lease]) -> None:
        """Their last receives were no attempts."""
        counts = self._unstarted
        for lease in leases:
            counts[lease.id] = counts.pop(lease.id, 0) + 1
            if len(counts) > _NOTED:
                del counts[next(iter(counts))]

    def _show_in_time(self, outcomes: Sequence[Settlement], hidden: Mapping[int, tuple[Lease, int]]) -> None:
        early: dict[tuple[float, int], list[Lease]] = {}
        for index, (lease, seconds) in hidden.items():
            delay = outcomes[index].delay
            if seconds - delay > _WORTH:
                early.setdefault((delay, seconds), []).append(lease)
        for (delay, seconds), leases in early.items():
            self._polls.own(self._show(leases, delay, time.monotonic() + seconds - _LATE), kept=False)

    async def _show(self, leases: Sequence[Lease], delay: float, latest: float) -> None:
        await anyio.sleep(delay)
        if time.monotonic() < latest:
            await self.hide({index: (lease, 0) for index, lease in enumerate(leases)})

    async def _copy(self, copies: Mapping[int, Settlement]) -> dict[int, Exception]:
        """Store the later copies, where the originals are."""
        entries: dict[str, list[Entry]] = {}
        for index, outcome in copies.items():
            lease, seconds = _token(outcome), _seconds(outcome.delay)
            fifo = lease.group is not None and lease.url.endswith(".fifo")
            content = lease.content
            due = time.time() + outcome.delay if seconds > (0 if fifo else DELAY) else None
            message = Outgoing(lease.topic, content.body, content.headers, content.key)
            body = to_body(message, attempts=outcome.attempt, not_before=due)
            entry = Entry(index, body, min(DELAY, seconds), attributes=attributes(message))
            if fifo:
                entry = fifo_entry(index, message, body, entry.attributes, False)
                entry.group, entry.dedup = lease.group, f"{lease.id}-{outcome.attempt}"
            entries.setdefault(lease.url, []).append(entry)
        errors: dict[int, Exception] = {}
        for url, chosen in entries.items():
            for at in range(0, len(chosen), BATCH):
                chunk = chosen[at : at + BATCH]
                indexes = [entry.index for entry in chunk]
                errors |= await attempted(partial(self._aws.send, url, chunk, repr(self._pattern)), indexes)
        return errors

    async def _delete(self, leases: Mapping[int, Lease]) -> dict[int, Exception]:
        def call(url: str, chunk: list[int]) -> Coroutine[Any, Any, dict[int, AmbError]]:
            return self._aws.delete(url, [(index, leases[index].handle) for index in chunk])

        return await _batches({index: lease.url for index, lease in leases.items()}, call)

    async def hide(self, leases: Mapping[int, tuple[Lease, int]]) -> dict[int, Exception]:
        """Let nobody see the messages for so many seconds from now."""

        def call(url: str, chunk: list[int]) -> Coroutine[Any, Any, dict[int, AmbError]]:
            return self._aws.hide(url, [(index, leases[index][0].handle, leases[index][1]) for index in chunk])

        return await _batches({index: lease.url for index, (lease, _) in leases.items()}, call)

    async def extend(self, tokens: Sequence[Token]) -> dict[int, Exception]:
        """Restart the leases; the error of each that is lost."""
        began = time.monotonic()
        mine = {i: token for i, token in enumerate(tokens) if isinstance(token, Lease) and self._is_ours(token)}
        seconds = self._options.visibility_timeout
        errors = await self.hide({index: (lease, seconds) for index, lease in mine.items()})
        for index, lease in mine.items():
            if index not in errors:
                lease.until = began + seconds * _MARGIN
        lost = LeaseLost("its visibility timeout has run out: it comes again")
        return errors | {index: lost for index in range(len(tokens)) if index not in mine}


def _token(outcome: Settlement) -> Lease:
    assert isinstance(outcome.token, Lease)
    return outcome.token


def _seconds(delay: float) -> int:
    """SQS counts whole seconds; what is delayed is never early."""
    return math.ceil(delay)


async def attempted(
    call: Callable[[], Coroutine[Any, Any, dict[int, AmbError]]], indexes: Sequence[int]
) -> dict[int, Exception]:
    """What `call` returns, or its error for every index."""
    try:
        return dict(await call())
    except AmbError as error:
        return dict.fromkeys(indexes, error)


async def _batches(
    urls: Mapping[int, str], call: Callable[[str, list[int]], Coroutine[Any, Any, dict[int, AmbError]]]
) -> dict[int, Exception]:
    """Make the calls that are needed for all indexes, at once."""
    by_url: dict[str, list[int]] = {}
    for index, url in urls.items():
        by_url.setdefault(url, []).append(index)
    chunks = [(url, chosen[at : at + BATCH]) for url, chosen in by_url.items() for at in range(0, len(chosen), BATCH)]
    results = await asyncio.gather(*(attempted(partial(call, url, chunk), chunk) for url, chunk in chunks))
    return {index: error for result in results for index, error in result.items()}
