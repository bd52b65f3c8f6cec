"""TLS on the port of the cloud, and tokens."""

from __future__ import annotations

import time

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import (
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusConnectionError,
)

from tests.servers.azure import SecureServiceBus

from ._help import opened, refusals, texts

pytestmark = pytest.mark.anyio


class Credential:
    """Azure AD, as far as the client knows."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def get_token(self, *scopes: str, **options: object) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)

    async def close(self) -> None:
        pass

    async def __aenter__(self) -> Credential:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass


async def create(server: SecureServiceBus, string: str, name: str) -> None:
    string = string.replace(server.host, f"{server.host}:{server.admin_port}")
    async with ServiceBusAdministrationClient.from_connection_string(string, connection_verify=server.ca) as admin:
        await admin.create_queue(name)


def keyed(server: SecureServiceBus, string: str) -> ServiceBusClient:
    return ServiceBusClient.from_connection_string(string, retry_total=0, connection_verify=server.ca)


async def test_a_key_and_a_token_of_azure_ad_are_accepted(secure_servicebus: SecureServiceBus) -> None:
    server = secure_servicebus
    await create(server, server.connection_string, "q")
    async with (
        keyed(server, server.connection_string) as signed,
        ServiceBusClient(server.host, Credential(server.bearer), connection_verify=server.ca) as borne,
    ):
        sender, receiver = signed.get_queue_sender("q"), borne.get_queue_receiver("q")
        async with opened(sender, receiver):
            await sender.send_messages(ServiceBusMessage("x"))
            assert await texts(receiver, 1) == ["x"]


async def test_what_a_key_does_not_allow_is_refused(secure_servicebus: SecureServiceBus) -> None:
    server = secure_servicebus
    await create(server, server.connection_string, "limited")
    for string in (server.wrong_connection_string, server.send_connection_string):
        with pytest.raises(ClientAuthenticationError):
            await create(server, string, "none")
    async with (
        keyed(server, server.send_connection_string) as sends,
        keyed(server, server.listen_connection_string) as listens,
        keyed(server, server.wrong_connection_string) as stranger,
        ServiceBusClient(server.host, Credential("unknown"), retry_total=0, connection_verify=server.ca) as unknown,
    ):
        async with opened(sends.get_queue_sender("limited"), listens.get_queue_receiver("limited")):
            pass
        found = await refusals(
            listens.get_queue_sender("limited"), sends.get_queue_receiver("limited"),
            stranger.get_queue_sender("limited"), unknown.get_queue_receiver("limited"),
        )  # fmt: skip
    assert [type(error) for error in found] == [ServiceBusAuthorizationError] * 2 + [ServiceBusAuthenticationError] * 2


async def test_a_certificate_that_is_not_trusted_is_refused(secure_servicebus: SecureServiceBus) -> None:
    string = secure_servicebus.connection_string
    async with ServiceBusClient.from_connection_string(string, retry_total=0) as client:
        with pytest.raises(ServiceBusConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            async with opened(client.get_queue_sender("q")):
                pass
