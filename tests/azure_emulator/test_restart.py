"""What the service knows outlives its process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusSubQueue
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.management import SqlRuleFilter

from tests.servers.azure import ServiceBus

from ._help import one, opened, texts

pytestmark = pytest.mark.anyio


async def test_a_kill_loses_nothing(own_servicebus: ServiceBus) -> None:
    string = own_servicebus.connection_string
    async with ServiceBusAdministrationClient.from_connection_string(
        string, connection_verify=own_servicebus.ca
    ) as admin:
        await admin.create_queue("q", lock_duration=timedelta(seconds=4), max_delivery_count=5)
        await admin.create_queue("gone")
        await admin.delete_queue("gone")
        await admin.create_queue("sessions", requires_session=True)
        await admin.create_topic("t")
        await admin.create_subscription("t", "s", max_delivery_count=5)
        await admin.create_rule("t", "s", "red", filter=SqlRuleFilter("color = 'red'"))
        await admin.delete_rule("t", "s", "$Default")
    async with ServiceBusClient.from_connection_string(string) as client:
        sender, receiver = client.get_queue_sender("q"), client.get_queue_receiver("q")
        topic, of_sessions = client.get_topic_sender("t"), client.get_queue_sender("sessions")
        session = client.get_queue_receiver("sessions", session_id="a")
        async with opened(sender, receiver, topic, of_sessions, session):
            await sender.send_messages([ServiceBusMessage(text) for text in ("done", "dead", "again", "locked")])
            await receiver.complete_message(await one(receiver))
            await receiver.dead_letter_message(await one(receiver), reason="why")
            await receiver.abandon_message(await one(receiver))
            again = await one(receiver)
            assert str(again) == "again"
            await receiver.defer_message(again)
            locked = await one(receiver)
            later = datetime.now(UTC) + timedelta(seconds=3)
            await topic.schedule_messages(ServiceBusMessage("due", application_properties={"color": "red"}), later)
            await topic.send_messages(ServiceBusMessage("dropped", application_properties={"color": "blue"}))
            await of_sessions.send_messages(ServiceBusMessage("x", session_id="a"))
            await session.session.set_state(b"state")
            own_servicebus.process.kill()
    own_servicebus.process.start()
    async with ServiceBusClient.from_connection_string(string) as client:
        receiver = client.get_queue_receiver("q")
        dead = client.get_queue_receiver("q", sub_queue=ServiceBusSubQueue.DEAD_LETTER)
        red = client.get_subscription_receiver("t", "s")
        session = client.get_queue_receiver("sessions", session_id="a")
        async with opened(receiver, dead, red, session):
            (deferred,) = await receiver.receive_deferred_messages(again.sequence_number or 0)
            assert str(deferred) == "again" and deferred.delivery_count == 1
            (buried,) = await dead.receive_messages(max_wait_time=5)
            assert str(buried) == "dead" and buried.dead_letter_reason == "why"
            assert await session.session.get_state() == b"state" and await texts(session, 1) == ["x"]
            assert await texts(red, 1) == ["due"] and datetime.now(UTC) >= later
            assert locked.locked_until_utc is not None and (await one(receiver)).delivery_count == 1
            assert datetime.now(UTC) >= locked.locked_until_utc
    own_servicebus.process.restart()
    async with ServiceBusClient.from_connection_string(string) as client:
        receiver = client.get_queue_receiver("q")
        async with opened(receiver):
            (peeked, other) = await receiver.peek_messages(10)
            assert sorted([str(peeked), str(other)]) == ["again", "locked"]
