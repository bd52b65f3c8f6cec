"""Deliveries in the hands of one consumer: settled, extended, given back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from amb_core.broker import Incoming, Settlement, Token
from amb_core.errors import AmbError, LeaseLost, PartialFailure

from . import _scripts
from ._errors import translate
from ._lanes import Delivery, Lane, Topic
from ._links import Command, Reply, checked
from ._servers import Servers

__all__ = ["Leases"]

_Call: TypeAlias = tuple[bytes, Command]


class Leases:
    """What one consumer of one group owes an answer for."""

    def __init__(self, found: Servers, group: bytes, consumer: bytes, lease: float) -> None:
        self._servers = found
        self._group = group
        self._consumer = consumer
        self._lease = lease

    async def settle(self, outcomes: Sequence[Settlement]) -> None:
        """See `amb_core.broker.Feed.settle`: one round trip per server."""
        errors = dict[int, Exception]()
        acks = dict[Lane, list[tuple[int, Delivery]]]()
        calls, who = list[_Call](), list[list[tuple[int, Delivery]]]()
        for index, outcome in enumerate(outcomes):
            held = outcome.token
            if not isinstance(held, Delivery) or (not held.done and held.lane.open.get(held.id) is not held):
                errors[index] = _lost(held)
            elif held.done:
                continue
            elif outcome.verdict in ("ack", "discard"):
                acks.setdefault(held.lane, []).append((index, held))
            else:
                attempt = outcome.attempt + 1 if outcome.verdict == "retry" else held.attempt
                calls.append(self._requeue(held, attempt, outcome.delay))
                who.append([(index, held)])
        for lane, items in acks.items():
            calls.append(self._ack(lane, [held for _, held in items]))
            who.append(items)
        if calls:
            for items, reply in zip(who, await self._servers.call(calls, "settle"), strict=True):
                self._settled(items, reply, errors)
        if errors:
            raise PartialFailure(errors)

    def _ack(self, lane: Lane, held: Sequence[Delivery]) -> _Call:
        ids = [delivery.id for delivery in held]
        recent = time.monotonic() - self._lease / 2
        if not lane.again and all(delivery.since > recent and not delivery.tried for delivery in held):
            # Well within their leases, nobody else can have claimed them: no need to look.
            return lane.topic.base, ("XACK", lane.key, self._group, *ids)
        return lane.topic.base, _scripts.ACK.call([lane.key], self._group, self._consumer, int(lane.again), *ids)

    def _requeue(self, held: Delivery, attempt: int, delay: float) -> _Call:
        base, lane = held.lane.topic.base, held.lane.name
        args = (self._group, self._consumer, lane, held.id, round(delay * 1000), attempt, held.position)
        return base, _scripts.REQUEUE.call([base], *args)

    def _settled(self, items: Sequence[tuple[int, Delivery]], reply: Reply, errors: dict[int, Exception]) -> None:
        if isinstance(reply, Exception):
            for index, held in items:
                errors[index] = translate(reply, f"settle {held.position}")
                held.tried = True
            return
        for index, held in items:
            held.lane.open.pop(held.id, None)
            held.done = True
            # What was tried before and is not ours now went through then.
            if isinstance(reply, list) and held.id in reply and not held.tried:
                errors[index] = _lost(held)

    def given_back(self, outcomes: Iterable[Settlement]) -> list[Incoming]:
        """Without a group there is nothing to tell the server: what is released comes again from here."""
        found = list[Incoming]()
        for outcome in outcomes:
            held = outcome.token
            if isinstance(held, Delivery) and not held.done:
                held.done = True
                held.lane.open.pop(held.id, None)
                if outcome.verdict in ("release", "retry") and held.incoming is not None:
                    found.append(self._anew(held, held.incoming))
        return found

    def _anew(self, held: Delivery, incoming: Incoming) -> Incoming:
        fresh = Delivery(held.lane, held.id, held.attempt, held.position, held.since)
        fresh.incoming = incoming
        held.lane.open[held.id] = fresh
        incoming.token = fresh
        return incoming

    async def extend(self, tokens: Sequence[Token]) -> None:
        """See `amb_core.broker.ExtendsLease.extend`."""
        errors, now = dict[int, Exception](), time.monotonic()
        topics = dict[Topic, list[tuple[int, Delivery]]]()
        for index, held in enumerate(tokens):
            if not isinstance(held, Delivery) or held.lane.open.get(held.id) is not held:
                errors[index] = _lost(held)
            else:
                topics.setdefault(held.lane.topic, []).append((index, held))
        calls = [(topic.base, self._extend(topic, [held for _, held in items])) for topic, items in topics.items()]
        for items, reply in zip(
            topics.values(), await self._servers.call(calls, "extend leases") if calls else (), strict=True
        ):
            if isinstance(reply, Exception):
                errors |= {index: translate(reply, "extend leases") for index, _ in items}
                continue
            lost = set(zip(reply[::2], reply[1::2], strict=True))
            for index, held in items:
                if (held.lane.name, held.id) in lost:
                    held.lane.open.pop(held.id, None)
                    errors[index] = _lost(held)
                else:
                    held.since = now
        if errors:
            raise PartialFailure(errors)

    async def still_ours(self, found: list[Incoming]) -> list[Incoming]:
        """`found` without what has aged here until its lease ran out and somebody else took it."""
        recent = time.monotonic() - self._lease / 2
        old = [incoming for incoming in found if isinstance(held := incoming.token, Delivery) and held.since < recent]
        if not old:
            return found
        try:
            await self.extend([incoming.token for incoming in old])
        except PartialFailure as failure:
            lost = {id(old[index]) for index, error in failure.errors.items() if isinstance(error, LeaseLost)}
            return [incoming for incoming in found if id(incoming) not in lost]
        return found

    def _extend(self, topic: Topic, held: Sequence[Delivery]) -> Command:
        pairs = [part for delivery in held for part in (delivery.lane.name, delivery.id)]
        return _scripts.EXTEND.call([topic.base], self._group, self._consumer, int(self._lease * 1000), *pairs)

    async def orphans(self, lanes: Iterable[Lane]) -> list[tuple[Lane, bytes, Sequence[bytes], int]]:
        """What the server believes we hold, and a broken link kept from us: (…, deliveries before)."""
        found = list[tuple[Lane, bytes, Sequence[bytes], int]]()
        for lane in lanes:
            held = ("XPENDING", lane.key, self._group, "-", "+", 1000, self._consumer)
            for entry, _, _, count in await self._servers.one(lane.topic.base, held, "look for lost deliveries"):
                if entry not in lane.open:
                    claim = ("XCLAIM", lane.key, self._group, self._consumer, 0, entry, "RETRYCOUNT", count)
                    got = await self._servers.one(lane.topic.base, claim, "claim a lost delivery")
                    found += [(lane, each[0], each[1], count - 1) for each in got]
        return found

    async def regroup(self, lane: Lane) -> None:
        """Make the group again, from where this consumer had read to."""
        start = b"0" if lane.again else lane.last
        reply = (
            await self._servers.call(
                [(lane.topic.base, ("XGROUP", "CREATE", lane.key, self._group, start, "MKSTREAM"))], "make a group"
            )
        )[0]
        if "BUSYGROUP" not in str(reply):
            checked(reply, "make a group")

    async def leave(self, topics: Iterable[Topic]) -> None:
        """Give back what is open, at no attempt and in order, and forget the consumer."""
        calls = list[_Call]()
        for topic in topics:
            for lane in topic.lanes.values():
                calls += [
                    self._requeue(lane.open[entry], lane.open[entry].attempt, 0.0)
                    for entry in sorted(lane.open, key=_order)
                ]
                lane.open.clear()
            calls.append((topic.base, _scripts.LEAVE.call([topic.base], self._group, self._consumer)))
        for reply in await self._servers.call(calls, "give messages back") if calls else ():
            checked(reply, "give messages back")


def _lost(held: object) -> AmbError:
    where = held.position if isinstance(held, Delivery) else "a delivery of another connection"
    return LeaseLost(
        f"{where}: the lease ran out, and the message may be with another member: raise lease if handlers block"
    )


def _order(entry: bytes) -> tuple[int, int]:
    ms, _, serial = entry.partition(b"-")
    return int(ms), int(serial)
