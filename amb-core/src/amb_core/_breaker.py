"""The circuit breaker: stops asking what keeps failing, and tries again later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from . import config
from ._timers import Timers
from .errors import ConfigurationError


class CircuitBreaker(msgspec.Struct, frozen=True):
    """Opens after `failure_threshold` failures in a row; `recovery_timeout` seconds later lets
    `half_open_requests` messages through and closes when all of them succeed.

    While it is open a subscription pauses (its messages stay on the broker and spend no attempts), and,
    for the bus's own breaker, publishing to that topic raises CircuitOpen.
    """

    failure_threshold: int = 5
    recovery_timeout: float = 30.0
    half_open_requests: int = 1

    def __post_init__(self) -> None:
        config.validate(self)
        if self.failure_threshold < 1 or self.half_open_requests < 1 or self.recovery_timeout < 0:
            raise ConfigurationError(f"CircuitBreaker: counts must be at least 1, the timeout not negative: {self!r}")


State = Literal["closed", "open", "half_open"]


class Guarded(Protocol):
    """What a breaker knows of a subscription."""

    #: Handlers that run now.
    running: int

    def breaker_changed(self) -> None:
        """It opened or closed, or has a place again."""
        ...


class Breaker:
    """One breaker at work, for one topic or pattern."""

    __slots__ = ("_config", "_emit", "_failures", "_successes", "_timers", "members", "state", "topic")

    def __init__(self, config: CircuitBreaker, topic: str, timers: Timers, emit: Callable[[str, str], None]) -> None:
        self._config, self.topic, self._timers, self._emit = config, topic, timers, emit
        self.state: State = "closed"
        self._failures = self._successes = 0
        #: The subscriptions it guards.
        self.members: list[Guarded] = []

    def allowance(self) -> int | None:
        """How many more deliveries may be started now, by all members together; None: any number."""
        if self.state == "closed":
            return None
        if self.state == "open":
            return 0
        running = sum(member.running for member in self.members)
        return max(0, self._config.half_open_requests - self._successes - running)

    def ended(self) -> None:
        """A delivery has ended, whatever came of it: another member may use its place."""
        if self.state == "half_open":
            self._tell()

    def succeeded(self) -> None:
        """A delivery went well."""
        self._failures = 0
        if self.state == "half_open":
            self._successes += 1
            if self._successes >= self._config.half_open_requests:
                self._become("closed")

    def failed(self) -> None:
        """A delivery failed."""
        self._failures += 1
        if self.state == "half_open" or (self.state == "closed" and self._failures >= self._config.failure_threshold):
            self._become("open")
            self._timers.call_later(self._config.recovery_timeout, self._half_open)

    def _half_open(self) -> None:
        if self.state == "open":
            self._become("half_open")

    def _become(self, state: State) -> None:
        self.state = state
        self._successes = 0
        if state == "closed":
            self._failures = 0
        self._emit("circuit_breaker." + {"open": "opened"}.get(state, state), self.topic)
        self._tell()

    def _tell(self) -> None:
        for member in self.members:
            member.breaker_changed()
