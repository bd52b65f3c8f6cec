"""Asking and answering: four ways to answer, private replies, errors at once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from amb_core import (
    BusClosed,
    InMemoryBroker,
    Message,
    MessageBus,
    NoResponders,
    RemoteError,
    Request,
    RequestTimeout,
    Response,
)

from tests.core._help import DLQ, Collector, dead_letters, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus() as bus:
        yield bus


class Ways:
    """A responder that doubles its request's data, for each documented way to answer."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus

    async def subscribe(self, way: str) -> None:
        if way.startswith("bus.reply"):
            await self.bus.subscribe("r", getattr(self, way.replace(".", "_").replace(" ", "_")))
        else:
            self.bus.responder("r")(getattr(self, way.replace(" ", "_")))

    async def returned(self, request: Request) -> int:
        return int(request.data) * 2

    def returned_by_a_function(self, request: Request) -> int:
        return int(request.data) * 2

    async def injected(self, request: Request, reply: Response) -> None:
        await reply.send(request.data * 2)

    async def injected_by_type(self, request: Request, answer: Response) -> None:
        await answer.send(request.data * 2)

    async def injected_and_returned(self, request: Request, reply: Response) -> int:
        return int(request.data) * 2

    async def bus_reply_with_message(self, message: Message) -> None:
        await self.bus.reply(message, message.payload * 2)

    async def bus_reply_with_id(self, message: Message) -> None:
        await self.bus.reply(message.id, message.payload * 2)


WAYS = ["returned", "returned by a function", "injected", "injected by type", "injected and returned",
        "bus.reply with message", "bus.reply with id"]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_to_answer_answers_once(bus: MessageBus, way: str) -> None:
    await Ways(bus).subscribe(way)
    reply = await bus.request("r", 3, timeout=5)
    assert (reply.data, reply.payload, reply.topic) == (6, 6, "r")
    assert reply == 6
    await eventually(lambda: bus.stats.acked == 1, "the request to be settled")
    assert bus.stats.late_replies == 0


async def test_every_spelling_of_a_request_asks_the_same(bus: MessageBus) -> None:
    await Ways(bus).subscribe("returned")
    replies = [
        await bus.request("r", 3),
        await bus.request("r", 3, 5.0),
        await bus.request("r", message=3, timeout=5),
        await bus.request(topic="r", message=3, timeout=5.0),
        await bus.request("r", payload=3, timeout=5.0),
        await bus.request(topic="r", data=3, timeout=5.0),
        await bus.request(Message(topic="r", payload=3), timeout=5.0),
        await bus.request(Message("r", 3)),
    ]
    assert [reply.data for reply in replies] == [6] * len(replies)


@pytest.mark.parametrize("value", [6, "text", None, [], {"a": None}, 1.5, False])
async def test_a_reply_is_any_value(bus: MessageBus, value: Any) -> None:
    bus.responder("r")(lambda request: value)
    assert (await bus.request("r", 1, timeout=5)).data == value


async def test_the_users_correlation_id_stays_on_both_messages(bus: MessageBus) -> None:
    asked: list[str | None] = []

    @bus.responder("r")
    async def answer(request: Request) -> int:
        asked.append(request.correlation_id)
        return 1

    reply = await bus.request("r", 1, timeout=5, correlation_id="calc-001")
    assert (asked, reply.correlation_id) == (["calc-001"], "calc-001")


async def test_requests_with_one_correlation_id_do_not_take_each_others_replies(bus: MessageBus) -> None:
    @bus.responder("r", concurrency=50)
    async def answer(request: Request) -> int:
        await anyio.sleep(0.001 * (request.data % 7))
        return int(request.data)

    replies: dict[int, Any] = {}

    async def ask(number: int) -> None:
        replies[number] = (await bus.request("r", number, timeout=5, correlation_id="same")).data

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(ask, number)
    assert replies == {number: number for number in range(50)}


async def test_replies_travel_on_no_public_topic(bus: MessageBus) -> None:
    everything = Collector()
    await bus.subscribe("#", everything)
    await Ways(bus).subscribe("returned")
    await bus.request("r", 3, timeout=5)
    await bus.publish("last", "last")
    await eventually(lambda: "last" in everything.data, "the last message")
    assert everything.data == [3, "last"]


async def test_two_buses_of_one_broker_ask_and_answer_each_other() -> None:
    broker = InMemoryBroker()
    async with MessageBus(broker) as one, MessageBus(broker) as two:
        await Ways(two).subscribe("returned")
        assert (await one.request("r", 21, timeout=5)).data == 42


async def test_nobody_there_is_told_at_once(bus: MessageBus) -> None:
    begin = time.monotonic()
    with pytest.raises(NoResponders, match="'nobody'"):
        await bus.request("nobody", 1, timeout=30)
    assert time.monotonic() - begin < 2


async def test_a_silent_subscriber_times_out_with_an_error_that_names_the_topic(bus: MessageBus) -> None:
    await bus.subscribe("silent", Collector())
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"'silent' within 0\.1 s") as caught:
        await bus.request("silent", 1, timeout=0.1)
    assert isinstance(caught.value, RequestTimeout) and time.monotonic() - begin < 2


async def test_a_failing_responder_reaches_its_caller_at_once_and_makes_no_dead_letter() -> None:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        dead = await dead_letters(bus)

        @bus.responder("r", retries=3, retry_delay=0)
        async def fails(request: Request) -> None:
            raise LookupError("not found")

        with pytest.raises(RemoteError, match="LookupError: not found") as caught:
            await bus.request("r", 1, timeout=30)
    assert (caught.value.type, caught.value.text, caught.value.topic) == ("LookupError", "not found", "r")
    assert dead.messages == [] and bus.stats.retried == 0


async def test_reply_error_reaches_the_caller_as_a_remote_error(bus: MessageBus) -> None:
    @bus.responder("r")
    async def fails(request: Request, reply: Response) -> None:
        await reply.error("division by zero")

    with pytest.raises(RemoteError, match="division by zero"):
        await bus.request("r", 1, timeout=30)


async def test_a_responder_also_handles_messages_that_ask_nothing(bus: MessageBus) -> None:
    seen: list[Any] = []

    @bus.responder("r")
    async def answer(request: Request) -> int:
        seen.append(request.data)
        return 1

    await bus.publish("r", "no question")
    await eventually(lambda: seen == ["no question"], "the message")


@pytest.mark.parametrize("request_", ["unknown-id", Message("r", 1)])
async def test_replying_to_what_is_no_request_is_an_error(bus: MessageBus, request_: Any) -> None:
    with pytest.raises(ValueError, match="request"):
        await bus.reply(request_, 1)


async def test_replying_to_a_plain_message_says_that_nobody_waits(bus: MessageBus) -> None:
    errors: list[str] = []

    async def handler(message: Message) -> None:
        try:
            await bus.reply(message, 1)
        except ValueError as error:
            errors.append(str(error))

    await bus.subscribe("t", handler)
    await bus.publish("t", 1)
    await eventually(lambda: errors, "the error")
    assert "'t'" in errors[0] and "nobody waits" in errors[0]


async def test_responders_of_one_group_share_requests_and_others_race(bus: MessageBus) -> None:
    calls: list[str] = []

    def responder(name: str) -> Any:
        async def answer(request: Request) -> str:
            calls.append(name)
            return name

        return answer

    bus.responder("shared", group="workers")(responder("a"))
    bus.responder("shared", group="workers")(responder("b"))
    for number in range(10):
        await bus.request("shared", number, timeout=5)
    assert len(calls) == 10


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
async def test_a_timeout_is_positive(bus: MessageBus, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        await bus.request("r", 1, timeout=timeout)


async def test_a_cancelled_request_leaves_nothing_behind(bus: MessageBus) -> None:
    await bus.subscribe("silent", Collector())
    with anyio.move_on_after(0.05):
        await bus.request("silent", 1, timeout=30)
    assert bus.requests._asked == {}


async def test_a_request_that_waits_when_its_bus_is_left_says_so(bus: MessageBus) -> None:
    other = MessageBus(bus.broker)
    await bus.subscribe("silent", Collector())
    outcome: list[type[BaseException]] = []

    async def ask() -> None:
        try:
            await other.request("silent", 1, timeout=60)
        except Exception as error:
            outcome.append(type(error))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await eventually(lambda: bus.stats.delivered == 1, "the request")
            await other.disconnect()
    assert outcome == [BusClosed]
