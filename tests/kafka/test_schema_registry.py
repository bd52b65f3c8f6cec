"""Bodies whose schemas a registry keeps: written, read, changed, refused, and waited for."""

from __future__ import annotations

import json
import random
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest
import trustme
from aiokafka import AIOKafkaProducer
from amb_core import (
    AuthenticationError,
    AvroSerializer,
    BrokerUnavailable,
    ConfigurationError,
    DecodeError,
    EncodeError,
    IncompatibleSchema,
    JsonSerializer,
    MessageBus,
    NotFound,
    ProtobufSerializer,
)
from amb_core.broker import Incoming
from amb_core.serializer import Described, Schema
from amb_kafka import KafkaBroker
from amb_kafka._registry import Registry
from amb_kafka._schemas import Schemas
from amb_kafka._wire import Names

from tests.core._help import DLQ, Collector, eventually
from tests.servers.kafka import KafkaServer
from tests.servers.registry import PASSWORD, TOKEN, Front, SchemaRegistry

from .test_foreign import read

pytestmark = pytest.mark.anyio
Make = Callable[..., KafkaBroker]
MEDIA = "application/avro"


class Line(msgspec.Struct):
    sku: str
    count: int = 1


class Order(msgspec.Struct):
    id: str
    total: float
    lines: list[Line] = []
    note: str | None = None


ORDER = Order("o-1", 9.5, [Line("tea"), Line("milk", 2)])


def record(name: str, **fields: Any) -> str:
    """The JSON of a record's schema; a field is a type, or a type and a default."""
    made = [
        {"name": field, "type": kind[0], "default": kind[1]}
        if isinstance(kind, tuple)
        else {"name": field, "type": kind}
        for field, kind in fields.items()
    ]
    return json.dumps({"type": "record", "name": name, "fields": made})


async def test_an_object_comes_as_it_was_and_its_schema_is_registered(
    registered: Make, name: str, kafka_server: KafkaServer, schema_registry: SchemaRegistry
) -> None:
    topic, typed, plain = f"{name}.orders", list[Order](), Collector()

    async def handle(order: Order) -> None:
        typed.append(order)

    async with MessageBus(registered(), serializer="avro") as bus:
        await bus.subscribe(topic, handle)
        await bus.subscribe(topic, plain, group="workers")
        await bus.publish(topic, ORDER)
        await bus.publish(topic, Order("o-2", 1), headers={"h": "v"}, key="k")
        await plain.wait(2)
        await eventually(lambda: len(typed) == 2, "not all came", 15)
        replayed = [message.data async for message in bus.replay(topic)]
    assert replayed == [msgspec.to_builtins(ORDER), msgspec.to_builtins(Order("o-2", 1))]
    # Each from a partition of its own, perhaps.
    assert sorted(typed, key=lambda order: order.id) == [ORDER, Order("o-2", 1)]
    assert sorted(plain.data, key=lambda data: data["id"]) == replayed
    known = schema_registry.ask("GET", f"/subjects/{topic}-value/versions/latest")
    body = (await read(kafka_server, topic)).value
    assert body[:5] == b"\0" + known["id"].to_bytes(4, "big")
    assert json.loads(known["schema"])["name"] == "Order"


async def test_a_request_and_its_reply(registered: Make, name: str) -> None:
    async with (
        MessageBus(registered(), serializer="avro") as bus,
        MessageBus(registered(), serializer="avro") as caller,
    ):

        @bus.responder(f"{name}.total")
        def total(order: Order) -> float:
            return order.total * 2

        @bus.responder(f"{name}.fails")
        def fails(order: Order) -> float:
            raise RuntimeError("no stock")

        await bus.connect()
        assert (await caller.request(f"{name}.total", ORDER, timeout=15)).data == 19
        answers = await caller.scatter(f"{name}.total", ORDER, timeout=15, max_responses=1)
        assert [answer.data for answer in answers] == [19]
        with pytest.raises(Exception, match="no stock"):
            await caller.request(f"{name}.fails", ORDER, timeout=15)


async def test_one_question_for_each_schema_however_many_ask(registered: Make, name: str, front: Front) -> None:
    got = Collector()
    async with (
        MessageBus(registered(), serializer="avro") as bus,
        MessageBus(registered(), serializer="avro") as reader,
    ):
        await reader.subscribe(f"{name}.orders", got)
        front.go.clear()
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(bus.publish, f"{name}.orders", ORDER)
            await eventually(lambda: bool(front.asked), "nobody asked the registry", 10)
            front.go.set()
        for _ in range(30):
            await bus.publish(f"{name}.orders", ORDER)
        await got.wait(50)
    assert [method for method, _ in front.asked] == ["POST", "GET"]


async def test_a_schema_that_may_not_follow_is_the_publishers_error(
    registered: Make, name: str, schema_registry: SchemaRegistry
) -> None:
    topic = f"{name}.orders"
    schema_registry.ask(
        "POST", f"/subjects/{topic}-value/versions", {"schema": record("Order", id="long", total="long")}
    )
    async with MessageBus(registered(), serializer="avro") as bus:
        with pytest.raises(IncompatibleSchema, match=f"Order as the subject '{topic}-value'.*409") as caught:
            await bus.publish(topic, ORDER)
        assert isinstance(caught.value, EncodeError) and "\n" not in str(caught.value)
        # The bus goes on, and so do other topics.
        await bus.publish(f"{name}.other", ORDER)
    assert len(schema_registry.ask("GET", f"/subjects/{topic}-value/versions")) == 1


async def test_a_field_that_is_new_has_its_default_and_one_that_is_gone_does_not_matter(
    registered: Make, name: str
) -> None:
    old = AvroSerializer(record("Task", id="string", gone=("string", "")))
    newer = record("Task", id="string", added=("long", 7))
    got, as_is = Collector(), Collector()
    async with (
        MessageBus(registered(), serializer=old) as writer,
        MessageBus(registered(), serializer=AvroSerializer(newer)) as new,
        MessageBus(registered(), serializer="avro") as other,
    ):
        await new.subscribe(f"{name}.tasks", got)
        await other.subscribe(f"{name}.tasks", as_is)
        await writer.publish(f"{name}.tasks", {"id": "a", "gone": "x"})
        await new.publish(f"{name}.tasks", {"id": "b", "added": 1})
        await got.wait(2)
        await as_is.wait(2)
    assert sorted(got.data, key=str) == [{"id": "a", "added": 7}, {"id": "b", "added": 1}]
    assert sorted(as_is.data, key=str) == [{"id": "a", "gone": "x"}, {"id": "b", "added": 1}]


async def test_a_dict_is_written_by_the_topics_latest_schema(
    registered: Make, name: str, schema_registry: SchemaRegistry
) -> None:
    topic, got = f"{name}.tasks", Collector()
    body = {"schema": record("Task", id="string", note=(["null", "string"], None))}
    schema_registry.ask("POST", f"/subjects/{topic}-value/versions", body)
    async with MessageBus(registered(), serializer="avro") as bus:
        await bus.subscribe(topic, got)
        await bus.publish(topic, {"id": "a"})
        with pytest.raises(EncodeError, match="zz"):
            await bus.publish(topic, {"id": "a", "zz": 1})
        with pytest.raises(NotFound, match=f"{name}.unknown-value.*register it first"):
            await bus.publish(f"{name}.unknown", {"id": "a"})
        await got.wait()
    assert got.data == [{"id": "a", "note": None}]


async def test_nothing_is_registered_where_that_is_not_wanted(
    registered: Make, name: str, schema_registry: SchemaRegistry
) -> None:
    topic, got = f"{name}.orders", Collector()
    async with MessageBus(registered(schema_registry_mode="lookup"), serializer="avro") as bus:
        with pytest.raises(NotFound, match=r"Order in the subject .*schema_registry_mode='register'"):
            await bus.publish(topic, ORDER)
        assert f"{topic}-value" not in schema_registry.ask("GET", "/subjects")
        async with MessageBus(registered(), serializer="avro") as other:
            await other.publish(topic, ORDER)
        await bus.subscribe(topic, got)
        await bus.publish(topic, ORDER)
        await got.wait()
    wider = record("Order", id="string", total="double", more=("long", 3))
    latest = f"{name}.latest"
    schema_registry.ask("POST", f"/subjects/{latest}-value/versions", {"schema": wider})
    async with MessageBus(registered(schema_registry_mode="latest"), serializer="avro") as bus:
        got = Collector()
        await bus.subscribe(latest, got)
        with pytest.raises(EncodeError, match="lines"):  # the latest has no place for it
            await bus.publish(latest, ORDER)
        await bus.publish(latest, {"id": "a", "total": 1.5})
        await got.wait()
    assert got.data == [{"id": "a", "total": 1.5, "more": 3}]


@pytest.mark.parametrize(("style", "subject"), [("record", "{record}"), ("topic-record", "{topic}-{record}")])
async def test_subjects_may_be_named_after_records(
    registered: Make, name: str, schema_registry: SchemaRegistry, style: str, subject: str
) -> None:
    one, two = (record(f"{name}_{style.replace('-', '_')}_{kind}", id="string") for kind in ("a", "b"))
    broker, topic, got = registered(schema_registry_subjects=style), f"{name}.mixed", Collector()
    async with (
        MessageBus(broker, serializer=AvroSerializer(one)) as bus,
        MessageBus(broker, serializer=AvroSerializer(two)) as other,
    ):
        await other.subscribe(topic, got)
        await bus.publish(topic, {"id": "a"})
        await other.publish(topic, {"id": "b"})
        await got.wait(2)
        with pytest.raises(EncodeError, match="must say its schema"):
            async with MessageBus(broker, serializer="avro") as without:
                await without.publish(topic, {"id": "a"})
    subjects = schema_registry.ask("GET", "/subjects")
    for schema in (one, two):
        assert subject.format(topic=topic, record=json.loads(schema)["name"]) in subjects


async def test_damaged_bytes_and_unknown_ids_are_dead_letters(
    registered: Make, name: str, kafka_server: KafkaServer
) -> None:
    topic, got = f"{name}.orders", Collector()
    queue = msgspec.structs.replace(DLQ, topic=f"{name}.dead")
    async with MessageBus(registered(), serializer="avro", dead_letter_queue=queue) as bus:
        await bus.subscribe(topic, got, group="workers")
        await bus.publish(topic, ORDER)
        await got.wait()
        good = (await read(kafka_server, topic)).value
        bodies = [b"", b"\0", b"plain text", b"\0\x7f\xff\xff\xff\x02", good[:-1], good + b"\0", b"\1" + good[1:]]
        producer = AIOKafkaProducer(bootstrap_servers=kafka_server.address)
        await producer.start()
        try:
            for body in (*bodies, good):
                await producer.send_and_wait(topic, body)
        finally:
            await producer.stop()
        await got.wait(2)
        await eventually(lambda: bus.stats.dead_lettered == len(bodies), "not all are dead letters", 15)
        letters = await bus.dead_letters(queue.topic)
    assert len(letters) == len(bodies)
    texts = " ".join(letter.info.error for letter in letters)
    assert "2147483647" in texts and "does not begin with a 0" in texts
    assert len(got.messages) == 2


async def test_a_registry_that_is_away_for_a_while_makes_no_dead_letters(
    registered: Make, name: str, front: Front, schema_registry: SchemaRegistry
) -> None:
    topic, got, live = f"{name}.orders", Collector(), Collector()
    queue = msgspec.structs.replace(DLQ, topic=f"{name}.dead")
    reader = registered()
    away = Front(schema_registry)
    writer = registered(schema_registry_url=away.url)
    async with (
        MessageBus(reader, serializer="avro", dead_letter_queue=queue) as bus,
        MessageBus(writer, serializer="avro") as other,
    ):
        await bus.subscribe(topic, got, group="workers")
        await bus.subscribe(topic, live)
        # Who publishes waits for it too, at most the publish timeout.
        async with anyio.create_task_group() as group:
            group.start_soon(other.publish, topic, ORDER)
            await anyio.wait_all_tasks_blocked()
            with ExitStack() as stack:
                stack.enter_context(away.up())
                front.status = 503
                await eventually(lambda: other.stats.published == 1, "it was not published", 15)
                asked = len(front.asked)
                await eventually(lambda: len(front.asked) >= asked + 3, "nobody tries again", 15)
        assert (got.data, live.data, bus.stats.failed) == ([], [], 0)
        assert "503" in (await bus.health()).details["schema registry"]
        front.status = 0
        await got.wait()
        await live.wait()
        assert bus.stats.dead_lettered == 0 and got.messages[0].attempt == 1
        assert (await bus.health()).details["schema registry"] == "no complaints"


async def test_a_registry_that_stays_away_is_one_line_for_the_publisher(
    registered: Make, name: str, schema_registry: SchemaRegistry
) -> None:
    broker = registered(schema_registry_url=Front(schema_registry).url)
    async with MessageBus(broker, serializer="avro", publish_timeout=2.0) as bus:
        with pytest.raises(
            BrokerUnavailable, match=r"schema registry at http://127.0.0.1:\d+/.* cannot be reached"
        ) as out:
            await bus.publish(f"{name}.orders", ORDER)
    assert "\n" not in str(out.value) and PASSWORD not in str(out.value)


async def test_a_registry_that_hangs_is_given_up(registered: Make, name: str, front: Front) -> None:
    front.go.clear()
    for response_timeout, problem in ((1.0, r"cannot be reached: \w+Timeout"), (10.0, "could not be had within 3 s")):
        broker = registered(response_timeout=response_timeout)
        async with MessageBus(broker, serializer="avro", publish_timeout=3.0) as bus:
            with pytest.raises(BrokerUnavailable, match=problem):
                await bus.publish(f"{name}.orders", ORDER)


async def test_a_wrong_password_is_said_at_once_and_never_shown(registered: Make, name: str, front: Front) -> None:
    broker = registered(schema_registry_password="wrong-horse")
    async with MessageBus(broker, serializer="avro") as bus:
        with pytest.raises(AuthenticationError, match="check schema_registry_username") as caught:
            await bus.publish(f"{name}.orders", ORDER)
    assert len(front.asked) == 1
    for text in (str(caught.value), repr(broker)):
        assert "wrong-horse" not in text and "\n" not in text
    inside = front.url.replace("://", "://amb:correct-horse@")
    broker = registered(schema_registry_url=inside, schema_registry_username=None, schema_registry_password=None)
    assert PASSWORD not in repr(broker)
    async with MessageBus(broker, serializer="avro") as bus:
        await bus.publish(f"{name}.orders", ORDER)


async def test_other_serializers_travel_as_they_are_and_read_what_is_framed(
    registered: Make, name: str, kafka_server: KafkaServer
) -> None:
    topic, got, avro = f"{name}.mixed", Collector(), Collector()
    async with MessageBus(registered()) as bus, MessageBus(registered(), serializer="avro") as other:
        assert isinstance(bus.codec.serializer, JsonSerializer)
        await bus.subscribe(topic, got)
        await other.subscribe(topic, avro)
        await bus.publish(topic, {"a": 1})
        await other.publish(topic, Line("tea"))
        await got.wait(2)
        await avro.wait(2)
    for one in (got, avro):
        assert sorted(one.data, key=str) == [{"a": 1}, {"sku": "tea", "count": 1}]


async def test_without_a_registry_a_framed_body_says_what_is_missing(registered: Make, make: Make, name: str) -> None:
    queue = msgspec.structs.replace(DLQ, topic=f"{name}.dead")
    async with (
        MessageBus(make(), serializer="avro", dead_letter_queue=queue) as bus,
        MessageBus(registered(), serializer="avro") as other,
    ):
        await bus.subscribe(f"{name}.orders", Collector())
        await other.publish(f"{name}.orders", ORDER)
        await eventually(lambda: bus.stats.dead_lettered == 1, "it is no dead letter", 15)
        letters = await bus.dead_letters(queue.topic)
        assert "kept elsewhere" in letters[0].info.error
        # Without a registry, two buses of one program understand each other all the same.
        got = Collector()
        await bus.subscribe(f"{name}.plain", got)
        await bus.publish(f"{name}.plain", ORDER)
        assert (await got.wait())[0].data == msgspec.to_builtins(ORDER)


async def test_a_dead_letter_comes_back_as_it_was(registered: Make, name: str) -> None:
    got = Collector(RuntimeError("not now"), failures=1)
    queue = msgspec.structs.replace(DLQ, topic=f"{name}.dead")
    async with MessageBus(registered(), serializer="avro", dead_letter_queue=queue) as bus:
        await bus.subscribe(f"{name}.orders", got, group="workers")
        await bus.publish(f"{name}.orders", ORDER)
        await eventually(lambda: bus.stats.dead_lettered == 1, "it is no dead letter", 15)
        assert await bus.retry_dead_letters() == 1
        await got.wait(2)
    assert got.data == [msgspec.to_builtins(ORDER)] * 2


async def test_tls_with_certificates_on_both_sides_and_a_token(
    make: Make, name: str, schema_registry: SchemaRegistry, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    own = authority.issue_cert("amb")
    own.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    front = Front(schema_registry, context)
    trusts = make(
        schema_registry_url=front.url, schema_registry_token=TOKEN, schema_registry_cafile=str(tmp_path / "ca.pem")
    )
    known = msgspec.structs.replace(
        trusts, schema_registry_certfile=str(tmp_path / "cert.pem"), schema_registry_keyfile=str(tmp_path / "key.pem")
    )
    assert TOKEN not in repr(known)
    with front.up():
        async with MessageBus(known, serializer="avro") as bus:
            await bus.publish(f"{name}.orders", ORDER)
        # Without the client's certificate, and without the authority.
        for broker in (trusts, make(schema_registry_url=front.url, schema_registry_token=TOKEN)):
            async with MessageBus(broker, serializer="avro", publish_timeout=2.0) as bus:
                with pytest.raises(BrokerUnavailable, match="cannot be reached") as caught:
                    await bus.publish(f"{name}.orders", ORDER)
            assert TOKEN not in str(caught.value)
    with pytest.raises(ConfigurationError, match="schema_registry_cafile"):
        async with MessageBus(make(schema_registry_url=front.url, schema_registry_cafile="/nowhere")):
            pass


async def test_what_is_no_registry_says_so(make: Make, name: str, schema_registry: SchemaRegistry) -> None:
    broker = make(schema_registry_url=f"http://127.0.0.1:{schema_registry.port}/nothing/here")
    async with MessageBus(broker, serializer="avro") as bus:
        with pytest.raises(ConfigurationError, match=r"is schema_registry_url right\?"):
            await bus.publish(f"{name}.orders", ORDER)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"schema_registry_url": "registry:8081"}, "is a URL such as"),
        ({"schema_registry_url": "kafka://u:hidden@registry"}, r"not 'kafka://u:\*\*\*@registry'"),
        ({"schema_registry_username": "u", "schema_registry_password": "p"}, "needs schema_registry_url"),
        ({"schema_registry_url": "http://r", "schema_registry_username": "u"}, "belong together"),
        ({"schema_registry_url": "http://u:p@r", "schema_registry_token": "t"}, "two ways"),
        ({"schema_registry_url": "https://r", "schema_registry_certfile": "c"}, "belong together"),
        ({"schema_registry_url": "http://r", "schema_registry_cafile": "c"}, "https://"),
        ({"schema_registry_mode": "sometimes"}, "schema_registry_mode"),
        ({"schema_registry_subjects": "any"}, "schema_registry_subjects"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        KafkaBroker(**options)
    assert "hidden" not in str(caught.value)


def test_the_address_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMB_SCHEMA_REGISTRY_URL", "http://registry:8081")
    monkeypatch.setenv("AMB_KAFKA_SCHEMA_REGISTRY_MODE", "lookup")
    monkeypatch.setenv("AMB_SERIALIZER", "avro")
    bus = MessageBus("kafka")
    assert isinstance(bus.broker, KafkaBroker) and isinstance(bus.codec.serializer, AvroSerializer)
    assert (bus.broker.schema_registry_url, bus.broker.schema_registry_mode) == ("http://registry:8081", "lookup")


def test_ten_thousand_frames_name_a_schema_or_a_problem() -> None:
    """What stands before a payload may be anybody's, too."""
    described = Schemas(KafkaBroker(schema_registry_url="http://r"), Names({}), cast(Registry, None))
    described._read[1], described._read[2] = Schema("avro", '"long"'), Schema("protobuf", "message A {}")
    serializers: dict[str, Described] = {"avro": AvroSerializer(), "protobuf": ProtobufSerializer()}
    chance, seen = random.Random(7), Counter[str]()

    async def look(body: bytes) -> None:
        incoming = Incoming("t", body, {}, 1)
        await described.look_up(incoming)
        framed = incoming.framed
        assert framed is not None and 0 <= framed.start <= len(body)
        if framed.schema is None:
            assert framed.problem
            seen["problem"] += 1
            return
        try:
            serializers[framed.schema.format].decoder_of(framed.schema, Any)(body[framed.start :])
            seen["value"] += 1
        except DecodeError as error:
            assert len(str(error)) < 2000
            seen[framed.schema.format] += 1

    async def run() -> None:
        for _ in range(10_000):
            begin = chance.choice([b"\0\0\0\0\2\0", b"\0\0\0\0\1", b"\0\0\0\0\2", b"\1\0\0\0\1", b"\0\0\0", b""])
            await look(begin + chance.randbytes(chance.randrange(12)) if begin[4:] else begin)

    anyio.run(run)
    assert min(seen[kind] for kind in ("problem", "value", "avro", "protobuf")) > 100, seen
