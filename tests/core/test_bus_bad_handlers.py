"""Handlers that misbehave cost their own message, never another one, and never the bus."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import anyio
import pytest
from amb_core import AckMode, Message, MessageBus, RemoteError, RequestTimeout
from amb_core.concurrency import new_future

from tests.core._help import DLQ, Collector, dead_letters, eventually

pytestmark = pytest.mark.anyio


class Wrong(Exception):
    """What a handler raises."""


class WrongOnPurpose(BaseException):
    """Not even an Exception."""


RAISED: list[BaseException] = [
    Wrong("no"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(1),
    StopAsyncIteration(),
    WrongOnPurpose("odd"),
    RecursionError("deep"),
    ExceptionGroup("several", [Wrong("a"), Wrong("b")]),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
async def test_whatever_a_handler_raises_becomes_a_dead_letter_and_the_next_message_is_handled(
    error: BaseException, group: str | None
) -> None:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        handler, dead = Collector(error, failures=1), await dead_letters(bus)
        await bus.subscribe("t", handler, group=group, concurrency=1)
        await bus.publish("t", "bad")
        await bus.publish("t", "good")
        await dead.wait()
        await handler.wait(2)
    assert handler.data == ["bad", "good"]
    assert dead.data == ["bad"]
    info = dead.messages[0].dead
    assert info is not None and (type(error).__name__ in info.error or isinstance(error, StopIteration))


@pytest.mark.parametrize("error", [Wrong("no"), SystemExit(3), StopIteration(1)], ids=lambda e: type(e).__name__)
async def test_whatever_a_synchronous_handler_raises_becomes_a_dead_letter(error: BaseException) -> None:
    def handler(message: Message) -> None:
        raise error

    async with MessageBus(dead_letter_queue=DLQ) as bus:
        dead = await dead_letters(bus)
        await bus.subscribe("t", handler)
        await bus.publish("t", 1)
        await dead.wait()
    assert dead.data == [1]


async def test_a_handler_that_cancels_itself_fails_like_any_other() -> None:
    calls: list[Any] = []

    async def handler(message: Message) -> None:
        calls.append(message.data)
        if message.data == "bad":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await anyio.sleep(60)

    async with MessageBus(dead_letter_queue=DLQ) as bus:
        dead = await dead_letters(bus)
        await bus.subscribe("t", handler, group="g", concurrency=1)
        for data in ("bad", "good", "good"):
            await bus.publish("t", data)
        await eventually(lambda: len(calls) == 3, "the messages after the cancelled one")
        await dead.wait()
    assert calls == ["bad", "good", "good"]
    assert dead.data == ["bad"]


async def test_a_handler_whose_own_scope_is_cancelled_has_returned_normally() -> None:
    async def handler(message: Message) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep(60)

    async with MessageBus(dead_letter_queue=DLQ) as bus:
        await bus.subscribe("t", handler)
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked == 1, "the acknowledgement")
    assert bus.stats.failed == 0


@pytest.mark.parametrize("garbage", [object(), 1, b"x", float("nan"), lambda: None, Wrong("returned, not raised")])
async def test_what_a_subscriber_returns_concerns_nobody(garbage: object) -> None:
    async def handler(message: Message) -> object:
        return garbage

    async with MessageBus(dead_letter_queue=DLQ) as bus:
        await bus.subscribe("t", handler)
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked == 1, "the acknowledgement")
    assert bus.stats.failed == 0


async def test_a_responder_that_returns_what_cannot_be_sent_fails_the_request_at_once() -> None:
    async with MessageBus() as bus:

        @bus.responder("garbage")
        async def handler(request: Message) -> object:
            return object()

        begin = time.monotonic()
        with pytest.raises(RemoteError) as caught:
            await bus.request("garbage", 1, timeout=10)
    assert time.monotonic() - begin < 5
    assert caught.value.type == "EncodeError"


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\ud800 lone"], ids=["long", "not UTF-8"])
async def test_an_error_whose_text_cannot_be_sent_reaches_the_caller_all_the_same(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "amb")  # pytest's own reports cannot be sent with it either
    async with MessageBus() as bus:

        @bus.responder("fails")
        async def handler(request: Message) -> object:
            raise Wrong(text)

        with pytest.raises(RemoteError, match="Wrong") as caught:
            await bus.request("fails", 1, timeout=10)
    assert len(caught.value.text) <= 4000


@pytest.mark.parametrize("error", [Wrong("no"), SystemExit(3)], ids=lambda e: type(e).__name__)
async def test_a_responder_that_raises_reaches_its_caller_at_once(error: BaseException) -> None:
    async with MessageBus() as bus:

        @bus.responder("fails")
        async def handler(request: Message) -> object:
            raise error

        with pytest.raises(RemoteError) as caught:
            await bus.request("fails", 1, timeout=10)
    assert (caught.value.type, caught.value.text, caught.value.topic) == (type(error).__name__, str(error), "fails")


async def test_a_handler_that_hangs_holds_one_place_and_is_given_back_after_the_grace_time() -> None:
    started: list[int] = []

    async def hang(message: Message) -> None:
        started.append(message.data)
        if message.data == 0:
            await new_future()

    async with MessageBus(drain_timeout=0.2) as bus:
        await bus.subscribe("t", hang, concurrency=2)
        for number in range(20):
            await bus.publish("t", number)
        await eventually(lambda: len(started) == 20, "the messages beside the hanging one")
        begin = time.monotonic()
    assert time.monotonic() - begin < 3
    assert bus.stats.acked == 19


async def test_a_synchronous_handler_that_hangs_does_not_stop_the_bus_from_leaving() -> None:
    release = threading.Event()

    def hang(message: Message) -> None:
        release.wait(20)

    try:
        async with MessageBus(drain_timeout=0.2) as bus:
            await bus.subscribe("t", hang)
            await bus.publish("t", 1)
            await eventually(lambda: bus.stats.delivered == 1, "the delivery")
            begin = time.monotonic()
        assert time.monotonic() - begin < 5
    finally:
        release.set()


async def test_a_manual_handler_that_fails_after_acknowledging_stays_acknowledged() -> None:
    async def handler(message: Message) -> None:
        message.ack()
        raise Wrong("too late")

    async with MessageBus(dead_letter_queue=DLQ) as bus:
        await bus.subscribe("t", handler, group="g", ack_mode=AckMode.MANUAL, retries=3, retry_delay=0)
        await bus.publish("t", 1)
        await eventually(lambda: bus.stats.acked == 1, "the acknowledgement")
    assert (bus.stats.failed, bus.stats.retried, bus.stats.dead_lettered) == (1, 0, 0)


async def test_a_failing_listener_concerns_nobody() -> None:
    async with MessageBus() as bus:
        heard: list[str] = []

        @bus.on("message.dropped")
        async def bad(topic: str) -> None:
            raise Wrong("listener")

        @bus.on("message.dropped")
        def good(topic: str) -> None:
            heard.append(topic)

        handler = Collector(Wrong("no"), failures=1)
        await bus.subscribe("t", handler)
        await bus.publish("t", 1)
        await bus.publish("t", 2)
        await handler.wait(2)
        await eventually(lambda: heard == ["t"], "the other listener")


async def test_a_failing_filter_is_a_failed_delivery() -> None:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        dead, handler = await dead_letters(bus), Collector()
        await bus.subscribe("t", handler, filter=lambda message: message.data["missing"])
        await bus.publish("t", {})
        await dead.wait()
    assert handler.messages == []


async def test_a_handler_may_unsubscribe_itself() -> None:
    calls: list[Any] = []
    async with MessageBus() as bus:

        async def once(message: Message) -> None:
            calls.append(message.data)
            await bus.unsubscribe(once)

        await bus.subscribe("t", once, concurrency=1)
        for number in range(3):
            await bus.publish("t", number)
        await eventually(lambda: calls, "the first message")
    assert calls == [0]


async def test_a_handler_that_disconnects_its_own_bus_does_not_hang_it() -> None:
    bus = MessageBus(drain_timeout=0.5)
    await bus.connect()

    async def handler(message: Message) -> None:
        await bus.disconnect()

    await bus.subscribe("t", handler)
    await bus.publish("t", 1)
    with anyio.fail_after(5):
        await bus.disconnect()
    assert not bus.connected


async def test_a_request_inside_a_handler_of_the_same_bus_is_answered() -> None:
    async with MessageBus() as bus:
        bus.responder("inner")(_double)

        @bus.responder("outer")
        async def outer(request: Message) -> int:
            return int((await bus.request("inner", request.data, timeout=5)).data) + 1

        assert (await bus.request("outer", 20, timeout=5)).data == 41


async def test_a_request_to_its_own_single_place_times_out_and_the_bus_goes_on() -> None:
    async with MessageBus() as bus:

        @bus.responder("self", concurrency=1)
        async def selfish(request: Message) -> object:
            if request.data == "deadlock":
                try:
                    await bus.request("self", "inner", timeout=0.1)
                except RequestTimeout:
                    return "gave up"
            return "fine"

        assert (await bus.request("self", "deadlock", timeout=5)).data == "gave up"
        assert (await bus.request("self", "again", timeout=5)).data == "fine"


async def _double(request: Message) -> int:
    return int(request.data) * 2
