"""Queues: what is sent, received and settled, and what becomes of what is not."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio
import pytest
from azure.servicebus import (
    ServiceBusMessage,
    ServiceBusMessageState,
    ServiceBusReceivedMessage,
    ServiceBusReceiveMode,
    ServiceBusSubQueue,
)
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityNotFoundError,
)

from ._help import one, opened, refusals
from .conftest import Links

pytestmark = pytest.mark.anyio


def body(message: ServiceBusReceivedMessage) -> bytes:
    return b"".join(message.body)


async def test_all_of_a_message_arrives(queue: Links) -> None:
    properties: dict[str | bytes, int | float | bytes | bool | str | UUID] = {
        "text": "Zoë", "number": -(2**31), "real": 1.5, "yes": True, "no": False, "": "x" * 300,
    }  # fmt: skip
    sent = ServiceBusMessage(
        b"\0body", application_properties=properties, message_id="id", correlation_id="c", subject="s", to="to",
        content_type="application/json", reply_to="r", time_to_live=timedelta(minutes=1), partition_key="id",
    )  # fmt: skip
    before = datetime.now(UTC)
    await queue.sender.send_messages(sent)
    got = await one(queue.receiver)
    assert body(got) == b"\0body"
    assert {key.decode(): value for key, value in (got.application_properties or {}).items()} == {  # type: ignore[union-attr]
        **properties, "text": "Zoë".encode(), "": b"x" * 300,
    }  # fmt: skip
    assert (got.message_id, got.correlation_id, got.subject, got.to) == ("id", "c", "s", "to")
    assert (got.content_type, got.reply_to, got.partition_key) == ("application/json", "r", "id")
    assert got.time_to_live == timedelta(minutes=1) and got.delivery_count == 0
    assert got.enqueued_time_utc is not None and abs(got.enqueued_time_utc - before) < timedelta(seconds=20)
    assert got.locked_until_utc is not None and got.locked_until_utc > before
    assert got.state is ServiceBusMessageState.ACTIVE
    await queue.receiver.complete_message(got)


async def test_messages_of_a_list_and_of_a_batch_are_received_in_order(queue: Links) -> None:
    await queue.sender.send_messages([ServiceBusMessage(str(number)) for number in range(50)])
    batch = await queue.sender.create_message_batch()
    assert batch.max_size_in_bytes == 262144
    for number in range(50, 100):
        batch.add_message(ServiceBusMessage(str(number)))
    await queue.sender.send_messages(batch)
    got: list[ServiceBusReceivedMessage] = []
    while len(got) < 100:
        some = await queue.receiver.receive_messages(30, max_wait_time=5)
        assert some
        for message in some:
            await queue.receiver.complete_message(message)
        got += some
    assert [int(str(message)) for message in got] == list(range(100))
    numbers = [message.sequence_number or 0 for message in got]
    assert numbers == sorted(set(numbers))


async def test_a_large_message_goes_over_many_frames_and_a_larger_one_is_refused(queue: Links) -> None:
    large = bytes(range(256)) * 800
    await queue.sender.send_messages(ServiceBusMessage(large))
    got = await one(queue.receiver)
    assert body(got) == large
    await queue.receiver.complete_message(got)
    with pytest.raises(MessageSizeExceededError):
        await queue.sender.send_messages(ServiceBusMessage(large + large))


async def test_an_abandoned_message_returns_and_ends_as_a_dead_letter(queue: Links, client: ServiceBusClient) -> None:
    await queue.sender.send_messages(ServiceBusMessage("bad"))
    for count in range(3):
        got = await one(queue.receiver)
        assert got.delivery_count == count
        await queue.receiver.abandon_message(got)
    assert await queue.receiver.receive_messages(max_wait_time=0.3) == []
    await queue.sender.send_messages(ServiceBusMessage("worse", application_properties={"a": 1}))
    await queue.receiver.dead_letter_message(await one(queue.receiver), reason="why", error_description="how")
    async with client.get_queue_receiver(queue.name, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead:
        first, second = await one(dead), await one(dead)
        assert (str(first), first.dead_letter_reason) == ("bad", "MaxDeliveryCountExceeded")
        assert (str(second), second.dead_letter_reason, second.dead_letter_error_description) == ("worse", "why", "how")
        assert second.dead_letter_source == queue.name and (second.application_properties or {})[b"a"] == 1
        await dead.complete_message(first)
        await dead.complete_message(second)


async def test_a_lock_runs_out(queue: Links) -> None:
    await queue.sender.send_messages(ServiceBusMessage("slow"))
    got = await one(queue.receiver)
    began = time.monotonic()
    again = await one(queue.receiver)
    assert time.monotonic() - began > 1
    assert again.delivery_count == 1 and again.sequence_number == got.sequence_number
    with pytest.raises(MessageLockLostError):
        await queue.receiver.complete_message(got)
    with pytest.raises(MessageLockLostError):
        await queue.receiver.renew_message_lock(got)
    await queue.receiver.complete_message(again)


async def test_a_renewed_lock_stays(queue: Links) -> None:
    await queue.sender.send_messages(ServiceBusMessage("slow"))
    got = await one(queue.receiver)
    for _ in range(3):
        assert await queue.receiver.receive_messages(max_wait_time=2.0) == []
        until = got.locked_until_utc
        assert until is not None and await queue.receiver.renew_message_lock(got) > until
    await queue.receiver.complete_message(got)


async def test_a_deferred_message_waits_for_its_number(queue: Links) -> None:
    await queue.sender.send_messages(ServiceBusMessage("later"))
    got = await one(queue.receiver)
    number = got.sequence_number or 0
    await queue.receiver.defer_message(got)
    assert await queue.receiver.receive_messages(max_wait_time=0.3) == []
    (peeked,) = await queue.receiver.peek_messages(10, sequence_number=number)
    assert peeked.state is ServiceBusMessageState.DEFERRED
    (again,) = await queue.receiver.receive_deferred_messages(number)
    assert str(again) == "later"
    await queue.receiver.complete_message(again)
    with pytest.raises(MessageNotFoundError):
        await queue.receiver.receive_deferred_messages(number)


async def test_scheduled_messages_come_when_they_are_due(queue: Links) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=4)
    numbers = await queue.sender.schedule_messages([ServiceBusMessage("a"), ServiceBusMessage("b")], soon)
    await queue.sender.send_messages(ServiceBusMessage("c", scheduled_enqueue_time_utc=soon))
    await queue.sender.cancel_scheduled_messages(numbers[0])
    with pytest.raises(MessageNotFoundError):
        await queue.sender.cancel_scheduled_messages(numbers[0])
    peeked = await queue.receiver.peek_messages(10, sequence_number=numbers[0])
    assert [(str(each), each.state) for each in peeked] == [
        ("b", ServiceBusMessageState.SCHEDULED), ("c", ServiceBusMessageState.SCHEDULED),
    ]  # fmt: skip
    assert await queue.receiver.receive_messages(max_wait_time=0.3) == []
    found = []
    for _ in range(2):
        got = await one(queue.receiver)
        assert datetime.now(UTC) >= soon
        await queue.receiver.complete_message(got)
        found.append(str(got))
    assert sorted(found) == ["b", "c"]


async def test_an_expired_message_is_never_received(queue: Links) -> None:
    await queue.sender.send_messages(ServiceBusMessage("brief", time_to_live=timedelta(milliseconds=50)))
    await queue.sender.send_messages(ServiceBusMessage("next"))
    await anyio.sleep(0.1)
    got = await one(queue.receiver)
    if str(got) == "brief":  # It was sent while the receiver had credit left, before it expired.
        await queue.receiver.complete_message(got)
        got = await one(queue.receiver)
    assert str(got) == "next"
    await queue.receiver.complete_message(got)


async def test_receive_and_delete_leaves_nothing(queue: Links, client: ServiceBusClient) -> None:
    mode = ServiceBusReceiveMode.RECEIVE_AND_DELETE
    await queue.sender.send_messages(ServiceBusMessage("once"))
    async with client.get_queue_receiver(queue.name, receive_mode=mode) as receiver:
        assert str(await one(receiver)) == "once"
    assert await queue.receiver.receive_messages(max_wait_time=0.3) == []


async def test_a_closed_receivers_locks_stay_until_they_run_out(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient, word: str
) -> None:
    name = f"{word}-held"
    await admin.create_queue(name, lock_duration=timedelta(seconds=3))
    sender, first = client.get_queue_sender(name), client.get_queue_receiver(name)
    async with opened(sender, first):
        await sender.send_messages(ServiceBusMessage("held"))
        until = (await one(first)).locked_until_utc
    second = client.get_queue_receiver(name)
    async with opened(second):
        got = await one(second)
        assert str(got) == "held" and got.delivery_count == 1
        assert until is not None and datetime.now(UTC) >= until
        await second.complete_message(got)


async def test_duplicates_within_the_window_are_dropped(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient, word: str
) -> None:
    name, window = f"{word}-unique", timedelta(seconds=20)
    await admin.create_queue(
        name, requires_duplicate_detection=True, duplicate_detection_history_time_window=window,
        default_message_time_to_live=timedelta(minutes=1), dead_lettering_on_message_expiration=True,
    )  # fmt: skip
    sender, receiver = client.get_queue_sender(name), client.get_queue_receiver(name)
    async with opened(sender, receiver):
        await sender.send_messages([ServiceBusMessage(text, message_id=text) for text in ("a", "b", "a")])
        await sender.send_messages(ServiceBusMessage("b", message_id="b"))
        got = [await one(receiver), await one(receiver)]
        assert [str(message) for message in got] == ["a", "b"]
        for message in got:
            await receiver.complete_message(message)
        await sender.send_messages(ServiceBusMessage("old", time_to_live=timedelta(seconds=3)))
        runtime = await admin.get_queue_runtime_properties(name)
        assert (runtime.active_message_count, runtime.dead_letter_message_count) == (1, 0)
        await anyio.sleep(3.1)
        assert await receiver.receive_messages(max_wait_time=0.3) == []
    runtime = await admin.get_queue_runtime_properties(name)
    assert (runtime.active_message_count, runtime.dead_letter_message_count) == (0, 1)


async def test_a_queue_that_is_not_there(client: ServiceBusClient, word: str) -> None:
    began = time.monotonic()
    found = await refusals(client.get_queue_sender(f"{word}-none"), client.get_queue_receiver(f"{word}-none"))
    assert [type(error) for error in found] == [MessagingEntityNotFoundError] * 2
    assert time.monotonic() - began < 5
