"""A subscription: its settings, compiled into a consumer when the bus is connected."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ._breaker import CircuitBreaker
from ._message import AckMode, Message
from ._retry import RetryPolicy
from .errors import BusClosed

if TYPE_CHECKING:
    from ._bus import MessageBus
    from ._lifecycle import Supervised


class Settings(msgspec.Struct, frozen=True):
    """What `MessageBus.subscribe` was given."""

    pattern: str
    handler: Callable[..., Any]
    group: str | None
    filter: Callable[[Message], bool] | None
    policy: RetryPolicy
    ack_mode: AckMode
    batch: tuple[int, float] | None
    concurrency: int
    breaker: CircuitBreaker | None
    ordered_by: Literal["key"] | None
    start: Literal["latest", "earliest"]
    in_thread: bool | None
    responds: bool


class SubscriptionHealth(msgspec.Struct, frozen=True):
    """How one subscription does. `consuming`: its feed is live and being read; not the same as connected."""

    id: str
    pattern: str
    group: str | None
    consuming: bool
    in_flight: int
    running: int
    paused: bool
    error: str | None


class Subscription(str):
    """A live subscription; also its own id, as a string."""

    __slots__ = ("_bus", "settings", "supervised")

    _bus: MessageBus
    settings: Settings
    #: None while it is not live.
    supervised: Supervised | None

    def __new__(cls, id: str, bus: MessageBus, settings: Settings) -> Subscription:
        self = super().__new__(cls, id)
        self._bus, self.settings = bus, settings
        self.supervised = None
        return self

    @property
    def pattern(self) -> str:
        """The topic or pattern."""
        return self.settings.pattern

    @property
    def group(self) -> str | None:
        """The consumer group, if any."""
        return self.settings.group

    async def unsubscribe(self) -> None:
        """See `MessageBus.unsubscribe`."""
        await self._bus.unsubscribe(self)

    def drop(self) -> bool:
        """Begin to end it, if this is the event loop's thread."""
        supervised = self.supervised
        if supervised is None or supervised.consumer.thread != threading.get_ident():
            return False
        self._bus.drop(self)
        return True

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call `callback` when it has ended, be it with its bus."""
        if self.supervised is None or self.supervised.gone.is_set():
            callback()
        else:
            self.supervised.when_gone.append(callback)

    def pause(self) -> None:
        """Start no more handlers; messages wait on the broker, where other members of the group may get them. Raises:
        BusClosed if the bus is not connected."""
        self._consumer.pause()

    def resume(self) -> None:
        """End a `pause`. Raises: BusClosed if the bus is not connected."""
        self._consumer.paused = False
        self._consumer.kick()

    def set_concurrency(self, concurrency: int) -> None:
        """Run at most so many handlers at once from now on. Raises: ValueError, BusClosed."""
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        self._consumer.resize(concurrency)

    @property
    def _consumer(self) -> Any:
        if self.supervised is None:
            raise BusClosed(f"the subscription to {self.pattern!r} is not live: connect the bus first")
        return self.supervised.consumer

    def health(self) -> SubscriptionHealth:
        """How it does right now. Never raises, does not block."""
        supervised = self.supervised
        if supervised is None:
            return SubscriptionHealth(self, self.pattern, self.group, False, 0, 0, False, "the bus is not connected")
        consumer = supervised.consumer
        error = None if supervised.error is None else str(supervised.error)
        paused = consumer.paused or any(breaker.state == "open" for breaker in consumer.breakers)
        alive = consumer.consuming
        if not alive and error is None:
            error = "connected, but the broker has not answered its feed for too long"
        return SubscriptionHealth(
            self,
            self.pattern,
            self.group,
            alive,
            len(consumer.open),
            consumer.running,
            paused,
            error if not alive else None,
        )


def same_handler(subscription: Subscription, handler: object) -> bool:
    """`handler` is what was subscribed (bound methods of one object are equal, not identical)."""
    return bool(subscription.settings.handler == handler) or inspect.unwrap(subscription.settings.handler) is handler
