"""Acknowledgement modes, and verdicts that are decided synchronously."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from amb_core import AckMode, AlreadySettled, InMemoryBroker, Message, MessageBus

from tests.core._help import DLQ, Collector, dead_letters, eventually, stays

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus() -> AsyncIterator[MessageBus]:
    async with MessageBus(dead_letter_queue=DLQ) as bus:
        yield bus


@pytest.mark.parametrize("mode", [AckMode.AUTO, "auto"])
@pytest.mark.parametrize("group", [None, "g"])
async def test_auto_acknowledges_when_the_handler_returns(bus: MessageBus, mode: Any, group: str | None) -> None:
    go_on = anyio.Event()

    async def handler(message: Message) -> None:
        await go_on.wait()

    await bus.subscribe("t", handler, ack_mode=mode, group=group)
    await bus.publish("t", 1)
    await eventually(lambda: bus.stats.delivered == 1, "the delivery")
    await stays(lambda: bus.stats.acked == 0, "acknowledged while the handler ran", 0.05)
    go_on.set()
    await eventually(lambda: bus.stats.acked == 1, "the acknowledgement")


VERDICTS: dict[str, tuple[Callable[[Message], Any], str]] = {
    "ack": (lambda m: m.ack(), "acked"),
    "nack": (lambda m: m.nack(), "again"),
    "nack with delay": (lambda m: m.nack(requeue=True, delay=0.05), "again"),
    "nack(requeue=False)": (lambda m: m.nack(requeue=False), "dead"),
    "reject": (lambda m: m.reject(), "dead"),
    "reject(requeue=False)": (lambda m: m.reject(requeue=False), "dead"),
    "reject(requeue=True, delay)": (lambda m: m.reject(requeue=True, delay=0.05), "again"),
    "dead_letter": (lambda m: m.dead_letter(reason="bad"), "dead"),
    "dead_letter()": (lambda m: m.dead_letter(), "dead"),
}


@pytest.mark.parametrize("group", [None, "g"])
@pytest.mark.parametrize("awaited", [True, False], ids=["awaited", "not awaited"])
@pytest.mark.parametrize("mode", [AckMode.AUTO, AckMode.MANUAL])
@pytest.mark.parametrize("verdict", VERDICTS)
async def test_every_verdict_counts_awaited_or_not(
    bus: MessageBus, verdict: str, mode: AckMode, awaited: bool, group: str | None
) -> None:
    decide, outcome = VERDICTS[verdict]
    attempts, dead = list[int](), await dead_letters(bus)

    async def handler(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            waiting = decide(message)
            if awaited:
                await waiting
        else:
            await message.ack()

    await bus.subscribe("t", handler, ack_mode=mode, group=group)
    await bus.publish("t", 1)
    if outcome == "again":
        await eventually(lambda: attempts == [1, 2], lambda: f"two attempts, not {attempts}")
    elif outcome == "dead":
        await dead.wait()
    await eventually(lambda: bus.stats.acked + bus.stats.dead_lettered >= 1, "the verdict")
    assert attempts == ([1, 2] if outcome == "again" else [1])
    assert len(dead.messages) == (outcome == "dead")


async def test_the_documented_manual_handler_settles_synchronously(bus: MessageBus) -> None:
    seen, dead = list[Any](), await dead_letters(bus)

    def handler(msg: Message) -> None:
        seen.append(msg.data)
        if msg.data == "invalid":
            msg.reject(requeue=False)
        else:
            msg.ack()

    await bus.subscribe("t", handler, ack_mode=AckMode.MANUAL, group="g")
    await bus.publish("t", "invalid")
    await bus.publish("t", "fine")
    await dead.wait()
    await eventually(lambda: bus.stats.acked >= 1, "the acknowledgement")
    assert sorted(seen) == ["fine", "invalid"] and dead.data == ["invalid"]


async def test_the_reason_of_a_dead_letter_arrives(bus: MessageBus) -> None:
    dead = await dead_letters(bus)
    await bus.subscribe("t", lambda msg: msg.dead_letter("out of range") and None, group="g")
    await bus.publish("t", 1)
    (letter,) = await dead.wait()
    assert letter.dead is not None and letter.dead.reason == "out of range"


async def test_settling_twice_the_same_way_is_harmless_and_differently_an_error(bus: MessageBus) -> None:
    errors: list[str] = []

    async def handler(message: Message) -> None:
        await message.ack()
        await message.ack()
        try:
            message.nack()
        except AlreadySettled as error:
            errors.append(str(error))

    await bus.subscribe("t", handler, ack_mode=AckMode.MANUAL)
    await bus.publish("t", 1)
    await eventually(lambda: errors, "the error")
    assert "'t'" in errors[0] and "'ack'" in errors[0]


async def test_a_message_nobody_delivered_cannot_be_settled() -> None:
    with pytest.raises(RuntimeError, match="nothing to settle"):
        Message("t", 1).ack()


async def test_a_manual_message_may_be_settled_after_its_handler_returned(bus: MessageBus) -> None:
    collector = Collector()
    await bus.subscribe("t", collector, ack_mode="manual", group="g")
    await bus.publish("t", 1)
    (message,) = await collector.wait()
    await stays(lambda: bus.stats.acked == 0, "acknowledged by itself", 0.05)
    await message.ack()
    assert bus.stats.acked == 1


async def test_a_late_verdict_that_nobody_awaits_reaches_the_broker(bus: MessageBus) -> None:
    collector = Collector()
    await bus.subscribe("t", collector, ack_mode="manual", group="g")
    await bus.publish("t", 1)
    (message,) = await collector.wait()
    message.ack()
    await eventually(lambda: bus.stats.acked == 1, "the acknowledgement")


async def test_settling_after_the_bus_was_left_concerns_nobody() -> None:
    collector = Collector()
    async with MessageBus() as bus:
        await bus.subscribe("t", collector, ack_mode="manual", group="g")
        await bus.publish("t", 1)
        (message,) = await collector.wait()
    with anyio.fail_after(2):
        await message.ack()
    assert bus.stats.acked == 0


async def test_unsettled_manual_messages_hold_their_places(bus: MessageBus) -> None:
    collector = Collector()
    await bus.subscribe("t", collector, ack_mode="manual", group="g", concurrency=2)
    for number in range(4):
        await bus.publish("t", number)
    await collector.wait(2)
    await stays(lambda: len(collector.messages) == 2, "a third message without a place", 0.1)
    await collector.messages[0].ack()
    await collector.wait(3)


async def test_what_a_manual_handler_never_settled_comes_to_the_next_consumer() -> None:
    broker, first, second = InMemoryBroker(), Collector(), Collector()
    async with MessageBus(broker) as keeper:
        async with MessageBus(broker) as bus:
            await bus.subscribe("t", first, ack_mode="manual", group="g")
            await bus.publish("t", 1)
            await first.wait()
        await keeper.subscribe("t", second, group="g")
        await second.wait()
    assert second.data == [1]


async def test_a_batch_handler_gets_lists_and_all_are_acknowledged_together(bus: MessageBus) -> None:
    batches: list[list[Any]] = []

    @bus.subscriber("t", ack_mode=AckMode.BATCH, batch_size=4, batch_timeout=0.1, concurrency=1)
    async def handler(messages: list) -> None:  # type: ignore[type-arg]
        batches.append([message.data for message in messages])

    for number in range(10):
        await bus.publish("t", number)
    await eventually(lambda: sum(map(len, batches)) == 10, lambda: f"ten messages in {batches}")
    await eventually(lambda: bus.stats.acked == 10, "ten acknowledgements")
    assert [each for batch in batches for each in batch] == list(range(10))
    assert max(map(len, batches)) == 4 and len(batches) <= 4


async def test_an_incomplete_batch_comes_after_its_timeout(bus: MessageBus) -> None:
    batches, begin = list[list[Any]](), time.monotonic()

    async def handler(messages: list[Message]) -> None:
        batches.append([message.data for message in messages])

    await bus.subscribe("t", handler, ack_mode="batch", batch_size=100, batch_timeout=0.2)
    await bus.publish("t", 1)
    await eventually(lambda: batches == [[1]], "the batch")
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_failing_batch_fails_together(bus: MessageBus, group: str | None) -> None:
    dead, calls = await dead_letters(bus), list[list[Any]]()

    async def handler(messages: list[Message]) -> None:
        calls.append([message.data for message in messages])
        raise LookupError("no")

    await bus.subscribe("t", handler, ack_mode="batch", batch_size=3, batch_timeout=0.2, concurrency=1, group=group)
    for number in range(3):
        await bus.publish("t", number)
    await dead.wait(3)
    assert sorted(dead.data) == [0, 1, 2]


async def test_single_messages_of_a_batch_may_be_settled_on_their_own(bus: MessageBus) -> None:
    dead = await dead_letters(bus)

    async def handler(messages: list[Message]) -> None:
        messages[0].reject()

    await bus.subscribe("t", handler, ack_mode="batch", batch_size=3, batch_timeout=0.3, concurrency=1, group="g")
    for number in range(3):
        await bus.publish("t", number)
    await dead.wait()
    await eventually(lambda: bus.stats.acked >= 2, "the others")
    assert dead.data == [0]


async def test_a_negative_delay_is_refused(bus: MessageBus) -> None:
    errors: list[str] = []

    async def handler(message: Message) -> None:
        try:
            message.nack(delay=-1)
        except ValueError as error:
            errors.append(str(error))

    await bus.subscribe("t", handler)
    await bus.publish("t", 1)
    await eventually(lambda: errors, "the error")
