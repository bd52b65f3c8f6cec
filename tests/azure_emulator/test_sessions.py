"""Sessions: one receiver each, in order, with a state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from azure.servicebus import NEXT_AVAILABLE_SESSION, ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusSender
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    ServiceBusError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)

from ._help import one, opened, refusals, texts
from .conftest import Links

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def name(admin: ServiceBusAdministrationClient, word: str) -> str:
    name = f"{word}-sessions"
    await admin.create_queue(name, requires_session=True, lock_duration=timedelta(minutes=1))
    return name


@pytest.fixture(scope="module")
async def sender(client: ServiceBusClient, name: str) -> AsyncIterator[ServiceBusSender]:
    async with client.get_queue_sender(name) as sender:
        yield sender


async def send(sender: ServiceBusSender, session: str, *bodies: str) -> None:
    await sender.send_messages([ServiceBusMessage(body, session_id=session) for body in bodies])


async def test_a_session_has_one_receiver_that_gets_all_of_it_in_order(
    client: ServiceBusClient, name: str, sender: ServiceBusSender
) -> None:
    await send(sender, "a", *"123")
    await send(sender, "b", *"456")
    first = client.get_queue_receiver(name, session_id="a")
    async with opened(first):
        second = client.get_queue_receiver(name, session_id=NEXT_AVAILABLE_SESSION)
        (refused,) = await refusals(client.get_queue_receiver(name, session_id="a"))
        assert isinstance(refused, SessionCannotBeLockedError)
        async with opened(second):
            assert second.session.session_id == "b"
            for receiver, bodies in ((first, ["1", "2", "3"]), (second, ["4", "5", "6"])):
                assert await receiver.session.renew_lock() == receiver.session.locked_until_utc
                await receiver.session.set_state(bodies[0].encode())
                await receiver.abandon_message(await one(receiver))
                assert await texts(receiver, 3) == bodies
                assert await receiver.session.get_state() == bodies[0].encode()


async def test_a_closed_session_is_free_at_once_and_counts_nothing(
    client: ServiceBusClient, name: str, sender: ServiceBusSender
) -> None:
    await send(sender, "c", "x")
    receiver = client.get_queue_receiver(name, session_id="c")
    async with opened(receiver):
        assert (await one(receiver)).delivery_count == 0
    receiver = client.get_queue_receiver(name, session_id="c")
    async with opened(receiver):
        message = await one(receiver)
        assert message.delivery_count == 0
        await receiver.complete_message(message)


async def test_a_sessions_lock_runs_out(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient, word: str
) -> None:
    name = f"{word}-brief"
    await admin.create_queue(name, requires_session=True, lock_duration=timedelta(seconds=3))
    sender, first = client.get_queue_sender(name), client.get_queue_receiver(name, session_id="d")
    async with opened(sender, first):
        await send(sender, "d", "x")
        lost = await one(first)
        second = client.get_queue_receiver(name, session_id=NEXT_AVAILABLE_SESSION, max_wait_time=5)
        async with opened(second):
            assert second.session.session_id == "d"
            message = await one(second)
            assert message.delivery_count == 1
            with pytest.raises(SessionLockLostError):
                await first.complete_message(lost)
            await second.complete_message(message)


async def test_who_lost_a_session_cannot_change_its_state(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient, word: str
) -> None:
    """Whoever thinks of it differently: the client asks its own clock first."""
    name = f"{word}-stolen"
    await admin.create_queue(name, requires_session=True, lock_duration=timedelta(seconds=5))
    first = client.get_queue_receiver(name, session_id="s")
    async with opened(first):
        with anyio.fail_after(20):
            while await refusals(client.get_queue_receiver(name, session_id="s")) != [None]:
                await anyio.sleep(0.1)
        second = client.get_queue_receiver(name, session_id="s")
        async with opened(second):
            await second.session.set_state(b"second")
            vars(first.session)["_locked_until_utc"] = datetime.now(UTC) + timedelta(hours=1)
            with pytest.raises(SessionLockLostError):
                await first.session.set_state(b"first")
            assert await second.session.get_state() == b"second"


async def test_no_session_comes_in_time(client: ServiceBusClient, name: str) -> None:
    with pytest.raises(OperationTimeoutError):
        async with client.get_queue_receiver(name, session_id=NEXT_AVAILABLE_SESSION, max_wait_time=1):
            pass


async def test_a_receiver_that_gave_up_waiting_gets_no_session(
    client: ServiceBusClient, name: str, sender: ServiceBusSender
) -> None:
    impatient = client.get_queue_receiver(name, session_id=NEXT_AVAILABLE_SESSION)
    with anyio.move_on_after(1.5):
        async with opened(impatient):
            pytest.fail("there is no session yet")
    await send(sender, "e", "x")
    patient = client.get_queue_receiver(name, session_id=NEXT_AVAILABLE_SESSION, max_wait_time=5)
    async with opened(patient):
        assert await texts(patient, 1) == ["x"]


async def test_sessions_and_queues_without_them_do_not_mix(
    client: ServiceBusClient, name: str, sender: ServiceBusSender, queue: Links
) -> None:
    with pytest.raises(ServiceBusError, match="SessionId"):
        await sender.send_messages(ServiceBusMessage("x"))
    found = await refusals(client.get_queue_receiver(name), client.get_queue_receiver(queue.name, session_id="a"))
    assert ["requires sessions" in str(found[0]), "does not support sessions" in str(found[1])] == [True, True]
