"""Groups: commits, retries, members that come, go, hang and are thrown out."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

import anyio
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.group import LeaveGroupRequest
from amb_core import DeadLetterQueue, Message, MessageBus
from amb_core.broker import Connection, Feed, Incoming, Outgoing, Settlement, Source
from amb_core.errors import LeaseLost, PartialFailure
from amb_kafka import KafkaBroker
from amb_kafka._wire import group_of

from tests.core._help import Collector, eventually, stays
from tests.servers.kafka import KafkaServer

pytestmark = pytest.mark.anyio
Make = Callable[..., KafkaBroker]
_ids = count()


def source(pattern: str, **fields: Any) -> Source:
    return Source(id=f"raw-{next(_ids)}", pattern=pattern, group="workers", **fields)


async def publish(connection: Connection, topic: str, *bodies: bytes, key: str | None = None) -> None:
    await connection.send([Outgoing(topic, body, {}, key, confirm=True) for body in bodies])


async def take(feed: Feed, count: int, within: float = 15.0) -> list[Incoming]:
    got: list[Incoming] = []
    with anyio.fail_after(within):
        while len(got) < count:
            got += await feed.receive(count - len(got))
    return got


async def nothing(feed: Feed, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        while True:
            assert not await feed.receive(10)


async def members(admin: AIOKafkaAdminClient, group: str) -> list[str]:
    answers = await admin.describe_consumer_groups([group])
    return [member[0] for answer in answers for one in answer.groups for member in one[5]]


async def throw_out(admin: AIOKafkaAdminClient, group: str) -> None:
    """What a session that ran out does, at once."""
    node = await admin.find_coordinator(group)
    for member in await members(admin, group):
        await admin._client.send(node, LeaveGroupRequest(group, member))


async def committed(admin: AIOKafkaAdminClient, group: str, topic: str) -> int:
    """How many records of a topic a group has committed."""
    found = await admin.list_consumer_group_offsets(group)
    return sum(one.offset for partition, one in found.items() if partition.topic == topic)


# --- commits


async def test_a_failed_message_is_not_skipped_when_a_later_one_commits(
    make: Make, name: str, admin: AIOKafkaAdminClient
) -> None:
    broker, topic = make(partitions=1), f"{name}.jobs"
    async with broker.connect() as connection:
        async with connection.open(source(topic)) as feed:
            await publish(connection, topic, *(str(number).encode() for number in range(5)))
            got = await take(feed, 5)
            await feed.settle([Settlement(got[index].token, "ack") for index in (1, 2, 4)])
            assert await committed(admin, f"workers@{topic}", topic) == 0
            await feed.settle([Settlement(got[0].token, "ack")])
            assert await committed(admin, f"workers@{topic}", topic) == 3
        async with connection.open(source(topic)) as feed:
            again = await take(feed, 1)
            assert again[0].body == b"3"
            await nothing(feed, 0.5)
            await feed.settle([Settlement(again[0].token, "ack")])
        assert await committed(admin, f"workers@{topic}", topic) == 5


async def test_a_retry_blocks_nothing_and_the_partition_is_committed(
    make: Make, name: str, admin: AIOKafkaAdminClient
) -> None:
    topic, order = f"{name}.jobs", list[tuple[Any, int]]()

    def work(message: Message) -> None:
        order.append((message.data, message.attempt))
        if message.data == "bad" and message.attempt == 1:
            raise RuntimeError("fails on purpose")

    async with MessageBus(make(partitions=1)) as bus:
        await bus.subscribe(topic, work, group="workers", retries=1, retry_delay=6.0, concurrency=1)
        for data in ("bad", 1, 2, 3):
            await bus.publish(topic, data)
        await eventually(lambda: len(order) >= 4, "the others wait for the retry", 10)
        assert order[:4] == [("bad", 1), (1, 1), (2, 1), (3, 1)]
        deadline = time.monotonic() + 5
        while await committed(admin, f"workers@{topic}", topic) < 4:
            assert time.monotonic() < deadline, "the retry holds back the commit"
        assert len(order) == 4
        await eventually(lambda: order[4:] == [("bad", 2)], "the retry does not come", 15)


async def test_delays_of_all_lengths_pass_each_other(make: Make, name: str) -> None:
    seen, broker = Collector(), make()
    async with MessageBus(broker) as bus, broker.connect() as connection:
        await bus.subscribe(f"{name}.jobs", seen, group="workers")
        # One moment for all: between two publishes this process may stand still for longer than two delays differ.
        now = time.time()
        await connection.send(
            [
                Outgoing(f"{name}.jobs", b"%.1f" % delay, {}, not_before=now + delay, confirm=True)
                for delay in (60.0, 4.5, 3.5, 2.5)
            ]
        )
        await seen.wait(3)
        await stays(lambda: seen.data == [2.5, 3.5, 4.5], "something else came", 0.5)


async def test_a_new_group_begins_where_it_is_told_to(make: Make, name: str) -> None:
    topic = f"{name}.jobs"
    seen = {where: Collector() for where in ("latest", "earliest", "by default", "by the option")}
    async with MessageBus(make()) as bus, MessageBus(make(auto_offset_reset="earliest")) as early:
        await bus.publish(topic, "old")
        await bus.subscribe(topic, seen["latest"], group="a", start="latest")
        await bus.subscribe(topic, seen["earliest"], group="b", start="earliest")
        await bus.subscribe(topic, seen["by default"], group="c")
        await early.subscribe(topic, seen["by the option"], group="d")
        await bus.publish(topic, "new")
        for one in seen.values():
            await eventually(lambda one=one: "new" in one.data, "the new one is missing", 10)  # type: ignore[misc]
        for where in ("earliest", "by the option"):
            await eventually(lambda where=where: "old" in seen[where].data, "the old one is missing", 10)  # type: ignore[misc]
    old = {where for where, one in seen.items() if "old" in one.data}
    assert old == {"earliest", "by the option"}


# --- members


async def test_members_come_and_go_under_load_and_nothing_is_lost_or_runs_twice(make: Make, name: str) -> None:
    topic, seen = f"{name}.jobs", list[int]()

    async def work(message: Message) -> None:
        await anyio.sleep(0.02)
        seen.append(message.data)

    async with MessageBus(make(partitions=4)) as publisher, MessageBus(publisher.broker) as first:
        await first.subscribe(topic, work, group="workers", concurrency=5)

        async def publish_all() -> None:
            for number in range(600):
                await publisher.publish(topic, number)

        async with anyio.create_task_group() as group:
            group.start_soon(publish_all)
            for _ in range(3):
                async with MessageBus(publisher.broker) as other:
                    await other.subscribe(topic, work, group="workers", concurrency=5)
                    await anyio.sleep(0.5)
        await eventually(lambda: len(set(seen)) == 600, lambda: f"{len(set(seen))} of 600", 30)
        await anyio.sleep(0.5)
    assert sorted(seen) == list(range(600))


async def test_a_rebalance_waits_for_no_handler_and_the_message_runs_once(make: Make, name: str) -> None:
    topic, free, calls = f"{name}.jobs", anyio.Event(), list[Any]()

    async def work(message: Message) -> None:
        calls.append(message.data)
        if message.data == "long":
            await free.wait()

    async with MessageBus(make()) as one, MessageBus(make()) as two:
        await one.subscribe(topic, work, group="workers")
        await one.publish(topic, "long")
        await eventually(lambda: bool(calls), "it does not begin", 10)
        began = time.monotonic()
        await two.subscribe(topic, work, group="workers")
        assert time.monotonic() - began < 20, "the new member waits for a handler of the other"
        for number in range(20):
            await two.publish(topic, number)
        await eventually(lambda: len(calls) == 21, lambda: f"behind the long one came {len(calls) - 1} of 20", 10)
        free.set()
        await anyio.sleep(0.5)
    seen = Collector()
    async with MessageBus(make()) as bus:
        await bus.subscribe(topic, seen, group="workers")
        await stays(lambda: not seen.data, "something ran twice", 2.0)


async def test_messages_do_not_wait_behind_a_member_that_got_stuck_later(make: Make, name: str) -> None:
    topic, free, stuck, seen = f"{name}.jobs", anyio.Event(), list[Any](), Collector()

    async def hang(message: Message) -> None:
        stuck.append(message.data)
        await free.wait()

    async with MessageBus(make()) as slow, MessageBus(make()) as fast:
        await fast.subscribe(topic, seen, group="workers", concurrency=1)
        await slow.subscribe(topic, hang, group="workers", concurrency=1)
        number = 0
        while not stuck:
            await fast.publish(topic, number)
            await anyio.sleep(0.01)
            number += 1
        for more in range(number, number + 40):
            await fast.publish(topic, more)
        total = number + 40
        await eventually(lambda: len(seen.data) == total - len(stuck), lambda: f"{len(seen.data)} of {total}", 15)
        assert len(stuck) == 1
        free.set()


async def test_a_member_that_was_thrown_out_settles_nothing(make: Make, name: str, admin: AIOKafkaAdminClient) -> None:
    topic = f"{name}.jobs"
    group = f"workers@{topic}"
    broker = make(partitions=1, heartbeat_interval_ms=3000)  # it hears of it by what it settles
    async with broker.connect() as connection, connection.open(source(topic)) as feed:
        await publish(connection, topic, b"1")
        late = (await take(feed, 1))[0]
        await throw_out(admin, group)
        with pytest.raises(PartialFailure) as caught:
            await feed.settle([Settlement(late.token, "ack")])
        assert isinstance(caught.value.errors[0], LeaseLost)
        assert await committed(admin, group, topic) == 0
        again = (await take(feed, 1))[0]
        assert (again.body, again.attempt) == (b"1", 1)
        with pytest.raises(PartialFailure):
            await feed.settle([Settlement(late.token, "retry", 0.1, 1)])
        await feed.settle([Settlement(again.token, "ack")])
        assert await committed(admin, group, topic) == 1
        await nothing(feed, 0.5)


async def test_what_a_member_held_through_a_rebalance_comes_again_when_it_dies(
    make: Make, name: str, admin: AIOKafkaAdminClient
) -> None:
    topic = f"{name}.jobs"
    broker = make(partitions=1)
    async with broker.connect() as here, broker.connect() as there, here.open(source(topic)) as dying:
        await publish(here, topic, b"1", b"2")
        held = {one.body: one for one in await take(dying, 2)}
        async with there.open(source(topic)) as heir:
            await nothing(heir, 2.0)
            await dying.settle([Settlement(held[b"1"].token, "ack")])
            await nothing(heir, 1.0)
            node = await admin.find_coordinator(f"workers@{topic}")
            await admin._client.send(node, LeaveGroupRequest(f"workers@{topic}", dying._member.id))  # type: ignore[attr-defined]
            again = await take(heir, 1)
            assert [(one.body, one.attempt) for one in again] == [(b"2", 1)]
            await heir.settle([Settlement(again[0].token, "ack")])
            await nothing(heir, 1.0)


async def test_a_held_message_can_be_given_back_and_tried_again(make: Make, name: str) -> None:
    topic = f"{name}.jobs"
    broker = make(partitions=1)
    async with broker.connect() as here, broker.connect() as there, here.open(source(topic)) as one:
        await publish(here, topic, b"back", b"again")
        held = {each.body: each for each in await take(one, 2)}
        async with there.open(source(topic)) as other:
            await nothing(other, 1.0)
            await one.settle([
                Settlement(held[b"back"].token, "release"), Settlement(held[b"again"].token, "retry", 0.1, 1),
            ])  # fmt: skip
            got = {each.body: each for each in await take(other, 2)}
            assert {body: each.attempt for body, each in got.items()} == {b"back": 1, b"again": 2}
            assert {each.topic for each in got.values()} == {topic}
            await other.settle([Settlement(each.token, "ack") for each in got.values()])
            await nothing(other, 1.0)


async def test_a_handler_may_run_longer_than_the_session(make: Make, name: str) -> None:
    topic, seen = f"{name}.jobs", list[Any]()

    async def work(message: Message) -> None:
        seen.append(message.data)
        await anyio.sleep(7.0)

    patient = make(session_timeout_ms=3000, heartbeat_interval_ms=200)
    async with MessageBus(patient) as bus, MessageBus(patient) as other:
        await bus.subscribe(topic, work, group="workers", concurrency=1)
        await other.subscribe(topic, work, group="workers", concurrency=1)
        await bus.publish(topic, 1)
        await stays(lambda: len(seen) <= 1, lambda: f"it was called {len(seen)} times", 8.0)
    assert seen == [1]


async def test_an_ordered_group_finishes_what_it_began_before_a_key_moves(make: Make, name: str) -> None:
    topic, running, seen = f"{name}.log", set[str](), list[tuple[str, int]]()

    async def work(message: Message) -> None:
        key, number = message.data
        assert key not in running, "two messages of a key at once"
        running.add(key)
        await anyio.sleep(0.02)
        running.discard(key)
        seen.append((key, number))

    options: dict[str, Any] = {"group": "workers", "ordered_by": "key", "concurrency": 5}
    async with MessageBus(make()) as one, MessageBus(make()) as two:
        await one.subscribe(topic, work, **options)
        for number in range(100):
            await one.publish(topic, [f"key-{number % 7}", number], key=f"key-{number % 7}")
            if number == 50:
                await two.subscribe(topic, work, **options)
        await eventually(lambda: len(seen) >= 100, lambda: f"{len(seen)} of 100", 20)
    for key in {key for key, _ in seen}:
        mine = [number for each, number in seen if each == key]
        assert mine == sorted(set(mine))


async def test_poison_goes_to_the_dead_letters_and_nothing_else_does(make: Make, name: str) -> None:
    topic, seen = f"{name}.jobs", Collector()

    async def work(message: Message) -> None:
        if message.data % 20 == 0:
            raise RuntimeError("poison")

    async with MessageBus(make(), dead_letter_queue=DeadLetterQueue(f"{name}.dead", max_retries=1)) as bus:
        await bus.subscribe(f"{name}.dead", seen)
        await bus.subscribe(topic, work, group="workers", retry_delay=0.05)
        for number in range(100):
            await bus.publish(topic, number)
        await seen.wait(5)
        await stays(lambda: len(seen.data) == 5, "more than the poison is dead", 0.5)
    assert sorted(seen.data) == [0, 20, 40, 60, 80]


async def test_a_group_that_is_not_wanted_any_more_leaves_no_member(
    broker: KafkaBroker, name: str, admin: AIOKafkaAdminClient
) -> None:
    async with MessageBus(broker) as bus:
        subscription = await bus.subscribe(f"{name}.jobs", Collector(), group="workers")
        assert len(await members(admin, f"workers@{name}.jobs")) == 1
        await bus.unsubscribe(subscription)
        assert await members(admin, f"workers@{name}.jobs") == []


async def test_the_retry_topic_is_hidden_from_wildcards(
    broker: KafkaBroker, name: str, kafka_server: KafkaServer
) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("#", seen)

        def fail(message: Message) -> None:
            raise RuntimeError("fails on purpose")

        await bus.subscribe(f"{name}.jobs", fail, group="workers", retries=1, retry_delay=0.1)
        await bus.publish(f"{name}.jobs", 1)
        await eventually(lambda: bus.stats.retried == 1, "no retry", 10)
        await stays(
            lambda: [m.topic for m in seen.messages if m.topic.startswith(name)] in ([], [f"{name}.jobs"]), "", 1
        )
    _, retries = group_of(source(f"{name}.jobs"))
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_server.address)
    await consumer.start()
    try:
        tiers = [TopicPartition(retries, number) for number in range(5)]
        consumer.assign(tiers)
        assert sum((await consumer.end_offsets(tiers)).values()) == 1
    finally:
        await consumer.stop()


async def test_a_group_on_a_pattern_may_come_before_any_topic(broker: KafkaBroker, name: str) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{name}.#", seen, group="workers")
        await bus.publish(f"{name}.first", 1)
        await seen.wait()
