"""What a bus writes, and what it makes of what others write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from amb_core import InMemoryBroker, Message, MessageBus, MessagePriority
from amb_core.broker import NativeRequests, Outgoing

from ._golden import FOLDER, check, load
from .conftest import Wire

pytestmark = pytest.mark.anyio

AT = 1_700_000_000.25
PLAIN = Message("orders.created", {"id": 7, "name": "Zoë"}, id="m-1", timestamp=AT)
FULL = Message(
    "orders.paid",
    [1, 2.5, None, True],
    id="m-2",
    timestamp=AT,
    headers={"x-region": "eu", "Ünïcode": "✓"},
    metadata={"tries": [1, 2]},
    priority="critical",
    sender="shop",
    correlation_id="c-1",
    reply_to="orders.answers",
    ttl=60,
    trace_id="0af7651916cd43dd8448eb211c80319c",
    key="customer-9",
)


@pytest.mark.parametrize(("name", "message"), [("plain", PLAIN), ("full", FULL)])
async def test_a_published_message_is_its_golden_file(
    name: str, message: Message, wire: Wire, broker: InMemoryBroker
) -> None:
    async with MessageBus(broker) as bus:
        await bus.publish(message)
        check(name, await wire.next())


async def test_messagepack_is_its_golden_file(wire: Wire, broker: InMemoryBroker) -> None:
    async with MessageBus(broker, serializer="msgpack") as bus:
        await bus.publish(PLAIN)
        check("msgpack", await wire.next())


async def _received(name: str, broker: InMemoryBroker, wire: Wire) -> Message:
    """The golden file as a subscriber gets it."""
    got: list[Message] = []
    golden = load(name)
    async with MessageBus(broker) as bus:
        await bus.subscribe(golden.topic, got.append)
        await wire.connection.send([golden.outgoing()])
    assert len(got) == 1
    return got[0]


def _fields(message: Message) -> dict[str, Any]:
    names = "id topic data headers metadata timestamp priority sender correlation_id reply_to ttl trace_id key attempt"
    return {name: getattr(message, name) for name in names.split()}


@pytest.mark.parametrize(("name", "message"), [("plain", PLAIN), ("msgpack", PLAIN)])
async def test_a_golden_file_becomes_the_message(
    name: str, message: Message, wire: Wire, broker: InMemoryBroker
) -> None:
    assert _fields(await _received(name, broker, wire)) == _fields(message)


async def test_every_header_becomes_a_field(wire: Wire, broker: InMemoryBroker) -> None:
    got: list[Message] = []
    async with MessageBus(broker) as bus:
        await bus.subscribe(FULL.topic, got.append)
        # A golden file is old; were it not for this, it would have expired.
        await wire.connection.send([load("full").outgoing(**{"amb-expires": "99999999999"})])
    [message] = got
    assert _fields(message) == _fields(FULL)
    assert message.priority is MessagePriority.CRITICAL


async def test_what_has_expired_is_not_delivered(wire: Wire, broker: InMemoryBroker) -> None:
    async with MessageBus(broker) as bus:
        await bus.subscribe(FULL.topic, lambda message: pytest.fail("delivered"))
        await wire.connection.send([load("full").outgoing()])
    assert bus.stats.expired == 1


async def test_a_message_without_headers_is_a_message(wire: Wire, broker: InMemoryBroker) -> None:
    message = await _received("foreign", broker, wire)
    assert message.data == {"temperature": 21.5}
    assert (message.headers, message.metadata, message.sender) == ({}, {}, None)
    assert message.priority is MessagePriority.NORMAL
    assert message.id == message.position
    assert message.timestamp == 0.0


async def test_headers_of_others_are_the_users(wire: Wire, broker: InMemoryBroker) -> None:
    message = await _received("foreign-headers", broker, wire)
    assert message.data == {"temperature": 21.5}
    assert message.headers == {
        "X-Sensor": "roof",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }


@pytest.mark.parametrize(
    "headers",
    [
        {
            "amb-time": "yesterday",
            "amb-ttl": "soon",
            "amb-expires": "never",
            "amb-metadata": "[",
            "amb-priority": "top",
        },
        {
            "amb-metadata": "[1]",
            "amb-time": "",
            "amb-unknown": "from the future",
            "content-type": "application/json; charset=utf-8",
        },
    ],
)
async def test_headers_that_make_no_sense_count_as_missing(
    headers: dict[str, str], wire: Wire, broker: InMemoryBroker
) -> None:
    got: list[Message] = []
    async with MessageBus(broker) as bus:
        await bus.subscribe("sensors", got.append)
        await wire.connection.send([Outgoing("sensors", b"1", headers)])
    [message] = got
    assert (message.data, message.headers, message.metadata, message.ttl) == (1, {}, {}, None)
    assert (message.timestamp, message.priority) == (0.0, MessagePriority.NORMAL)


async def test_a_body_in_an_unknown_format_is_a_dead_letter(wire: Wire, broker: InMemoryBroker) -> None:
    async with MessageBus(broker, dead_letter_queue="failed") as bus:
        await bus.subscribe("sensors", lambda message: pytest.fail("delivered"))
        await wire.connection.send([Outgoing("sensors", b"<a/>", {"content-type": "application/xml"})])
        await wire.next()
        letter = await wire.next()
    assert (letter.topic, letter.body) == ("failed", b"<a/>")
    assert letter.headers["content-type"] == "application/xml"
    assert letter.headers["amb-dead-reason"] == "undecodable"


async def test_a_request_is_its_golden_file(wire: Wire, broker: InMemoryBroker) -> None:
    async with MessageBus(broker) as bus:

        @bus.responder("math.sum")
        async def add(request: Message) -> int:
            return sum(request.data)

        request = Message("math.sum", [1, 2, 3], id="q-1", timestamp=AT, correlation_id="c-1")
        assert await bus.request(request, timeout=10) == 6
        check("request", await wire.next())


@pytest.mark.parametrize(("golden", "data"), [("reply", [1, 2, 3]), ("reply-error", [1, "two"])])
async def test_a_reply_is_its_golden_file(golden: str, data: list[Any], wire: Wire, broker: InMemoryBroker) -> None:
    """The wire asks, as a client of another language would."""
    replies: list[Any] = []
    came = anyio.Event()

    def deliver(incoming: Any) -> None:
        replies.append(incoming)
        came.set()

    request = load("request")
    inbox = request.headers["amb-inbox"]
    assert isinstance(wire.connection, NativeRequests)
    bus = MessageBus(broker)

    @bus.responder("math.sum")
    async def add(request: Message) -> int:
        return sum(request.data)

    async with bus, wire.connection.inbox(inbox, deliver):
        asked = request.outgoing(**{"amb-expires": "99999999999"})
        asked.body = str(data).replace("'", '"').encode()
        await wire.connection.send([asked])
        with anyio.fail_after(10):
            await came.wait()
    check(golden, replies[0])


@pytest.mark.parametrize("golden", ["reply", "reply-error"])
async def test_a_golden_reply_is_an_answer(golden: str, wire: Wire, broker: InMemoryBroker) -> None:
    """The wire answers, as a responder of another language would."""
    outcome: list[object] = []
    async with MessageBus(broker) as bus:

        async def ask() -> None:
            try:
                outcome.append(await bus.request("math.sum", [1, 2, 3], timeout=10))
            except Exception as error:
                outcome.append(str(error))

        # Somebody has to be there, or the broker says at once that nobody is.
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            asked = await wire.next()
            answer = load(golden).outgoing(**{"amb-request": asked.headers["amb-request"]})
            answer.topic = asked.headers["amb-inbox"]
            await wire.connection.send([answer])
    [got] = outcome
    if golden == "reply":
        assert got == 6
    else:
        assert got == f"the responder on 'math.sum' failed: TypeError: {load(golden).bytes.decode()[1:-1]}".replace(
            '\\"', '"'
        )


async def test_a_dead_letter_is_its_golden_file(wire: Wire, broker: InMemoryBroker) -> None:
    async with MessageBus(broker, dead_letter_queue="failed") as bus:
        await bus.subscribe("orders.created", _unlucky, group="shop", retries=0)
        await bus.publish(PLAIN)
        await wire.next()
        check("dead-letter", await wire.next())


async def _unlucky(message: Message) -> None:
    raise ValueError("unlucky")


async def test_a_golden_dead_letter_can_be_read_and_put_back(wire: Wire, broker: InMemoryBroker) -> None:
    golden = load("dead-letter")
    async with MessageBus(broker, dead_letter_queue="failed") as bus:
        await wire.connection.send([golden.outgoing(**{"amb-expires": "99999999999"})])
        await wire.next()
        [letter] = await bus.dead_letters()
        assert (letter.id, letter.data) == ("m-1", PLAIN.data)
        assert (letter.info.topic, letter.info.group) == ("orders.created", "shop")
        assert (letter.info.error, letter.info.attempts) == ("ValueError: unlucky", 1)
        assert letter.info.first_time == AT
        assert await bus.retry_dead_letters() == 1
        check("put-back", await wire.next())


async def test_what_was_put_back_reaches_its_group_only(wire: Wire, broker: InMemoryBroker) -> None:
    got: list[str] = []
    async with MessageBus(broker) as bus:
        for group in ("shop", "audit", None):
            await bus.subscribe("orders.created", lambda message, to=group: got.append(to), group=group)
        await wire.connection.send([load("put-back").outgoing()])
    assert got == ["shop"]


def test_every_golden_file_is_used() -> None:
    source = Path(__file__).read_text() + Path(__file__).with_name("test_redis.py").read_text()
    unused = [path.stem for path in FOLDER.iterdir() if f'"{path.stem}"' not in source]
    assert unused == []
