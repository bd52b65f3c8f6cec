"""A feed on a pull consumer: a group's durable one, or one that goes with its subscription."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from amb_core.broker import Backlog, Incoming, Settlement, Source, Token
from amb_core.concurrency import Wakeup, bounded
from amb_core.errors import AccessDenied, AmbError, LeaseLost, PartialFailure, Unavailable
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ._answers import STILL_AT_IT, nak, tell, verdict
from ._feed import subscribe
from ._lease import MARGIN, Lease, Pulse, recall, remember
from ._link import Link, status
from ._notes import Notes
from ._pin import Pin
from ._stream import Stream
from ._wire import NANO, NOT_BEFORE, Names, durable, from_headers

if TYPE_CHECKING:
    from .broker import NatsBroker

__all__ = ["PullFeed"]

logger = logging.getLogger("amb.nats")

#: Seconds that the server keeps a request for messages; `receive` may wait five.
_WAIT = 4.0
#: Seconds after which the server forgets a consumer without a group whose process died; one that takes nothing for
#: so long, because its handlers are busy, begins anew.
_FORGOTTEN = 3600.0
#: Seconds until it is looked again whether others have finished.
_LOOK_AGAIN = 0.2
#: The part of a lease that is left when a delivery is handed over.
_FRESH = 0.8


class PullFeed:
    """`Feed`, `LooksAhead`, `Withdraws`, `ExtendsLease` and `TellsBacklog` on a JetStream consumer."""

    def __init__(self, options: NatsBroker, link: Link, stream: Stream, names: Names, source: Source) -> None:
        self._link, self._stream, self._names, self._source = link, stream, names, source
        self._grouped = source.group is not None
        self._lease = options.lease if self._grouped else 24 * _FORGOTTEN
        self._all = source.start == "earliest" or options.stream_retention == "workqueue"
        self.consumer = durable(source.group or "_", source.pattern if self._grouped else source.id)
        self._notes = Notes(link, stream)
        self._pulse: Pulse | None = None
        self._pin: Pin | None = None
        #: Where what is asked for arrives. The server forgets a request when nobody listens there any more.
        self._inbox = link.client.new_inbox()
        self._subscription: Subscription | None = None
        self._buffer: deque[Incoming] = deque()
        self._standing = recall(source.id)
        self._held = self._standing.held
        self._news = Wakeup()
        self._asked = self._ahead = 0
        self._until = 0.0
        self._failure: AmbError | None = None
        self._broken = self._withdrawn = False

    async def start(self) -> None:
        """Find or make the consumer; returns when it is live."""
        doing = f"subscribe to {self._source.pattern!r}"
        wanted = self._names.filters(self._source.pattern)
        self._link.watchers.add(self._news.set)
        self._pulse = Pulse(self._lease / 10)
        self._stream.keeps(wanted, doing)
        await self._stream.prepare()
        (self._subscription,) = await subscribe(self._link, [self._inbox], "", self._arrived, doing)
        found = await self._stream.consumer(self.consumer)
        if self._source.ordered_by is not None or (found or {}).get("config", {}).get("priority_groups"):
            self._pin = Pin(self._stream, self.consumer, self._standing, self._lease)
        config = self._config(wanted)
        if found is not None and self._grouped:
            config = found["config"] | {"ack_wait": config["ack_wait"]}
        elif not self._grouped and (after := await self._reached(found)) is not None:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
        if self._pin is not None:
            config |= self._pin.config
        if found is None or config != found["config"]:
            await self._stream.make_consumer(self.consumer, config, doing)

    async def _reached(self, found: dict[str, Any] | None) -> int | None:
        """Up to where a source without a group was read, by a feed whose link broke. None: there was none."""
        if found is not None:
            # What was under way is delivered again; nobody else would.
            await self._stream.drop_consumer(self.consumer)
            return int(found["ack_floor"]["stream_seq"])
        # The server has forgotten the consumer. If the stream is a new one, so are its positions.
        last = self._standing.last
        return last if last and last <= (await self._stream.info())["state"]["last_seq"] else None

    def _config(self, wanted: Sequence[str]) -> dict[str, Any]:
        config: dict[str, Any] = {
            "durable_name": self.consumer,
            "deliver_policy": "all" if self._all else "new",
            "ack_policy": "explicit",
            "ack_wait": int(self._lease * NANO),
            "max_deliver": -1,
            "max_ack_pending": -1,
            "replay_policy": "instant",
            "metadata": {"amb-pattern": self._source.pattern, "amb-group": self._source.group or ""},
        }
        if wanted != [">"]:
            config["filter_subjects"] = list(wanted)
        return config if self._grouped else config | {"inactive_threshold": int(_FORGOTTEN * NANO)}

    async def stop(self) -> None:
        """Give back what was not settled; leave no consumer without a group behind."""
        self._link.watchers.discard(self._news.set)
        if self._pulse is not None:
            self._pulse.stop()
        if self._broken or self._link.lost is not None:
            remember(self._source.id, self._standing)
        if self._link.lost is not None or self._subscription is None:
            return
        # What had been sent until then has arrived.
        await self._link.drain(self._subscription)
        if self._grouped:
            # After a failure handlers go on, and the next feed settles what they hold.
            await self._give_back([*self._unseen(), *(() if self._broken else self._held)])
            if self._pin is not None and not self._broken:
                await self._pin.leave()
        elif not self._broken:
            await self._stream.drop_consumer(self.consumer)

    async def withdraw(self) -> None:
        """See `amb_core.broker.Withdraws`. An ordered group's reader keeps its turn."""
        # What was asked for is given back as it comes. Not listening any more would end the request, but the server
        # counts as delivered what it sends to nobody in that moment.
        if self._pin is None:
            self._withdrawn = True
            await self._give_back(self._unseen())

    def _unseen(self) -> list[Lease]:
        """Take what has arrived and not been handed over."""
        unseen = [incoming.token for incoming in self._buffer if isinstance(incoming.token, Lease)]
        self._buffer.clear()
        return unseen

    # --- receiving

    async def _arrived(self, message: Msg) -> None:
        if message.reply:
            self._asked -= 1
            self._take_in(message)
        elif (code := status(message)) is not None and code != "100":
            self._ended(code, message.headers or {})
        self._news.set()
        if self._withdrawn and self._buffer:
            await self._return_unseen()

    async def _return_unseen(self) -> None:
        unseen = self._unseen()
        try:
            await self._give_back(unseen)
        except AmbError as error:
            logger.info("%d message(s) on %r come again later: %s", len(unseen), self._source.pattern, error)

    def _take_in(self, message: Msg) -> None:
        since = time.monotonic() if self._pulse is None else self._pulse.since()
        if self._pin is not None:
            self._pin.seen(message.headers or {})
        headers, key = from_headers(message.headers)
        lease = Lease(message.reply, self._inbox, since + self._lease * MARGIN)
        topic = self._names.topic(message.subject) or message.subject
        self._buffer.append(Incoming(topic, message.data, headers, lease, key, 1, lease.position, message))

    def _ended(self, code: str, headers: dict[str, str]) -> None:
        """The server has nothing more for the request that is open."""
        said = headers.get("Description", "")
        if "MaxBytes" in said:
            return  # the answer to a request that only keeps the pin
        self._asked = 0
        if code == "423" and self._pin is not None:
            self._pin.lost()
        if code == "503" or (code == "409" and "deleted" in said.lower()):
            self._failure = Unavailable(
                f"the consumer of {self._source.pattern!r} is gone ({said or 'nobody answers'}): making it again"
            )

    async def receive(self, limit: int, wait: bool = True) -> Sequence[Incoming]:
        """See `amb_core.broker.Feed.receive`."""
        self._withdrawn = False
        if not self._buffer:
            try:
                await self._more(limit, wait)
            except AmbError:
                self._broken = True
                raise
        if self._pin is not None and self._buffer and not await self._all_here(self._pin, limit):
            return []
        # Whoever cancels this finds everything still in the buffer.
        known = list(self._buffer)[:limit]
        for incoming in known:
            await self._inspect(incoming)
        return list(self._hand_out(len(known)))

    def _hand_out(self, count: int) -> Iterator[Incoming]:
        for _ in range(count):
            incoming = self._buffer.popleft()
            lease = incoming.token
            assert isinstance(lease, Lease)
            if lease.settled:
                continue
            if lease.until > time.monotonic():
                incoming.attempt = lease.attempt
                incoming.headers.pop(NOT_BEFORE, None)
                self._held.add(lease)
                self._standing.last = max(self._standing.last, int(lease.position))
                yield incoming
            elif self._pin is not None:
                self._pin.sure = False  # it comes again, and before what is behind it
                return

    async def _inspect(self, incoming: Incoming) -> None:
        """Learn how often it was tried, and send it back if its time has not come."""
        lease = incoming.token
        assert isinstance(lease, Lease)
        if self._grouped:
            await self._notes.read(self.consumer, lease)
        if lease.until < time.monotonic():
            # Nobody asked for it in time: it comes again, and this was no attempt.
            await self._note([lease])
            return
        due = incoming.headers.get(NOT_BEFORE)
        if due is not None and (wait := _seconds(due) - time.time()) > 0:
            await self._give_back([lease], wait)
        elif lease.until < time.monotonic() + self._lease * _FRESH:
            # It has waited here, and whoever gets it counts on nearly all of its time.
            await self.extend([lease])

    async def _all_here(self, pin: Pin, limit: int) -> bool:
        """Whether nothing that belongs before what is here is missing. Waits for it, for a while."""
        now = time.monotonic()
        deadline = now + _WAIT
        if gone := {lease for lease in self._held if lease.until < now}:
            # Whoever gets them again must get them first.
            self._held -= gone
            pin.sure = False
        while not pin.sure and time.monotonic() < deadline:
            self._check()
            leases = {incoming.token for incoming in self._buffer} | self._held
            ours = [lease for lease in leases if isinstance(lease, Lease) and not lease.settled]
            await pin.check(len({lease.position for lease in ours if lease.until > time.monotonic()}))
            if pin.sure:
                latest = {incoming.position: incoming for incoming in self._buffer}
                self._buffer = deque(sorted(latest.values(), key=lambda incoming: int(incoming.position or 0)))
                break
            await self.extend([lease for lease in ours if lease not in self._held and lease.until > time.monotonic()])
            if self._asked <= 0:
                await self._ask(limit, True)
            try:
                await bounded(self._news.wait(), _LOOK_AGAIN)
            except TimeoutError:
                pass
        return pin.sure

    async def _more(self, limit: int, wait: bool) -> None:
        if self._asked <= 0:
            await self._ask(limit, wait)
        elif not wait:
            return
        deadline = self._until + self._link.patience
        while not self._buffer and self._asked > 0:
            self._check()
            try:
                await bounded(self._news.wait(), max(0.01, deadline - time.monotonic()))
            except TimeoutError:
                # The server has forgotten the request: a new leader, perhaps. Or it is not there any more.
                self._asked = 0
                await self._link.flush(f"receive from {self._source.pattern!r}")
        self._check()

    def _check(self) -> None:
        self._link.check()
        if self._failure is not None:
            raise self._failure

    async def _ask(self, limit: int, wait: bool, more: bool = False) -> None:
        self._check()
        self._asked, self._until = limit, time.monotonic() + (_WAIT if wait else 0.0)
        request: dict[str, Any] = {"batch": limit}
        request |= self._pin.request() if self._pin is not None else {}
        request |= {"expires": int(_WAIT * NANO)} if wait else {"no_wait": True}
        await self._request(msgspec.json.encode(request), more)

    async def _request(self, body: bytes, more: bool = False) -> None:
        subject = f"{self._stream.api}.CONSUMER.MSG.NEXT.{self._stream.name}.{self.consumer}"
        posting = self._link.client.post(subject, body, self._inbox, more=more)
        await self._link.call(f"receive from {self._source.pattern!r}", posting)

    def expect(self, limit: int) -> None:
        """See `amb_core.broker.LooksAhead`."""
        # With a pin, what is here is looked at as a whole before more is asked for.
        self._ahead = limit if self._pin is None else 0

    # --- settling

    async def backlog(self) -> Backlog:
        """See `amb_core.broker.TellsBacklog`."""
        found = await self._stream.consumer(self.consumer)
        if found is None:
            return Backlog()
        waiting = int(found["num_pending"])
        return Backlog(waiting=waiting, unsettled=waiting + int(found["num_ack_pending"]))

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`."""
        errors: dict[int, Exception] = {}
        told: list[tuple[Lease, bytes]] = []
        back: list[Lease] = []
        ahead, self._ahead = self._ahead, 0
        for i, outcome in enumerate(outcomes):
            lease = outcome.token
            if not isinstance(lease, Lease) or (lease.until < time.monotonic() and not lease.settled):
                errors[i] = LeaseLost("its lease ran out")
            elif lease.settled:
                continue
            elif outcome.verdict == "release":
                back.append(lease)
            else:
                told.append((lease, verdict(outcome)))
        if told and ahead > 0 and not self._buffer and self._asked <= 0 and self._failure is None:
            await self._ask(ahead, True, more=True)
        await self._settle(told)
        await self._give_back(back)
        self._held.difference_update(outcome.token for outcome in outcomes if isinstance(outcome.token, Lease))
        if errors:
            raise PartialFailure(errors)

    async def _give_back(self, leases: Sequence[Lease], delay: float = 0.0) -> None:
        """As if they had not been handed over."""
        leases = [lease for lease in leases if not lease.settled and lease.until > time.monotonic()]
        if not leases:
            return
        await self._note(leases)
        await self._settle([(lease, nak(delay)) for lease in leases])

    async def _settle(self, answers: Sequence[tuple[Lease, bytes]]) -> None:
        await tell(self._link, self._inbox, answers, f"settle on {self._source.pattern!r}")
        for lease, _ in answers:
            lease.settled = True

    async def _note(self, leases: Sequence[Lease]) -> None:
        if self._grouped:
            try:
                await self._notes.write(self.consumer, leases)
            except AccessDenied as error:
                logger.warning("what was given back counts as tried: %s", error)

    async def extend(self, tokens: Sequence[Token]) -> None:
        """See `amb_core.broker.ExtendsLease.extend`."""
        now, errors, told = time.monotonic(), dict[int, Exception](), list[tuple[Lease, bytes]]()
        for i, lease in enumerate(tokens):
            if not isinstance(lease, Lease) or lease.until < now:
                errors[i] = LeaseLost("its lease ran out")
            else:
                told.append((lease, STILL_AT_IT))
        if self._pin is not None and self._asked <= 0:
            await self._request(self._pin.keep())
        await tell(self._link, self._inbox, told, f"extend leases on {self._source.pattern!r}")
        for lease, _ in told:
            lease.until = now + self._lease * MARGIN
        if errors:
            raise PartialFailure(errors)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
