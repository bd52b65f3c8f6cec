"""Where a program, an event loop or an error is unusual: the bus says so, and goes on."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from amb_core import BackpressureError, DeadLetterQueue, Message, MessageBus, PublishUnknown, RetryPolicy
from amb_core.broker import Outgoing
from amb_core.errors import Unavailable

from tests.core._help import Collector, eventually, stays
from tests.core._scripted import ScriptedBroker, ScriptedConnection

DLQ = DeadLetterQueue("dead", max_retries=0)


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


@asynccontextmanager
async def connected(broker: ScriptedBroker, **options: Any) -> AsyncIterator[MessageBus]:
    given: dict[str, Any] = {"connect_timeout": 1, "publish_timeout": 2, "drain_timeout": 2, "dead_letter_queue": DLQ}
    async with MessageBus(broker, **(given | options)) as bus:
        yield bus


# --- event loops that end


def test_an_event_loop_that_was_closed_under_a_bus_does_not_keep_it(broker: ScriptedBroker) -> None:
    bus, collector = MessageBus(broker), Collector()
    bus.subscriber("t", group="g")(collector)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(bus.connect())
    tasks = asyncio.all_tasks(loop)
    loop.close()

    async def again() -> None:
        await bus.connect()
        (await broker.feed(2)).hand(2)
        await collector.wait()
        await bus.disconnect()

    asyncio.run(again())
    assert collector.data == [2]
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # the loop's owner forgot them, not the bus
    del tasks
    gc.collect()


def test_requests_work_in_a_second_event_loop_after_the_first_was_torn_down() -> None:
    bus = MessageBus()

    @bus.responder("r")
    async def answer(request: Message) -> int:
        return int(request.data) + 1

    async def ask(number: int) -> int:
        await bus.connect()
        return int((await bus.request("r", number, timeout=2)).data)

    assert [asyncio.run(ask(number)) for number in range(3)] == [1, 2, 3]


def test_a_handler_whose_trio_run_ends_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    trio = pytest.importorskip("trio")
    bus, begun = MessageBus(dead_letter_queue=DLQ), list[Any]()

    async def handler(message: Message) -> None:
        begun.append(message.data)
        await anyio.sleep_forever()

    async def main() -> None:
        await bus.subscribe("t", handler)
        for number in range(5):
            await bus.publish("t", number)
        await eventually(lambda: len(begun) == 5, "the handlers")

    trio.run(main)
    assert bus.stats.failed == 0


# --- settling from elsewhere


@pytest.mark.anyio
async def test_a_message_may_be_settled_from_any_thread(broker: ScriptedBroker) -> None:
    collector, errors = Collector(), list[BaseException]()

    def settle(message: Message) -> None:
        try:
            message.ack()
        except BaseException as error:
            errors.append(error)

    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g", ack_mode="manual")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        (message,) = await collector.wait()
        thread = threading.Thread(target=settle, args=(message,))
        thread.start()
        await eventually(lambda: not thread.is_alive(), "the thread")
        assert not errors
        await eventually(lambda: feed.verdicts() == [(token, "ack")], "the acknowledgement")


@pytest.mark.anyio
async def test_every_place_of_a_manual_subscription_is_freed_by_another_task(broker: ScriptedBroker) -> None:
    collector = Collector()
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g", ack_mode="manual", concurrency=2)
        feed = await broker.feed()
        feed.hand(1, 2, 3, 4)
        await collector.wait(2)
        await stays(lambda: len(collector.messages) == 2, "a third without a place", 0.1)
        for message in collector.messages:
            message.ack()
        await collector.wait(4)


@pytest.mark.anyio
async def test_synchronous_handlers_follow_a_change_of_concurrency(broker: ScriptedBroker) -> None:
    most, running, lock, go_on = 0, 0, threading.Lock(), threading.Event()

    def handler(message: Message) -> None:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        go_on.wait(5)
        with lock:
            running -= 1

    async with connected(broker) as bus:
        subscription = await bus.subscribe("t", handler, concurrency=1)
        subscription.set_concurrency(3)
        (await broker.feed()).hand(*range(6))
        try:
            await eventually(lambda: most == 3, lambda: f"three at once, not {most}", 5)
        finally:
            go_on.set()


# --- what cannot be said as it is


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [
        LookupError("two\nlines\r\nor three"),
        LookupError("half \ud800 a character"),
        LookupError("x" * 100_000),
        Unspeakable(),
    ],
    ids=["lines", "surrogate", "long", "unspeakable"],
)
async def test_any_error_can_be_written_on_a_dead_letter(broker: ScriptedBroker, error: Exception) -> None:
    async with connected(broker) as bus:
        await bus.subscribe("t", Collector(error), group="g")
        feed = await broker.feed()
        (token,) = feed.hand(1)
        await eventually(lambda: feed.verdicts() == [(token, "discard")], "the verdict", 3)
    (letter,) = broker.sent
    for value in letter.headers.values():
        assert len(value.encode()) < 8000 and "\n" not in value and "\r" not in value
    assert type(error).__name__ in letter.headers["amb-dead-error"]


@pytest.mark.anyio
async def test_any_reason_can_be_written_on_a_dead_letter(broker: ScriptedBroker) -> None:
    async def handler(message: Message) -> None:
        message.dead_letter("bad\nbad \udfff" + "x" * 100_000)

    async with connected(broker) as bus:
        await bus.subscribe("t", handler, group="g")
        feed = await broker.feed()
        feed.hand(1)
        await eventually(lambda: feed.settled, "the verdict", 3)
    (letter,) = broker.sent
    assert len(letter.headers["amb-dead-reason"].encode()) < 8000 and "\n" not in letter.headers["amb-dead-reason"]


@pytest.mark.anyio
async def test_a_retry_policy_with_a_bug_costs_the_message_its_retries_and_nothing_else(broker: ScriptedBroker) -> None:
    class Strange(RetryPolicy, frozen=True):
        def delay_after(self, attempt: int, error: BaseException) -> float | None:
            raise ZeroDivisionError("a bug in the policy")

    collector = Collector(LookupError("no"), failures=1)
    async with connected(broker) as bus:
        await bus.subscribe("t", collector, group="g", retry_policy=Strange())
        feed = await broker.feed()
        first, second = feed.hand(1, 2)
        await collector.wait(2)
        await eventually(lambda: len(feed.settled) == 2, "both verdicts", 3)
        assert bus.connected
    assert set(feed.verdicts()) == {(first, "discard"), (second, "ack")} and broker.topics() == ["dead"]


@pytest.mark.anyio
async def test_a_listener_that_fails_is_logged_and_concerns_nobody_else(
    broker: ScriptedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    async with connected(broker, dead_letter_queue=None) as bus:

        @bus.on("message.dropped")
        def broken(topic: str) -> None:
            raise ZeroDivisionError("in the listener")

        @bus.on("message.dropped")
        async def fine(topic: str) -> None:
            heard.append(topic)

        await bus.subscribe("t", Collector(LookupError("no")), group="g")
        (await broker.feed()).hand(1)
        await eventually(lambda: heard == ["t"], "the event")
    assert "in the listener" in caplog.text and "message.dropped" in caplog.text


# --- publishing


@pytest.mark.anyio
async def test_a_full_queue_of_the_broker_is_not_reported_as_unknown(broker: ScriptedBroker) -> None:
    async def full(connection: ScriptedConnection, batch: Sequence[Outgoing]) -> None:
        raise BackpressureError("the queue is full")

    broker.on_send = full
    async with connected(broker) as bus:
        with pytest.raises(BackpressureError):
            await bus.publish("t", 1)


@pytest.mark.anyio
async def test_cancelled_publishers_cost_the_others_nothing(broker: ScriptedBroker) -> None:
    hung = anyio.Event()

    async def hang(connection: ScriptedConnection, batch: Sequence[Outgoing]) -> None:
        await hung.wait()

    broker.on_send = hang
    async with connected(broker) as bus, anyio.create_task_group() as group:
        group.start_soon(bus.publish, "first", 1)
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(0.1):
            async with anyio.create_task_group() as cancelled:
                for number in range(3):
                    cancelled.start_soon(bus.publish, "cancelled", number)
        group.start_soon(bus.publish, "last", 1)
        hung.set()
        await eventually(lambda: "last" in broker.topics(), "the last one")


@pytest.mark.anyio
async def test_a_publisher_that_is_cancelled_in_an_outage_leaves_no_empty_batch(broker: ScriptedBroker) -> None:
    async def away(connection: ScriptedConnection, batch: Sequence[Outgoing]) -> None:
        raise Unavailable("busy")

    broker.on_send = away
    async with connected(broker) as bus:
        with anyio.move_on_after(0.1):
            await bus.publish("t", 1)
        broker.on_send = ScriptedBroker().on_send
        await bus.publish("t", 2)
    assert "t" in broker.topics()


@pytest.mark.anyio
async def test_a_silent_broker_leaves_the_publisher_with_an_unknown_outcome(broker: ScriptedBroker) -> None:
    async def silent(connection: ScriptedConnection, batch: Sequence[Outgoing]) -> None:
        await anyio.sleep_forever()

    broker.on_send = silent
    async with connected(broker, publish_timeout=0.2) as bus:
        with pytest.raises(PublishUnknown, match=r"within 0\.2 s"):
            await bus.publish("t", 1)


@pytest.mark.anyio
async def test_a_responder_answers_one_request_at_a_time(broker: ScriptedBroker) -> None:
    async with connected(broker) as bus:
        with pytest.raises(ValueError, match="batch"):
            await bus.subscribe("t", Collector(), responds=True, ack_mode="batch")
