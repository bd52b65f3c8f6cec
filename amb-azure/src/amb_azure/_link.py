"""A link to the service, for one task at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import anyio
from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import ServiceBusConnectionError

from ._errors import NATIVE

__all__ = ["Link", "close", "enter", "hasten", "share", "together"]

#: What closing a link may take, seconds.
_CLOSING = 2.0
#: How long the client waits for a frame, and how long to wait for the client.
_IDLE, _BLINK = 0.2, 0.001

T = TypeVar("T")
#: Enough for what the client has in its hands already, and too little for it to ask the service.
_NOTHING = 1e-9
#: How long to wait for more after a first message, as a multiple of the quickest answer seen.
_MORE, _LEAST, _MOST = 2.0, 0.002, 0.1


class _Receiving:
    """An event of the client that is always set."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def is_set(self) -> bool:
        return True


class Link:
    """A receiver whose waiting gives way.

    The client reads the socket in whatever task awaits it, one at a time, and holds the others up for as long as
    nothing comes. So whoever waits for messages is interrupted when somebody has something to say; what had come
    until then stays with the client and comes out first.
    """

    def __init__(self, native: ServiceBusReceiver) -> None:
        self.native = native
        if hasattr(native, "_receive_context"):
            # Else what comes while somebody else has a turn goes back, and comes again behind what came later.
            vars(native)["_receive_context"] = _Receiving()
        self._turn = anyio.Lock()
        self._waiting: anyio.CancelScope | None = None
        self._quickest, self._closed = _MOST, False
        #: It failed in the middle of something, and so will whatever is asked of it next.
        self.broken = False
        #: Received and not handed on, as whoever waited for it was interrupted.
        self._got: list[ServiceBusReceivedMessage] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[ServiceBusReceiver]:
        """The receiver, for as long as the context lasts."""
        if self._waiting is not None:
            self._waiting.cancel()
        async with self._turn:
            if self._closed:
                raise OSError("the link is closed")
            yield self.native

    async def receive(self, limit: int, seconds: float) -> Sequence[ServiceBusReceivedMessage]:
        """What is there, at most `limit`; waits at most so long for a first message. Raises what the client raises."""
        deadline = time.monotonic() + seconds
        while True:
            async with self._turn:
                await self._take(limit, _NOTHING)
                remaining = deadline - time.monotonic()
                if not self._got and remaining > 0:
                    with anyio.CancelScope() as self._waiting:
                        try:
                            await self._fetch(limit, remaining)
                        except anyio.get_cancelled_exc_class():
                            await self._withdraw()
                            raise
                        finally:
                            self._waiting = None
            if self._got or remaining <= 0:
                got, self._got = self._got[:limit], self._got[limit:]
                return got

    async def pulse(self, seconds: float) -> None:
        """Ask the service something cheap. Raises what the client raises, TimeoutError."""
        async with self.turn() as native:
            with anyio.fail_after(seconds):
                await native.peek_messages(1)

    async def close(self) -> None:
        """Close the receiver; what has not been received goes back."""
        with anyio.move_on_after(_CLOSING):
            async with self.turn():  # else whoever has it might open it again
                self._closed = True
        await close(self.native, self._quickest)

    async def _withdraw(self) -> None:
        """Ask for no more: what came while nobody waits for it would lie here while its lock runs out."""
        link = getattr(getattr(self.native, "_handler", None), "_link", None)
        if link is not None:
            with anyio.move_on_after(_CLOSING, shield=True), suppress(*NATIVE):
                await link.flow(link_credit=0)

    async def _fetch(self, limit: int, seconds: float) -> None:
        began = time.monotonic()
        await self._take(1, seconds)
        took = time.monotonic() - began
        if not self._got or limit == 1:
            return
        self._quickest = min(self._quickest, took)
        if took <= self._quickest * _MORE + _LEAST:
            # It was there already, so there may be more; the client itself would wait longer.
            with anyio.move_on_after(max(_LEAST, self._quickest * _MORE)):
                await self._take(limit, _MOST)
            await self._take(limit, _NOTHING)
            if len(self._got) < limit:
                await self._withdraw()

    async def _take(self, limit: int, seconds: float) -> None:
        if (count := limit - len(self._got)) > 0:
            got, now = await self.native.receive_messages(count, max_wait_time=seconds), datetime.now(UTC)
            # One whose lock has run out on its way comes again, and is not ours.
            self._got += [each for each in got if each.locked_until_utc is None or each.locked_until_utc > now]


#: Of each open sender and receiver: the client forgets it before it is closed.
_transports: WeakKeyDictionary[ServiceBusReceiver | ServiceBusSender, Any] = WeakKeyDictionary()


def _transport_of(native: ServiceBusReceiver | ServiceBusSender) -> Any:
    handler = getattr(native, "_handler", None)
    return getattr(getattr(handler, "_connection", None), "_transport", None)


def share(connection: Any) -> None:
    """Let all who listen to a connection go on with the first frame that comes, whoever reads it.

    The client lets each read a frame for itself, one after the other. Of several that wait for their outcomes the
    last would wait for one more frame, although its outcome came with somebody else's.
    """
    listen = getattr(connection, "listen", None)
    if listen is None or "listen" in vars(connection):
        return
    reading: asyncio.Event | None = None

    async def shared(*args: Any, **kwargs: Any) -> None:
        nonlocal reading
        if reading is not None:
            await reading.wait()
            return
        reading = read = asyncio.Event()
        try:
            await listen(*args, **kwargs)
        finally:
            reading = None
            read.set()

    vars(connection)["listen"] = shared


async def together(calls: Iterable[Awaitable[T]], seconds: float) -> list[T | BaseException]:
    """The results, or errors, of calls that run side by side. Raises: TimeoutError.

    Not to be cancelled from outside: `gather` forgets who cancelled it, and anyio does not know its own any more."""
    results: list[T | BaseException] = []
    with anyio.CancelScope(shield=True):
        async with asyncio.timeout(seconds):
            results = await asyncio.gather(*calls, return_exceptions=True)
    return results


async def enter(native: ServiceBusReceiver | ServiceBusSender, seconds: float) -> None:
    """Open a sender or receiver. Raises what the client raises, TimeoutError. Cannot be cancelled: the client would
    leave a socket behind.

    For each of the ten frames of the handshake the client sleeps 50 ms. Reading them meanwhile, with what it has for
    that and does not call public, makes half a second a few milliseconds; without, it is only slower.
    """
    done = False

    async def opening() -> None:
        nonlocal done
        try:
            await native.__aenter__()
        finally:
            done = True

    async def hurrying() -> None:
        while not done:
            if (transport := _transport_of(native)) is not None:
                _transports[native] = transport
            handler = getattr(native, "_handler", None)
            if (connection := getattr(handler, "_connection", None)) is not None:
                share(connection)
            ready = getattr(handler, "client_ready_async", None)
            if ready is not None and getattr(handler, "_cbs_authenticator", None) is not None and await ready():
                return
            await anyio.sleep(_BLINK)

    opened, _ = await together((opening(), hurrying()), seconds)
    if opened is not None:
        raise opened

    async def again(timeout: float | None = None) -> None:
        if not getattr(native, "_running", True):
            raise ServiceBusConnectionError(message="the link broke")

    # Else whatever is asked of a broken link opens it anew, each call for itself.
    vars(native)["_open"] = again


def hasten(native: ServiceBusReceiver | ServiceBusSender, trip: float = _IDLE) -> None:
    """Let the next closing be quick. `trip`: what an answer takes."""
    handler = getattr(native, "_handler", None)
    keeper = getattr(handler, "_keep_alive_thread", None)
    if handler is not None and isinstance(keeper, asyncio.Future):
        # It is a task that mostly sleeps for a second, and the client waits for its end.
        keeper.cancel()
        # For so long it listens for what is still on its way to us, twice.
        vars(handler).update(_keep_alive_thread=None, _socket_timeout=min(_IDLE, max(_BLINK * 20, 2 * trip)))


async def close(native: ServiceBusReceiver | ServiceBusSender, trip: float = _IDLE) -> None:
    """Close a sender or receiver, whatever state it is in, in bounded time. `trip`: what an answer takes."""
    hasten(native, trip)
    with anyio.move_on_after(_CLOSING, shield=True):
        try:
            await native.close()
        except NATIVE:
            pass
        finally:
            # Where it could not say goodbye the client leaves its socket behind.
            if (writer := getattr(_transports.pop(native, None), "writer", None)) is not None:
                writer.close()
