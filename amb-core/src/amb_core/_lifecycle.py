"""The one place where AMB starts things.

A bus has one host task that owns everything else: the connection, the task group of workers, the drain.
It is nobody's child, so ``connect()`` in one task and ``disconnect()`` in another work, and so does a
fixture that yields inside ``async with``.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal

import anyio
import msgspec

from ._consumer import Consumer
from ._timers import Timers
from .broker import Broker, Connection, Outgoing
from .errors import AmbError, BrokerUnavailable, BusClosed, ConnectionLost, Unavailable

if TYPE_CHECKING:
    import asyncio

    from anyio.abc import TaskGroup

log = logging.getLogger("amb")
#: Seconds between attempts to reach a broker: doubles from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.05, 2.0
#: Seconds that last words to a broker (final settling, closing) may take.
LAST_WORDS = 5.0


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
        #: Why there is no feed now.
        self.error: BaseException | None = None
        self.ever_live = False


class Host:
    """Runs one bus. See the module."""

    def __init__(self, broker: Broker, *, connect_timeout: float, drain_timeout: float) -> None:
        self.broker = broker
        self.connect_timeout, self._drain_timeout = connect_timeout, drain_timeout
        self.timers = Timers()
        self.stats = Stats()
        self.connection: Connection | None = None
        #: Connected, and nothing has to be waited for before publishing: the hot path's only check.
        self.ready = False
        #: The connection's ``send`` while `ready`, if it needs no batching: no network to share.
        self.direct: Callable[[Sequence[Outgoing]], Coroutine[Any, Any, None]] | None = None
        self.state: Literal["new", "starting", "up", "stopping", "closed"] = "new"
        self.supervised: list[Supervised] = []
        self.listeners: dict[str, list[Callable[..., Any]]] = {}
        #: Long-lived coroutines of the bus itself (the publisher's sender).
        self.services: list[Callable[[], Coroutine[Any, Any, None]]] = []
        #: Called while connecting, to make the subscriptions that were declared before.
        self.prepare: Callable[[], None] = lambda: None
        #: Called at the end of a drain, while the connection is still up.
        self.last_words: Callable[[], Awaitable[None]]
        self.fatal: BaseException | None = None
        self._group: TaskGroup
        self._task: asyncio.Task[None] | None = None
        self._pending_live: list[Supervised] = []

    # --- starting

    async def ensure(self) -> None:
        """Be connected, with every subscription asked for so far live. Raises: BusClosed, and as `start`."""
        if self.state in ("stopping", "closed") and not (self.state == "stopping" and self.connection):
            raise BusClosed("the bus is disconnected: call connect(), or publish before leaving `async with`")
        if self.state in ("new", "starting"):
            await self.start()
        for supervised in list(self._pending_live):
            await self.wait_live(supervised)
        self._update_ready()

    async def wait_live(self, supervised: Supervised) -> None:
        """Return when the subscription is live. Raises why it is not, after the connect timeout at the latest."""
        with anyio.move_on_after(self.connect_timeout):
            await supervised.live.wait()
        if supervised in self._pending_live:
            self._pending_live.remove(supervised)
        if not supervised.ever_live:
            await self.retire(supervised)
            pattern = supervised.consumer.source.pattern
            raise supervised.error or Unavailable(
                f"the subscription to {pattern!r} was not live within {self.connect_timeout:g} s"
            )

    def _update_ready(self) -> None:
        self.ready = self.connection is not None and not self._pending_live and self.state in ("up", "stopping")
        # Only asyncio: see `concurrency.bounded`.
        in_process = self.ready and self.broker.capabilities.single_process and self._task is not None
        self.direct = self.connection.send if in_process and self.connection is not None else None

    async def start(self) -> None:
        """Connect. Idempotent, and safe to call concurrently. Raises: BrokerUnavailable when the broker was
        not reached in time; AuthenticationError, AccessDenied and ConfigurationError at once."""
        if self.state in ("up", "stopping"):
            return
        if self.state != "starting":
            self.state, self.fatal = "starting", None
            self.timers = Timers()
            self._up, self._down = anyio.Event(), anyio.Event()
            self._started, self._ended, self._stop = anyio.Event(), anyio.Event(), anyio.Event()
            _spawn(self)
        ended, started = self._ended, self._started
        await started.wait()
        if self.fatal is not None:
            await ended.wait()
            raise self.fatal

    async def main(self) -> None:
        """The host task."""
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                group.start_soon(self.timers.run)
                for service in self.services:
                    group.start_soon(service)
                await self._serve()
                group.cancel_scope.cancel()
        except Exception as error:
            self.fatal = _single(error)
            if self._started.is_set():
                log.exception("the bus stopped")
        finally:
            self.state = "closed"
            self.connection = None
            self._update_ready()
            self._started.set()
            self._ended.set()

    async def _serve(self) -> None:
        pause, deadline = FIRST_PAUSE, anyio.current_time() + self.connect_timeout
        while not self._stop.is_set():
            try:
                await self._connected_once(deadline)
                pause = FIRST_PAUSE
            except BrokerUnavailable as error:
                if self.state == "starting" and (
                    not isinstance(error, Unavailable | ConnectionLost) or anyio.current_time() + pause > deadline
                ):
                    raise
                log.warning("%s; trying again in %.2g s", error, pause)
            if self._stop.is_set():
                return
            with anyio.move_on_after(pause):
                await self._stop.wait()
            pause = min(pause * 2, LAST_PAUSE)

    async def _connected_once(self, deadline: float) -> None:
        manager = self.broker.connect()
        connection: Connection | None = None
        until = deadline if self.state == "starting" else anyio.current_time() + self.connect_timeout
        with anyio.CancelScope(deadline=until):
            connection = await manager.__aenter__()
        if connection is None:
            raise Unavailable(
                f"{self.broker!r} did not answer within {self.connect_timeout:g} s: "
                "is it running, and is the address right?"
            )
        error: BaseException | None = None
        try:
            await self._while_connected(connection)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self.connection = None
            self._update_ready()
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + LAST_WORDS):
                await manager.__aexit__(type(error) if error else None, error, None)

    async def _while_connected(self, connection: Connection) -> None:
        self._down = anyio.Event()
        self.connection = connection
        if self.state == "starting":
            self.state = "up"
            self.prepare()
        else:
            self.stats.reconnects += 1
        self._up.set()
        self._update_ready()
        self._started.set()
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(_first_of, self._down, waiting.cancel_scope)
            waiting.start_soon(_first_of, self._stop, waiting.cancel_scope)
        if self._stop.is_set():
            await self._drain()
            return
        self._up, self.connection = anyio.Event(), None
        self._update_ready()
        for supervised in self.supervised:
            consumer = supervised.consumer
            if consumer.feed is not None:
                consumer.fail(consumer.feed, ConnectionLost("the connection was lost"))

    async def connection_up(self, timeout: float) -> Connection:
        """The live connection; waits for one at most `timeout` seconds. Raises: Unavailable, BusClosed."""
        with anyio.move_on_after(timeout):
            while self.connection is None:
                if self.state == "closed":
                    raise BusClosed("the bus is disconnected")
                await self._up.wait()
        if self.connection is None:
            raise Unavailable(f"{self.broker!r} has been out of reach for {timeout:g} s")
        return self.connection

    async def connection_gone(self) -> None:
        """Return when the present connection is finished."""
        await self._down.wait()

    def suspect(self, error: BaseException) -> None:
        """`error` came from the connection: make a new one if it says that this one is finished."""
        if isinstance(error, ConnectionLost):
            self._down.set()

    # --- subscriptions

    def supervise(self, consumer: Consumer) -> Supervised:
        """Open a feed for `consumer`, and again whenever it ends, until it is retired."""
        supervised = Supervised(consumer)
        self.supervised.append(supervised)
        self._pending_live.append(supervised)
        self._update_ready()
        self.start_soon(self._supervise, supervised)
        return supervised

    async def _supervise(self, supervised: Supervised) -> None:
        consumer, pause = supervised.consumer, FIRST_PAUSE
        try:
            while not consumer.stopping:
                error = await self._one_feed(supervised)
                supervised.error = error
                if error is None:
                    break
                self.suspect(error)
                if not isinstance(error, BrokerUnavailable) and not supervised.ever_live:
                    break  # refused for good: subscribe() raises it
                log.warning("subscription to %r: %s; trying again in %.2g s", consumer.source.pattern, error, pause)
                await anyio.sleep(pause)
                pause = FIRST_PAUSE if isinstance(error, ConnectionLost) else min(pause * 2, LAST_PAUSE)
        finally:
            supervised.live.set()
            supervised.gone.set()
            if supervised in self.supervised:
                self.supervised.remove(supervised)

    async def _one_feed(self, supervised: Supervised) -> BaseException | None:
        """Returns why the feed ended; None if it was asked to."""
        consumer = supervised.consumer
        error: BaseException | None = None
        try:
            connection = await self.connection_up(float("inf"))
            async with connection.open(consumer.source) as feed:
                consumer.attach(feed)
                self._became_live(supervised)
                assert consumer.ended is not None
                error = await consumer.ended
                consumer.detach()
        except Exception as caught:
            consumer.detach()
            error = _single(caught)
            if not isinstance(error, AmbError):
                log.exception("the backend raised what its contract does not allow")
        if error is not None and supervised.ever_live:
            self.emit("subscription.lost", consumer.source.id)
        return error

    def _became_live(self, supervised: Supervised) -> None:
        if supervised.ever_live:
            self.emit("subscription.restored", supervised.consumer.source.id)
        supervised.ever_live, supervised.error = True, None
        supervised.live.set()
        if supervised in self._pending_live:
            self._pending_live.remove(supervised)
        self._update_ready()

    async def retire(self, supervised: Supervised) -> None:
        """End one subscription: no new handler starts; those that run may finish within the grace time."""
        consumer = supervised.consumer
        consumer.stop(finish=False)
        with anyio.move_on_after(self._drain_timeout):
            await consumer.quiet()
        await self._leave(supervised)
        with anyio.move_on_after(LAST_WORDS):
            await supervised.gone.wait()

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
        if consumer.ended is not None and not consumer.ended.done():
            consumer.ended.set_result(None)

    # --- stopping

    async def stop(self) -> None:
        """Drain and disconnect. Idempotent, and safe to call concurrently. Raises what stopped the bus before."""
        if self.state in ("new", "closed"):
            self.state = "closed"
            return
        self._stop.set()
        await self._ended.wait()
        if self.fatal is not None:
            fatal, self.fatal = self.fatal, None
            raise fatal

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
        cancelled = self._task is not None and self._task.cancelling() > 0
        return cancelled or self._group.cancel_scope.cancel_called

    def emit(self, event: str, argument: str) -> None:
        """Call the listeners of `event`, each in a task of its own."""
        for listener in self.listeners.get(event, ()):
            self.start_soon(_call_listener, listener, argument)


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


async def _call_listener(listener: Callable[..., Any], argument: str) -> None:
    try:
        result = listener(argument)
        if isinstance(result, Awaitable):
            await result
    except Exception:
        log.exception("a listener failed")


def _single(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _spawn(host: Host) -> None:
    """Start the host task: it belongs to the event loop, not to the caller's task or context."""
    import asyncio

    if asyncio._get_running_loop() is not None:
        host._task = asyncio.get_running_loop().create_task(host.main(), name="amb", context=contextvars.Context())
    else:
        import trio

        trio.lowlevel.spawn_system_task(host.main, name="amb")
