"""Brokers that do one thing wrong, each with the cases that must catch it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import anyio
import msgspec
from amb_core import Capabilities, InMemoryBroker
from amb_core.broker import Broker, Connection, Feed, Incoming, Outgoing, Settlement, Source, Token
from amb_core.testing import TamperedBroker

__all__ = ["SABOTEURS", "honest"]

LEASE = 1.5
Send = Callable[[Connection, Sequence[Outgoing]], Awaitable[None]]
#: What becomes of one message.
Change = Callable[[Outgoing], list[Outgoing]]
Receive = Callable[[Feed, int, bool], Awaitable[Sequence[Incoming]]]


class Saboteur(msgspec.Struct, frozen=True):
    """A way to be wrong, and who must notice."""

    make: Callable[[], Broker]
    caught_by: tuple[str, ...]


def _memory(**options: Any) -> InMemoryBroker:
    return InMemoryBroker(lease=LEASE, **options)


def honest() -> Broker:
    """The wrapper alone: what the saboteurs are measured against."""
    return TamperedBroker(_memory())


def _own(message: Outgoing | Incoming) -> bool:
    """Not AMB's private traffic."""
    return not message.topic.startswith("_amb.")


# --- on the way in


def _sending(change: Callable[[], Change]) -> Callable[[], Broker]:
    """A broker that stores what `change` makes of each message; a new `change` for each broker."""

    def make() -> Broker:
        each = change()

        async def send(connection: Connection, batch: Sequence[Outgoing]) -> None:
            for message in batch:
                stored = each(message) if _own(message) else [message]
                if stored:
                    await connection.send(stored)

        return TamperedBroker(_memory(), send=send)

    return make


def _every(number: int, wrong: Change) -> Callable[[], Change]:
    def change() -> Change:
        numbers = count(1)
        return lambda message: wrong(message) if next(numbers) % number == 0 else [message]

    return change


def _always(wrong: Callable[[Outgoing], Outgoing]) -> Callable[[], Change]:
    return _every(1, lambda message: [wrong(message)])


def _replace(message: Outgoing, **fields: Any) -> Outgoing:
    return msgspec.structs.replace(message, **fields)


def _without_own_headers(message: Outgoing) -> Outgoing:
    kept = {name: value for name, value in message.headers.items() if name.startswith("amb-") or name == "content-type"}
    return _replace(message, headers=kept)


def _to_a_neighbour() -> Change:
    numbers, last = count(1), [""]

    def change(message: Outgoing) -> list[Outgoing]:
        previous, last[0] = last[0], message.topic
        return [_replace(message, topic=previous) if previous and next(numbers) % 50 == 0 else message]

    return change


def _swaps_replies() -> Broker:
    kept: dict[str, Outgoing] = {}

    async def send(connection: Connection, batch: Sequence[Outgoing]) -> None:
        for message in batch:
            other = kept.pop(message.topic, None) if not _own(message) else None
            if _own(message) or message.headers["amb-request"] in ("1", "2"):
                await connection.send([message])
            elif other is None:
                kept[message.topic] = message
            else:
                await connection.send([_replace(message, body=other.body), _replace(other, body=message.body)])

    return TamperedBroker(_memory(), send=send)


# --- on the way out


def _receiving(change: Callable[[list[Incoming]], Sequence[Incoming]]) -> Callable[[], Broker]:
    async def receive(feed: Feed, limit: int, wait: bool) -> Sequence[Incoming]:
        return change(list(await feed.receive(limit, wait)))

    return lambda: TamperedBroker(_memory(), receive=receive)


def _forgets_attempts(batch: list[Incoming]) -> list[Incoming]:
    return [msgspec.structs.replace(incoming, attempt=1) for incoming in batch]


async def _greedy(feed: Feed, limit: int, wait: bool) -> Sequence[Incoming]:
    got = list(await feed.receive(limit, wait))
    return got + list(await feed.receive(limit, False)) if got else got


def _hands_out_in_pairs_backwards() -> Broker:
    pocket: dict[Feed, Incoming] = {}

    async def receive(feed: Feed, limit: int, wait: bool) -> Sequence[Incoming]:
        if feed in pocket:
            return [pocket.pop(feed)]
        got = await feed.receive(1, wait)
        await anyio.sleep(0.002)
        later = await feed.receive(1, False) if got else ()
        if later:
            pocket[feed] = got[0]
        return later or got

    return TamperedBroker(_memory(), receive=receive)


async def _acknowledges_at_once(feed: Feed, limit: int, wait: bool) -> Sequence[Incoming]:
    got = await feed.receive(limit, wait)
    await feed.settle([Settlement(incoming.token, "ack") for incoming in got])
    return got


# --- settling


def _settling(change: Callable[[Settlement], Settlement | None]) -> Callable[[], Broker]:
    async def settle(feed: Feed, outcomes: Sequence[Settlement]) -> None:
        await feed.settle([changed for outcome in outcomes if (changed := change(outcome)) is not None])

    return lambda: TamperedBroker(_memory(), settle=settle)


def _settles_the_newer() -> Broker:
    """Finds a delivery by its message instead of by its token."""
    newest: dict[str, tuple[Feed, object]] = {}

    async def receive(feed: Feed, limit: int, wait: bool) -> Sequence[Incoming]:
        got = list(await feed.receive(limit, wait))
        for index, incoming in enumerate(got):
            name = f"{incoming.topic} {incoming.body!r} {incoming.headers}"
            newest[name] = (feed, incoming.token)
            got[index] = msgspec.structs.replace(incoming, token=name)
        return got

    async def settle(feed: Feed, outcomes: Sequence[Settlement]) -> None:
        for outcome in outcomes:
            holder, token = newest[str(outcome.token)]
            await holder.settle([msgspec.structs.replace(outcome, token=token)])

    return TamperedBroker(_memory(), receive=receive, settle=settle)


# --- subscribing


def _opening(change: Callable[[Source], Source]) -> Callable[[], Broker]:
    return lambda: TamperedBroker(_memory(), source=change)


def _slow_to_live() -> Broker:
    opened: dict[str, float] = {}

    def source(source: Source) -> Source:
        opened[source.pattern] = time.monotonic()
        return source

    async def send(connection: Connection, batch: Sequence[Outgoing]) -> None:
        for message in batch:
            if time.monotonic() - opened.get(message.topic, 0.0) > 0.01:
                await connection.send([message])

    return TamperedBroker(_memory(), source=source, send=send)


def _shares_groups(source: Source) -> Source:
    return msgspec.structs.replace(source, pattern="#") if source.group else source


# --- lying


def _claiming(**claims: Any) -> Callable[[], Broker]:
    def make() -> Broker:
        inner = _memory(history=0)
        honest = msgspec.structs.asdict(inner.capabilities)
        return TamperedBroker(inner, capabilities=Capabilities(**{**honest, **claims}))

    return make


async def _extends_nothing(feed: Feed, tokens: Sequence[Token]) -> None:
    """Says yes."""


class _Electing:
    """A broker in memory whose connections give a name to whom they should not."""

    def __init__(self, **wrong: Callable[..., object]) -> None:
        self._inner, self._wrong = _memory(), wrong
        self.capabilities = self._inner.capabilities

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        async with self._inner.connect() as connection:
            for name, verb in self._wrong.items():
                setattr(connection, name, verb)
            yield connection


def _elects_everybody() -> Broker:
    tokens = count(1)

    async def acquire(name: str, seconds: float) -> int:
        return next(tokens)

    return _Electing(acquire=acquire)


def _renews_for_anybody() -> Broker:
    async def renew(name: str, token: int, seconds: float) -> bool:
        return True

    return _Electing(renew=renew)


SABOTEURS: dict[str, Saboteur] = {
    "loses every 50th message": Saboteur(_sending(_every(50, lambda message: [])), ("A1", "A3", "C1")),
    "stores every 50th message twice": Saboteur(_sending(_every(50, lambda m: [m, m])), ("A1", "C1", "K1")),
    "mixes up topics": Saboteur(_sending(_to_a_neighbour), ("A3",)),
    "drops headers": Saboteur(_sending(_always(_without_own_headers)), ("A1", "A12", "I3", "J6")),
    "cuts bodies at a zero byte": Saboteur(
        _sending(_always(lambda m: _replace(m, body=m.body.split(b"\x00")[0]))), ("I4", "I5")
    ),
    "forgets keys": Saboteur(_sending(_always(lambda m: _replace(m, key=None))), ("A12", "D3", "F3")),
    "folds the case of topics": Saboteur(_sending(_always(lambda m: _replace(m, topic=m.topic.lower()))), ("B7",)),
    "takes glob characters out of topics": Saboteur(
        _sending(_always(lambda m: _replace(m, topic=m.topic.replace("?", "b")))), ("B6",)
    ),
    "ignores delays": Saboteur(_sending(_always(lambda m: _replace(m, not_before=None))), ("D4",)),
    "ignores priorities": Saboteur(_sending(_always(lambda m: _replace(m, priority=3))), ("M5",)),
    "ignores that somebody must be there": Saboteur(_sending(_always(lambda m: _replace(m, mandatory=False))), ("H3",)),
    "swaps replies": Saboteur(_swaps_replies, ("H1",)),
    "delivers in any order": Saboteur(_hands_out_in_pairs_backwards, ("F1", "F6")),
    "forgets attempts": Saboteur(_receiving(_forgets_attempts), ("D3", "D12", "E1")),
    "hands out more than was asked for": Saboteur(lambda: TamperedBroker(_memory(), receive=_greedy), ("M1",)),
    "acknowledges what it hands out": Saboteur(
        lambda: TamperedBroker(_memory(), receive=_acknowledges_at_once), ("D2", "D7", "D9")
    ),
    "forgets acknowledgements": Saboteur(
        _settling(lambda outcome: None if outcome.verdict == "ack" else outcome), ("C1", "D2", "D10")
    ),
    "retries at once": Saboteur(_settling(lambda outcome: msgspec.structs.replace(outcome, delay=0.0)), ("D4", "E1")),
    "drops what is to be retried": Saboteur(
        _settling(lambda o: msgspec.structs.replace(o, verdict="discard") if o.verdict == "retry" else o), ("D3", "D13")
    ),
    "counts what never started": Saboteur(
        _settling(lambda o: msgspec.structs.replace(o, verdict="retry") if o.verdict == "release" else o), ("L3",)
    ),
    "settles the newer delivery": Saboteur(_settles_the_newer, ("D7",)),
    "says too early that it is live": Saboteur(_slow_to_live, ("A2",)),
    "ignores groups": Saboteur(_opening(lambda s: msgspec.structs.replace(s, group=None)), ("C1", "C2", "C3")),
    "makes one group of those with equal names": Saboteur(_opening(_shares_groups), ("C7",)),
    "ignores ordering keys": Saboteur(_opening(lambda s: msgspec.structs.replace(s, ordered_by=None)), ("F2", "F3")),
    "claims to extend leases": Saboteur(lambda: TamperedBroker(_memory(), extend=_extends_nothing), ("D10",)),
    "elects everybody": Saboteur(_elects_everybody, ("O1", "O2", "O3")),
    "renews for anybody": Saboteur(_renews_for_anybody, ("O2", "O3")),
    "claims durability": Saboteur(_claiming(durable=True), ("G1",)),
    "claims replay": Saboteur(_claiming(replay="time"), ("G9",)),
}
