"""When a failed delivery is tried again, and where it goes when it is not."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from . import _checks, config
from .errors import ConfigurationError, DecodeError
from .topics import validate_topic


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and how soon a failing handler is called again.

    The n-th retry comes ``initial_delay * exponential_base ** (n - 1)`` seconds after the n-th failure, at
    most `max_delay`, plus a random part of up to ``jitter`` times that. Exceptions that are not instances of
    `retryable_exceptions` are not retried; nor is a payload that cannot be decoded.
    """

    max_retries: int = 3
    initial_delay: float = 1.0
    max_delay: float = 60.0
    exponential_base: float = 2.0
    jitter: float = 0.1
    retryable_exceptions: Sequence[type[BaseException]] = (Exception,)

    def __post_init__(self) -> None:
        for name in ("max_retries", "initial_delay", "max_delay", "exponential_base", "jitter"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigurationError(f"RetryPolicy: {name} must be a number, not {value!r}")
            if not value >= 0:
                raise ConfigurationError(f"RetryPolicy: {name} cannot be negative: {value!r}")
        if self.exponential_base < 1:
            raise ConfigurationError(f"RetryPolicy: exponential_base must be at least 1, not {self.exponential_base}")

    def delay_after(self, attempt: int, error: BaseException) -> float | None:
        """Seconds until the next try after `attempt` tries ended in `error`; None: no more tries."""
        if attempt > self.max_retries or isinstance(error, DecodeError):
            return None
        # SystemExit and a cancellation raised by the handler itself are failures like any other.
        if isinstance(error, Exception) and not isinstance(error, tuple(self.retryable_exceptions)):
            return None
        return self._wait(attempt)

    def _wait(self, attempt: int) -> float:
        from tenacity import RetryCallState, wait_exponential, wait_random

        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
        state.attempt_number = attempt
        wait = wait_exponential(multiplier=self.initial_delay, max=self.max_delay, exp_base=self.exponential_base)(
            state
        )
        return wait + wait_random(0, wait * self.jitter)(state)


class DeadLetterQueue(msgspec.Struct, frozen=True):
    """Where messages go that failed for good: a topic of its own.

    `max_retries` counts where neither the subscriber nor the bus has a retry policy. A dead letter expires
    after `retention_days`.
    """

    topic: str = "dead-letters"
    max_retries: int = 3
    retention_days: float = 7

    def __post_init__(self) -> None:
        config.validate(self)
        validate_topic(self.topic)
        if self.max_retries < 0 or not self.retention_days > 0:
            raise ConfigurationError(f"max_retries cannot be negative, and retention_days must be above 0: {self!r}")


def named_policy(policy: RetryPolicy | str | None) -> RetryPolicy | None:
    """The policy, also if it is given by name. Raises: PluginError for an unknown one, TypeError."""
    if isinstance(policy, str):
        from ._plugins import load_retry_policy

        return load_retry_policy(policy)
    _checks.kind("retry_policy", policy, RetryPolicy)
    return policy


def effective_policy(
    retries: int | None,
    delay: float | None,
    own: RetryPolicy | None,
    bus: RetryPolicy | None,
    dlq: DeadLetterQueue | None,
) -> RetryPolicy:
    """The subscriber's settings over the bus's policy over the dead-letter queue's count over none."""
    policy = own or bus or RetryPolicy(max_retries=dlq.max_retries if dlq else 0)
    if retries is not None:
        policy = msgspec.structs.replace(policy, max_retries=retries)
    if delay is not None:
        policy = msgspec.structs.replace(policy, initial_delay=delay)
    return policy
