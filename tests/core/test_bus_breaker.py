"""The circuit breaker pauses what keeps failing, spends no attempts meanwhile, and says so."""

from __future__ import annotations

from typing import Any

import pytest
from amb_core import BrokerUnavailable, CircuitBreaker, CircuitOpen, ConfigurationError, InMemoryBroker, MessageBus

from tests.core._help import DLQ, Collector, eventually, stays

pytestmark = pytest.mark.anyio
#: Opens at the third failure and stays open for the test.
SHUT = CircuitBreaker(failure_threshold=3, recovery_timeout=60)
SHORT = CircuitBreaker(failure_threshold=3, recovery_timeout=0.1)


async def fail(bus: MessageBus, collector: Collector, times: int = 3, topic: str = "t") -> None:
    """`times` messages, each after the one before has failed."""
    for _ in range(times):
        before = bus.stats.failed
        await bus.publish(topic, "fails")
        await eventually(lambda before=before: bus.stats.failed > before, "the failure")  # type: ignore[misc]


def watch(bus: MessageBus) -> list[tuple[str, str]]:
    """The breaker's events, as they come."""
    events: list[tuple[str, str]] = []
    for state in ("opened", "half_open", "closed"):
        bus.on(f"circuit_breaker.{state}")(lambda topic, state=state: events.append((state, topic)))
    return events


async def test_an_open_breaker_pauses_its_subscription_and_its_messages_spend_no_attempts() -> None:
    broker, collector = InMemoryBroker(), Collector(LookupError("no"), failures=3)
    async with MessageBus(broker) as publisher, MessageBus(broker, circuit_breaker=SHUT) as bus:
        await bus.subscribe("t", collector, group="g", concurrency=1)
        events = watch(bus)
        await fail(bus, collector)
        await eventually(lambda: events == [("opened", "t")], "the event")
        assert (await bus.health()).subscriptions[0].paused
        for number in range(5):
            await publisher.publish("t", number)
        assert len(collector.messages) == 3
        bus.breaker("t")._half_open()  # a minute later
        await collector.wait(8)
        await eventually(lambda: len(events) == 3, "the other events")
        assert not (await bus.health()).subscriptions[0].paused
    assert collector.data[3:] == [0, 1, 2, 3, 4]
    assert {message.attempt for message in collector.messages} == {1}
    assert events == [("opened", "t"), ("half_open", "t"), ("closed", "t")]


async def test_publishing_to_a_topic_with_an_open_breaker_fails_fast_and_to_others_does_not() -> None:
    async with MessageBus(circuit_breaker=SHUT) as bus:
        collector, other = Collector(LookupError("no")), Collector()
        await bus.subscribe("t", collector, group="g")
        await bus.subscribe("other", other)
        await fail(bus, collector)
        with pytest.raises(CircuitOpen, match="'t'") as caught:
            await bus.publish("t", 1)
        with pytest.raises(CircuitOpen):
            await bus.request("t", 1)
        await bus.publish("other", 1)
        await other.wait()
    assert isinstance(caught.value, BrokerUnavailable)


async def test_publishing_works_again_after_the_breaker_closed() -> None:
    async with MessageBus(circuit_breaker=SHORT) as bus:
        collector = Collector(LookupError("no"), failures=3)
        await bus.subscribe("t", collector, group="g")
        events = watch(bus)
        await fail(bus, collector)
        await eventually(lambda: ("half_open", "t") in events, "half-open")
        await bus.publish("t", "probe")
        await collector.wait(4)
        await eventually(lambda: ("closed", "t") in events, "closed")
        await bus.publish("t", "again")
        await collector.wait(5)
    assert collector.data[-2:] == ["probe", "again"]


async def test_a_failing_probe_opens_the_breaker_again() -> None:
    async with MessageBus() as bus:
        collector = Collector(LookupError("no"), failures=4)
        await bus.subscribe("t", collector, group="g", circuit_breaker=SHORT, concurrency=5)
        events = watch(bus)
        await fail(bus, collector)
        for number in range(3):
            await bus.publish("t", number)
        await collector.wait(6)
        await eventually(lambda: len(events) == 5, lambda: f"five events, not {events}")
    assert [state for state, _ in events] == ["opened", "half_open", "opened", "half_open", "closed"]


async def test_half_open_lets_so_many_probes_through_and_no_more() -> None:
    breaker = CircuitBreaker(failure_threshold=3, recovery_timeout=0.1, half_open_requests=2)
    async with MessageBus() as bus:
        collector = Collector(LookupError("no"), failures=3)
        held = Collector()

        async def handler(message: Any) -> None:
            await collector(message)
            await held(message)
            await eventually(lambda: release, "the release")

        release: list[int] = []
        await bus.subscribe("t", handler, group="g", circuit_breaker=breaker, concurrency=10)
        await fail(bus, collector)
        for number in range(6):
            await bus.publish("t", number)
        await held.wait(2)
        await stays(lambda: len(held.messages) == 2, "a third probe", 0.1)
        release.append(1)
        await held.wait(6)


async def test_a_subscribers_breaker_does_not_stop_publishing_or_its_neighbours() -> None:
    async with MessageBus() as bus:
        failing, fine = Collector(LookupError("no")), Collector()
        await bus.subscribe("t", failing, group="failing", circuit_breaker=SHUT)
        await bus.subscribe("t", fine, group="fine")
        await fail(bus, failing)
        for number in range(5):
            await bus.publish("t", number)
        await fine.wait(8)
        assert len(failing.messages) == 3


async def test_breakers_are_one_a_topic() -> None:
    async with MessageBus(circuit_breaker=SHUT) as bus:
        failing, other = Collector(LookupError("no")), Collector(LookupError("no"))
        await bus.subscribe("a", failing, group="g")
        await bus.subscribe("b", other, group="g")
        await fail(bus, failing, topic="a")
        await fail(bus, other, times=2, topic="b")
        with pytest.raises(CircuitOpen):
            await bus.publish("a", 1)
        await bus.publish("b", 1)


async def test_a_success_between_failures_starts_the_count_anew() -> None:
    async with MessageBus(circuit_breaker=SHUT) as bus:
        events = watch(bus)

        async def handler(message: Any) -> None:
            if message.data == "fails":
                raise LookupError("no")

        await bus.subscribe("t", handler, group="g", concurrency=1)
        for data in ["fails", "fails", "fine"] * 4:
            await bus.publish("t", data)
        await eventually(lambda: bus.stats.delivered == 12 and bus.stats.failed == 8, "all twelve")
    assert events == []


async def test_retries_count_as_failures_and_stop_while_the_breaker_is_open() -> None:
    async with MessageBus(dead_letter_queue=DLQ, drain_timeout=0.1) as bus:
        collector = Collector(LookupError("no"))
        await bus.subscribe("t", collector, group="g", circuit_breaker=SHUT, retries=10, retry_delay=0.001)
        await bus.publish("t", 1)
        await collector.wait(3)
        await stays(lambda: len(collector.messages) == 3, "a try while open", 0.1)
    assert bus.stats.dead_lettered == 0


async def test_an_ungrouped_subscription_keeps_its_messages_while_its_breaker_is_open() -> None:
    async with MessageBus() as bus:
        collector = Collector(LookupError("no"), failures=3)
        await bus.subscribe("t", collector, circuit_breaker=SHORT, concurrency=1)
        await fail(bus, collector)
        for number in range(5):
            await bus.publish("t", number)
        await collector.wait(8)
    assert collector.data[3:] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("options", [{"failure_threshold": 0}, {"recovery_timeout": -1}, {"half_open_requests": 0}])
def test_a_breaker_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="CircuitBreaker"):
        CircuitBreaker(**options)


def test_only_known_events_can_be_watched() -> None:
    with pytest.raises(ValueError, match=r"circuit_breaker\.opened"):
        MessageBus().on("circuit_breaker.open")
