"""Elections: a FIFO queue for each name. Whoever has received its first message, and hides it, holds the name; the
number of the message that is added then is the token."""

from __future__ import annotations

import secrets
import time
from math import ceil
from typing import TYPE_CHECKING

import msgspec
from amb_core.errors import LeaseLost, NotFound, UnsupportedError

from ._client import Aws, Entry, Received
from ._queues import Queues

if TYPE_CHECKING:
    from .broker import SQSBroker

__all__ = ["Elections"]

#: SQS hides a message for at most so long, counted from when it was received, seconds.
LONGEST = 43_200
#: How long SQS keeps a message, and how old one may be that is still good for a whole term: a day is left for that,
#: and for clocks that differ.
_KEPT, _GOOD = 14 * 86_400, 13 * 86_400
#: A candidate that finds nothing adds a message, but not again for so long, seconds.
_PATIENCE = 86_400.0
_GROUP = "election"


class _Term(msgspec.Struct):
    """A message that is hidden by us."""

    handle: str
    #: When it was received, and until when it is hidden at least, by our clock.
    since: float
    until: float


#: What was won by this process, by queue: connections come and go, and only receiving gives a handle.
_won: dict[str, tuple[int, _Term]] = {}


class Elections:
    """What `amb_core.broker.Elects` says, on SQS.

    While the first message of a FIFO queue's group is hidden, nobody gets another one of that group. So it does not
    matter how many there are, and that anybody may add one. Each message is deleted by who had it last.
    """

    def __init__(self, options: SQSBroker, aws: Aws, queues: Queues) -> None:
        self._options, self._aws, self._queues = options, aws, queues
        self._urls: dict[str, str] = {}
        self._added: dict[str, float] = {}

    async def acquire(self, name: str, seconds: float) -> int | None:
        """The token, if nobody holds `name`."""
        doing, asked = f"elect a leader of {name!r}", time.monotonic()
        hidden = _whole(seconds, doing)
        url = await self._url(name, doing)
        try:
            message = await self._first(url, name, hidden)
        except NotFound:
            self._urls.pop(name)  # it was deleted: the next one makes it
            self._added.pop(name, None)
            raise
        if message is None:
            return None
        token = await self._add(url, name, secrets.token_hex(16))
        if time.time() - message.sent > _GOOD:
            # It would be deleted in the middle of a long term. There is one behind it now.
            await self._aws.delete(url, [(0, message.handle)])
            return None
        _won[url] = token, _Term(message.handle, asked, asked + hidden)
        return token if time.monotonic() < asked + seconds else None

    async def renew(self, name: str, token: int, seconds: float) -> bool:
        """Whether `token` held it until now, and does from now on."""
        doing, asked = f"stay the leader of {name!r}", time.monotonic()
        hidden = _whole(seconds, doing)
        url = await self._url(name, doing)
        term = _term(url, token)
        # What is over may be hidden again as long as nobody has received it: SQS does not say which it was.
        if term is None or asked >= term.until or asked + hidden > term.since + LONGEST:
            return False
        errors = await self._aws.hide(url, [(0, term.handle, hidden)])
        if lost := errors.get(0):
            if isinstance(lost, LeaseLost):
                return False
            raise lost
        if time.monotonic() >= term.until:
            return False
        term.until = asked + hidden
        return True

    async def release(self, name: str, token: int) -> None:
        """Nobody holds it, if `token` did."""
        url = await self._url(name, f"resign from {name!r}")
        if (term := _term(url, token)) is None:
            return
        del _won[url]
        # SQS deletes only for whoever has received it last.
        lost = (await self._aws.delete(url, [(0, term.handle)])).get(0)
        if lost is not None and not isinstance(lost, LeaseLost):
            raise lost

    async def _first(self, url: str, name: str, hidden: int) -> Received | None:
        found = await self._aws.receive(url, 1, 0, hidden)
        if not found and time.monotonic() - self._added.get(name, float("-inf")) > _PATIENCE:
            # Held, or there is none; SQS cannot say which. Many that add one within five minutes add one.
            await self._add(url, name, "first")
            self._added[name] = time.monotonic()
            found = await self._aws.receive(url, 1, 0, hidden)
        return found[0] if found else None

    async def _add(self, url: str, name: str, once: str) -> int:
        """Add a message; its number, which is above those of all before."""
        entry = Entry(0, f"Who has this message leads {name!r}.", group=_GROUP, dedup=once)
        return await self._aws.number(url, entry, f"the election of {name!r}")

    async def _url(self, name: str, doing: str) -> str:
        if name not in self._urls:
            queue = self._queues.names.election(name)
            try:
                self._urls[name] = await self._queues.election(queue, _KEPT)
            except NotFound as error:
                raise NotFound(
                    f"{doing}: there is no queue {queue!r}: make it, a FIFO queue, or let AMB do it (auto_create=True)"
                ) from error
        return self._urls[name]


def _term(url: str, token: int) -> _Term | None:
    won, term = _won.get(url, (None, None))
    return term if won == token else None


def _whole(seconds: float, doing: str) -> int:
    """SQS counts whole seconds. Raises: UnsupportedError."""
    if seconds > LONGEST:
        raise UnsupportedError(f"{doing}: on SQS a name is held for at most {LONGEST} s, not {seconds:g} s")
    return ceil(seconds)
