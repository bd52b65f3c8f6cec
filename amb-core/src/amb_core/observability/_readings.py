"""What can be read of the buses of this process whenever somebody wants to know: nothing is done in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from .._consumer import Consumer
from .._lifecycle import Host, Stats
from .._observe import departed, hosts, system_of
from ..broker import Backlog, KnowsDepth

_BREAKERS = {"closed": 0.0, "half_open": 1.0, "open": 2.0}
_COUNTED = {
    "published": "Messages that the broker has accepted.",
    "delivered": "Messages that the broker has handed over, repeated ones too.",
    "acked": "Deliveries that were acknowledged.",
    "retried": "Deliveries that are to be tried again.",
    "failed": "Attempts that ended in an error.",
    "dead_lettered": "Dead letters that were stored.",
    "dropped": "Messages that failed for good, or were left at the end of the grace time, and are not kept.",
    "expired": "Messages that came after their time to live.",
    "filtered": "Messages that a subscription's filter refused.",
    "settle_errors": "Verdicts that could not be carried out, and leases that were lost.",
    "lease_renewals": "Leases that were extended.",
    "reconnects": "Connections that were made again.",
    "late_replies": "Replies that came when nobody waited for them any more.",
}
#: The values of a metric's labels, and its value.
Sample = tuple[tuple[str, ...], float]


class Metric(msgspec.Struct, frozen=True):
    """One name, and how it is read from a bus."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    read: Callable[[Host], Iterator[Sample]]
    #: What samples with equal labels make together.
    combine: Callable[[float, float], float] = float.__add__

    def samples(self) -> dict[tuple[str, ...], float]:
        """Its values now."""
        found: dict[tuple[str, ...], float] = {}
        for labels, value in self._all():
            found[labels] = self.combine(found[labels], value) if labels in found else value
        return found

    def _all(self) -> Iterator[Sample]:
        # Held until the departed are read: a host that goes in between would be counted as both.
        alive = [host for reference in hosts.valuerefs() if (host := reference()) is not None]
        for host in alive:
            for rest, value in self.read(host):
                yield (system_of(type(host.broker)), *rest), value
        if self.kind == "counter":
            for broker, stats in list(departed.items()):
                yield (system_of(broker),), float(getattr(stats, self.name.removeprefix("amb_")))


def _counter(field: str) -> Metric:
    def read(host: Host) -> Iterator[Sample]:
        yield (), float(getattr(host.stats, field))

    return Metric(f"amb_{field}", "counter", _COUNTED[field], ("system",), read)


def _subscription(
    name: str,
    help: str,
    measure: Callable[[Consumer], float | None],
    combine: Callable[[float, float], float] = float.__add__,
) -> Metric:
    def read(host: Host) -> Iterator[Sample]:
        for consumer in [supervised.consumer for supervised in host.supervised]:
            value = measure(consumer)
            if value is not None:
                yield (consumer.source.pattern, consumer.source.group or ""), float(value)

    return Metric(name, "gauge", help, ("system", "topic", "group"), read, combine)


def _connected(host: Host) -> Iterator[Sample]:
    yield (), float(host.connection is not None)


def _breakers(host: Host) -> Iterator[Sample]:
    for consumer in [supervised.consumer for supervised in host.supervised]:
        for breaker in list(consumer.breakers):
            yield (breaker.topic,), _BREAKERS[breaker.state]


def _depth(consumer: Consumer) -> float | None:
    feed, said = consumer.feed, _said(consumer)
    if isinstance(feed, KnowsDepth):
        return feed.depth()
    return None if said is None else said.waiting


def _lag(consumer: Consumer) -> float | None:
    said = _said(consumer)
    return None if said is None else said.unsettled


def _said(consumer: Consumer) -> Backlog | None:
    """Without a feed, what was said before is not true any more."""
    return None if consumer.feed is None else consumer.backlog


COUNTERS = [_counter(field) for field in Stats.__struct_fields__]
GAUGES = [
    Metric("amb_connected", "gauge", "Buses that are connected.", ("system",), _connected),
    _subscription("amb_consuming", "Subscriptions that are being read.", lambda c: c.consuming),
    _subscription("amb_in_flight", "Handlers that run.", lambda c: c.running),
    _subscription("amb_unsettled", "Messages that the broker has handed over and holds for us.", lambda c: len(c.open)),
    _subscription("amb_unstarted", "Those of them whose handler has not begun.", lambda c: c.waiting),
    _subscription("amb_held", "Messages that wait in this process for their next try.", lambda c: len(c.held)),
    _subscription("amb_queue_depth", "Messages that wait in the broker, where it says so.", _depth, max),
    _subscription("amb_lag", "Messages that the group has not settled, where the broker says so.", _lag, max),
    Metric("amb_breaker_state", "gauge", "0 closed, 1 half open, 2 open.", ("system", "topic"), _breakers, max),
]
METRICS = {metric.name: metric for metric in (*COUNTERS, *GAUGES)}
