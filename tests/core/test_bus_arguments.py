"""What cannot work is refused where it is given, with the argument's name."""

from __future__ import annotations

from typing import Any

import pytest
from amb_core import CircuitBreaker, ConfigurationError, DeadLetterQueue, MessageBus, PluginError, RetryPolicy

BUS: list[tuple[str, Any, type[Exception]]] = [
    ("connect_timeout", -1, ValueError),
    ("connect_timeout", "10", TypeError),
    ("publish_timeout", 0, ValueError),
    ("publish_timeout", float("nan"), ValueError),
    ("drain_timeout", -1, ValueError),
    ("drain_timeout", True, TypeError),
    ("dead_letter_queue", 5, TypeError),
    ("dead_letter_queue", "dead.*", ValueError),
    ("circuit_breaker", 5, TypeError),
    ("circuit_breaker", CircuitBreaker, TypeError),
    ("retry_policy", 5, TypeError),
    ("retry_policy", "nope", PluginError),
    ("serializer", 5, TypeError),
    ("sender", 5, TypeError),
    ("broker", 5, TypeError),
]
SUBSCRIBE: list[tuple[str, Any, type[Exception]]] = [
    ("retry_policy", 5, TypeError),
    ("retries", -1, ValueError),
    ("retries", "3", ValueError),
    ("retry_delay", -1, ValueError),
    ("batch_size", 0, ValueError),
    ("batch_timeout", "soon", TypeError),
    ("concurrency", True, ValueError),
    ("concurrency", 0, ValueError),
    ("circuit_breaker", 5, TypeError),
    ("ack_mode", "nope", ValueError),
    ("group", "", ValueError),
    ("group", 5, TypeError),
    ("in_thread", "no", TypeError),
    ("filter", 5, TypeError),
    ("ordered_by", "age", ValueError),
    ("start", "middle", ValueError),
    ("concurency", 5, TypeError),
]
PUBLISH: list[tuple[str, Any, type[Exception]]] = [
    ("ttl", "1", TypeError),
    ("ttl", -1, ValueError),
    ("ttl", float("nan"), ValueError),
    ("delay", -1, ValueError),
    ("delay", float("inf"), ValueError),
    ("priority", "nope", ValueError),
    ("key", 5, TypeError),
    ("headers", 5, TypeError),
    ("metadata", 5, TypeError),
    ("metadata", {"a": object()}, TypeError),
    ("tll", 5, TypeError),
]


def _name(argument: str) -> str:
    """What the error calls it: some options are part of a policy."""
    return {"retries": "max_retries", "retry_delay": "initial_delay", "dead_letter_queue": "dead"}.get(
        argument, argument
    )


@pytest.mark.parametrize(("argument", "value", "error"), BUS)
def test_a_bus_names_what_it_cannot_take(argument: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"(?i)no retry policy|is no broker|" + _name(argument)):
        MessageBus(**{argument: value})


@pytest.mark.anyio
@pytest.mark.parametrize(("argument", "value", "error"), SUBSCRIBE)
async def test_subscribing_names_what_it_cannot_take(argument: str, value: Any, error: type[Exception]) -> None:
    bus = MessageBus()
    with pytest.raises(error, match=_name(argument)):
        await bus.subscribe("orders", lambda message: None, **{argument: value})
    assert not bus.connected


@pytest.mark.anyio
@pytest.mark.parametrize(("argument", "value", "error"), PUBLISH)
async def test_publishing_names_what_it_cannot_take(argument: str, value: Any, error: type[Exception]) -> None:
    async with MessageBus() as bus:
        with pytest.raises(error, match=argument):
            await bus.publish("orders", 1, **{argument: value})
    assert bus.stats.published == 0


def test_a_misspelt_option_is_guessed() -> None:
    with pytest.raises(TypeError, match="did you mean 'concurrency'"):
        MessageBus().subscriber("orders", concurency=5)(print)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (RetryPolicy, {"max_retries": "3"}),
        (RetryPolicy, {"max_retries": -1}),
        (RetryPolicy, {"jitter": -0.1}),
        (RetryPolicy, {"exponential_base": 0.5}),
        (DeadLetterQueue, {"max_retries": -1}),
        (DeadLetterQueue, {"retention_days": 0}),
        (DeadLetterQueue, {"topic": "dead.#"}),
        (CircuitBreaker, {"failure_threshold": 0}),
        (CircuitBreaker, {"recovery_timeout": "30"}),
    ],
)
def test_a_policy_refuses_what_cannot_work(policy: type, options: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, ValueError, TypeError), match="|".join((*options, "topic"))):
        policy(**options)


def test_a_policy_may_be_named_for_one_subscription() -> None:
    bus = MessageBus()
    bus.subscriber("orders", retry_policy="fixed", retries=7)(print)
    [subscription] = bus._declared
    assert (subscription.settings.policy.max_retries, subscription.settings.policy.exponential_base) == (7, 1.0)
