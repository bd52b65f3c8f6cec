"""What is published at once: one record batch for each partition, and still every message for itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from amb_core import MessageBus
from amb_core.broker import Outgoing
from amb_core.errors import MessageTooLarge, NotFound, PartialFailure, PublishUnknown, Unavailable
from amb_kafka import KafkaBroker

from tests.servers.kafka import KafkaServer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
Make = Callable[..., KafkaBroker]
_PARTITIONS = 4


@pytest.fixture
async def topic(admin: AIOKafkaAdminClient, name: str) -> str:
    """Of four partitions, whose record batches have 20,000 bytes at most."""
    await admin.create_topics([NewTopic(f"{name}.a", _PARTITIONS, 1, topic_configs={"max.message.bytes": "20000"})])
    return f"{name}.a"


async def stored(server: KafkaServer, topic: str) -> dict[int, list[ConsumerRecord]]:
    """All there is, by partition, as another program sees it."""
    client = AIOKafkaConsumer(topic, bootstrap_servers=server.address, auto_offset_reset="earliest")
    found: dict[int, list[ConsumerRecord]] = defaultdict(list)
    async with client:
        with anyio.fail_after(20):
            ends: dict[TopicPartition, int] = await client.end_offsets(client.assignment())
            while any([await client.position(at) < end for at, end in ends.items()]):
                for at, records in (await client.getmany(timeout_ms=200)).items():
                    found[at.partition] += records
    return found


def flat(found: dict[int, list[ConsumerRecord]]) -> list[ConsumerRecord]:
    return [record for records in found.values() for record in records]


def messages(topic: str, texts: Sequence[bytes], keys: int = 0) -> list[Outgoing]:
    """The keys in turn; 0: none."""
    return [Outgoing(topic, text, {}, f"key {at % keys}" if keys else None) for at, text in enumerate(texts)]


def numbered(count: int, size: int) -> list[bytes]:
    return [b"%06d" % number + b"." * (size - 6) for number in range(count)]


def bodies(records: Sequence[ConsumerRecord]) -> list[bytes]:
    return [record.value or b"" for record in records]


def by_key(records: Sequence[ConsumerRecord]) -> dict[bytes | None, list[bytes]]:
    return {key: bodies([one for one in records if one.key == key]) for key in {one.key for one in records}}


async def test_a_key_is_where_other_programs_put_it(broker: KafkaBroker, topic: str, kafka_server: KafkaServer) -> None:
    keys = [f"agent-{number}" for number in range(60)] + ["", "é", "a" * 300]
    async with broker.connect() as connection:
        await connection.send([Outgoing(topic, b"amb", {}, key) for key in keys])
    async with AIOKafkaProducer(bootstrap_servers=kafka_server.address) as producer:
        for key in keys:
            await producer.send_and_wait(topic, b"other", key=key.encode())
    found = await stored(kafka_server, topic)
    assert len(found) == _PARTITIONS
    assert {(record.partition, record.key) for record in flat(found) if record.value == b"amb"} == {
        (record.partition, record.key) for record in flat(found) if record.value == b"other"
    }
    assert len(flat(found)) == 2 * len(keys)


async def test_without_a_key_all_partitions_have_the_same_share(
    broker: KafkaBroker, topic: str, kafka_server: KafkaServer
) -> None:
    async with broker.connect() as connection:
        await connection.send(messages(topic, numbered(40, 10)))
        for message in messages(topic, numbered(30, 10)):
            await connection.send([message])
    found = await stored(kafka_server, topic)
    assert sum(len(records) for records in found.values()) == 70
    assert len(found) == _PARTITIONS
    assert all(len(records) >= 10 for records in found.values())


@pytest.mark.parametrize("most", [1, 2_000, 512 * 1024], ids=["one each", "a few each", "more than the server takes"])
async def test_the_order_of_a_key_stays_over_many_record_batches(
    make: Make, topic: str, kafka_server: KafkaServer, most: int
) -> None:
    broker, sent = make(client_options={"max_batch_size": most}), messages(topic, numbered(600, 500), keys=7)
    async with MessageBus(broker), broker.connect() as connection:
        await connection.send(sent[:450])
        await connection.send(sent[450:])
    found = by_key(flat(await stored(kafka_server, topic)))
    assert found == {f"key {key}".encode(): [one.body for one in sent[key::7]] for key in range(7)}


async def test_one_that_the_server_refuses_fails_alone(
    broker: KafkaBroker, topic: str, kafka_server: KafkaServer
) -> None:
    sent = numbered(50, 100)
    sent[20] += b"!" * 30_000
    async with broker.connect() as connection:
        await connection.send(messages(topic, [b"before"] * 8))  # all partitions know the producer
        with pytest.raises(PartialFailure) as caught:
            await connection.send(messages(topic, sent, keys=1))
        assert list(caught.value.errors) == [20]
        assert isinstance(caught.value.errors[20], MessageTooLarge)
        with pytest.raises(MessageTooLarge, match=topic):
            await connection.send(messages(topic, [sent[20]], keys=1))
        await connection.send(messages(topic, [b"after"], keys=1))
    found = by_key(flat(await stored(kafka_server, topic)))
    assert found[b"key 0"] == [*sent[:20], *sent[21:], b"after"]


async def test_a_refusal_that_nobody_waited_for_stops_nothing(
    broker: KafkaBroker, topic: str, kafka_server: KafkaServer
) -> None:
    async with broker.connect() as connection:
        await connection.send(messages(topic, [b"before"], keys=1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.send, messages(topic, [b"!" * 30_000], keys=1))
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        try:
            await connection.send(messages(topic, [b"behind"], keys=1))
        except Unavailable:  # it was numbered after the one that was refused; whoever publishes tries again
            await connection.send(messages(topic, [b"behind"], keys=1))
    assert bodies(flat(await stored(kafka_server, topic))) == [b"before", b"behind"]


async def test_one_that_is_larger_than_a_request_may_be_is_not_sent(
    make: Make, name: str, kafka_server: KafkaServer
) -> None:
    large = Outgoing(f"{name}.a", b"large", {"note": "x" * 200_000})
    fine = messages(f"{name}.a", numbered(6, 20_000))
    async with make(max_request_size=131_072).connect() as connection:
        with pytest.raises(PartialFailure) as caught:
            await connection.send([*fine[:3], large, *fine[3:]])
        assert list(caught.value.errors) == [3]
        with pytest.raises(MessageTooLarge, match="max_request_size"):
            await connection.send([large])
    found = flat(await stored(kafka_server, f"{name}.a"))
    assert sorted(bodies(found)) == [one.body for one in fine]


async def test_many_topics_at_once(broker: KafkaBroker, name: str, kafka_server: KafkaServer) -> None:
    topics = [f"{name}.t{number}" for number in range(12)]
    async with broker.connect() as connection:
        await connection.send([Outgoing(topic, body, {}) for body in numbered(30, 50) for topic in topics])
    for topic in topics:
        found = await stored(kafka_server, topic)
        assert sorted(bodies(flat(found))) == numbered(30, 50)
        assert {len(records) for records in found.values()} == {15}


async def test_headers_times_and_compression(make: Make, name: str, kafka_server: KafkaServer) -> None:
    async with make(compression_type="gzip").connect() as connection:
        await connection.send(
            [Outgoing(f"{name}.a", b"x" * 5_000, {"amb-id": str(at), "é": "ü"}, "k") for at in range(20)]
        )
    found = flat(await stored(kafka_server, f"{name}.a"))
    assert [dict(record.headers) for record in found] == [
        {"amb-id": str(at).encode(), "é": "ü".encode()} for at in range(20)
    ]
    assert all(record.timestamp > 1_700_000_000_000 and record.timestamp_type == 0 for record in found)


async def test_publishers_that_are_gone_do_not_disturb_the_others(
    broker: KafkaBroker, name: str, kafka_server: KafkaServer
) -> None:
    async with MessageBus(broker) as bus:
        await bus.publish(f"{name}.a", "first", wait_for_confirmation=True)
        for cancelled in range(5):
            async with anyio.create_task_group() as staying, anyio.create_task_group() as leaving:
                for number in range(50):
                    leaving.start_soon(bus.publish, f"{name}.a", f"leaving {cancelled} {number}")
                    staying.start_soon(bus.publish, f"{name}.a", f"staying {cancelled} {number}")
                await anyio.lowlevel.checkpoint()
                leaving.cancel_scope.cancel()
    counted = Counter(bodies(flat(await stored(kafka_server, f"{name}.a"))))
    assert set(counted.values()) == {1}
    assert {f'"staying {at} {number}"'.encode() for at in range(5) for number in range(50)} <= counted.keys()


async def test_a_topic_that_is_deleted_meanwhile_is_made_again(
    make: Make, topic: str, admin: AIOKafkaAdminClient, kafka_server: KafkaServer
) -> None:
    async with make(response_timeout=2.0).connect() as connection:
        await connection.send(messages(topic, numbered(20, 10)))
        await admin.delete_topics([topic])
        with anyio.fail_after(30):
            while topic in await admin.list_topics():  # the server hears of it a little after its controller
                await anyio.sleep(0.02)
            while True:
                try:
                    await connection.send(messages(topic, numbered(20, 10)))
                except (Unavailable, NotFound, PublishUnknown, PartialFailure):
                    continue
                break
    assert {record.value for record in flat(await stored(kafka_server, topic))} == set(numbered(20, 10))


@pytest.mark.timeout(180)
async def test_a_server_that_dies_under_a_hundred_publishers(own_kafka_server: KafkaServer, name: str) -> None:
    """Everything is confirmed in the end, and there once, in its publisher's order."""
    confirmed, enough = Counter[str](), anyio.Event()
    broker = KafkaBroker(own_kafka_server.address, partitions=3, response_timeout=2.0)

    async def publish(bus: MessageBus, key: str) -> None:
        while not enough.is_set():
            await bus.publish(f"{name}.a", confirmed[key], key=key, wait_for_confirmation=True)
            confirmed[key] += 1

    async def five_hundred_more() -> None:
        goal = confirmed.total() + 500
        while confirmed.total() < goal:
            await anyio.sleep(0.001)

    async with MessageBus(broker, publish_timeout=90.0) as bus, anyio.create_task_group() as publishers:
        for number in range(100):
            publishers.start_soon(publish, bus, f"p{number}")
        for stop in (own_kafka_server.process.kill, own_kafka_server.process.stop):
            await five_hundred_more()
            await anyio.to_thread.run_sync(stop)
            await anyio.to_thread.run_sync(own_kafka_server.process.start)
        await five_hundred_more()
        enough.set()
    found = by_key(flat(await stored(own_kafka_server, f"{name}.a")))
    assert found == {f"p{at}".encode(): [b"%d" % number for number in range(confirmed[f"p{at}"])] for at in range(100)}
