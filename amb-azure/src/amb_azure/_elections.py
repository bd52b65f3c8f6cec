"""Elections: a session of a queue of its own is locked by the holder of a name, and its state says until when."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

import anyio
import msgspec
from amb_core.errors import AmbError, NotFound, Unavailable
from azure.servicebus.aio import ServiceBusReceiver
from azure.servicebus.exceptions import SessionCannotBeLockedError, SessionLockLostError

from ._client import Client
from ._entities import Entities
from ._errors import NATIVE, translate
from ._link import close, enter

if TYPE_CHECKING:
    from .broker import AzureServiceBusBroker

__all__ = ["LOCK", "Elections"]

T = TypeVar("T")
#: Seconds for which the service keeps the session of a holder that is silent: the least that it takes. The same for
#: everybody, as the service's time is read from when a lock ends.
LOCK = 5.0


class _Term(msgspec.Struct, frozen=True):
    """The state of a session, as JSON."""

    name: str
    token: int
    #: Nobody else before, in seconds of the service's clock.
    until: float


class _Seat:
    """A session that is locked by us, and until when."""

    def __init__(self, native: ServiceBusReceiver) -> None:
        self.native, self.locked_until = native, native.session.locked_until_utc
        #: Whether the name is held from here.
        self.kept = False

    @property
    def now(self) -> float:
        """The service's time when it was asked last."""
        assert self.locked_until is not None, "an open session is locked"
        return self.locked_until.timestamp() - LOCK


class Elections:
    """What `amb_core.broker.Elects` says, on Service Bus.

    Whoever holds the lock of a name's session may change its state, and nobody else: the service sees to that. The
    holder of the name keeps the lock as long as it renews, so that others are turned away at once; it is the state
    that counts, so a lock that is lost with a link costs nobody the name.
    """

    def __init__(self, options: AzureServiceBusBroker, client: Client, entities: Entities) -> None:
        self._options, self._client, self._entities = options, client, entities
        self.queue = f"{options.topic_name}.elections"
        self._seats: dict[str, _Seat] = {}
        self._turns: dict[str, anyio.Lock] = {}

    async def acquire(self, name: str, seconds: float) -> int | None:
        """The token, if nobody holds `name`."""
        doing = f"elect a leader of {name!r}"
        async with self._seat(name, doing) as seat:
            if seat is None:
                return None
            term = await self._term(seat, name, doing)
            if seat.now < term.until:
                return None
            # Never lower than the time, so that tokens grow even where the queue was made anew.
            token = max(term.token + 1, math.floor(seat.now * 1000))
            await self._write(seat, _Term(name, token, seat.now + seconds), doing)
            seat.kept = True
            return token

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """Whether `token` held it until now, and does from now on."""
        doing = f"stay the leader of {name!r}"
        async with self._seat(name, doing) as seat:
            if seat is None:
                raise Unavailable(f"{doing}: somebody else has its session just now, to see whether it is held")
            term = await self._term(seat, name, doing)
            if term.token != token or seat.now >= term.until:
                seat.kept = seat.kept and seat.now < term.until
                return False
            await self._write(seat, _Term(name, token, seat.now + seconds), doing)
            seat.kept = True
            return True

    async def release(self, name: str, token: int) -> None:
        """Nobody holds it, if `token` did."""
        doing = f"resign from {name!r}"
        async with self._seat(name, doing) as seat:
            if seat is None:
                return
            term = await self._term(seat, name, doing)
            if term.token == token:
                seat.kept = False
                await self._write(seat, _Term(name, token, 0.0), doing)

    async def stop(self) -> None:
        """Leave the sessions; whoever holds a name goes on to hold it."""
        for name in list(self._seats):
            await self._leave(name)

    @asynccontextmanager
    async def _seat(self, name: str, doing: str) -> AsyncIterator[_Seat | None]:
        """The locked session of `name`; None: somebody else has it. Left afterwards unless it is kept."""
        # A receiver of the client is for one task at a time.
        async with self._turns.setdefault(name, anyio.Lock()):
            seat = None
            try:
                seat = await self._locked(name, doing) or await self._accepted(name, doing)
                yield seat
            except BaseException:
                await self._leave(name)
                raise
            if seat is not None and not seat.kept:
                await self._leave(name)

    async def _locked(self, name: str, doing: str) -> _Seat | None:
        """The session that we had before, if we still have it. Raises: Unavailable if the service is silent."""
        if (seat := self._seats.get(name)) is None:
            return None
        try:
            seat.locked_until = await self._asked(seat.native.session.renew_lock(), doing)
            return seat
        except AmbError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            await self._leave(name)
            return None

    async def _accepted(self, name: str, doing: str) -> _Seat | None:
        try:
            return await self._accept(name, doing)
        except NotFound:
            if not self._options.auto_create:
                raise NotFound(
                    f"{doing}: there is no Service Bus queue {self.queue!r}: make it, with sessions and a lock "
                    f"duration of {LOCK:g} seconds, or set auto_create"
                ) from None
        await self._entities.make_elections(self.queue, LOCK)
        return await self._accept(name, doing)

    async def _accept(self, name: str, doing: str) -> _Seat | None:
        native = self._client.session(self.queue, _session(name))
        try:
            await enter(native, self._options.connect_timeout)
            seat = self._seats[name] = _Seat(native)
            return seat
        except BaseException as error:
            await close(native)
            if isinstance(error, SessionCannotBeLockedError):
                return None
            if not isinstance(error, NATIVE):
                raise
            raise translate(error, doing) from error

    async def _term(self, seat: _Seat, name: str, doing: str) -> _Term:
        state = await self._asked(seat.native.session.get_state(), doing)
        return msgspec.json.decode(bytes(state), type=_Term) if state else _Term(name, 0, 0.0)

    async def _write(self, seat: _Seat, term: _Term, doing: str) -> None:
        await self._asked(seat.native.session.set_state(msgspec.json.encode(term)), doing)

    async def _asked(self, call: Awaitable[T], doing: str) -> T:
        try:
            with anyio.fail_after(self._options.response_timeout):
                return await call
        except SessionLockLostError as error:
            raise Unavailable(f"{doing}: it took so long that the lock of its session ran out; try again") from error
        except NATIVE as error:
            raise translate(error, doing) from error

    async def _leave(self, name: str) -> None:
        if (seat := self._seats.pop(name, None)) is not None:
            await close(seat.native)


def _session(name: str) -> str:
    """Names may be longer than the ids of sessions, and differ in nothing but case."""
    return blake2b(name.encode(), digest_size=16).hexdigest()
