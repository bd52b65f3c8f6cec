"""What is on the wire: pure functions, and a client that is not AMB."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import aio_pika
import anyio
import pytest
from aio_pika.abc import AbstractChannel
from amb_core import Message, MessageBus
from amb_core.broker import Outgoing, Source
from amb_core.errors import MessageTooLarge
from amb_rabbitmq import RabbitMQBroker
from amb_rabbitmq._wire import EXPRESS, Names, later, to_properties, units

from tests.core._help import Collector

pytestmark = pytest.mark.anyio


async def test_a_foreign_producer_needs_nothing_but_a_body(broker: RabbitMQBroker, native: AbstractChannel) -> None:
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe("orders.*", seen, group="shop")
        exchange = await native.get_exchange(broker.exchange)
        await exchange.publish(aio_pika.Message(json.dumps({"item": "tea"}).encode()), "orders.new")
        stamp = datetime(2025, 1, 2, tzinfo=UTC)
        await exchange.publish(
            aio_pika.Message(b"[1]", headers={"n": 5, "t": stamp}, content_type="application/json"),
            "orders.old",
        )
        [plain, rich] = await seen.wait(2)
    assert (plain.topic, plain.data, plain.headers, plain.attempt) == ("orders.new", {"item": "tea"}, {}, 1)
    assert rich.data == [1]
    assert rich.headers == {"n": "5", "t": stamp.isoformat()}


async def test_a_foreign_consumer_reads_plain_json(broker: RabbitMQBroker, native: AbstractChannel) -> None:
    async with MessageBus(broker, sender="me") as bus:
        await bus.connect()
        queue = await native.declare_queue(exclusive=True)
        await queue.bind(broker.exchange, "orders.#")
        id = await bus.publish("orders.new", {"item": "tea"}, headers={"trace": "ä"}, key="k", priority="low")
        got = await queue.get(timeout=5)
    assert got is not None
    assert json.loads(got.body) == {"item": "tea"}
    assert (got.routing_key, got.content_type, got.priority) == ("orders.new", "application/json", 1)
    assert got.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert (got.headers["amb-id"], got.headers["amb-sender"], got.headers["trace"]) == (id, "me", "ä")
    assert got.headers["x-amb"] == {"key": "k"}


async def test_a_foreign_client_asks_and_gets_its_answer(broker: RabbitMQBroker, native: AbstractChannel) -> None:
    """As the documentation says: an inbox is a queue of that name."""
    async with MessageBus(broker) as bus:

        @bus.responder("math")
        async def double(request: Message) -> int:
            return int(request.data) * 2

        await bus.connect()
        inbox = await native.declare_queue("_amb.inbox.foreign", exclusive=True)
        headers: dict[str, aio_pika.abc.HeadersType | str] = {
            "amb-id": "1", "amb-request": "r1", "amb-inbox": "_amb.inbox.foreign"
        }  # fmt: skip
        exchange = await native.get_exchange(broker.exchange)
        await exchange.publish(aio_pika.Message(b"21", headers=headers), "math")  # type: ignore[arg-type]
        with anyio.fail_after(5):
            while (answer := await inbox.get(fail=False)) is None:
                await anyio.sleep(0.02)
    assert answer.body == b"42"
    assert answer.headers["amb-request"] == "r1"


HEADERS = [
    {"plain": "text", "": "no name"},
    {"x-death": "mine", "x-amb": "mine", "CC": "mine", "BCC": "mine"},
    {"n" * 300: "a long name", "ümläut": "and text\nwith lines\x00"},
    {"content-type": "c" * 300},
    {"content-type": "application/json"},
]


@pytest.mark.parametrize("headers", HEADERS)
async def test_every_header_comes_back_as_it_was(broker: RabbitMQBroker, headers: dict[str, str]) -> None:
    """Also twice over: through a delay, and again through a retry."""
    from amb_core.broker import Settlement

    async with broker.connect() as connection, connection.open(Source(id="s", pattern="t.x", group="g")) as feed:
        await connection.send([Outgoing("t.x", b"body", dict(headers), key="k", not_before=1.0)])
        for attempt in (1, 2):
            with anyio.fail_after(5):
                while not (got := await feed.receive(1)):
                    pass
            assert (got[0].topic, got[0].headers, got[0].body) == ("t.x", headers, b"body")
            assert (got[0].key, got[0].attempt) == ("k", attempt)
            await feed.settle([Settlement(got[0].token, "retry" if attempt == 1 else "ack", 0.05, attempt)])


def test_headers_that_fit_into_no_frame_are_refused_before_the_network() -> None:
    with pytest.raises(MessageTooLarge, match="headers"):
        to_properties(Outgoing("t", b"", {"long": "x" * 130_000}))


@pytest.mark.parametrize("priority", range(6))
def test_a_larger_native_priority_is_more_urgent(priority: int) -> None:
    assert to_properties(Outgoing("t", b"", {}, priority=priority)).priority == 5 - priority


@pytest.mark.parametrize(
    ("delay", "count"), [(0, 0), (0.05, 1), (0.051, 2), (1, 20), (3600, 72_000), (1e12, 2**28 - 1)]
)
def test_a_delay_is_rounded_up_to_units(delay: float, count: int) -> None:
    assert units(delay) == count


def test_the_key_of_a_delayed_message_names_its_levels_bit_by_bit() -> None:
    properties = to_properties(Outgoing("a.b", b"", {}))
    key = later(properties, 5, "n", "a.b", "a.b")
    assert key == "_amb.n." + ".".join("0" * 25 + "101")
    assert len(key) < 256
    assert properties.headers == {"x-amb": {"topic": "a.b"}, "CC": ["a.b"]}


@pytest.mark.parametrize(
    ("group", "pattern", "name"),
    [
        ("shop", "orders.new", "amb.group/shop/orders.new"),
        ("shop", "orders.*.#", "amb.group/shop/orders.+.#"),
        ("two words", "orders.new", None),
        ("shop", "a+b", None),
        ("g" * 200, "t" * 60, None),
    ],
)
def test_queue_names_can_be_read_where_that_is_possible(group: str, pattern: str, name: str | None) -> None:
    made = Names("amb").queue(group, pattern, ordered=False)
    assert made == name if name else made.startswith("amb.group//")
    assert len(made + EXPRESS) <= 255


def test_queue_names_differ_where_groups_patterns_or_order_do() -> None:
    sources = [("a", "b.*", False), ("a", "b.+", False), ("a", "b.*", True), ("a/b", "c", False), ("a", "b/c", False)]
    assert len({Names("amb").queue(*source) for source in sources}) == len(sources)
