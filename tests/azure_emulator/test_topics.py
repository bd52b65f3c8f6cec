"""Topics: who gets a copy, and the administration of all that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio
import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.management import CorrelationRuleFilter, FalseRuleFilter, SqlRuleFilter, TrueRuleFilter

from tests.servers import azure
from tests.servers.servicebus.config import Config

from ._help import opened, texts

pytestmark = pytest.mark.anyio
_FILTERS: dict[str, CorrelationRuleFilter | SqlRuleFilter] = {
    "all": TrueRuleFilter(),
    "none": FalseRuleFilter(),
    "red": SqlRuleFilter("color = 'red' AND sys.Label IS NOT NULL"),
    "like": SqlRuleFilter("amb_topic LIKE @prefix ESCAPE '\\'", {"@prefix": r"a\_b.%"}),
    "correlated": CorrelationRuleFilter(label="x", properties={"color": "blue", "size": 2}),
}


async def test_each_subscription_gets_what_a_rule_of_it_lets_through(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient, word: str
) -> None:
    topic = f"{word}/topic"
    await admin.create_topic(topic)
    for name, chosen in _FILTERS.items():
        await admin.create_subscription(topic, name)
        await admin.create_rule(topic, name, "rule", filter=chosen)
        await admin.delete_rule(topic, name, "$Default")
    await admin.create_subscription(topic, "twice")
    await admin.create_rule(topic, "twice", "more", filter=SqlRuleFilter("1 = 1"))
    soon = datetime.now(UTC) + timedelta(seconds=1)
    sender = client.get_topic_sender(topic)
    receivers = {name: client.get_subscription_receiver(topic, name) for name in (*_FILTERS, "twice")}
    async with opened(sender, *receivers.values()):
        await sender.send_messages(
            [
                ServiceBusMessage("1", application_properties={"color": "red"}),
                ServiceBusMessage("2", application_properties={"color": "red"}, subject="x"),
                ServiceBusMessage("3", application_properties={"color": "blue", "size": 2}, subject="x"),
                ServiceBusMessage("4", application_properties={"amb_topic": "a_b.c.d"}),
                ServiceBusMessage("5", application_properties={"amb_topic": "axb.c.d"}),
            ]
        )
        await sender.schedule_messages(ServiceBusMessage("6", application_properties={"amb_topic": "a_b.late"}), soon)
        assert await texts(receivers["all"], 6) == ["1", "2", "3", "4", "5", "6"]
        assert datetime.now(UTC) >= soon
        assert await texts(receivers["twice"], 6) == ["1", "2", "3", "4", "5", "6"]
        assert await texts(receivers["red"], 1) == ["2"]
        assert await texts(receivers["correlated"], 1) == ["3"]
        assert await texts(receivers["like"], 2) == ["4", "6"]
        assert await texts(receivers["none"], 0) == []


async def test_entities_are_made_shown_changed_and_deleted(admin: ServiceBusAdministrationClient, word: str) -> None:
    topic, lock, ttl = f"{word}-made", timedelta(seconds=7), timedelta(days=1, hours=2, seconds=3.5)
    await admin.create_topic(topic, default_message_time_to_live=ttl, user_metadata="<who> & why")
    with pytest.raises(ResourceExistsError):
        await admin.create_queue(topic)
    shown = await admin.get_topic(topic)
    assert (shown.default_message_time_to_live, shown.user_metadata) == (ttl, "<who> & why")
    await admin.create_subscription(topic, "s", lock_duration=lock, max_delivery_count=7, requires_session=True)
    made = await admin.get_subscription(topic, "s")
    assert (made.lock_duration, made.max_delivery_count, made.requires_session) == (lock, 7, True)
    made.max_delivery_count = 8
    await admin.update_subscription(topic, made)
    assert (await admin.get_subscription(topic, "s")).max_delivery_count == 8
    parameters: dict[str, str | int | float | bool | datetime | timedelta] = {"@a": "x", "@b": 2, "@c": True}
    await admin.create_rule(topic, "s", "sql", filter=SqlRuleFilter("a = @a AND b < @b", parameters))
    await admin.create_rule(topic, "s", "same", filter=CorrelationRuleFilter(to="me", properties={"n": 1.5}))
    rules = {rule.name: rule.filter async for rule in admin.list_rules(topic, "s")}
    assert isinstance(rules["$Default"], TrueRuleFilter)
    assert isinstance(rules["sql"], SqlRuleFilter) and rules["sql"].sql_expression == "a = @a AND b < @b"
    assert rules["sql"].parameters == parameters
    assert isinstance(rules["same"], CorrelationRuleFilter) and rules["same"].properties == {"n": 1.5}
    with pytest.raises(HttpResponseError, match="error parsing"):
        await admin.create_rule(topic, "s", "wrong", filter=SqlRuleFilter("a = = b"))
    assert topic in [each.name async for each in admin.list_topics()]
    assert [each.name async for each in admin.list_subscriptions(topic)] == ["s"]
    await admin.delete_rule(topic, "s", "sql")
    with pytest.raises(ResourceNotFoundError):
        await admin.get_rule(topic, "s", "sql")
    await admin.delete_subscription(topic, "s")
    with pytest.raises(ResourceNotFoundError):
        await admin.get_subscription(topic, "s")
    await admin.delete_topic(topic)
    for missing in (admin.get_topic(topic), admin.delete_topic(topic), admin.create_subscription(topic, "s")):
        with pytest.raises(ResourceNotFoundError):
            await missing


async def test_long_lists_come_in_pages(admin: ServiceBusAdministrationClient, word: str) -> None:
    topic = f"{word}-pages"
    await admin.create_topic(topic)
    for number in range(120):
        await admin.create_subscription(topic, f"s{number:03}")
    assert [each.name async for each in admin.list_subscriptions(topic)] == [f"s{number:03}" for number in range(120)]


async def test_what_the_service_would_not_take_is_refused(admin: ServiceBusAdministrationClient, word: str) -> None:
    topic = f"{word}-limits"
    await admin.create_topic(topic)
    with pytest.raises(HttpResponseError, match="five minutes at least"):
        await admin.create_subscription(topic, "s", auto_delete_on_idle=timedelta(minutes=4))
    with pytest.raises(HttpResponseError, match="five minutes at most"):
        await admin.create_queue(f"{word}-q", lock_duration=timedelta(minutes=6))
    with pytest.raises(HttpResponseError, match="no name"):
        await admin.create_subscription(topic, "s" * 51)
    with pytest.raises(HttpResponseError, match="not emulated"):
        await admin.create_subscription(topic, "s", forward_to=topic)
    await admin.create_subscription(topic, "s")
    with pytest.raises(HttpResponseError, match="1024"):
        await admin.create_rule(topic, "s", "r", filter=SqlRuleFilter("a = '" + "x" * 1024 + "'"))


async def test_what_is_idle_is_deleted() -> None:
    with azure.alone(Config(idle_scale=1 / 60)) as server:
        string = server.connection_string
        async with (
            ServiceBusAdministrationClient.from_connection_string(string, connection_verify=server.ca) as admin,
            ServiceBusClient.from_connection_string(string) as client,
        ):

            async def left(count: int) -> list[str]:
                with anyio.fail_after(20):
                    while len(names := [each.name async for each in admin.list_subscriptions("t")]) > count:
                        await anyio.sleep(0.1)
                return names

            idle = timedelta(minutes=5)
            await admin.create_topic("t")
            await admin.create_subscription("t", "used", auto_delete_on_idle=idle)
            async with opened(client.get_subscription_receiver("t", "used")):
                await admin.create_subscription("t", "unused", auto_delete_on_idle=idle)
                assert await left(2) == ["used", "unused"]
                assert await left(1) == ["used"]
            assert await left(0) == []


async def test_rules_that_change_count_for_what_comes_after(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient, word: str
) -> None:
    topic = f"{word}/changing"
    await admin.create_topic(topic)
    await admin.create_subscription(topic, "s")
    await admin.create_rule(topic, "s", "blue", filter=CorrelationRuleFilter(properties={"color": "blue"}))
    await admin.delete_rule(topic, "s", "$Default")
    sender, receiver = client.get_topic_sender(topic), client.get_subscription_receiver(topic, "s")
    async with opened(sender, receiver):
        for wanted in ("blue", "red", "none"):
            await sender.send_messages(
                [
                    ServiceBusMessage(f"{color} for {wanted}", application_properties={"color": color})
                    for color in ("blue", "red")
                ]
            )
            if wanted == "blue":
                await admin.create_rule(topic, "s", "red", filter=SqlRuleFilter("color = 'red'"))
                await admin.delete_rule(topic, "s", "blue")
            elif wanted == "red":
                await admin.delete_rule(topic, "s", "red")
                await admin.create_rule(topic, "s", "both", filter=CorrelationRuleFilter(properties={"color": "no"}))
        await admin.create_subscription(topic, "other")
        await admin.delete_subscription(topic, "other")
        await admin.create_rule(topic, "s", "all", filter=TrueRuleFilter())
        await sender.send_messages(ServiceBusMessage("last"))
        assert await texts(receiver, 3) == ["blue for blue", "red for red", "last"]
