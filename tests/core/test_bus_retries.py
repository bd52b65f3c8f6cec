"""Retries: who decides how many, how soon, and which failures count."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from amb_core import DeadLetterQueue, Message, MessageBus, RetryPolicy

from tests.core._help import DLQ, Collector, dead_letters, eventually, stays
from tests.core._stopwatch import stopwatch

pytestmark = pytest.mark.anyio
QUICK = RetryPolicy(max_retries=2, initial_delay=0.001, jitter=0)


def dlq(retries: int) -> DeadLetterQueue:
    return DeadLetterQueue("dead", max_retries=retries)


PRECEDENCE: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({}, {}, 1),
    ({"dead_letter_queue": dlq(4)}, {}, 5),
    ({"retry_policy": QUICK}, {}, 3),
    ({"retry_policy": QUICK, "dead_letter_queue": dlq(4)}, {}, 3),
    ({"retry_policy": QUICK, "dead_letter_queue": dlq(4)}, {"retries": 1}, 2),
    ({"retry_policy": QUICK, "dead_letter_queue": dlq(4)}, {"retries": 0}, 1),
    ({"dead_letter_queue": dlq(0)}, {"retries": 3}, 4),
    ({"retry_policy": QUICK}, {"retry_policy": RetryPolicy(max_retries=1, initial_delay=0)}, 2),
    ({"retry_policy": QUICK}, {"retry_policy": RetryPolicy(max_retries=1, initial_delay=0), "retries": 3}, 4),
]


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize(("bus_options", "options", "attempts"), PRECEDENCE)
async def test_the_subscribers_count_wins_over_the_policys_over_the_queues(
    bus_options: dict[str, Any], options: dict[str, Any], attempts: int, group: str | None
) -> None:
    collector = Collector(LookupError("no"))
    async with MessageBus(**bus_options) as bus:
        await bus.subscribe("t", collector, group=group, retry_delay=0.001, **options)
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.dropped + bus.stats.dead_lettered == 1, "the end of the tries")
    assert [message.attempt for message in collector.messages] == list(range(1, attempts + 1))
    assert bus.stats.retried == attempts - 1


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_message_that_succeeds_at_the_third_try_is_acknowledged(group: str | None) -> None:
    collector = Collector(LookupError("no"), failures=2)
    async with MessageBus(dead_letter_queue=DLQ, retry_policy=QUICK) as bus:
        await bus.subscribe("t", collector, group=group)
        await bus.publish("t", {"a": 1}, headers={"h": "1"}, key="k")
        await collector.wait(3)
    assert {(m.id, m.data["a"], m.headers["h"], m.key) for m in collector.messages} == {
        (collector.messages[0].id, 1, "1", "k")
    }
    assert (bus.stats.acked, bus.stats.retried, bus.stats.dead_lettered) == (1, 2, 0)


async def test_only_the_group_that_failed_gets_the_message_again() -> None:
    failing, other, single = Collector(LookupError("no"), failures=1), Collector(), Collector()
    async with MessageBus(retry_policy=QUICK) as bus:
        await bus.subscribe("t", failing, group="failing")
        await bus.subscribe("t", other, group="other")
        await bus.subscribe("t", single)
        await bus.publish("t", 1)
        await failing.wait(2)
        await stays(lambda: len(other.messages) == len(single.messages) == 1, "a second delivery", 0.05)


async def test_only_retryable_exceptions_are_tried_again() -> None:
    policy = RetryPolicy(max_retries=2, initial_delay=0.001, retryable_exceptions=[ConnectionError, TimeoutError])
    outcomes: dict[str, list[int]] = {}
    async with MessageBus(retry_policy=policy, dead_letter_queue=DLQ) as bus:
        dead = await dead_letters(bus)

        async def handler(message: Message) -> None:
            outcomes.setdefault(message.data, []).append(message.attempt)
            raise {"refused": ConnectionRefusedError, "value": ValueError, "timeout": TimeoutError}[message.data]

        await bus.subscribe("t", handler, group="g")
        for name in ("refused", "value", "timeout"):
            await bus.publish("t", name)
        await dead.wait(3)
    assert outcomes == {"refused": [1, 2, 3], "value": [1], "timeout": [1, 2, 3]}


def test_the_delay_grows_exponentially_up_to_its_maximum() -> None:
    policy = RetryPolicy(max_retries=10, initial_delay=1, max_delay=10, exponential_base=2, jitter=0)
    delays = [policy.delay_after(attempt, LookupError()) for attempt in range(1, 12)]
    assert delays == [1, 2, 4, 8, 10, 10, 10, 10, 10, 10, None]


def test_jitter_adds_at_most_its_part() -> None:
    policy = RetryPolicy(max_retries=1, initial_delay=10, jitter=0.1)
    delays = [policy.delay_after(1, LookupError()) or 0 for _ in range(200)]
    assert min(delays) >= 10 and max(delays) <= 11 and len(set(delays)) > 100


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_retry_comes_no_sooner_than_its_delay(group: str | None, caplog: pytest.LogCaptureFixture) -> None:
    times: list[float] = []

    async def handler(message: Message) -> None:
        times.append(time.monotonic())
        raise LookupError("no")

    async with stopwatch() as watch, MessageBus() as bus:
        await bus.subscribe("t", handler, group=group, retries=2, retry_delay=0.1)
        await bus.publish("t", 1)
        await eventually(lambda: len(times) == 3, "three tries")
    assert times[1] - times[0] >= 0.099 and times[2] - times[1] >= 0.199
    assert watch.elapsed(times[0], times[1]) < 1 and watch.elapsed(times[1], times[2]) < 1.5
    said = [float(seconds) for seconds in re.findall(r"next try in ([\d.]+) s", caplog.text)]
    assert 0.1 <= said[0] <= 0.2 <= said[1] <= 0.4


@pytest.mark.parametrize("group", [None, "g"])
async def test_other_messages_are_handled_while_one_waits_for_its_next_try(group: str | None) -> None:
    seen: list[Any] = []

    async def handler(message: Message) -> None:
        seen.append(message.data)
        if message.data == "bad":
            raise LookupError("no")

    async with MessageBus(drain_timeout=1) as bus:
        await bus.subscribe("t", handler, group=group, retries=1, retry_delay=30, concurrency=1)
        await bus.publish("t", "bad")
        for number in range(5):
            await bus.publish("t", number)
        await eventually(lambda: len(seen) == 6, "the others")
    assert seen == ["bad", 0, 1, 2, 3, 4]


async def test_an_explicit_requeue_is_not_bounded_by_the_count_of_retries() -> None:
    attempts: list[int] = []
    async with MessageBus() as bus:

        async def handler(message: Message) -> None:
            attempts.append(message.attempt)
            if message.attempt < 6:
                message.nack()

        await bus.subscribe("t", handler, group="g", retries=1)
        await bus.publish("t", 1)
        await eventually(lambda: len(attempts) == 6, "six tries")
    assert attempts == [1, 2, 3, 4, 5, 6]


async def test_a_dropped_message_is_counted_logged_and_announced(caplog: pytest.LogCaptureFixture) -> None:
    dropped: list[str] = []
    async with MessageBus() as bus:
        bus.on("message.dropped")(dropped.append)
        await bus.subscribe("t", Collector(LookupError("no")))
        id = await bus.publish("t", 1)
        await eventually(lambda: dropped == ["t"], "the event")
    assert bus.stats.dropped == 1
    assert id in caplog.text and "LookupError" in caplog.text and "DeadLetterQueue" in caplog.text


@pytest.mark.parametrize(
    "options", [{"max_retries": -1}, {"initial_delay": -1}, {"jitter": -0.1}, {"exponential_base": 0.5}]
)
def test_a_policy_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"RetryPolicy: .*{next(iter(options.values()))}"):
        RetryPolicy(**options)
