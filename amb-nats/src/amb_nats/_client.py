"""A link to one NATS server: connecting, round trips, requests, and how its end becomes known."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from amb_core.concurrency import bounded
from amb_core.config import mask_url
from amb_core.errors import (
    AmbError,
    AuthenticationError,
    ConfigurationError,
    ConnectionLost,
    NoResponders,
    Unavailable,
)
from nats import errors as native
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ._errors import NATIVE, api_error, translate

if TYPE_CHECKING:
    from .broker import NatsBroker

__all__ = ["Link", "link", "status"]

logger = logging.getLogger("amb.nats")

#: What leaving may take, seconds.
_LEAVING = 2.0
_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
_SEED = re.compile(r"S[A-Z][A-Z2-7]{20,}")


def status(message: Msg) -> str | None:
    """What the server says instead of a message: ``503`` is that nobody listens."""
    return message.headers.get("Status") if message.headers and not message.reply and not message.data else None


class _Client(Client):
    """nats-py, with two holes closed."""

    #: TLS was asked for.
    encrypted = False

    def _connect_command(self) -> bytes:
        # nats-py turns to TLS if the server wants it; credentials must not go to one that does not.
        if self.encrypted and not self._server_info.get("tls_required") and not self._server_info.get("tls_available"):
            raise native.SecureConnWantedError
        return super()._connect_command()

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # As nats-py does it, in a third of the time.
        found = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon and (name := name.strip()).isascii() and name.isprintable() and " " not in name:
                found[name] = value.strip()
        return found

    async def _process_pong(self) -> None:
        # An answer to somebody who has given up must not end the reading of everything else.
        self._pings_outstanding = 0
        if self._pongs and not (future := self._pongs.pop(0)).done():
            future.set_result(True)

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # nats-py writes a ping at once, past what is still to be written: its answer would prove nothing.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(b"PING\r\n")
        await self._flush_pending()

    async def ping(self, answer: asyncio.Future[Any]) -> None:
        """Set the result of `answer` when the server has carried out everything before."""
        await self._send_ping(answer)

    async def post(self, subject: str, body: bytes, reply: str = "", headers: bytes = b"") -> None:
        """Publish, with a block of headers as `_wire` makes it; nats-py's own way looks at each of them again."""
        if self.is_closed:
            raise native.ConnectionClosedError
        if headers:
            size = len(headers)
            head = f"HPUB {subject} {reply} {size} {size + len(body)}\r\n".encode()
            command = b"".join((head, headers, body, b"\r\n"))
        else:
            command = b"".join((f"PUB {subject} {reply} {len(body)}\r\n".encode(), body, b"\r\n"))
        await self._send_command(command)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self._flush_queue is None:
            return  # it has never begun to connect
        try:
            await super()._close(status, do_cbs)
        except OSError:
            # The last words cannot be said any more; all the rest of closing is still to be done.
            self.abort()
            await super()._close(status, do_cbs)

    def abort(self) -> None:
        """End the link without a word, and without waiting to get rid of any. `close` cleans up."""
        self._pending, self._pending_data_size, self._status = [], 0, Client.DISCONNECTED
        # Waiting for a socket to close may never end, after a failed TLS handshake for instance.
        writer, self._transport = getattr(self._transport, "_io_writer", None), None
        if writer is not None:
            writer.transport.abort()


class Link:
    """A connected client, and who waits for what on it."""

    def __init__(self, client: _Client, patience: float) -> None:
        self.client, self.patience = client, patience
        #: Why the link is finished, if it is.
        self.lost: ConnectionLost | None = None
        #: Called when it is.
        self.watchers: set[Callable[[], None]] = set()
        self._box = ""
        self._serial = itertools.count()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._asked: dict[str, tuple[asyncio.Future[Msg], str]] = {}
        self._denied: deque[tuple[str, str]] = deque(maxlen=1000)

    async def start(self) -> None:
        """Open the inbox for answers, on a client that is connected."""
        self._box = self.client.new_inbox()
        await self.client.subscribe(f"{self._box}.*", cb=self._answered)

    async def _answered(self, message: Msg) -> None:
        if (asked := self._asked.pop(message.subject, None)) is not None and not asked[0].done():
            asked[0].set_result(message)

    def expect(self, subject: str) -> tuple[str, asyncio.Future[Msg]]:
        """Where the answer to what is published on `subject` is to go, and a future for it. `forget` it."""
        box, answer = f"{self._box}.{next(self._serial)}", self.future()
        self._asked[box] = answer, subject.lower()
        return box, answer

    def forget(self, box: str, answer: asyncio.Future[Msg]) -> None:
        """Expect nothing there any more."""
        self._asked.pop(box, None)
        answer.cancel()

    async def failed(self, error: Exception) -> None:
        """What nats-py reports besides: refusals, and trouble that ends the link anyway."""
        if found := _DENIED.search(str(error).lower()):
            self._denied.append((found[1], found[2]))
            for answer, subject in self._asked.values():
                if found[1] == "publish" and subject == found[2] and not answer.done():
                    answer.set_exception(error)
        logger.debug("NATS: %s", error)

    async def closed(self) -> None:
        """The link is finished."""
        if self.lost is None:
            why = self.client.last_error
            self.lost = ConnectionLost(f"the link to NATS was lost{f': {why}' if why else ''}; is the server up?")
            for waiting in list(self._waiting):
                if not waiting.done():
                    waiting.set_exception(native.ConnectionClosedError())
            for watcher in list(self.watchers):
                watcher()

    async def give_up(self) -> None:
        """The link is silent, and so finished."""
        self.client.abort()
        await self.closed()

    async def drain(self, subscription: Subscription) -> None:
        """Unsubscribe; what had been sent until then has arrived. Raises: AmbError."""
        await self.call("unsubscribe", subscription.drain())  # type: ignore[no-untyped-call]

    def check(self) -> None:
        """Raises: ConnectionLost if the link is finished."""
        if self.lost is not None:
            raise ConnectionLost(str(self.lost))

    async def call(self, doing: str, action: Awaitable[Any], *, unknown: bool = False) -> None:
        """Await something of nats-py. Raises: AmbError."""
        try:
            await action
        except NATIVE as error:
            raise translate(error, doing, unknown=unknown) from error

    def future(self) -> asyncio.Future[Any]:
        """A future for `answer`, which the end of the link ends too."""
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        return waiting

    async def answer(self, waiting: asyncio.Future[Any], doing: str, *, unknown: bool = False) -> Any:
        """The result of a `future`, in time. Raises: ConnectionLost or, if `unknown`, PublishUnknown."""
        try:
            return await bounded(_result(waiting), self.patience)
        except NATIVE as error:
            if isinstance(error, TimeoutError) and not isinstance(error, native.Error):
                error = native.StaleConnectionError()  # a link that is silent now will not be trusted again
                await self.give_up()
            raise translate(error, doing, unknown=unknown) from error

    async def flush(self, doing: str, *, unknown: bool = False) -> None:
        """Return when the server has carried out everything before. Raises: as `answer`."""
        self.check()
        pong = self.future()
        await self.call(doing, self.client.ping(pong), unknown=unknown)
        await self.answer(pong, doing, unknown=unknown)

    def denied(self, verb: str, subjects: set[str]) -> set[str]:
        """Those of the subjects that the server has refused since it was last asked about them."""
        if not self._denied:
            return set()
        low = {subject.lower(): subject for subject in subjects}
        found = {low[name] for kind, name in self._denied if kind == verb and name in low}
        kept = [entry for entry in self._denied if entry[0] != verb or entry[1] not in low]
        self._denied.clear()
        self._denied.extend(kept)
        return found

    async def exchange(self, subject: str, body: bytes, doing: str) -> Msg:
        """The answer to what is published on `subject`. Raises: NoResponders, AccessDenied, ConnectionLost."""
        self.check()
        box, answer = self.expect(subject)
        try:
            await self.call(doing, self.client.post(subject, body, box))
            message: Msg = await self.answer(answer, doing)
        finally:
            self.forget(box, answer)
        if status(message) == "503":
            raise NoResponders(f"{doing}: nobody answers on {subject!r}")
        return message

    async def ask(self, subject: str, request: Mapping[str, Any] | None, doing: str) -> dict[str, Any]:
        """The answer of a JetStream API. Raises: AmbError."""
        message = await self.exchange(subject, msgspec.json.encode(request or {}), doing)
        reply: dict[str, Any] = msgspec.json.decode(message.data)
        if (error := reply.get("error")) is not None:
            raise api_error(error, doing)
        return reply


async def _result(waiting: asyncio.Future[Any]) -> Any:
    return await waiting


@asynccontextmanager
async def link(options: NatsBroker) -> AsyncIterator[Link]:
    """A link to one of the servers, the first in random order that lets us in.

    Raises: AuthenticationError, ConfigurationError, Unavailable."""
    found, failures = None, list[AmbError]()
    for url in random.sample(options.addresses, len(options.addresses)):
        try:
            found = await _connect(options, url)
            break
        except (AuthenticationError, ConfigurationError, Unavailable, ConnectionLost) as error:
            failures.append(error)
    if found is None:
        raise next((each for each in failures if isinstance(each, AuthenticationError)), failures[-1])
    try:
        yield found
    finally:
        await _leave(found.client)


async def _connect(options: NatsBroker, url: str) -> Link:
    arguments = _arguments(options)
    client = _Client()
    client.encrypted = url.startswith("tls://")
    made = Link(client, options.response_timeout)
    doing, connecting = f"connect to NATS at {mask_url(url)}", True

    async def failed(error: Exception) -> None:
        if connecting:
            raise error  # nats-py would go on trying
        await made.failed(error)

    try:
        with anyio.fail_after(options.connect_timeout):
            await client.connect(url, error_cb=failed, closed_cb=made.closed, **arguments)
            connecting = False
            await made.start()
        return made
    except BaseException as error:
        connecting = False
        client.abort()
        await _leave(client)
        if isinstance(error, NATIVE):
            raise translate(error, doing) from error
        raise


def _arguments(options: NatsBroker) -> dict[str, Any]:
    """What nats-py's ``connect`` takes."""
    if options.credentials is not None and not Path(options.credentials).is_file():
        raise ConfigurationError(f"NatsBroker: credentials: there is no file {options.credentials!r}")
    given: dict[str, Any] = {
        "name": options.name,
        "user": options.user,
        "password": options.password,
        "token": options.token,
        "user_credentials": options.credentials,
        "tls": _tls(options),
        "tls_hostname": options.tls_hostname,
        "inbox_prefix": options.inbox_prefix,
        **_seed(options.nkeys_seed),
        "connect_timeout": options.connect_timeout,
        "allow_reconnect": False,
        "flush_timeout": None,
        "ping_interval": max(1, round(options.response_timeout)),
        **options.client_options,
    }
    return given


def _seed(given: str | None) -> dict[str, str]:
    if given is None:
        return {}
    try:
        import nkeys  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(
            "NatsBroker: nkeys_seed needs the package nkeys: pip install 'amb-nats[nkeys]'"
        ) from None
    try:
        seed = given if _SEED.fullmatch(given) else Path(given).read_text().strip()
        nkeys.from_seed(bytearray(seed.encode())).public_key  # noqa: B018
    except Exception:  # whatever it says may hold the seed
        raise ConfigurationError("NatsBroker: nkeys_seed is no valid NKey seed, nor a file with one") from None
    return {"nkeys_seed_str": seed}


def _tls(options: NatsBroker) -> ssl.SSLContext | None:
    files = (options.tls_ca, options.tls_cert, options.tls_key)
    if not any(files):
        return None  # nats-py makes its own as soon as a server wants one
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_cert is not None:
            context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"NatsBroker: a file in tls_ca, tls_cert or tls_key cannot be used: {error}"
        ) from error
    return context


async def _leave(client: _Client) -> None:
    """Close, also a link that does not answer any more."""
    with anyio.move_on_after(_LEAVING, shield=True) as scope:
        await client.close()
    if scope.cancelled_caught:
        client.abort()
        with anyio.move_on_after(_LEAVING, shield=True):
            await client.close()
