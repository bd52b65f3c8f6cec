"""Time to live, delayed publishing, and leases that are renewed while a handler runs."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest
from amb_core import InMemoryBroker, Message, MessageBus

from tests.core._help import DLQ, Collector, eventually, later, stays

pytestmark = pytest.mark.anyio


async def test_an_expired_message_is_not_handled_and_is_counted() -> None:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        collector = Collector()
        subscription = await bus.subscribe("t", collector, group="g")
        subscription.pause()
        await bus.publish("t", "short", ttl=0.05)
        await bus.publish("t", "long", ttl=60)
        await bus.publish("t", "forever")
        await anyio.sleep(0.1)
        subscription.resume()
        await collector.wait(2)
        await eventually(lambda: bus.stats.expired == 1, "the expired one to be counted")
    assert collector.data == ["long", "forever"] and bus.stats.dead_lettered == 0


async def test_a_message_that_expires_between_two_tries_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MessageBus() as bus:
        calls = list[int]()

        async def fails(message: Message) -> None:
            calls.append(message.attempt)
            later(monkeypatch, 61)
            raise LookupError("no")

        await bus.subscribe("t", fails, group="g", retries=5, retry_delay=0.1)
        await bus.publish("t", 1, ttl=60)
        await eventually(lambda: bus.stats.expired == 1, "the message to expire")
    assert calls == [1]


async def test_the_ttl_arrives_with_the_message() -> None:
    async with MessageBus() as bus:
        collector = Collector()
        await bus.subscribe("t", collector)
        await bus.publish("t", 1, ttl=1.5)
        assert (await collector.wait())[0].ttl == 1.5


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_delayed_message_comes_after_its_delay_and_not_before(group: str | None) -> None:
    async with MessageBus() as bus:
        collector = Collector()
        await bus.subscribe("t", collector, group=group)
        begin = time.monotonic()
        await bus.publish("t", "later", delay=0.3)
        await bus.publish("t", "now")
        await collector.wait(2)
        assert 0.29 <= time.monotonic() - begin < 3
    assert collector.data == ["now", "later"]


async def test_delays_are_kept_in_order_of_time() -> None:
    async with MessageBus() as bus:
        collector = Collector()
        await bus.subscribe("t", collector, group="g")
        due = dict[float, float]()
        for delay in (0.3, 0.1, 0.2):
            await bus.publish("t", delay, delay=delay)
            due[delay] = time.monotonic() + delay
        await collector.wait(3)
    assert collector.data == sorted(due, key=due.__getitem__)


@pytest.mark.parametrize("options", [{"ttl": -1}, {"delay": -1}, {"ttl": float("nan")}, {"delay": float("nan")}])
async def test_times_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    async with MessageBus() as bus:
        with pytest.raises(ValueError, match=next(iter(options))):
            await bus.publish("t", 1, **options)


@pytest.mark.parametrize("options", [{"ttl": "soon"}, {"delay": "later"}, {"ttl": [1]}])
async def test_times_that_are_no_numbers_are_refused(options: dict[str, Any]) -> None:
    async with MessageBus() as bus:
        with pytest.raises((TypeError, ValueError)):
            await bus.publish("t", 1, **options)


async def test_a_handler_that_outlives_its_lease_keeps_the_message() -> None:
    broker, calls = InMemoryBroker(lease=0.2), list[Any]()

    async def slow(message: Message) -> None:
        calls.append(message.attempt)
        await anyio.sleep(0.7)
        await eventually(lambda: bus.stats.lease_renewals + other.stats.lease_renewals >= 3, "renewals")

    async with MessageBus(broker) as bus, MessageBus(broker) as other:
        await bus.subscribe("t", slow, group="g")
        await other.subscribe("t", slow, group="g")
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked + other.stats.acked == 1, "the acknowledgement")
    assert calls == [1]


async def test_a_synchronous_handler_that_outlives_its_lease_keeps_the_message() -> None:
    calls: list[int] = []

    def slow(message: Message) -> None:
        calls.append(message.attempt)
        time.sleep(0.6)

    async with MessageBus(InMemoryBroker(lease=0.2)) as bus:
        await bus.subscribe("t", slow, group="g")
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked == 1, "the acknowledgement")
    assert calls == [1]


async def test_a_manual_message_that_is_never_settled_comes_again_after_its_lease() -> None:
    async with MessageBus(InMemoryBroker(lease=0.15), drain_timeout=0.2) as bus:
        collector, begin = Collector(), time.monotonic()
        await bus.subscribe("t", collector, group="g", ack_mode="manual")
        await bus.publish("t", 1)
        await collector.wait(2)
        assert time.monotonic() - begin >= 0.14
        await collector.messages[1].ack()
    assert [message.attempt for message in collector.messages] == [1, 2]


async def test_short_handlers_renew_nothing() -> None:
    async with MessageBus(InMemoryBroker(lease=5)) as bus:
        collector = Collector()
        await bus.subscribe("t", collector, group="g")
        for number in range(100):
            await bus.publish("t", number)
        await collector.wait(100)
    assert bus.stats.lease_renewals == 0


async def test_a_stuck_event_loop_loses_its_lease_and_its_late_verdict_touches_nobody_elses() -> None:
    broker, calls = InMemoryBroker(lease=0.1), list[int]()

    async def blocks(message: Message) -> None:
        calls.append(message.attempt)
        if message.attempt == 1:
            time.sleep(0.3)  # renewals cannot run: this is what the lease is for
            await anyio.sleep(0.05)

    async with MessageBus(broker) as bus:
        await bus.subscribe("t", blocks, group="g")
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked >= 1, "an acknowledgement")
        await stays(lambda: bus.stats.acked == 1, "a second acknowledgement", 0.2)
    assert calls[0] == 1 and len(calls) <= 2
