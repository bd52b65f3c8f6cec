"""The page of ``agent_os.amb`` (requirement text 000): retries, breaker, acknowledgement modes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from amb_core import MessageBus

from tests.core._help import Collector, eventually

from ._run import on, run

pytestmark = pytest.mark.asyncio

RETRIES = """
from agent_os.amb import MessageBus, RetryPolicy, DeadLetterQueue

# Configure retry policy
retry_policy = RetryPolicy(
    max_retries=3,
    initial_delay=1.0, # seconds
    max_delay=60.0, # seconds
    exponential_base=2, # delay doubles each retry
    jitter=0.1, # 10% random jitter
    retryable_exceptions=[ # Only retry these
        ConnectionError,
        TimeoutError
    ]
)

# Configure dead letter queue for failed messages
dlq = DeadLetterQueue(
    topic="failed.messages",
    max_retries=3,
    retention_days=7
)

bus = MessageBus(
    broker="redis",
    retry_policy=retry_policy,
    dead_letter_queue=dlq
)

# Handler-level retry configuration
@bus.subscriber("agents.tasks", retries=5, retry_delay=2.0)
async def process_task(msg):
    # Automatic retry on failure
    await risky_operation(msg.data)

# Manual error handling
@bus.subscriber("agents.critical")
async def handle_critical(msg):
    try:
        await process_critical(msg.data)
    except ValidationError as e:
        # Don't retry validation errors
        msg.reject(requeue=False)
    except TemporaryError as e:
        # Retry later
        msg.reject(requeue=True, delay=30)
    except FatalError as e:
        # Send to dead letter queue
        await msg.dead_letter(reason=str(e))
"""


class ValidationError(Exception):
    """What the page calls so."""


class TemporaryError(Exception):
    """What the page calls so."""


class FatalError(Exception):
    """What the page calls so."""


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_error_handling_and_retries(redis_url: str, broker: str) -> None:
    tried, critical = list[float](), list[str]()

    async def risky_operation(data: Any) -> None:
        tried.append(time.monotonic())
        if len(tried) == 1 or data == "refused":
            raise ConnectionError if data == "unstable" else LookupError(data)

    async def process_critical(data: str) -> None:
        critical.append(data)
        errors = {"invalid": ValidationError, "temporary": TemporaryError, "fatal": FatalError}
        if critical.count(data) == 1 and data in errors:
            raise errors[data](f"{data} it is")

    names: dict[str, Any] = {
        "risky_operation": risky_operation, "process_critical": process_critical,
        "ValidationError": ValidationError, "TemporaryError": TemporaryError, "FatalError": FatalError,
    }  # fmt: skip
    # Thirty seconds are too long for a test; that the delay is kept shows with one.
    bus: MessageBus = (await run(on(broker, RETRIES).replace("delay=30", "delay=1"), names))["bus"]
    async with bus:
        dead = Collector()
        await bus.subscribe("failed.messages", dead)
        await bus.publish("agents.tasks", "unstable")
        begin = time.monotonic()
        for data in ("invalid", "temporary", "fatal", "fine"):
            await bus.publish("agents.critical", data)
        await eventually(lambda: critical.count("temporary") == 2, "the temporary error's second try")
        assert time.monotonic() - begin >= 0.9
        await eventually(lambda: len(tried) == 2, "the retry")
        assert 1.9 <= tried[1] - tried[0] < 6
        await bus.publish("agents.tasks", "refused")
        await dead.wait(3)
    reasons = {letter.data: letter.dead.reason for letter in dead.messages if letter.dead is not None}
    assert reasons == {"invalid": "rejected", "fatal": "fatal it is", "refused": "not retryable"}
    assert sorted(critical) == ["fatal", "fine", "invalid", "temporary", "temporary"]


BREAKER = """
from agent_os.amb import MessageBus, CircuitBreaker

# Circuit breaker prevents cascading failures
circuit_breaker = CircuitBreaker(
    failure_threshold=5, # Open after 5 failures
    recovery_timeout=30, # Try again after 30s
    half_open_requests=3 # Test with 3 requests
)

bus = MessageBus(
    broker="redis",
    circuit_breaker=circuit_breaker
)

# Monitor circuit breaker state
@bus.on("circuit_breaker.opened")
async def on_circuit_open(topic: str):
    logger.warning(f"Circuit breaker opened for {topic}")
    await alert_ops_team(f"Message delivery failing to {topic}")

@bus.on("circuit_breaker.closed")
async def on_circuit_closed(topic: str):
    logger.info(f"Circuit breaker closed for {topic}")

# Per-topic circuit breakers
@bus.subscriber(
    "external.api",
    circuit_breaker=CircuitBreaker(failure_threshold=3)
)
async def call_external_api(msg):
    await external_api.call(msg.data)
"""


class ExternalApi:
    """What the page calls `external_api`; down."""

    def __init__(self) -> None:
        self.calls = 0

    async def call(self, data: Any) -> None:
        self.calls += 1
        raise ConnectionError("down")


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_circuit_breaker(redis_url: str, broker: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    alerts, api, seen = list[str](), ExternalApi(), list[Any]()

    async def alert_ops_team(text: str) -> None:
        alerts.append(text)

    names: dict[str, Any] = {
        "logger": logging.getLogger("page"), "alert_ops_team": alert_ops_team, "external_api": api,
    }  # fmt: skip
    text = on(broker, BREAKER).replace("recovery_timeout=30", "recovery_timeout=3")
    bus: MessageBus = (await run(text, names))["bus"]

    @bus.subscriber("unstable", concurrency=1)
    async def unstable(msg: Any) -> None:
        seen.append(msg.data)
        if len(seen) <= 5:
            raise ConnectionError("down")

    async with bus:
        for number in range(5):
            await bus.publish("external.api", number)
            await bus.publish("unstable", number)
        await eventually(lambda: len(alerts) == 2, lambda: f"{alerts}")
        assert sorted(alerts) == [f"Message delivery failing to {topic}" for topic in ("external.api", "unstable")]
        await bus.publish("external.api", "a subscriber's breaker lets publishers go on")
        with pytest.raises(ConnectionError, match="'unstable' is open"):
            await bus.publish("unstable", 5)
        await asyncio.sleep(3.1)
        for number in range(5, 8):
            await bus.publish("unstable", number)
        await eventually(lambda: "Circuit breaker closed for unstable" in caplog.text, "three good probes")
        assert api.calls == 3
    assert sorted(seen) == list(range(8))


ACKNOWLEDGEMENT = """
from agent_os.amb import MessageBus, AckMode

# Auto-acknowledge after handler completes
@bus.subscriber("tasks", ack_mode=AckMode.AUTO)
async def auto_ack(msg):
    await process(msg.data)
    # Automatically acknowledged on success
    # Automatically rejected on exception

# Manual acknowledgment for complex workflows
@bus.subscriber("tasks", ack_mode=AckMode.MANUAL)
async def manual_ack(msg):
    try:
        result = await process(msg.data)
        await save_result(result)
        await msg.ack() # Explicit acknowledgment
    except Exception as e:
        await msg.nack(requeue=True) # Requeue for retry

# Batch acknowledgment for high throughput
@bus.subscriber("events", ack_mode=AckMode.BATCH, batch_size=100)
async def batch_ack(messages: list):
    await process_batch([m.data for m in messages])
    # All messages acknowledged together
"""


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_acknowledgement_modes(redis_url: str, broker: str) -> None:
    results, batches, failures = list[Any](), list[Any](), [ConnectionError("once")]

    async def process(data: Any) -> Any:
        return data

    async def save_result(result: Any) -> None:
        if failures:
            raise failures.pop()
        results.append(result)

    async def process_batch(batch: list[Any]) -> None:
        batches.append(batch)

    async with MessageBus(broker) as bus:
        names: dict[str, Any] = {"bus": bus, "process": process, "save_result": save_result}
        await run(ACKNOWLEDGEMENT, names | {"process_batch": process_batch})
        await bus.publish("tasks", "task")
        for number in range(30):
            await bus.publish("events", number)
        await eventually(lambda: results == ["task"], "the second try of the manual handler")
        await eventually(lambda: bus.stats.acked >= 32, lambda: f"{bus.stats}")
    assert sorted(each for batch in batches for each in batch) == list(range(30))
    assert bus.stats.retried == 1 and len(batches) < 30
