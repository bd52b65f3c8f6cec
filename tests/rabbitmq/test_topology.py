"""What is made in the broker, and how messages go through it."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import pytest
from aio_pika.abc import AbstractChannel
from amb_core import Message, MessageBus, MessagePriority
from amb_core.broker import Feed, Incoming, Outgoing, Settlement, Source
from amb_core.errors import BackpressureError, ConnectionLost, LeaseLost, PartialFailure, Unavailable
from amb_rabbitmq import RabbitMQBroker

from tests.core._help import Collector, eventually, stays
from tests.servers.rabbitmq import RabbitServer

pytestmark = pytest.mark.anyio
Make = Callable[..., RabbitMQBroker]


async def _take(feed: Feed, count: int, within: float = 10.0) -> list[Incoming]:
    got: list[Incoming] = []
    with anyio.fail_after(within):
        while len(got) < count:
            got += await feed.receive(count - len(got))
    return got


async def _nothing(feed: Feed, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        while True:
            assert not await feed.receive(10)


def _ours(server: RabbitServer, what: str, *columns: str, exchange: str) -> list[list[str]]:
    lines = server.process.ctl(f"list_{what}", *columns).splitlines()
    return [line.split("\t") for line in lines if exchange in line]


async def test_everything_that_lasts_is_durable_and_queues_of_groups_are_quorum_queues(
    make: Make, rabbitmq_server: RabbitServer
) -> None:
    broker, server = make(), rabbitmq_server
    name = broker.exchange
    async with MessageBus(broker) as bus:
        await bus.subscribe("a.*.#", print, group="g")
        await bus.subscribe("a.b", print, group="g", ordered_by="key")
        await bus.publish("a.b", 1, delay=0.1)
        exchanges = _ours(server, "exchanges", "name", "type", "durable", exchange=name)
        queues = _ours(server, "queues", "name", "type", "durable", exchange=name)
        arguments = _ours(server, "queues", "name", "arguments", exchange=f"{name}.ordered")
    kinds = {first.removeprefix(name): kind for first, kind, _ in exchanges}
    levels = {f".delay.{n}": "topic" for n in range(2)}
    assert kinds == {"": "topic", ".express": "topic", ".back": "direct", ".delayed": "topic"} | levels
    assert {durable for *_, durable in exchanges + queues} == {"true"}
    assert {first.removeprefix(name): kind for first, kind, _ in queues} == dict.fromkeys(
        [".group/g/a.+.#", ".group/g/a.+.#,express", ".ordered/g/a.b", *levels], "quorum"
    )
    assert "x-single-active-consumer" in arguments[0][1]


async def test_a_subscriber_without_a_group_leaves_nothing_behind(make: Make, rabbitmq_server: RabbitServer) -> None:
    def made() -> list[list[str]]:
        bindings = _ours(rabbitmq_server, "bindings", "source_name", "destination_name", exchange=broker.exchange)
        names = {queue for _, queue in bindings}
        listed = rabbitmq_server.process.ctl("list_queues", "name", "exclusive", "auto_delete").splitlines()
        return [line.split("\t")[1:] for line in listed if line.split("\t")[0] in names]

    broker = make()
    async with MessageBus(broker) as bus:
        subscription = await bus.subscribe("a.b", print)
        assert made() == [["true", "true"]]
        await bus.unsubscribe(subscription)
        assert made() == []


async def test_a_deleted_exchange_is_made_again(make: Make, native: AbstractChannel) -> None:
    """Its bindings went with it, so subscriptions are opened anew as soon as a publish notices."""
    broker, seen, events = make(), Collector(), list[str]()
    async with MessageBus(broker) as bus:
        bus.on("subscription.restored")(events.append)
        await bus.subscribe("a.b", seen, group="g")
        await native.exchange_delete(broker.exchange)
        await bus.publish("a.b", 1)
        await eventually(lambda: events, "not restored", 5)
        await bus.publish("a.b", 2)
        await eventually(lambda: 2 in seen.data, "nothing comes", 5)


async def test_a_deleted_queue_is_made_again(make: Make, native: AbstractChannel) -> None:
    """The server cancels its consumer, and says so."""
    broker, seen, events = make(), Collector(), list[str]()
    async with MessageBus(broker) as bus:
        bus.on("subscription.restored")(events.append)
        await bus.subscribe("a.b", seen, group="g")
        await native.queue_delete(f"{broker.exchange}.group/g/a.b")
        await eventually(lambda: events, "not restored", 5)
        await bus.publish("a.b", 1)
        await seen.wait()
        assert (await bus.health()).subscriptions[0].consuming


async def test_no_more_is_fetched_than_there_are_places(make: Make, native: AbstractChannel) -> None:
    """What is left in the queue can be had by others."""
    broker, free, name = make(), anyio.Event(), "group/g/jobs.x"

    async def work(_: Message) -> None:
        await free.wait()

    async def ready() -> int | None:
        queue = await native.declare_queue(f"{broker.exchange}.{name}", passive=True)
        return queue.declaration_result.message_count

    async with MessageBus(broker) as bus:
        slow = Collector()
        subscription = await bus.subscribe("jobs.x", work, group="g", concurrency=3)
        for number in range(10):
            await bus.publish("jobs.x", number)
        with anyio.fail_after(15):
            while await ready() != 7:
                await anyio.sleep(0.05)
        subscription.set_concurrency(5)
        with anyio.fail_after(15):
            while await ready() != 5:
                await anyio.sleep(0.05)
        await bus.subscribe("jobs.x", slow, group="g")
        await slow.wait(5)
        free.set()


async def test_what_is_not_asked_for_goes_back(make: Make) -> None:
    """A member that is paused holds nothing that another could have, and gets its share again afterwards."""
    broker, paused, other = make(), Collector(), Collector()
    async with MessageBus(broker) as bus:
        subscription = await bus.subscribe("jobs.x", paused, group="g")
        subscription.pause()
        for number in range(10):
            await bus.publish("jobs.x", number, priority="critical" if number % 2 else "normal")
        second = await bus.subscribe("jobs.x", other, group="g")
        await other.wait(10)
        assert sorted(other.data) == list(range(10)) and {m.attempt for m in other.messages} == {1}
        await bus.unsubscribe(second)
        subscription.resume()
        await bus.publish("jobs.x", 10)
        await paused.wait()
    assert paused.data == [10]


async def test_urgent_messages_overtake_what_is_queued(broker: RabbitMQBroker) -> None:
    source = Source(id="s", pattern="jobs.x", group="g")
    async with broker.connect() as connection:
        async with connection.open(source):
            pass
        for priority in (5, 3, 3, 0, 2):
            await connection.send([Outgoing("jobs.x", b"", {"amb-priority": _NAMES[priority]}, priority=priority)])
        async with connection.open(source) as feed:
            with anyio.fail_after(5):
                got = await _take(feed, 2)
            assert {one.headers["amb-priority"] for one in got} == {"critical", "high"}
            await feed.settle([Settlement(one.token, "ack") for one in got])


_NAMES = {0: "critical", 2: "high", 3: "normal", 5: "background"}


async def test_the_server_sorts_what_waits_for_a_subscriber_without_a_group(broker: RabbitMQBroker) -> None:
    held, free = list[str](), anyio.Event()

    async def work(message: Message) -> None:
        held.append(message.data)
        await free.wait()

    async with MessageBus(broker) as bus:
        await bus.subscribe("jobs.x", work, concurrency=1)
        await bus.publish("jobs.x", "first")
        await eventually(lambda: held == ["first"], "the first did not come", 5)
        for priority in sorted(MessagePriority, reverse=True):
            await bus.publish("jobs.x", priority.name, priority=priority)
        free.set()
        await eventually(lambda: len(held) == 7, "not all came", 5)
    # One had been handed over when the others came.
    assert held[1] in ("BACKGROUND", "CRITICAL")
    assert [name for name in held[2:] if name != "CRITICAL"] == [
        name for name in ("URGENT", "HIGH", "NORMAL", "LOW", "BACKGROUND") if name != held[1]
    ]


@pytest.mark.parametrize("pattern", ["*.b", "#", "a.#", "#.b", "a.#.b", "*.*", "a.b.#"])
async def test_wildcards_are_bound_in_the_broker(broker: RabbitMQBroker, pattern: str) -> None:
    """The binding hands over exactly what the pattern means: nothing is left for the client to filter."""
    from amb_core.topics import compile_pattern

    topics, last = ["a.b", "a", "b", "a.x.b", "a.b.c", "x.b"], "end.of.test"
    matches = compile_pattern(pattern)
    async with broker.connect() as connection, connection.open(Source(id="s", pattern=pattern)) as feed:
        await connection.send([Outgoing(topic, b"", {}) for topic in topics])
        expected = [topic for topic in topics if matches(topic)]
        assert sorted(one.topic for one in await _take(feed, len(expected))) == sorted(expected), last
        await _nothing(feed, 0.1)


@pytest.mark.parametrize("delay", [0.05, 0.35, 1.6])
async def test_a_delay_is_kept_by_the_broker_to_a_twentieth_of_a_second(broker: RabbitMQBroker, delay: float) -> None:
    source = Source(id="s", pattern="jobs.x", group="g")
    async with broker.connect() as connection, broker.connect() as receiving:
        async with connection.open(source):
            pass
        # Made before the clock starts: the first delay of its length makes its levels.
        await connection.send([Outgoing("other.x", b"", {}, not_before=time.time() + delay)])
        late = list[float]()
        for _ in range(3):
            due = time.time() + delay
            await connection.send([Outgoing("jobs.x", b"", {}, not_before=due)])
            async with receiving.open(source) as feed:
                [got] = await _take(feed, 1)
                late.append(time.time() - due)
                await feed.settle([Settlement(got.token, "ack")])
    # What else the machine does only ever adds: the lowest counts, and none is early.
    assert 0 <= min(late) <= 1.0, late


async def test_a_long_delay_waits_in_its_highest_level(make: Make, native: AbstractChannel) -> None:
    broker = make()
    async with broker.connect() as connection, connection.open(Source(id="s", pattern="jobs.x", group="g")) as feed:
        await connection.send([Outgoing("jobs.x", b"", {}, not_before=time.time() + 3 * 86400)])
        queue = await native.declare_queue(f"{broker.exchange}.delay.22", passive=True)
        assert queue.declaration_result.message_count == 1
        await _nothing(feed, 0.3)


async def test_attempts_are_counted_in_the_message(broker: RabbitMQBroker) -> None:
    """Also across members, and not for what was only given back."""
    source = Source(id="s", pattern="jobs.x", group="g")
    async with broker.connect() as connection:
        async with connection.open(source) as feed:
            await connection.send([Outgoing("jobs.x", b"", {})])
            [first] = await _take(feed, 1)
            await feed.settle([Settlement(first.token, "release")])
            [again] = await _take(feed, 1)
            await feed.settle([Settlement(again.token, "retry", 0.0, again.attempt)])
            [second] = await _take(feed, 1)
        async with connection.open(source) as feed:
            [back] = await _take(feed, 1)
            await feed.settle([Settlement(back.token, "retry", 0.1, back.attempt)])
            [third] = await _take(feed, 1)
            await feed.settle([Settlement(third.token, "ack")])
    assert [one.attempt for one in (first, again, second, back, third)] == [1, 1, 2, 2, 3]


async def test_a_retry_comes_to_its_own_group_only(broker: RabbitMQBroker) -> None:
    failing, other, loose = Collector(ValueError("once"), 1), Collector(), Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("jobs.#", failing, group="failing", retries=1, retry_delay=0.05)
        await bus.subscribe("jobs.#", other, group="other")
        await bus.subscribe("jobs.#", loose)
        await bus.publish("jobs.x", 1)
        await failing.wait(2)
        await other.wait()
        await loose.wait()
        await stays(lambda: (len(other.data), len(loose.data)) == (1, 1), "a retry went to others", 0.2)
    assert [m.attempt for m in failing.messages] == [1, 2]


async def test_a_full_queue_is_told_to_the_publisher(make: Make, rabbitmq_server: RabbitServer) -> None:
    """An operator's policy that rejects what a queue has no room for comes back as a refused confirm."""
    broker, ctl = make(), rabbitmq_server.process.ctl
    policy = '{"max-length": 2, "overflow": "reject-publish"}'
    ctl("set_policy", broker.exchange, rf"^{broker.exchange}\.group", policy, "--apply-to", "queues")
    async with MessageBus(broker) as bus, MessageBus(broker) as publisher:
        seen = Collector()
        subscription = await bus.subscribe("jobs.x", seen, group="g", concurrency=1)
        subscription.pause()

        async def fill() -> None:
            for number in range(20):
                await publisher.publish("jobs.x", number)

        with pytest.raises(BackpressureError, match=r"jobs\.x.*full"):
            await fill()
        accepted = publisher.stats.published
        subscription.resume()
        await seen.wait(accepted)
        await publisher.publish("jobs.x", "again")
        await eventually(lambda: "again" in seen.data, "nothing is accepted afterwards", 5)


async def test_a_token_of_another_feed_is_a_lost_lease(broker: RabbitMQBroker) -> None:
    source = Source(id="s", pattern="jobs.x", group="g")
    async with broker.connect() as connection:
        async with connection.open(source) as feed:
            await connection.send([Outgoing("jobs.x", b"", {})])
            [stale] = await _take(feed, 1)
        async with connection.open(source) as feed:
            [fresh] = await _take(feed, 1)
            with pytest.raises(PartialFailure) as caught:
                await feed.settle([Settlement(stale.token, "ack"), Settlement(fresh.token, "ack")])
            assert list(caught.value.errors) == [0] and isinstance(caught.value.errors[0], LeaseLost)
            await feed.settle([Settlement(fresh.token, "ack")])
            await _nothing(feed, 0.2)


async def test_a_receive_that_is_cancelled_costs_nothing(broker: RabbitMQBroker) -> None:
    async with broker.connect() as connection, connection.open(Source(id="s", pattern="jobs.x", group="g")) as feed:
        await connection.send([Outgoing("jobs.x", b"0", {})])
        [held] = await _take(feed, 1)
        for tenth in range(10):
            with anyio.move_on_after(0.002 * tenth):
                await feed.receive(20)
        await connection.send([Outgoing("jobs.x", b"1", {})])
        [second] = await _take(feed, 1)
        await feed.settle([Settlement(one.token, "ack") for one in (held, second)])
        await _nothing(feed, 0.2)


async def test_health_asks_the_server(make: Make) -> None:
    async with MessageBus(make()) as bus:
        health = await bus.health()
    assert health.status == "healthy"
    assert health.details["version"].startswith("RabbitMQ 3.") or health.details["version"].startswith("RabbitMQ 4.")
    assert health.details["publishing"] == "open"


async def test_what_needs_the_connection_ends_with_it(broker: RabbitMQBroker) -> None:
    async with broker.connect() as connection:
        pass
    with pytest.raises((ConnectionLost, Unavailable)):
        await connection.send([Outgoing("a", b"", {})])
