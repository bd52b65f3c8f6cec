"""Other programs on the same topics: plain JSON in, plain JSON out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from amb_core import Message, MessageBus
from amb_kafka import KafkaBroker

from tests.core._help import Collector, eventually
from tests.servers.kafka import KafkaServer

pytestmark = pytest.mark.anyio
Make = Callable[..., KafkaBroker]


@pytest.fixture
async def producer(kafka_server: KafkaServer) -> AsyncIterator[AIOKafkaProducer]:
    client = AIOKafkaProducer(bootstrap_servers=kafka_server.address)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


@asynccontextmanager
async def reader(server: KafkaServer, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
    client = AIOKafkaConsumer(topic, bootstrap_servers=server.address, auto_offset_reset="earliest")
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def read(server: KafkaServer, topic: str) -> ConsumerRecord:
    """The first record of a topic, as another program sees it."""
    async with reader(server, topic) as client:
        with anyio.fail_after(10):
            return await client.getone()


async def make_topic(server: KafkaServer, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 2, 1)])
    finally:
        await admin.close()


class Order(msgspec.Struct):
    item: str
    count: int = 1


@pytest.mark.parametrize("group", [None, "workers"])
async def test_a_handler_gets_what_another_program_wrote(
    broker: KafkaBroker, name: str, producer: AIOKafkaProducer, group: str | None
) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{name}.orders", seen, group=group)
        headers = [("source", b"billing")]
        await producer.send_and_wait(f"{name}.orders", b'{"item": "tea"}', key=b"k1", headers=headers)
        message = (await seen.wait())[0]
    assert message == {"item": "tea"}
    assert (message.topic, message.key, message.headers) == (f"{name}.orders", "k1", {"source": "billing"})
    assert message.id
    assert message.attempt == 1


async def test_it_is_decoded_into_the_handlers_type(broker: KafkaBroker, name: str, producer: AIOKafkaProducer) -> None:
    seen: list[Order] = []

    async def handle(order: Order) -> None:
        seen.append(order)

    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{name}.orders", handle)
        await producer.send_and_wait(f"{name}.orders", b'{"item": "tea", "count": 3}')
        await eventually(lambda: bool(seen), "nothing came", 10)
    assert seen == [Order("tea", 3)]


async def test_a_topic_that_another_program_made_and_filled_is_found(
    broker: KafkaBroker, name: str, kafka_server: KafkaServer, producer: AIOKafkaProducer
) -> None:
    seen, early = Collector(), Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{name}.#", seen)
        await make_topic(kafka_server, f"{name}.theirs")
        await producer.send_and_wait(f"{name}.theirs", b"[1, 2]")
        await seen.wait()
        await bus.subscribe(f"{name}.theirs", early, group="late", start="earliest")
        await early.wait()
    assert seen.data == early.data == [[1, 2]]


async def test_another_program_reads_plain_json(broker: KafkaBroker, name: str, kafka_server: KafkaServer) -> None:
    async with MessageBus(broker) as bus:
        id = await bus.publish(f"{name}.orders", {"item": "tea"}, key="k1", headers={"x": "y"}, sender="shop")
    record = await read(kafka_server, f"{name}.orders")
    assert json.loads(record.value) == {"item": "tea"}
    assert (record.topic, record.key) == (f"{name}.orders", b"k1")
    headers = dict(record.headers)
    assert headers["amb-id"] == id.encode()
    assert (headers["x"], headers["amb-sender"]) == (b"y", b"shop")
    assert headers["content-type"] == b"application/json"


async def test_a_family_of_topics_is_one_topic_of_kafka(make: Make, name: str, kafka_server: KafkaServer) -> None:
    broker = make(topics={f"{name}.agents.#": f"{name}-agents"})
    exact, wild, shared = Collector(), Collector(), Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{name}.agents.one", exact)
        await bus.subscribe(f"{name}.*.*", wild)
        await bus.subscribe(f"{name}.agents.#", shared, group="workers")
        for word in ("one", "two"):
            await bus.publish(f"{name}.agents.{word}", word)
        await wild.wait(2)
        await shared.wait(2)
        await exact.wait()
    assert exact.data == ["one"]
    assert sorted(wild.data) == sorted(shared.data) == ["one", "two"]
    assert {message.topic for message in shared.messages} == {f"{name}.agents.one", f"{name}.agents.two"}
    record = await read(kafka_server, f"{name}-agents")
    assert record.key.decode() in {f"{name}.agents.one", f"{name}.agents.two"}
    assert all(message.key is None for message in wild.messages)


async def test_another_programs_key_says_the_topic_of_a_family(
    make: Make, name: str, producer: AIOKafkaProducer
) -> None:
    seen = Collector()
    async with MessageBus(make(topics={f"{name}.agents.#": f"{name}-agents"})) as bus:
        await bus.subscribe(f"{name}.agents.*", seen)
        await bus.publish(f"{name}.agents.one", 1)
        await producer.send_and_wait(f"{name}-agents", b"2", key=f"{name}.agents.two".encode())
        await seen.wait(2)
    assert {message.topic: message.data for message in seen.messages} == {
        f"{name}.agents.one": 1, f"{name}.agents.two": 2,
    }  # fmt: skip


async def test_replies_need_no_topic_per_request(broker: KafkaBroker, name: str, kafka_server: KafkaServer) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_server.address)
    await admin.start()
    try:
        async with MessageBus(broker) as bus, MessageBus(broker) as one, MessageBus(broker) as two:

            @bus.responder(f"{name}.double")
            def double(message: Message) -> int:
                return int(message.data) * 2

            await bus.connect()
            before = set(await admin.list_topics()) | {"_amb.inbox"}
            for number in range(10):
                for caller in (one, two):
                    assert (await caller.request(f"{name}.double", number, timeout=10)).data == number * 2
            assert set(await admin.list_topics()) == before
    finally:
        await admin.close()


async def test_replay_from_the_beginning_a_time_and_a_position(broker: KafkaBroker, name: str) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{name}.log", seen)
        for number in range(10):
            await bus.publish(f"{name}.log", number)
            await anyio.sleep(0.005)
        messages = sorted(await seen.wait(10), key=lambda message: message.data)
        everything = [message.data async for message in bus.replay(f"{name}.log")]
        later = [message.data async for message in bus.replay(f"{name}.log", since=messages[4].timestamp)]
        until = [message.data async for message in bus.replay(f"{name}.*", until=messages[4].timestamp)]
        after = [message.data async for message in bus.replay(f"{name}.log", since=messages[6].position)]
    assert everything == list(range(10))
    assert later == list(range(4, 10))
    assert until == list(range(5))
    assert after == [7, 8, 9]


async def test_replay_disturbs_no_group(broker: KafkaBroker, name: str, kafka_server: KafkaServer) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        subscription = await bus.subscribe(f"{name}.log", seen, group="workers")
        await bus.unsubscribe(subscription)
        for number in range(5):
            await bus.publish(f"{name}.log", number)
        assert len([message async for message in bus.replay(f"{name}.log")]) == 5
        await bus.subscribe(f"{name}.log", seen, group="workers")
        await seen.wait(5)


async def test_a_subscription_without_a_group_leaves_nothing_behind(
    broker: KafkaBroker, name: str, kafka_server: KafkaServer
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_server.address)
    await admin.start()
    try:
        before = {group for group, _ in await admin.list_consumer_groups()}
        seen = Collector()
        async with MessageBus(broker) as bus:
            await bus.subscribe(f"{name}.log", seen)
            await bus.publish(f"{name}.log", 1)
            await seen.wait()
        assert {group for group, _ in await admin.list_consumer_groups()} == before
    finally:
        await admin.close()


async def test_a_partition_that_is_added_later_is_read(
    broker: KafkaBroker, name: str, kafka_server: KafkaServer, producer: AIOKafkaProducer
) -> None:
    from aiokafka.admin import NewPartitions

    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_server.address)
    await admin.start()
    alone, shared = Collector(), Collector()
    try:
        async with MessageBus(broker) as bus:
            await bus.subscribe(f"{name}.log", alone)
            await bus.subscribe(f"{name}.log", shared, group="workers")
            await admin.create_partitions({f"{name}.log": NewPartitions(3)})
            while 2 not in (producer.client.cluster.partitions_for_topic(f"{name}.log") or ()):
                await producer.client.force_metadata_update()
            await producer.send_and_wait(f"{name}.log", b"7", partition=2)
            await alone.wait(1, 20)
            await shared.wait(1, 45)
    finally:
        await admin.close()
    assert alone.data == shared.data == [7]
    assert TopicPartition(f"{name}.log", 2).partition == 2
