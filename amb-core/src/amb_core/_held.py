"""Failed deliveries that wait in this process for their next try, because the broker cannot do that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ._deliver import Delivery
from .broker import Capabilities

if TYPE_CHECKING:
    from ._consumer import Consumer

#: So many may wait before receiving stops.
LIMIT = 1000


def spare_places(group: str | None, ordered_by: str | None, capabilities: Capabilities) -> int:
    """How many deliveries a source may hold beyond its handlers' places, because they wait here for their next try
    and the broker still counts them as in flight. Without a group it does not: there they are settled at once."""
    by_broker = capabilities.redelivery == "broker" and capabilities.delay != "none"
    return 0 if group is None or ordered_by is not None or by_broker else LIMIT


class Held:
    """What one subscription will try again."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._waiting: set[Delivery] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, delivery: Delivery) -> None:
        """Try `delivery` again after its delay."""
        consumer, incoming = self._consumer, delivery.incoming
        again = Delivery(msgspec.structs.replace(incoming, attempt=incoming.attempt + 1), consumer, delivery.tick)
        again.held_key = delivery.held_key
        if consumer.source.group is not None and not delivery.local:
            consumer.open[incoming.token] = again  # same token: settled when the last try ends
        else:
            again.local = True
            if not delivery.local:
                # The broker is told of another one: this one's verdict stays what the handler made it.
                consumer.open[incoming.token] = told = Delivery(incoming, consumer, delivery.tick, "ack")
                consumer.settler.pending.append(told)
        delivery.settled = True
        self._waiting.add(again)
        consumer.host.timers.call_later(delivery.delay, lambda: self._due(again))

    def _due(self, again: Delivery) -> None:
        # Of a subscription that ends it stays here, and is counted as what nobody handled.
        if self._consumer.starts_more:
            self._waiting.discard(again)
            self._consumer.try_again(again)
