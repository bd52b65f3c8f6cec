"""Service Bus for the conformance kit, on an emulator of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
from amb_azure import AzureServiceBusBroker
from amb_core.testing import Rig
from azure.core.exceptions import ResourceNotFoundError
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.management import CorrelationRuleFilter, RuleProperties

from tests.servers import azure as servers
from tests.servers.servicebus.auth import Key
from tests.servers.servicebus.config import Config

from .rig_redis import Power

__all__ = ["servicebus"]

#: Seconds. Short, so that a case can watch a lock run out; long enough that a busy machine renews it.
LEASE = 2.0
KEY = "a-key-of-the-kit"
ABSENT = {
    "restricted": "access is given to a Service Bus topic, and one of them carries all topics",
    "capped": "a topic's quota is its size, in gigabytes",
}


@contextmanager
def servicebus() -> Iterator[Rig]:
    """One namespace, with a key."""
    with servers.alone(Config(keys=(Key("RootManageSharedAccessKey", KEY),))) as server:
        string = server.connection_string.replace("SAS_KEY_VALUE", KEY)
        # A short patience: a frozen server must be noticed within a case.
        broker = AzureServiceBusBroker(string, lock_duration=LEASE, ssl_ca_certs=server.ca, response_timeout=4.0)

        def through(host: str, port: int) -> AzureServiceBusBroker:
            there = string.replace(f"{server.host}:{server.port}", f"{host}:{port}")
            return msgspec.structs.replace(broker, connection_string=there)

        def impostor() -> AzureServiceBusBroker:
            return msgspec.structs.replace(broker, connection_string=string.replace(KEY, "wrong-secret"))

        async def destroy(topic: str) -> None:
            await _destroy(string, server.ca, broker.topic_name, topic)

        yield Rig(
            name="azure",
            make=lambda: broker,
            control=Power([server.process]),
            address=(server.host, server.port),
            through=through,
            impostor=impostor,
            destroy=destroy,
            strict=lambda: msgspec.structs.replace(broker, auto_create=False, topic_name="amb-missing"),
            absent=ABSENT,
            # The client and the emulator are both Python, and share two processors.
            quick=True,
        )


async def _destroy(string: str, ca: str, entity: str, topic: str) -> None:
    async with ServiceBusAdministrationClient.from_connection_string(string, connection_verify=ca) as admin:
        async for found in admin.list_subscriptions(entity):
            for rule in await _rules(admin, entity, found.name):
                wanted = rule.filter
                if isinstance(wanted, CorrelationRuleFilter) and (wanted.properties or {}).get("amb_topic") == topic:
                    with suppress(ResourceNotFoundError):
                        await admin.delete_subscription(entity, found.name)
                    break


async def _rules(admin: ServiceBusAdministrationClient, entity: str, name: str) -> list[RuleProperties]:
    """None where the subscription has gone meanwhile: other cases have subscriptions too."""
    with suppress(ResourceNotFoundError):
        return [rule async for rule in admin.list_rules(entity, name)]
    return []
