"""A TCP connection to the server: channels, deadlines, and noticing that it is gone.

The protocol layer of aio-pika is used by itself. Its robust layer restores connections, channels and consumers behind
the application's back, which is the core's work here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import aiormq
import anyio
from aiormq.abc import AbstractChannel
from amb_core.errors import AmbError, ConfigurationError, ConnectionLost, Unavailable
from yarl import URL

from ._errors import NATIVE, translate

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["Link", "link"]

T = TypeVar("T")

#: What closing may take, seconds.
_CLOSING = 3.0


class Link:
    """One connection. `check` raises once it is gone."""

    def __init__(self, options: RabbitMQBroker, native: aiormq.Connection) -> None:
        self._options, self.native = options, native
        #: Called when the connection is gone.
        self.watchers: set[Callable[[], None]] = set()
        self._lost: AmbError | None = None
        self._control: AbstractChannel | None = None
        self._pulse: asyncio.Future[object] | None = None
        native.closing.add_done_callback(self._gone)

    def _gone(self, closing: asyncio.Future[object]) -> None:
        if not closing.cancelled() and (error := closing.exception()) is not None:
            self.lose(translate(error, "the connection to RabbitMQ"))
        self.lose(ConnectionLost("the connection to RabbitMQ was closed"))

    def lose(self, error: AmbError) -> None:
        """Regard the connection as gone."""
        if self._lost is None:
            self._lost = error if isinstance(error, ConnectionLost) else ConnectionLost(str(error))
            self._lost.__cause__ = error.__cause__
            for watcher in list(self.watchers):
                watcher()

    def lost(self) -> AmbError:
        """Why it is gone."""
        return self._lost or ConnectionLost("the connection to RabbitMQ was closed")

    def check(self) -> None:
        """Raises: ConnectionLost, if it is."""
        if self._lost is not None:
            raise ConnectionLost(str(self._lost)) from self._lost.__cause__

    async def channel(self, doing: str, *, confirms: bool = False) -> AbstractChannel:
        """A new channel, on the lowest free number: the library's own choice climbs to the server's limit."""
        self.check()
        taken = self.native.channels
        number = next(n for n in range(1, len(taken) + 2) if n not in taken)
        return await self.call(doing, self.native.channel(number, publisher_confirms=confirms, frame_buffer_size=0))

    async def call(self, doing: str, request: Coroutine[Any, Any, T]) -> T:
        """The server's answer. Raises: AmbError; ConnectionLost if there is none in time."""
        try:
            async with asyncio.timeout(self._options.response_timeout):
                return await request
        except TimeoutError as error:
            lost = translate(error, doing)
            self.lose(lost)
            raise lost from error
        except NATIVE as error:
            raise translate(error, doing) from error
        except asyncio.CancelledError as error:
            raise self.cancelled(doing, error) from error

    def cancelled(self, doing: str, error: asyncio.CancelledError) -> BaseException:
        """What a cancellation means: the library also cancels what waits on a channel that has been closed."""
        task = asyncio.current_task()
        return error if task is not None and task.cancelling() else translate(error, doing)

    async def pulse(self) -> None:
        """Return when the server has answered. Cancelling one who waits does not harm the others.

        Raises: ConnectionLost."""
        self.check()
        if self._pulse is None or self._pulse.done():
            self._pulse = asyncio.ensure_future(self._ask())
        await asyncio.shield(self._pulse)
        self.check()

    async def _ask(self) -> None:
        try:
            if self._control is None or self._control.is_closed:
                self._control = await self.channel("ask RabbitMQ for a sign of life")
            await self.call("ask RabbitMQ for a sign of life", self._control.basic_qos(prefetch_count=1))
        except AmbError as error:
            self.lose(error)

    async def close(self) -> None:
        """Say goodbye, or hang up if nobody listens."""
        self.native.closing.cancel()
        if self._pulse is not None and not self._pulse.done():
            self._pulse.cancel()
        with anyio.move_on_after(0.2 if self._lost is not None else _CLOSING, shield=True) as scope:
            await self.native.close()
        if scope.cancelled_caught:
            await self._hang_up()

    async def _hang_up(self) -> None:
        tasks = [
            t for t in (getattr(self.native, "_reader_task", None), getattr(self.native, "_writer_task", None)) if t
        ]
        for task in tasks:
            task.cancel()
        with anyio.move_on_after(_CLOSING, shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def link(options: RabbitMQBroker, purpose: str) -> AsyncIterator[Link]:
    """A connection that the server has accepted. Raises: Unavailable, AuthenticationError, AccessDenied."""
    native = aiormq.Connection(_url(options, purpose), context=_context(options))
    doing = f"connect to RabbitMQ at {native.url.host}:{native.url.port}"
    made = None
    try:
        try:
            async with asyncio.timeout(options.connect_timeout):
                await native.connect()
        except TimeoutError as error:
            raise Unavailable(f"{doing}: no answer within {options.connect_timeout:g} s") from error
        except NATIVE as error:
            failed = translate(error, doing)
            # There is no connection yet that could be lost.
            raise (Unavailable(str(failed)) if isinstance(failed, ConnectionLost) else failed) from error
        made = Link(options, native)
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await (made.close() if made is not None else native.close())


def _url(options: RabbitMQBroker, purpose: str) -> URL:
    url = URL(options.url)
    if options.username is not None:
        url = url.with_user(options.username)
    if options.password is not None:
        url = url.with_password(options.password)
    if options.vhost is not None:
        url = url.with_path("/" + options.vhost.replace("/", "%2F"), encoded=True)
    return url.with_query(heartbeat=str(options.heartbeat), name=f"amb {purpose}")


def _context(options: RabbitMQBroker) -> ssl.SSLContext | None:
    if not options.url.startswith("amqps:"):
        return None
    try:
        context = ssl.create_default_context(cafile=options.ssl_ca_certs)
        context.check_hostname = options.ssl_check_hostname
        if options.ssl_certfile is not None:
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"RabbitMQBroker: the certificates cannot be read: {error}") from error
    return context
