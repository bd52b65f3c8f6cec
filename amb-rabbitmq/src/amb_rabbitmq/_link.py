"""A TCP connection to the server: channels, deadlines, and noticing that it is gone.

The protocol layer of aio-pika is used by itself. Its robust layer restores connections, channels and consumers behind
the application's back, which is the core's work here."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import aiormq
import anyio
from aiormq import Channel
from aiormq.exceptions import ChannelInvalidStateError, InvalidFrameError
from amb_core.errors import AccessDenied, AmbError, ConfigurationError, ConnectionLost, Unavailable
from yarl import URL

from ._errors import NATIVE, translate

if TYPE_CHECKING:
    from .broker import RabbitMQBroker

__all__ = ["Link", "link"]

T = TypeVar("T")

#: What closing may take, seconds, and hanging up as long again.
_CLOSING = 1.0
#: Seconds that an answer may take, however long others have waited before.
_SHORTEST = 0.1

# What goes wrong is raised, or logged by the core: the library's own log is for those who ask for it.
logging.getLogger("aiormq").addHandler(logging.NullHandler())


class Link:
    """One connection. `check` raises once it is gone."""

    def __init__(self, options: RabbitMQBroker, native: aiormq.Connection, socket: _Socket) -> None:
        self._options, self.native, self._socket = options, native, socket
        #: Called when the connection is gone.
        self.watchers: set[Callable[[], None]] = set()
        self._lost: AmbError | None = None
        self._control: Channel | None = None
        self._asking, self._heard, self._in_vain = anyio.Lock(), 0.0, 0.0
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

    async def channel(self, doing: str, *, confirms: bool = False) -> Channel:
        """A new channel."""
        return await self.call(doing, self._open_channel(confirms))

    async def _open_channel(self, confirms: bool) -> Channel:
        self.check()
        # The lowest free number: the library's own choice climbs to the server's limit.
        taken = self.native.channels
        number = next(n for n in range(1, len(taken) + 2) if n not in taken)
        channel = await self.native.channel(number, publisher_confirms=confirms, frame_buffer_size=0)
        assert isinstance(channel, Channel)
        return channel

    async def call(self, doing: str, request: Awaitable[T]) -> T:
        """The server's answer. Raises: AmbError; ConnectionLost if it answers nothing any more."""
        try:
            return await self._answer(doing, request, self._options.response_timeout)
        except TimeoutError as error:
            # One queue without a leader keeps its own channel waiting; that is no reason to give up all the others.
            await self.pulse()
            raise Unavailable(
                f"{doing}: no answer within {self._options.response_timeout:g} s, though the server is alive: "
                "has the queue a leader?"
            ) from error

    async def _answer(self, doing: str, request: Awaitable[T], within: float) -> T:
        try:
            async with asyncio.timeout(within):
                return await request
        except TimeoutError:
            raise
        except ChannelInvalidStateError as error:
            raise self._ended(doing, error) from error
        except NATIVE as error:
            raise translate(error, doing) from error
        except asyncio.CancelledError as error:
            raise self.cancelled(doing, error) from error

    def cancelled(self, doing: str, error: asyncio.CancelledError) -> BaseException:
        """What a cancellation means: the library also cancels what waits on a channel that has been closed."""
        task = asyncio.current_task()
        return error if task is not None and task.cancelling() else self._ended(doing, error)

    def _ended(self, doing: str, error: BaseException) -> AmbError:
        """The error for what waited on a channel that ended: alone, or with the connection."""
        if self._lost is None and self.native.is_opened:
            return Unavailable(f"{doing}: the channel was closed; a new one is opened")
        return translate(error, doing)

    async def pulse(self) -> None:
        """Return when the server has answered. Raises: ConnectionLost."""
        doing, began = "ask RabbitMQ for a sign of life", time.monotonic()
        async with self._asking:
            self.check()
            if self._heard >= began:
                return
            # A question that is given up closes its channel, so the feeds' own are not asked.
            control, self._control = self._control, None
            asked, patience = time.monotonic(), self._options.response_timeout - self._in_vain
            try:
                control = await self._answer(doing, self._ask(control), max(_SHORTEST, patience))
            except (AmbError, TimeoutError) as error:
                self.lose(translate(error, doing))
            else:
                self._control, self._heard, self._in_vain = control, time.monotonic(), 0.0
            finally:
                if self._control is None:
                    # Whoever gives up early has waited all the same: the next one waits for the rest.
                    self._in_vain += time.monotonic() - asked
            self.check()

    async def _ask(self, control: Channel | None) -> Channel:
        if control is None or control.is_closed:
            control = await self._open_channel(False)
        await control.basic_qos(prefetch_count=1)
        return control

    def blocked(self) -> bool:
        """Whether the server reads nothing from this link, for want of memory or disk."""
        waiting = self.native.ready()
        try:
            waiting.send(None)
        except StopIteration:
            return False
        waiting.close()
        return True

    async def close(self) -> None:
        """Say goodbye, or hang up if nobody listens."""
        if self._lost is not None:
            self._socket.hang_up()
        await self._closed(_CLOSING)
        self._socket.hang_up()
        await self._closed(_CLOSING)

    async def _closed(self, within: float) -> None:
        try:
            await self.native.close(timeout=within)
        except TimeoutError:
            return
        except asyncio.CancelledError as error:
            # The library's word for a connection that somebody else has closed meanwhile.
            if self.cancelled("close the connection to RabbitMQ", error) is error:
                raise


class _Socket(aiormq.TransportFactory):
    """Opens the link's socket and keeps hold of it: what is dead is hung up on, which the library cannot."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **_: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See `aiormq.TransportFactory.create`."""
        shutdown = None if self._context is None else _CLOSING
        reader, self._writer = await asyncio.open_connection(
            url.host, url.port, ssl=self._context, ssl_shutdown_timeout=shutdown
        )
        return reader, self._writer

    def hang_up(self) -> None:
        """Close it at once; what was not written is dropped."""
        if self._writer is not None:
            self._writer.transport.abort()


@asynccontextmanager
async def link(options: RabbitMQBroker, purpose: str) -> AsyncIterator[Link]:
    """A connection that the server has accepted. Raises: Unavailable, AuthenticationError, AccessDenied."""
    socket = _Socket(_context(options))
    native = aiormq.Connection(_url(options, purpose), transport_factory=socket)
    doing = f"connect to RabbitMQ at {native.url.host}:{native.url.port}"
    try:
        try:
            async with asyncio.timeout(options.connect_timeout):
                await native.connect()
        except TimeoutError as error:
            raise Unavailable(f"{doing}: no answer within {options.connect_timeout:g} s") from error
        except InvalidFrameError as error:
            # The library does not tell what the server said; after the password it asks for the virtual host only.
            if "OpenOk" not in str(error):
                raise ConfigurationError(f"{doing}: that is no AMQP 0-9-1: {error}") from error
            raise AccessDenied(
                f"{doing}: the server refused the virtual host {native.vhost!r}: make it (rabbitmqctl add_vhost), "
                f"or let the user {native.url.user!r} into it (rabbitmqctl set_permissions)"
            ) from error
        except NATIVE as error:
            failed = translate(error, doing)
            # There is no connection yet that could be lost.
            raise (Unavailable(str(failed)) if isinstance(failed, ConnectionLost) else failed) from error
    except BaseException:
        socket.hang_up()
        raise
    made = Link(options, native, socket)
    try:
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await made.close()


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
        raise ConfigurationError(
            f"RabbitMQBroker: ssl_ca_certs, ssl_certfile or ssl_keyfile cannot be read: {error}"
        ) from error
    return context
