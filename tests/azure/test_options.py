"""Every option of the broker does what it says."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from amb_azure import AzureServiceBusBroker
from amb_core import DeadLetterQueue, Message, MessageBus
from amb_core.errors import ConfigurationError
from azure.core.credentials import AccessToken
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from tests.core._help import Collector, eventually
from tests.servers.azure import SecureServiceBus, ServiceBus

pytestmark = pytest.mark.anyio
Make = Callable[..., AzureServiceBusBroker]
STRING = "Endpoint=sb://mine.servicebus.windows.net/;SharedAccessKeyName=root;SharedAccessKey=hidden"


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"connection_string": "mine.servicebus.windows.net"}, "must look like"),
        ({"connection_string": "Endpoint=https://mine;SharedAccessKeyName=a;SharedAccessKey=b"}, "must look like"),
        ({"connection_string": STRING + ";EntityPath=queue"}, "EntityPath"),
        ({"connection_string": STRING, "namespace": "mine.servicebus.windows.net"}, "not both"),
        ({"connection_string": STRING, "credential": object()}, "credential"),
        ({"namespace": "sb://mine"}, "host name"),
        ({"topic_name": "a b"}, "topic_name"),
        ({"lock_duration": 301.0}, "lock_duration"),
        ({"max_delivery_count": 0}, "max_delivery_count"),
        ({"sessions": 0}, "sessions"),
        ({"duplicate_detection": 3.0}, "duplicate_detection"),
        ({"max_message_size": 1000}, "max_message_size"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"client_options": {"retry_total": 3}}, "retry_total"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice) as caught:
        AzureServiceBusBroker(**options)
    assert "hidden" not in str(caught.value)


def test_no_secret_in_the_repr() -> None:
    assert "hidden" not in repr(AzureServiceBusBroker(STRING))


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CONNECTION_STRING": STRING, "TOPIC_NAME": "agents", "AUTO_CREATE": "no", "LOCK_DURATION": "20",
        "SESSIONS": "16", "DUPLICATE_DETECTION": "60", "MAX_MESSAGE_SIZE": "1048576",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AMB_AZURE_{name}", value)
    assert MessageBus("azure").broker == AzureServiceBusBroker(
        STRING, topic_name="agents", auto_create=False, lock_duration=20.0, sessions=16, duplicate_detection=60.0,
        max_message_size=1 << 20,
    )  # fmt: skip


def test_capabilities_follow_the_options() -> None:
    told = AzureServiceBusBroker(lock_duration=20.0, duplicate_detection=60.0, max_message_size=1 << 20).capabilities
    assert (told.lease, told.dedup, told.max_message) == (20.0, 60.0, (1 << 20) - 65536)


async def test_without_an_address_connecting_says_what_to_give() -> None:
    with pytest.raises(ConfigurationError, match="AMB_AZURE_CONNECTION_STRING"):
        await MessageBus(AzureServiceBusBroker()).connect()


async def test_a_missing_azure_identity_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity.aio", None)
    with pytest.raises(ConfigurationError, match=r"amb-azure\[identity\]"):
        await MessageBus(AzureServiceBusBroker(namespace="mine.servicebus.windows.net")).connect()


class Directory:
    """Signs in as Azure AD does: hands out a token for the scope of Service Bus."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.scopes: set[str] = set()

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes |= set(scopes)
        return AccessToken(self._token, int(time.time()) + 3600)

    async def close(self) -> None: ...


async def test_azure_ad_signs_in_with_a_credential(secure_servicebus: SecureServiceBus, topic: str) -> None:
    directory = Directory(secure_servicebus.bearer)
    broker = AzureServiceBusBroker(
        namespace=secure_servicebus.host, credential=directory, ssl_ca_certs=secure_servicebus.ca,
        management_endpoint=f"{secure_servicebus.host}:{secure_servicebus.admin_port}",
    )  # fmt: skip
    seen = Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(topic, seen)
        await bus.publish(topic, 1)
        await seen.wait()
    assert directory.scopes == {"https://servicebus.azure.net//.default"}


async def test_entities_are_made_as_the_options_say(
    make: Make, admin: ServiceBusAdministrationClient, topic: str
) -> None:
    broker = make(topic_name=topic, lock_duration=33.0, max_delivery_count=7, duplicate_detection=60.0)
    async with MessageBus(broker) as bus:
        await bus.subscribe("work.*", Collector(), group="Shop 1")
        await bus.subscribe("work.*", Collector(), group="Shop 1", ordered_by="key")
        await bus.subscribe("news", Collector())
        made = await admin.get_topic(topic)
        assert made.requires_duplicate_detection
        assert made.duplicate_detection_history_time_window == timedelta(seconds=60)
        found = {each.name: each async for each in admin.list_subscriptions(topic)}
        rules = {name: [rule.name async for rule in admin.list_rules(topic, name)] for name in found}
    shop, ordered, live = sorted(
        found.values(), key=lambda each: (each.name.startswith("amb-live"), each.requires_session)
    )
    assert shop.name.startswith("Shop-1-") and not shop.requires_session
    assert ordered.requires_session and ordered.lock_duration == timedelta(seconds=33)
    assert (shop.lock_duration, shop.max_delivery_count) == (timedelta(seconds=33), 7)
    assert live.auto_delete_on_idle == timedelta(minutes=5)
    assert {tuple(sorted(names)) for names in rules.values()} == {("again", "topic")}


async def test_a_subscription_without_a_group_leaves_nothing_behind(
    broker: AzureServiceBusBroker, admin: ServiceBusAdministrationClient, topic: str
) -> None:
    async with MessageBus(broker) as bus:
        seen = Collector()
        await bus.subscribe(topic, seen)
        await bus.publish(topic, 1)
        await seen.wait()
    left = [each.name async for each in admin.list_subscriptions(broker.topic_name)]
    assert not [name for name in left if name.startswith("amb-live-")]


async def test_duplicate_detection_drops_a_second_message_with_the_same_id(make: Make, topic: str) -> None:
    seen = Collector()
    async with MessageBus(make(topic_name=topic, duplicate_detection=60.0)) as bus:
        await bus.subscribe("a.*", seen, group="g", retries=1, retry_delay=0.1)
        for name, data in (("a.one", 1), ("a.one", 2), ("a.two", 3)):
            await bus.publish(Message(id="same", topic=name, payload=data))
        await bus.publish("a.end", 4)
        await eventually(lambda: 4 in seen.data, "the last message")
    assert sorted(seen.data) == [1, 3, 4]


async def test_a_retry_is_no_duplicate(make: Make, topic: str) -> None:
    seen = Collector(ValueError("again"), failures=2)
    async with MessageBus(make(topic_name=topic, duplicate_detection=60.0)) as bus:
        await bus.subscribe("a", seen, group="g", retries=3, retry_delay=0.1)
        await bus.publish("a", 1)
        assert [message.attempt for message in await seen.wait(3)] == [1, 2, 3]


async def test_the_dead_letter_queue_of_the_broker_is_that_of_its_buses(make: Make, topic: str) -> None:
    dead = Collector()
    async with MessageBus(make(dead_letter_queue=f"{topic}.dead")) as bus:
        await bus.subscribe(f"{topic}.dead", dead)
        await bus.subscribe(topic, Collector(ValueError("no")), group="g", retries=0)
        await bus.publish(topic, 1)
        assert (await dead.wait())[0].dead is not None


async def test_two_topics_of_service_bus_are_two_systems(make: Make, topic: str) -> None:
    ours, theirs = Collector(), Collector()
    async with MessageBus(make(topic_name=f"{topic}-1")) as one, MessageBus(make(topic_name=f"{topic}-2")) as two:
        await one.subscribe("a", ours)
        await two.subscribe("a", theirs)
        await one.publish("a", 1)
        await two.publish("a", 2)
        await ours.wait()
        await theirs.wait()
    assert (ours.data, theirs.data) == ([1], [2])


async def test_an_exhausted_policy_of_the_bus_is_not_the_services(make: Make, topic: str) -> None:
    """Delayed retries are new messages, so the service's own count of deliveries does not end them."""
    seen, dead = Collector(ValueError("no")), Collector()
    bus = MessageBus(make(topic_name=topic, max_delivery_count=2), dead_letter_queue=DeadLetterQueue("dead"))
    async with bus:
        await bus.subscribe("dead", dead)
        await bus.subscribe("a", seen, group="g", retries=4, retry_delay=0.05)
        await bus.publish("a", 1)
        await dead.wait()
    assert [message.attempt for message in seen.messages] == [1, 2, 3, 4, 5]


def test_an_emulator_of_its_own_is_meant(servicebus: ServiceBus) -> None:
    """What these tests run against is no cloud: results are the emulator's."""
    assert "UseDevelopmentEmulator=true" in servicebus.connection_string
    assert msgspec.structs.replace(AzureServiceBusBroker(servicebus.connection_string)).capabilities.durable
