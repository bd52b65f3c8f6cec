"""A link to one NATS server: round trips, requests, and how its end becomes known."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from amb_core.errors import ConnectionLost, NoResponders, PublishUnknown, Unavailable
from nats import errors as native
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ._client import NatsClient
from ._errors import NATIVE, api_error, translate

__all__ = ["Link", "status"]

logger = logging.getLogger("amb.nats")
T = TypeVar("T")

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')


def status(message: Msg) -> str | None:
    """What the server says instead of a message: ``503`` is that nobody listens."""
    return message.headers.get("Status") if message.headers and not message.reply and not message.data else None


class Link:
    """A connected client, and who waits for what on it."""

    def __init__(self, client: NatsClient, patience: float) -> None:
        self.client, self.patience = client, patience
        #: Why the link is finished, if it is.
        self.lost: ConnectionLost | None = None
        #: Called when it is.
        self.watchers: set[Callable[[], None]] = set()
        self._box = ""
        self._serial = itertools.count()
        self._asked: dict[str, tuple[asyncio.Future[Msg], str]] = {}
        self._pongs: set[asyncio.Future[Any]] = set()
        #: Who waits, and until when. All have the same patience, so the first is the first whose time is over.
        self._due: dict[asyncio.Future[Any], float] = {}
        self._alarm: asyncio.TimerHandle | None = None
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
        box = f"{self._box}.{next(self._serial)}"
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
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
            for waiting in [*self._pongs, *(answer for answer, _ in self._asked.values())]:
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

    async def answer(self, waiting: asyncio.Future[Msg], doing: str, *, unknown: bool = False) -> Msg:
        """What was `expect`-ed, in time. Raises: Unavailable, ConnectionLost or, if `unknown`, PublishUnknown."""
        try:
            return waiting.result() if waiting.done() else await self._in_time(waiting)
        except NATIVE as error:
            if isinstance(error, TimeoutError) and not isinstance(error, native.Error):
                # Either the link is dead, or only whoever was asked: a stream that has no leader, say.
                await self.flush(doing, unknown=unknown)
                kind = PublishUnknown if unknown else Unavailable
                text = f"{doing}: the server is there, but JetStream has not answered for {self.patience:g} s"
                raise kind(f"{text}: has the stream a leader?") from error
            raise translate(error, doing, unknown=unknown) from error

    async def flush(self, doing: str, *, unknown: bool = False) -> None:
        """Return when the server has carried out everything before. Raises: as `answer`."""
        self.check()
        pong: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pongs.add(pong)
        try:
            await self.client.ping(pong)
            await self._in_time(pong)
        except NATIVE as error:
            if isinstance(error, TimeoutError) and not isinstance(error, native.Error):
                error = native.StaleConnectionError()  # a link that is silent now will not be trusted again
                await self.give_up()
            raise translate(error, doing, unknown=unknown) from error
        finally:
            self._pongs.discard(pong)
            pong.cancel()

    async def _in_time(self, waiting: asyncio.Future[T]) -> T:
        """The result, unless it takes longer than the link's patience. One timer looks after all that wait.
        Raises: TimeoutError."""
        loop = asyncio.get_running_loop()
        self._due[waiting] = loop.time() + self.patience
        if self._alarm is None:
            self._alarm = loop.call_later(self.patience, self._look)
        try:
            return await waiting
        finally:
            del self._due[waiting]

    def _look(self) -> None:
        """Whose time is over?"""
        loop, self._alarm = asyncio.get_running_loop(), None
        for waiting, due in self._due.items():
            if due > loop.time():
                self._alarm = loop.call_at(due, self._look)
                break
            if not waiting.done():
                waiting.set_exception(TimeoutError())

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

    async def exchange(self, subject: str, body: bytes, doing: str, headers: bytes = b"") -> Msg:
        """The answer to what is published on `subject`. Raises: NoResponders, AccessDenied, ConnectionLost."""
        self.check()
        box, answer = self.expect(subject)
        try:
            await self.call(doing, self.client.post(subject, body, box, headers))
            message = await self.answer(answer, doing)
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
