"""Locks, schedules, sessions, native dead letters, and that nothing is fetched ahead."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import pytest
from amb_azure import AzureServiceBusBroker
from amb_azure._wire import subscription
from amb_core import AckMode, Message, MessageBus
from amb_core.broker import Feed, Incoming, Outgoing, Settlement, Source
from amb_core.errors import LeaseLost, MessageTooLarge, PartialFailure
from azure.servicebus import ServiceBusSubQueue
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from tests.core._help import Collector, eventually

pytestmark = pytest.mark.anyio
Make = Callable[..., AzureServiceBusBroker]


def _source(topic: str, group: str | None = "g") -> Source:
    return Source(id=topic, pattern=topic, group=group)


async def _receive(feed: Feed, count: int) -> list[Incoming]:
    got: list[Incoming] = []
    with anyio.fail_after(10):
        while len(got) < count:
            got += await feed.receive(count - len(got))
    return got


async def test_a_lock_is_renewed_while_the_handler_runs(make: Make, topic: str) -> None:
    calls: list[int] = []

    async def slow(message: Message) -> None:
        calls.append(message.attempt)
        await anyio.sleep(10.5)

    async with MessageBus(make(lock_duration=3.0)) as bus:
        await bus.subscribe(topic, slow, group="g")
        await bus.publish(topic, 1)
        await eventually(lambda: bus.stats.acked == 1, "the acknowledgement", 20)
    assert calls == [1]
    assert bus.stats.lease_renewals >= 3


async def test_a_verdict_after_the_lock_ran_out_is_a_lost_lease(make: Make, topic: str) -> None:
    broker = make(lock_duration=3.0)
    async with broker.connect() as connection, connection.open(_source(topic)) as feed:
        await connection.send([Outgoing(topic, b"1", {})])
        (first,) = await _receive(feed, 1)
        (second,) = await _receive(feed, 1)
        assert (first.attempt, second.attempt) == (1, 2)
        with pytest.raises(PartialFailure) as caught:
            await feed.settle([Settlement(first.token, "ack")])
        assert isinstance(caught.value.errors[0], LeaseLost)
        await feed.settle([Settlement(second.token, "ack")])
        await feed.settle([Settlement(second.token, "ack")])
        assert await feed.receive(1, wait=False) == []


async def test_a_verdict_finds_its_delivery_over_the_next_link(make: Make, topic: str) -> None:
    """A lock outlives the link it came over."""
    broker = make(lock_duration=30.0)
    async with broker.connect() as connection:
        async with connection.open(_source(topic)) as feed:
            await connection.send([Outgoing(topic, b"1", {})])
            (held,) = await _receive(feed, 1)
            feed.broken = True  # type: ignore[attr-defined]
        async with connection.open(_source(topic)) as feed:
            await feed.settle([Settlement(held.token, "ack")])
            assert await feed.receive(1, wait=False) == []


async def test_who_leaves_gives_back_at_once_what_was_not_settled(make: Make, topic: str) -> None:
    broker = make(lock_duration=60.0)
    async with broker.connect() as connection:
        async with connection.open(_source(topic)) as feed:
            await connection.send([Outgoing(topic, b"1", {})])
            await _receive(feed, 1)
        async with connection.open(_source(topic)) as feed:
            began = time.monotonic()
            (again,) = await _receive(feed, 1)
    assert again.attempt == 2 and time.monotonic() - began < broker.lock_duration / 2


async def test_nothing_is_fetched_for_which_there_is_no_free_handler(
    broker: AzureServiceBusBroker, native: ServiceBusClient, topic: str
) -> None:
    """With one handler busy, another client gets all the rest: none of it is locked."""
    release = anyio.Event()

    async def busy(message: Message) -> None:
        await release.wait()

    name = subscription(_source(topic))
    async with MessageBus(broker) as bus:
        await bus.subscribe(topic, busy, group="g", concurrency=2)
        for number in range(10):
            await bus.publish(topic, number)
        await eventually(lambda: bus.stats.delivered == 2, "two deliveries")
        async with native.get_subscription_receiver(broker.topic_name, name) as other:
            taken = 0
            with anyio.fail_after(15):
                while taken < 8:
                    for message in await other.receive_messages(8 - taken, max_wait_time=1):
                        await other.complete_message(message)
                        taken += 1
        release.set()
        await eventually(lambda: bus.stats.acked == 2, "the rest")
    assert bus.stats.delivered == 2


async def test_a_delayed_message_waits_in_the_service(
    broker: AzureServiceBusBroker, admin: ServiceBusAdministrationClient, topic: str
) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(topic, seen, group="g")
        began = time.time()
        await bus.publish(topic, "tomorrow", delay=86400)
        await bus.publish(topic, "later", delay=3.0)
        await bus.publish(topic, "now")
        waiting = (await admin.get_topic_runtime_properties(broker.topic_name)).scheduled_message_count
        await seen.wait(2)
    assert seen.data == ["now", "later"] and waiting is not None and waiting >= 1
    assert time.time() - began >= 2.9


async def test_a_delayed_retry_comes_to_its_group_alone_as_it_was(broker: AzureServiceBusBroker, topic: str) -> None:
    failing, other, plain = Collector(ValueError("again"), failures=2), Collector(), Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{topic}.*", failing, group="failing", retries=3, retry_delay=0.3)
        await bus.subscribe(f"{topic}.#", other, group="other")
        await bus.subscribe(f"{topic}.x", plain)
        id = await bus.publish(f"{topic}.x", {"n": 1}, headers={"colour": "red"}, key="k", correlation_id="c")
        await failing.wait(3)
        await other.wait()
        await plain.wait()
        await anyio.sleep(0.5)
    assert [(m.id, m.topic, m.data, m.headers, m.key, m.correlation_id, m.attempt) for m in failing.messages] == [
        (id, f"{topic}.x", {"n": 1}, {"colour": "red"}, "k", "c", attempt) for attempt in (1, 2, 3)
    ]
    assert len(other.messages) == len(plain.messages) == 1


async def test_what_fails_without_end_ends_in_the_services_dead_letter_queue(
    make: Make, native: ServiceBusClient, topic: str
) -> None:
    """The net below AMB's own dead letters: a handler that never decides for good."""
    broker, seen = make(topic_name=topic, max_delivery_count=3), Collector()

    async def hand_back(message: Message) -> None:
        await seen(message)
        message.nack(requeue=True)

    async with MessageBus(broker) as bus:
        await bus.subscribe("a", hand_back, group="g", ack_mode=AckMode.MANUAL)
        await bus.publish("a", {"poison": True})
        await seen.wait(3)
        dead = native.get_subscription_receiver(
            topic, subscription(_source("a")), sub_queue=ServiceBusSubQueue.DEAD_LETTER
        )
        async with dead:
            (letter,) = await dead.receive_messages(1, max_wait_time=5)
    assert [message.attempt for message in seen.messages] == [1, 2, 3]
    assert letter.dead_letter_reason == "MaxDeliveryCountExceeded" and b"".join(letter.body) == b'{"poison":true}'


async def test_the_service_drops_what_has_expired(
    broker: AzureServiceBusBroker, native: ServiceBusClient, topic: str
) -> None:
    name = subscription(_source(topic))
    async with MessageBus(broker) as bus:
        await bus.unsubscribe(await bus.subscribe(topic, Collector(), group="g"))
        await bus.publish(topic, "short", ttl=0.5)
        await bus.publish(topic, "long", ttl=60)
        await anyio.sleep(1.5)
    async with native.get_subscription_receiver(broker.topic_name, name) as receiver:
        left = [b"".join(message.body) for message in await receiver.receive_messages(2, max_wait_time=10)]
    assert left == [b'"long"']


async def test_a_batch_larger_than_the_service_takes_goes_in_several(make: Make, topic: str) -> None:
    seen = Collector()
    async with MessageBus(make()) as bus:
        await bus.subscribe(topic, seen, group="g")
        await bus.publish_batch([Message(topic=topic, payload=str(n) * 150_000) for n in range(4)])
        await seen.wait(4)
    assert seen.data == [str(n) * 150_000 for n in range(4)]


async def test_a_message_that_the_service_does_not_take_harms_no_other(make: Make, topic: str) -> None:
    """Premium takes more than this namespace does."""
    seen = Collector()
    async with MessageBus(make(max_message_size=1 << 20)) as bus:
        await bus.subscribe(topic, seen, group="g")
        with pytest.raises(MessageTooLarge, match="max_message_size"):
            await bus.publish(topic, "x" * 300_000)
        await bus.publish(topic, "small")
        await seen.wait()
    assert seen.data == ["small"]


async def test_sessions_keep_the_order_of_a_key_across_members(broker: AzureServiceBusBroker, topic: str) -> None:
    """Two members, twelve keys: each key in order, one message of it at a time, and both members have work."""
    running: set[str] = set()
    seen: dict[str, list[int]] = {}
    by: dict[str, int] = {}

    def member(name: str) -> Callable[[Message], object]:
        async def handle(message: Message) -> None:
            assert message.key is not None and message.key not in running
            running.add(message.key)
            await anyio.sleep(0.02)
            running.discard(message.key)
            seen.setdefault(message.key, []).append(message.data)
            by[name] = by.get(name, 0) + 1

        return handle

    async with MessageBus(broker) as one, MessageBus(broker) as two:
        for bus, name in ((one, "one"), (two, "two")):
            await bus.subscribe(topic, member(name), group="g", ordered_by="key", concurrency=4)
        for number in range(10):
            await one.publish_batch([Message(topic=topic, payload=number, key=f"k{k}") for k in range(12)])
        await eventually(lambda: sum(map(len, seen.values())) == 120, lambda: f"120, got {seen}", 30)
    assert seen == {f"k{k}": list(range(10)) for k in range(12)}
    assert set(by) == {"one", "two"}


async def test_a_session_is_kept_while_it_is_empty_and_while_its_handler_runs(make: Make, topic: str) -> None:
    seen = Collector()

    async def slow(message: Message) -> None:
        await seen(message)
        await anyio.sleep(6.25)

    async with MessageBus(make(lock_duration=2.5)) as bus:
        await bus.subscribe(topic, slow, group="g", ordered_by="key")
        await bus.publish(topic, 1, key="k")
        await bus.publish(topic, 2, key="k")
        await eventually(lambda: bus.stats.acked == 2, "both", 30)
    assert [(message.data, message.attempt) for message in seen.messages] == [(1, 1), (2, 1)]
