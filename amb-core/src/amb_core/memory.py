"""The broker with nothing to install: queues in this process. What `MessageBus()` uses by default."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import anyio.lowlevel
import msgspec

from . import config
from ._memory_feed import MemoryConnection
from ._memory_store import Store
from .broker import Capabilities, Connection
from .errors import ConfigurationError

__all__ = ["InMemoryBroker"]

# The state of the broker objects that have a connection, by identity: equal options do not mean the same queues.
_stores: dict[int, Store] = {}


class InMemoryBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Queues in this process, with the whole contract: groups, leases, delays, order, priorities, replay.

    Every bus built over the *same object* (in one event loop) shares its queues; another object is
    another broker, even with equal options. Everything is gone when the last connection closes.
    """

    #: Messages that may wait in the queue of one group or one ungrouped subscription. What its consumers
    #: hold does not count; what they give back always finds room.
    max_queue_size: int = 10_000
    #: The part of ``max_queue_size`` from which on publishers are slowed down, above 0 to 1.
    backpressure_threshold: float = 0.8
    #: Seconds that each publish waits while a queue it goes to is above the threshold; 0: not slowed down.
    backpressure_delay: float = 0.01
    #: Milliseconds that each publish (or batch) takes, to try a program against a network's delay.
    latency_ms: float = 0.0
    #: The part of publishes, 0 to 1, that fail with `Unavailable` instead of being delivered.
    failure_rate: float = 0.0
    #: When a queue is full: wait for room, first come, first served; or raise `BackpressureError`.
    #: Nothing is ever dropped. A message for several queues enters all of them or none.
    overflow: Literal["wait", "raise"] = "wait"
    #: Messages kept per topic for replay and for groups that start "earliest"; 0: none. All topics together
    #: keep ten times as many, and no more than about 64 MiB of bodies; the oldest go first.
    history: int = 1000
    #: Seconds until a group's unsettled delivery has to be extended (the bus does that while a handler runs). Half as
    #: long again, and it goes to another member; None: only when its consumer leaves.
    lease: float | None = 30.0
    #: Makes the failures of ``failure_rate`` the same in each run.
    seed: int | None = None

    def __post_init__(self) -> None:
        config.validate(self)
        positive = self.max_queue_size >= 1 and (self.lease is None or self.lease > 0)
        if not positive or self.latency_ms < 0 or self.backpressure_delay < 0 or self.history < 0:
            raise ConfigurationError(
                f"{self!r}: max_queue_size and lease must be above 0, "
                "latency_ms, backpressure_delay and history at least 0"
            )
        if not 0 < self.backpressure_threshold <= 1:
            raise ConfigurationError(
                f"backpressure_threshold is a part of max_queue_size, above 0 to 1, not {self.backpressure_threshold!r}"
            )
        if not 0 <= self.failure_rate <= 1:
            raise ConfigurationError(f"failure_rate is a part of all publishes, 0 to 1, not {self.failure_rate!r}")

    @property
    def capabilities(self) -> Capabilities:
        """Everything but durability and a network: see `amb_core.broker.Capabilities`."""
        return Capabilities(
            confirm="accepted",
            groups=True,
            durable_groups=True,
            redelivery="broker",
            lease=self.lease,
            extend_lease=self.lease is not None,
            delivery_count="native",
            delay="native",
            order="key",
            replay="time" if self.history else "none",
            wildcards="native",
            priority="native",
            no_responders=True,
            return_unstarted=True,
            single_process=True,
            elections=True,
        )

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """See `amb_core.broker.Broker`. Raises: ConfigurationError if this object is in use in another thread."""
        connection = MemoryConnection(self._store())
        try:
            yield connection
        finally:
            connection.close()
            store = connection.store
            if not store.connections and _stores.get(id(self)) is store:
                del _stores[id(self)]

    def _store(self) -> Store:
        home = (anyio.lowlevel.current_token(), threading.get_ident())
        store = _stores.get(id(self))
        if store is not None and store.home != home:
            if store.home[1] != home[1]:
                raise ConfigurationError(
                    "this InMemoryBroker is connected in another thread's event loop: "
                    "use one object for each loop, or a broker that crosses them"
                )
            store = None  # its event loop ended without closing it
        if store is None:
            store = _stores[id(self)] = Store(self, home)
        return store
