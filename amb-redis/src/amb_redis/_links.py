"""Connections to one server: redis-py's, used so that a read can be cancelled and taken up again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from amb_core.errors import AmbError, ConfigurationError
from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import AuthenticationError, BusyLoadingError, NoScriptError, ReadOnlyError, ResponseError

from . import _scripts
from ._errors import NATIVE, translate

if TYPE_CHECKING:
    from .broker import RedisBroker

__all__ = ["Command", "Link", "Node", "Reply", "checked"]

#: What the server says, as opposed to what happens to the link.
_SAID = (ResponseError, AuthenticationError, BusyLoadingError)

#: A command, and what the server says to it: errors are values here.
Command: TypeAlias = tuple[Any, ...]
Reply: TypeAlias = Any


def checked(reply: Reply, doing: str) -> Reply:
    """The reply, unless it is an error."""
    if isinstance(reply, Exception):
        raise translate(reply, doing)
    return reply


class Link:
    """One connection. Answers come in the order of the questions, also after a cancelled wait."""

    def __init__(self, native: AbstractConnection) -> None:
        self._native = native
        self._greet = native.redis_connect_func
        native.redis_connect_func = self._connected
        self._writer: asyncio.StreamWriter | None = None
        #: Answers that have not been read.
        self.owed = 0

    @property
    def address(self) -> str:
        """Where it leads, for people."""
        native = self._native
        return f"{native.host}:{native.port}" if isinstance(native, Connection) else getattr(native, "path", "?")

    @property
    def alive(self) -> bool:
        return bool(self._native.is_connected)

    async def connect(self, seconds: float) -> None:
        """Connect and authenticate."""
        try:
            async with asyncio.timeout(seconds):
                await self._native.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await self.close()
            raise

    async def _connected(self, connection: AbstractConnection) -> None:
        # redis-py forgets its writer when it hangs up, as it does itself where the greeting fails.
        self._writer = connection._writer  # noqa: SLF001
        greeting = connection.on_connect() if self._greet is None else self._greet(connection)
        if greeting is not None:
            await greeting

    async def stale(self) -> bool:
        """Whether the server has hung up, or said something nobody asked for."""
        return not self.alive or await self._native.can_read()

    async def ask(self, commands: Sequence[Command]) -> None:
        """Write the commands; as many answers are owed then."""
        await self._native.send_packed_command([b"".join(map(pack_command, commands))])
        self.owed += len(commands)

    async def answer(self) -> Reply:
        """Wait for the next answer. May be cancelled, and called again."""
        try:
            reply = await self._native.read_response(timeout=math.inf, disconnect_on_error=False)
        except _SAID as error:
            reply = error
        self.owed -= 1
        return reply

    async def more(self) -> bool:
        """Whether something has arrived that was not read."""
        return await self._native.can_read()

    async def close(self) -> None:
        """Hang up."""
        self.owed = 0
        await self._native.disconnect(nowait=True)
        if self._writer is not None:
            # In TLS a goodbye has been written, and the socket would stay open until the server has answered it.
            self._writer.transport.abort()


class Node:
    """The pooled connections to one server."""

    def __init__(self, make: Callable[[], AbstractConnection], options: RedisBroker) -> None:
        self._make = make
        self._options = options
        self._free: list[Link] = []
        self._slots = anyio.Semaphore(options.pool_size, fast_acquire=True)

    async def link(self) -> Link:
        """A new connection that is the caller's own."""
        try:
            link = Link(self._make())
        except TypeError as error:
            raise ConfigurationError(
                f"RedisBroker: redis-py does not take an option of client_options or of the URL: {error}"
            ) from error
        try:
            await link.connect(self._options.connect_timeout)
        except NATIVE as error:
            raise translate(error, f"connect to Redis at {link.address}") from error
        return link

    async def call(self, commands: Sequence[Command], doing: str, unknown: bool = False) -> list[Reply]:
        """The replies, in order. If the link breaks, the rest of them are the error.

        `unknown`: a broken link leaves the outcome open."""
        async with self._slots:
            replies: list[Reply] = []
            try:
                link = await self._take()
            except AmbError as refused:
                return [refused] * len(commands)
            try:
                async with asyncio.timeout(self._options.response_timeout + _longest_wait(commands)):
                    await link.ask(commands)
                    while link.owed:
                        replies.append(await link.answer())
                    await self._learn(link, commands, replies)
            except NATIVE as native:
                # What broke this link has probably broken the others, and not all of them show it.
                self._free.append(link)
                await self.close()
                error = translate(native, doing, unknown=unknown)
                return replies + [error] * (len(commands) - len(replies))
            except BaseException:
                await link.close()
                raise
            if any(isinstance(reply, ReadOnlyError) for reply in replies):
                await link.close()
            else:
                self._free.append(link)
            return replies

    async def _take(self) -> Link:
        while self._free:
            link = self._free.pop()
            if not await link.stale():
                return link
            await link.close()
        return await self.link()

    async def _learn(self, link: Link, commands: Sequence[Command], replies: list[Reply]) -> None:
        """A server that has restarted knows no scripts: teach it, and ask again."""
        again = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if not again:
            return
        await link.ask([*_scripts.LOAD, *(commands[i] for i in again)])
        learnt = [await link.answer() for _ in range(link.owed)]
        for i, reply in zip(again, learnt[len(_scripts.LOAD) :], strict=True):
            replies[i] = reply

    async def close(self) -> None:
        """Hang up all links that are not in use."""
        while self._free:
            await self._free.pop().close()


def _longest_wait(commands: Sequence[Command]) -> float:
    return max((c[2] / 1000 for c in commands if c[0] == "WAIT"), default=0.0)
