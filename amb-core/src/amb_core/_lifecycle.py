"""The one place where AMB starts things.

A bus has one host task that owns everything else: the connection, the task group of workers, the drain.
It is nobody's child, so ``connect()`` in one task and ``disconnect()`` in another work, and so does a
fixture that yields inside ``async with``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import anyio
import msgspec

from . import _backlog
from ._consumer import Consumer
from ._deliver import running_consumer
from ._events import Events
from ._leaving import LAST_WORDS, left_in_time
from ._observe import Observer, observer_for
from ._timers import Timers
from .broker import Broker, Connection, Feed, Outgoing
from .concurrency import spawn
from .errors import AmbError, BrokerUnavailable, BusClosed, ConnectionLost, Unavailable

if TYPE_CHECKING:
    import asyncio

    from anyio.abc import TaskGroup

log = logging.getLogger("amb")
#: Seconds between attempts to reach a broker: doubles from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.05, 2.0


class Stats(msgspec.Struct):
    """Counters of one bus since it was built."""

    published: int = 0
    delivered: int = 0
    acked: int = 0
    retried: int = 0
    failed: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    expired: int = 0
    filtered: int = 0
    settle_errors: int = 0
    lease_renewals: int = 0
    reconnects: int = 0
    late_replies: int = 0


class Supervised:
    """A consumer with the state of its feed."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        #: Set when the feed was live for the first time, or never will be.
        self.live = anyio.Event()
        self.gone = anyio.Event()
        self.retired = anyio.Event()
        #: Why there is no feed now.
        self.error: BaseException | None = None
        self.ever_live = self.retiring = self.interrupted = False
        #: The connection that its feed came from.
        self.connection: Connection | None = None
        #: What it waits in while it has no feed.
        self.waiting: anyio.CancelScope | None = None
        #: Called when it has ended.
        self.when_gone: list[Callable[[], None]] = []


class Host:
    """Runs one bus. See the module."""

    def __init__(self, broker: Broker, *, connect_timeout: float, drain_timeout: float) -> None:
        self.broker = broker
        self.connect_timeout, self._drain_timeout = connect_timeout, drain_timeout
        self.events = Events(broker.capabilities.cloudevents)
        self.timers = Timers()
        self.stats = Stats()
        self.connection: Connection | None = None
        #: Connected, and nothing has to be waited for before publishing: the hot path's only check.
        self.ready = False
        #: The connection's ``send`` while `ready`, if it needs no batching: no network to share.
        self.direct: Callable[[Sequence[Outgoing]], Coroutine[Any, Any, None]] | None = None
        #: Who watches; None: nobody.
        self.observer: Observer | None = None
        self.state: Literal["new", "starting", "up", "stopping", "closed"] = "new"
        self.supervised: list[Supervised] = []
        self.listeners: dict[str, list[Callable[..., Any]]] = {}
        #: Long-lived coroutines of the bus itself (the publisher's sender).
        self.services: list[Callable[[], Coroutine[Any, Any, None]]] = []
        #: Called while connecting, to make the subscriptions that were declared before.
        self.prepare: Callable[[], None] = lambda: None
        #: Called at the end of a drain, while the connection is still up.
        self.last_words: Callable[[], Awaitable[None]]
        #: Called when the bus has ended, however it did.
        self.farewell: Callable[[], None] = lambda: None
        self.fatal: BaseException | None = None
        self._group: TaskGroup
        self._up: anyio.Event
        self._down: anyio.Event
        self._started: anyio.Event
        self._ended: anyio.Event
        self._stop: anyio.Event
        #: Asked to stop, and nothing runs any more.
        self._drained: anyio.Event
        self._task: asyncio.Task[None] | None = None
        self._pending_live: list[Supervised] = []
        self._connecting: anyio.CancelScope | None = None
        #: What makes sense only while the present connection lives.
        self._bound: set[anyio.CancelScope] = set()

    # --- starting

    async def ensure(self) -> None:
        """Be connected, with every subscription asked for so far live. Raises: BusClosed, and as `start`."""
        self._check_open()
        while self.state in ("new", "starting") or self._orphaned():
            await self.start()  # again, if it was disconnected and connected anew before this task went on
        for supervised in list(self._pending_live):
            await self.wait_live(supervised)
        self._update_ready()
        self._check_open()  # somebody may have disconnected it meanwhile

    def _check_open(self) -> None:
        if self.state not in ("stopping", "closed") or (self.state == "stopping" and not self._drained.is_set()):
            return
        if self.fatal is not None:
            raise BusClosed(f"the bus stopped ({self.fatal}): mend that, then call connect()") from self.fatal
        raise BusClosed("the bus is disconnected: call connect(), or publish before leaving `async with`")

    async def wait_live(self, supervised: Supervised) -> None:
        """Return when the subscription is live. Raises why it is not, after the connect timeout at the latest."""
        with anyio.move_on_after(self.connect_timeout):
            await supervised.live.wait()
        if supervised in self._pending_live:
            self._pending_live.remove(supervised)
        if not supervised.ever_live:
            await self.retire(supervised)
            pattern = supervised.consumer.source.pattern
            if self.state not in ("up", "starting"):
                raise BusClosed(f"the bus was disconnected before the subscription to {pattern!r} was live")
            raise supervised.error or Unavailable(
                f"the subscription to {pattern!r} was not live within {self.connect_timeout:g} s"
            )

    def _update_ready(self) -> None:
        self.ready = self.connection is not None and not self._pending_live and self.state in ("up", "stopping")
        # Only asyncio: see `concurrency.bounded`.
        in_process = self.ready and self.broker.capabilities.single_process and self._task is not None
        in_process = in_process and self.observer is None
        self.direct = self.connection.send if in_process and self.connection is not None else None

    async def start(self) -> None:
        """Connect. Idempotent, and safe to call concurrently. Raises: BrokerUnavailable when the broker was
        not reached in time; AuthenticationError, AccessDenied and ConfigurationError at once."""
        if self._orphaned():
            self.state, self.connection, self._connecting = "closed", None, None
            self.supervised.clear()
            self._pending_live.clear()
            self._bound.clear()
        if self.state == "stopping":
            if running_consumer() is not None:
                raise BusClosed("the bus is being disconnected and waits for this handler: connect() after that")
            await self._ended.wait()
        if self.state == "up":
            return
        if self.state != "starting":
            self.state, self.fatal = "starting", None
            self.timers = Timers()
            self._up, self._down = anyio.Event(), anyio.Event()
            self._started, self._ended = anyio.Event(), anyio.Event()
            self._stop, self._drained = anyio.Event(), anyio.Event()
            self._task = spawn(self.main, "amb")
        ended, started = self._ended, self._started
        await started.wait()
        if self.fatal is not None:
            await ended.wait()
            raise self.fatal

    def _orphaned(self) -> bool:
        """It has not ended, but its event loop was closed: nothing of it will ever run again."""
        return self.state not in ("new", "closed") and self._task is not None and self._task.get_loop().is_closed()

    async def main(self) -> None:
        """The host task."""
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                group.start_soon(self.timers.run)
                group.start_soon(self._drain_when_asked)
                for service in self.services:
                    group.start_soon(service)
                await self._serve()
                group.cancel_scope.cancel()
        except Exception as error:
            self.fatal = _single(error)
            if self._started.is_set():
                log.exception("the bus stopped")
        finally:
            # A bus that never got through to its broker may try again when it is next used.
            self.state = "new" if self.fatal is not None and not self._started.is_set() else "closed"
            self.connection = None
            self._pending_live.clear()
            self._update_ready()
            self.farewell()
            self._up.set()
            self._started.set()
            self._ended.set()

    async def _serve(self) -> None:
        pause, deadline = FIRST_PAUSE, anyio.current_time() + self.connect_timeout
        # Whoever is asked to stop connects again as long as handlers run: what they decide is to be told.
        while not self._drained.is_set():
            try:
                await self._connected_once(deadline)
                pause = FIRST_PAUSE
            except Exception as error:
                starting, late = self.state == "starting", anyio.current_time() + pause > deadline
                if self._is_final(error, starting) or (starting and late):
                    if self.state == "stopping":
                        await self._drained.wait()
                    raise
                log.warning("%s; %s", error, "left" if self._drained.is_set() else f"trying again in {pause:.2g} s")
            with anyio.move_on_after(pause):
                await self._drained.wait()
            pause = min(pause * 2, LAST_PAUSE)

    def _is_final(self, error: Exception, starting: bool) -> bool:
        if self._stop.is_set():
            return not isinstance(error, BrokerUnavailable)
        if starting:
            return not isinstance(error, Unavailable | ConnectionLost)
        if not isinstance(error, AmbError):
            log.error("the backend raised what its contract does not allow", exc_info=error)
        return isinstance(error, AmbError) and not isinstance(error, BrokerUnavailable)

    async def _connected_once(self, deadline: float) -> None:
        until = deadline if self.state == "starting" else anyio.current_time() + self.connect_timeout
        async with AsyncExitStack() as stack:
            connection: Connection | None = None
            with anyio.CancelScope(deadline=until) as self._connecting:
                connection = await stack.enter_async_context(left_in_time(self.broker.connect()))
            self._connecting = None
            if connection is not None and not self._drained.is_set():
                try:
                    await self._while_connected(connection)
                finally:
                    self._connection_ended()
            elif not self._drained.is_set():
                raise Unavailable(
                    f"{self.broker!r} did not answer within {self.connect_timeout:g} s: "
                    "is it running, and is the address right?"
                )

    async def _while_connected(self, connection: Connection) -> None:
        self._down = anyio.Event()
        self.connection = connection
        if self.state == "starting":
            self.observer = observer_for(self)
            self.prepare()
            self.state = "up"
        else:
            self.stats.reconnects += 1
        self._up.set()
        self._update_ready()
        self._started.set()
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(_first_of, self._down, waiting.cancel_scope)
            waiting.start_soon(_first_of, self._drained, waiting.cancel_scope)

    def _connection_ended(self) -> None:
        """Nobody gets this connection any more, and who has it lets go of it. Harmless when repeated."""
        if self._up.is_set():
            self._up = anyio.Event()
        self.connection = None
        self._update_ready()
        for scope in self._bound:
            scope.cancel()
        for supervised in self.supervised:
            consumer = supervised.consumer
            if consumer.feed is not None:
                consumer.fail(consumer.feed, ConnectionLost("the connection was lost"))

    async def connection_up(self, timeout: float) -> Connection:
        """The live connection; waits for one at most `timeout` seconds. Raises: Unavailable, BusClosed."""
        with anyio.move_on_after(timeout):
            while self.connection is None:
                if self.state in ("new", "closed"):
                    raise BusClosed("the bus is disconnected: call connect()")
                await self._up.wait()
        if self.connection is None:
            raise Unavailable(f"{self.broker!r} has been out of reach for {timeout:g} s: the log says what it answers")
        return self.connection

    @contextmanager
    def while_connected(self, connection: Connection) -> Iterator[anyio.CancelScope]:
        """Cancels what is awaited inside when `connection` is lost."""
        with anyio.CancelScope() as scope:
            if connection is not self.connection:
                scope.cancel()
            self._bound.add(scope)
            try:
                yield scope
            finally:
                self._bound.discard(scope)

    def suspect(self, error: BaseException, connection: Connection | None) -> None:
        """`error` came from `connection`: make a new one if it says that this one is finished."""
        if isinstance(error, ConnectionLost) and connection is not None and connection is self.connection:
            self._connection_ended()
            self._down.set()

    # --- subscriptions

    def supervise(self, consumer: Consumer, awaited: bool) -> Supervised:
        """Open a feed for `consumer`, and again whenever it ends, until it is retired. Unless somebody has `awaited`
        it, whatever the bus does next waits until it is live."""
        supervised = Supervised(consumer)
        self.supervised.append(supervised)
        if not awaited:
            self._pending_live.append(supervised)
            self._update_ready()
        self.start_soon(self._supervise, supervised)
        return supervised

    async def _supervise(self, supervised: Supervised) -> None:
        consumer, pause = supervised.consumer, FIRST_PAUSE
        try:
            while consumer.wants_feed:
                error = await self._one_feed(supervised)
                if error is None:
                    break
                if not consumer.wants_feed:
                    log.warning("the subscription to %r did not end well: %s", consumer.source.pattern, error)
                    break
                supervised.error = error
                self.suspect(error, supervised.connection)
                if not isinstance(error, BrokerUnavailable) and not supervised.ever_live:
                    break  # refused for good: subscribe() raises it
                log.warning("subscription to %r: %s; trying again in %.2g s", consumer.source.pattern, error, pause)
                with anyio.CancelScope() as supervised.waiting:
                    await anyio.sleep(pause)
                supervised.waiting = None
                pause = FIRST_PAUSE if isinstance(error, ConnectionLost) else min(pause * 2, LAST_PAUSE)
        finally:
            if supervised in self.supervised:
                self.supervised.remove(supervised)
            consumer.gone()
            supervised.live.set()
            supervised.gone.set()
            for callback in supervised.when_gone:
                callback()

    async def _one_feed(self, supervised: Supervised) -> BaseException | None:
        """Returns why the feed ended; None if it was asked to."""
        consumer = supervised.consumer
        error: BaseException | None = None
        try:
            async with AsyncExitStack() as stack:
                feed = await self._opened(supervised, stack)
                if feed is not None and consumer.wants_feed:
                    consumer.attach(feed)
                    self._became_live(supervised)
                    assert consumer.ended is not None
                    error = await consumer.ended
                    consumer.detach()
                elif consumer.wants_feed:
                    error = ConnectionLost("the connection was lost")
        except Exception as caught:
            consumer.detach()
            error = _single(caught)
            if not isinstance(error, AmbError):
                log.exception("the backend raised what its contract does not allow")
        if error is not None and supervised.ever_live and not supervised.interrupted:
            supervised.interrupted = True
            self.emit("subscription.lost", consumer.source.id)
        return error

    async def _opened(self, supervised: Supervised, stack: AsyncExitStack) -> Feed | None:
        """A live feed; None when it is not wanted any more, or the connection was lost meanwhile."""
        feed: Feed | None = None
        with anyio.CancelScope() as supervised.waiting:
            supervised.connection = connection = await self.connection_up(float("inf"))
            with self.while_connected(connection):
                feed = await stack.enter_async_context(left_in_time(connection.open(supervised.consumer.source)))
        supervised.waiting = None
        return feed if supervised.connection is self.connection else None

    def _became_live(self, supervised: Supervised) -> None:
        if supervised.interrupted:
            self.emit("subscription.restored", supervised.consumer.source.id)
        if not supervised.ever_live and (seconds := _backlog.interval(supervised.consumer)) is not None:
            self.start_soon(_backlog.watch, supervised, seconds)
        supervised.ever_live, supervised.interrupted, supervised.error = True, False, None
        supervised.live.set()
        if supervised in self._pending_live:
            self._pending_live.remove(supervised)
        self._update_ready()

    async def retire(self, supervised: Supervised) -> None:
        """End one subscription, even if the caller is cancelled meanwhile: no new handler starts; those that run
        may finish within the grace time."""
        if self.retire_soon(supervised):
            await supervised.retired.wait()

    def retire_soon(self, supervised: Supervised) -> bool:
        """As `retire`, without waiting for it. False: it has ended already."""
        if supervised in self._pending_live:
            self._pending_live.remove(supervised)
        if supervised.gone.is_set():
            return False
        if not supervised.retiring:
            supervised.retiring = True
            supervised.consumer.stop(finish=False)
            self.start_soon(self._retire, supervised)
        return True

    async def _retire(self, supervised: Supervised) -> None:
        try:
            with anyio.move_on_after(self._drain_timeout):
                await supervised.consumer.quiet()
            await self._leave(supervised)
            with anyio.move_on_after(LAST_WORDS):
                await supervised.gone.wait()
        finally:
            supervised.retired.set()

    async def _leave(self, supervised: Supervised) -> None:
        consumer = supervised.consumer
        left = consumer.abort()
        if left:
            self.stats.dropped += left
            log.warning(
                "%d message(s) for %r were not handled before the end of the grace time", left, consumer.source.pattern
            )
        with anyio.move_on_after(LAST_WORDS, shield=True):
            await consumer.close()
        untold = sum(delivery.verdict != "release" for delivery in consumer.settler.pending)
        if consumer.leased and untold:
            log.warning(
                "%d message(s) for %r were handled, and come again: the broker could not be told before the end of the "
                "grace time", untold, consumer.source.pattern,
            )  # fmt: skip
        if consumer.ended is not None and not consumer.ended.done():
            consumer.ended.set_result(None)
        if supervised.waiting is not None:
            supervised.waiting.cancel()

    # --- stopping

    async def stop(self, wait: bool = True) -> None:
        """Drain and disconnect. Idempotent, and safe to call concurrently. Raises what stopped the bus before."""
        if self.state not in ("new", "closed"):
            self._stop.set()
            if not wait:
                return
            await self._ended.wait()
        elif self.state == "new":
            self.state, self.fatal = "closed", None
        if self.fatal is not None:
            fatal, self.fatal = self.fatal, None
            raise fatal

    async def _drain_when_asked(self) -> None:
        await self._stop.wait()
        if self.state == "up":
            await self._drain()
        self._drained.set()
        if self._connecting is not None:
            self._connecting.cancel()

    async def _drain(self) -> None:
        self.state = "stopping"
        supervised = list(self.supervised)
        consumers = [s.consumer for s in supervised]
        with anyio.move_on_after(self._drain_timeout):
            for consumer in consumers:
                consumer.stop(finish=True)
            await _until_nothing_comes(consumers)
        for each in supervised:
            await self._leave(each)
        with anyio.move_on_after(LAST_WORDS):
            await self.last_words()
        with anyio.move_on_after(LAST_WORDS):
            for each in supervised:
                await each.gone.wait()

    async def wait_ended(self) -> None:
        """Return when the bus has stopped."""
        await self._ended.wait()
        if self.fatal is not None:
            raise self.fatal

    # --- for everybody in the bus

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        """Run a coroutine function under the host. It must not raise."""
        self._group.start_soon(function, *arguments)

    def dying(self) -> bool:
        """The host itself is being cancelled (the loop closes, or the drain is over)."""
        if self._task is not None and (self._task.cancelling() > 0 or self._orphaned()):
            return True
        return self._group.cancel_scope.cancel_called or anyio.current_effective_deadline() == -math.inf

    def emit(self, event: str, argument: str) -> None:
        """Call the listeners of `event`, each in a task of its own."""
        for listener in self.listeners.get(event, ()):
            self.start_soon(_call_listener, listener, event, argument)


async def _until_nothing_comes(consumers: list[Consumer]) -> None:
    while True:
        before = sum(consumer.started for consumer in consumers)
        # What runs now may publish when the others have looked already.
        running = any(consumer.running for consumer in consumers)
        for consumer in consumers:
            consumer.look_again()
        for consumer in consumers:
            await consumer.quiet()
        if not running and before == sum(consumer.started for consumer in consumers):
            return


async def _first_of(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _call_listener(listener: Callable[..., Any], event: str, argument: str) -> None:
    try:
        result = listener(argument)
        if isinstance(result, Awaitable):
            await result
    except Exception:
        log.exception("a listener failed on %s of %r", event, argument)


def _single(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
