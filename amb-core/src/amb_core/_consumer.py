"""One subscription at work: pulls deliveries from its feed, hands them to handlers, settles them.

Workers are long-lived and await the handler inline. One of them at a time holds the receiver's role;
another one starts, or wakes up, only when a handler suspends and there is work or the role to take. So a
handler that never waits costs no task switch, and `concurrency` is a true bound.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import msgspec

from ._breaker import Breaker
from ._deliver import Delivery, Processor, current_consumer
from ._held import LIMIT, Held, spare_places
from ._keys import Keys
from ._leaving import answered, as_failure
from ._message import ID, NORMAL, PRIORITY, priority_of
from ._settling import SETTLE_WITHIN, Settler, tell
from .broker import Backlog, Capabilities, Feed, KnowsPeers, LooksAhead, Source, Withdraws
from .concurrency import Future, Wakeup, new_future
from .errors import AmbError
from .lanes import Lanes

if TYPE_CHECKING:
    from ._lease import Renewal
    from ._lifecycle import Host

log = logging.getLogger("amb")
#: Fetches after which a worker lets others run, even if none of them had to wait.
BREATH = 64
#: A feed that has not answered for so many seconds hangs (its contract says 5).
SILENCE = 15.0


class Consumer:
    """See the module. Lives as long as its subscription; feeds come and go."""

    processor: Processor
    renewal: Renewal | None = None

    def __init__(
        self, source: Source, capabilities: Capabilities, host: Host, concurrency: int, batch: tuple[int, float] | None
    ) -> None:
        self.source, self.host, self.concurrency, self._batch = source, host, concurrency, batch
        self.breakers: list[Breaker] = []
        self.thread, self.loop = threading.get_ident(), anyio.lowlevel.current_token()
        #: The broker redelivers; else this process does. See `Source.group` and `Source.ordered_by`.
        self.by_broker = source.group is not None and capabilities.redelivery == "broker" and not source.ordered_by
        #: Deliveries are leased, not given: the broker takes them back in time.
        self.leased = source.group is not None and capabilities.redelivery == "broker"
        self._silent = capabilities.single_process  # its feeds have nothing to answer while they wait
        self.delays = capabilities.delay != "none"
        self._keys = None if source.ordered_by is None else Keys()
        self.feed: Feed | None = None
        #: The feed, if it wants to know what it will be asked for.
        self.ahead: LooksAhead | None = None
        #: What the broker said last, if anybody asks it.
        self.backlog: Backlog | None = None
        self.ended: Future[BaseException | None] | None = None
        self.paused = self.stopping = self.aborted = False
        #: Take what is left, but do not wait for more.
        self.finishing = False
        self.last_receive = 0.0
        self.started = 0
        self.running = 0
        self.open: dict[Any, Delivery] = {}
        #: Received and not started: in plain order, or in lanes as soon as one of them has a priority.
        self._ready: deque[Delivery] = deque()
        self._lanes: Lanes[Delivery] = Lanes()
        self.held = Held(self)
        self._spare = spare_places(source.group, source.ordered_by, capabilities)
        self.settler = Settler(self, whole=not capabilities.single_process)
        self._dry = False
        self._receiver: anyio.CancelScope | None = None
        self._unbroken = 0
        self._workers = 0
        self._scopes: set[anyio.CancelScope] = set()
        self._idle: list[Wakeup] = []
        self._resting: list[Future[None]] = []

    # --- feeds come and go

    def attach(self, feed: Feed) -> None:
        """Consume from `feed` until `detach`."""
        self.feed, self.ended = feed, new_future()
        self.ahead = feed if isinstance(feed, LooksAhead) else None
        self.last_receive = time.monotonic()
        if self.settler.pending:
            self.settler.flush_soon()
        self.kick()

    def detach(self) -> None:
        """The feed is gone. What has not started is given back through the next one; handlers go on."""
        self.feed = self.ended = None
        if self.by_broker:
            self._release_unstarted()

    def fail(self, feed: Feed, error: BaseException) -> None:
        """`feed` is finished because of `error`: its supervisor opens it again."""
        if self.feed is feed and self.ended is not None and not self.ended.done():
            self.feed = None
            self.ended.set_result(error)
            if self._receiver is not None:  # it may wait for ever on a dead line
                self._receiver.cancel()

    @property
    def consuming(self) -> bool:
        """The feed is live, and it has answered lately or every place is taken."""
        if self.feed is None:
            return False
        waits = self._receiver is not None and not self._silent
        return not waits or time.monotonic() - self.last_receive < SILENCE

    def breaker_changed(self) -> None:
        """A circuit breaker opened or closed, or has a place again: give back what has not started, or go on."""
        if self._allowed():
            self.kick()
        elif self._is_cut_off():
            self._stand_back()

    def pause(self) -> None:
        """Start nothing more for now; what has not started is left to others."""
        self.paused = True
        self._stand_back()

    def resize(self, concurrency: int) -> None:
        """Change how many handlers may run at once."""
        places = (self.source.max_in_flight - self._spare) // self.concurrency * concurrency + self._spare
        self.source = msgspec.structs.replace(self.source, max_in_flight=places)
        self.concurrency = concurrency
        self.kick()

    def feed_failed(self, feed: Feed, error: Exception, doing: str) -> None:
        """`feed` raised `error` while it was `doing` something: it is finished."""
        if not isinstance(error, AmbError):
            log.error("%s %r raised what its contract does not allow", doing, self.source.pattern, exc_info=error)
        self.fail(feed, error)

    # --- workers

    def kick(self) -> None:
        """There may be something to do: wake or start a worker."""
        if self._idle:
            self._idle.pop().set()
        elif self._workers < self.concurrency and not self.aborted:
            self._workers += 1
            self.host.start_soon(self._work)
        elif self._receiver is not None and (self._ready or self._lanes.waiting):
            # The only one who could take it waits for the broker, perhaps for ever; its successor looks here first.
            self._receiver.cancel()

    def suspended(self) -> None:
        """A handler has begun to wait: somebody else takes the next delivery, or the receiver's role."""
        if self._ready or self._lanes.waiting or (self._receiver is None and self._slots() > 0):
            self.kick()

    async def _work(self) -> None:
        parking, start, settler = Wakeup(), self.processor.start, self.settler
        current_consumer.set(self)
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                while self._workers <= self.concurrency and not self.aborted:
                    delivery = self._next() if self._ready or self._lanes.waiting else None
                    if delivery is None:
                        # Nothing waits here: settle, then receive, or rest until there is something to do.
                        if settler.pending and not settler.flushing and self.feed is not None:
                            await self._settle()
                        elif self._receiver is None and self.feed is not None and (slots := self._slots()) > 0:
                            delivery = await self._receive(self.feed, slots, scope)
                            if scope.cancel_called:  # just as something came
                                self.try_again(delivery)
                                break
                        else:
                            await self._park(parking)
                        if delivery is None:
                            continue
                    self.started += 1
                    self.running += 1
                    try:
                        rest = start(delivery) if self._batch is None else self._start_batch(delivery, self._batch)
                        if rest is not None:
                            await rest
                    finally:
                        self.running -= 1
                        if self.breakers:
                            self._probed()
                    if settler.pending and not settler.flushing and time.monotonic() >= settler.due:
                        await self._settle()
            finally:
                self._scopes.discard(scope)
                self._workers -= 1
                if parking in self._idle:
                    self._idle.remove(parking)
                self._look_quiet()
        if not self.aborted:
            self.kick()  # the receiver's role, or a delivery, may be left to somebody else

    def _probed(self) -> None:
        for breaker in self.breakers:
            breaker.ended()

    async def _start_batch(self, first: Delivery, limits: tuple[int, float]) -> None:
        await self.processor.run_batch(await self._collect(first, limits))

    async def _park(self, parking: Wakeup) -> None:
        self._idle.append(parking)
        self._look_quiet()
        await parking.wait()

    def _slots(self, more: int = 0) -> int:
        """How many deliveries may be received now, or when so `more` are settled."""
        if self.paused or self._dry or (self.stopping and not self.finishing) or len(self.held) >= LIMIT:
            return 0
        slots = self.source.max_in_flight - len(self.open) + more
        if self._spare:  # what waits here for its next try holds no handler's place
            slots += len(self.held) - self._spare
        for breaker in self.breakers:
            allowance = breaker.allowance()
            if allowance is not None:
                slots = min(slots, allowance - len(self._ready) - len(self._lanes))
        return slots

    async def _settle(self) -> None:
        """Tell the feed what is decided; what this worker asks for right after that, it may ask for along with it."""
        asks = self.ahead is not None and self._receiver is None and not (self.finishing or self.waiting)
        await self.settler.flush(self._slots(len(self.settler.pending)) if asks else 0)

    def _next(self) -> Delivery | None:
        """What is to be handled next of what was received."""
        if self.paused or (self.breakers and not self._allowed()):
            return None
        while self._ready or self._lanes.waiting:
            # Whatever waits in the lanes came earlier or is more urgent than what came in plain order.
            delivery = self._lanes.pop() if self._lanes.waiting else self._ready.popleft()
            if delivery.lost or delivery.verdict is not None:
                continue
            if self._keys is None or self._keys.take(delivery):
                return delivery
        return None

    def _is_cut_off(self) -> bool:
        """A circuit breaker is open, and the broker has a place for what waits here."""
        return self.by_broker and any(breaker.state == "open" for breaker in self.breakers)

    def _allowed(self) -> bool:
        return all(breaker.allowance() != 0 for breaker in self.breakers)

    async def _receive(self, feed: Feed, slots: int, scope: anyio.CancelScope) -> Delivery | None:
        """Fetch deliveries; the first is returned if nothing else waits, the others go into the lanes."""
        self._receiver = scope
        self._unbroken += 1
        observer, began = self.host.observer, 0
        try:
            if self._unbroken >= BREATH:
                # A feed that always has something, such as what a handler hands back at once, need not wait.
                self._unbroken = 0
                await anyio.lowlevel.checkpoint()
            if observer is not None:
                began = time.time_ns()
            batch = await feed.receive(slots, not self.finishing or _tries_again(feed))
        except BaseException as caught:
            error = as_failure(caught)
            if not isinstance(error, Exception):
                raise
            self._receiver = None
            self.feed_failed(feed, error, "receiving from")
            self._dry = self.finishing
            return None
        finally:
            self._receiver = None
        self.last_receive = now = time.monotonic()
        if not batch:
            self._dry = self.finishing
            return None
        if observer is not None:
            observer.received(self.source, batch, began)
        tick = 0
        if self.renewal is not None:
            self.renewal.arm()
            tick = self.renewal.tick
        if not self.open and not self.settler.pending:
            self.settler.due = now + SETTLE_WITHIN
        self.host.stats.delivered += len(batch)
        events = self.host.events
        mark = events.mark
        for incoming in batch:
            if mark in incoming.headers or ID not in incoming.headers:
                events.read(incoming)
            self.open[incoming.token] = delivery = Delivery(incoming, self, tick)
            if PRIORITY in incoming.headers or self._lanes.waiting:
                self._into_lanes(delivery)
            else:
                self._ready.append(delivery)
        if self.stopping or self.paused or self.feed is not feed or self.breakers:
            self._came_late(feed)
        return self._next()

    def _came_late(self, feed: Feed) -> None:
        if not self.starts_more:
            self._forget_unstarted()
        elif (self.paused and self.leased) or self._is_cut_off():
            self._give_back()
        elif self.feed is not feed and self.by_broker:
            self._release_unstarted()

    def _into_lanes(self, delivery: Delivery) -> None:
        while self._ready:
            self._lanes.push(NORMAL, self._ready.popleft())
        self._lanes.push(priority_of(delivery.incoming.headers), delivery)

    async def _collect(self, first: Delivery, limits: tuple[int, float]) -> list[Delivery]:
        """Up to ``limits[0]`` deliveries, waiting at most ``limits[1]`` seconds for them."""
        batch, deadline = [first], time.monotonic() + limits[1]
        try:
            while len(batch) < limits[0]:
                delivery = self._next()
                if delivery is None:
                    remaining, slots = deadline - time.monotonic(), min(self._slots(), limits[0] - len(batch))
                    if remaining <= 0 or slots <= 0 or self._receiver is not None or self.feed is None:
                        break
                    with anyio.move_on_after(remaining) as scope:
                        delivery = await self._receive(self.feed, slots, scope)
                if delivery is not None:
                    batch.append(delivery)
        except BaseException:
            for delivery in batch:
                delivery.settle("release")
            raise
        return batch

    # --- settling

    def decided(self, delivery: Delivery) -> None:
        """Queue a delivery's verdict; a retry that the broker cannot do is kept here."""
        if delivery.verdict == "retry" and not delivery.lost:
            self.host.stats.retried += 1
            if not self.by_broker or (delivery.delay and not self.delays):
                self.held.add(delivery)
                return
        if delivery.held_key:
            self._frees_key(delivery)
        if delivery.lost or (delivery.local and delivery.verdict != "dead"):
            self.close_delivery(delivery)
        else:
            self.settler.add(delivery)

    def _frees_key(self, delivery: Delivery) -> None:
        following = self._keys.free(delivery) if self._keys is not None else None
        if following is not None:
            self._lanes.push_front(NORMAL, following)
            self.kick()

    def left_open(self, delivery: Delivery) -> None:
        """A handler with manual acknowledgement returned without a verdict: the lease runs from now on."""
        if self.renewal is not None:
            self.renewal.let_go(delivery)

    @property
    def waiting(self) -> int:
        """Deliveries that were received and not started."""
        return len(self._ready) + len(self._lanes)

    @property
    def owes(self) -> bool:
        """The broker waits for verdicts that are decided, or will be when handlers have finished."""
        return self.leased and not self.aborted and bool(self.running or self.settler.pending)

    @property
    def wants_feed(self) -> bool:
        """There is something to receive, or to settle."""
        return not self.stopping or self.owes

    @property
    def starts_more(self) -> bool:
        """Handlers may still be started."""
        return not self.aborted and (self.finishing or not self.stopping)

    def try_again(self, delivery: Delivery | None) -> None:
        """Handle `delivery`, if there is one, before what waits in its lane."""
        if delivery is not None:
            self._lanes.push_front(priority_of(delivery.incoming.headers), delivery)
            self.kick()

    def close_delivery(self, delivery: Delivery) -> None:
        """Nothing more is to be told about `delivery`: its place is free."""
        delivery.settled = True
        if self.open.get(delivery.incoming.token) is delivery:
            del self.open[delivery.incoming.token]

    def lose(self, delivery: Delivery) -> None:
        """The broker took the delivery back; whatever its handler decides concerns nobody."""
        delivery.lost = True
        self.close_delivery(delivery)
        if delivery.held_key and not delivery.running:
            self._frees_key(delivery)

    # --- the way out

    def _unstarted(self) -> Iterator[Delivery]:
        """Take everything that was received and not started."""
        while self._lanes:
            yield self._lanes.pop()
        while self._ready:
            yield self._ready.popleft()

    def _release_unstarted(self) -> None:
        for delivery in self._unstarted():
            if delivery.verdict is None and not delivery.lost:
                delivery.settle("release")

    def stop(self, finish: bool) -> None:
        """Receive no more; with `finish`, take what is left first if nobody else would get it."""
        feed = self.feed
        mine_alone = self.source.group is None or (isinstance(feed, KnowsPeers) and feed.last_consumer())
        self.stopping, self.finishing = True, finish and mine_alone and (self.finishing or not self.stopping)
        if self._receiver is not None:
            self._receiver.cancel()
        if not self.finishing:
            self._forget_unstarted()
            if self.running:  # the feed stays until they have finished
                self._withdraw_soon()

    def _forget_unstarted(self) -> None:
        self._give_back()
        for _ in self._unstarted():
            pass

    def _give_back(self) -> None:
        """Leave what has not started to others, if there may be any."""
        if self.by_broker or self._keys is not None:
            for delivery in self._keys.drain() if self._keys is not None else ():
                delivery.settle("release")
            self._release_unstarted()
        if self.settler.pending:
            self.settler.flush_soon()

    def _stand_back(self) -> None:
        """Receive no more for now; others may have what has not started, and what was asked for."""
        if self._receiver is not None:
            self._receiver.cancel()
        if self.leased:
            self._give_back()
            self._withdraw_soon()

    def _withdraw_soon(self) -> None:
        if self.leased and isinstance(self.feed, Withdraws):
            self.host.start_soon(self._withdraw, self.feed)

    async def _withdraw(self, feed: Feed) -> None:
        assert isinstance(feed, Withdraws)
        if not (self.paused or self.stopping or self._is_cut_off()) or self.feed is not feed:
            return  # it goes on already, or it has been left
        try:
            await answered(feed.withdraw())
        except Exception as error:
            if self.stopping:  # what runs is still to be settled through it
                log.info("what was asked for on %r comes again later: %s", self.source.pattern, error)
            else:
                self.feed_failed(feed, error, "withdrawing from")  # leaving it gives back what it has

    def look_again(self) -> None:
        """While finishing: see whether more has come."""
        if self.finishing and self.feed is not None:
            self._dry = False
            self.kick()

    async def quiet(self) -> None:
        """Return when no handler runs, nothing that could be started waits, and no outage keeps from being settled
        what is decided."""
        while self._busy():
            await self._rest()

    def _busy(self) -> bool:
        can_start = (self._lanes.waiting or self._ready) and not self.paused and (not self.breakers or self._allowed())
        looking = self.finishing and not self._dry and self.feed is not None and self._slots() > 0
        # What waits here for its next try is known to nobody else.
        trying = self.finishing and self.held and not self.paused
        return bool(self.running or can_start or looking or trying or (self.owes and self.feed is None))

    async def _rest(self) -> None:
        waiter: Future[None] = new_future()
        self._resting.append(waiter)
        await waiter

    def _look_quiet(self) -> None:
        if self._resting:
            waiters, self._resting = self._resting, []
            tell(waiters)

    def abort(self) -> int:
        """Cancel the handlers that still run; their messages are given back. Returns how many messages
        nobody will handle because only this process knew them."""
        if self.aborted:
            return 0
        self.aborted = True
        self.settler.hurry()
        for scope in list(self._scopes):
            scope.cancel()
        left = 0 if self.leased else len(self.held) + len(self._lanes) + len(self._ready)
        self._forget_unstarted()
        return left

    async def close(self) -> None:
        """Wait for cancelled workers to leave, then settle for the last time."""
        while self._workers:
            for parked in self._idle:
                parked.set()
            await self._rest()
        await self.settler.finish()

    def gone(self) -> None:
        """There will be no feed any more: whoever waits for one to be told something goes on."""
        self.aborted, self.feed = True, None
        for breaker in self.breakers:
            breaker.members.remove(self)
            breaker.ended()
        self.breakers.clear()
        self.settler.tell_waiters()
        self._look_quiet()


def _tries_again(feed: Feed) -> bool:
    return isinstance(feed, KnowsPeers) and feed.tries_again()
