"""The client library's own objects: made with our options, closed with the connection."""

from __future__ import annotations

import re
import ssl
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, cast

from aiohttp import ClientSession, DummyCookieJar, TCPConnector
from amb_core.errors import ConfigurationError
from azure.core.pipeline.transport._aiohttp import AioHttpTransport
from azure.servicebus import ServiceBusReceiveMode
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.aio.management import ServiceBusAdministrationClient

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

    from .broker import AzureServiceBusBroker

__all__ = ["Client"]


class _WithoutTls(AioHttpTransport):
    """The emulator's administration has no certificate, and the client knows no other way."""

    async def send(self, request: Any, **config: Any) -> Any:
        request.url = request.url.replace("https://", "http://", 1)
        return await super().send(request, **config)


def _trusting(authorities: str) -> AioHttpTransport:
    """Given a file the client reads it for each request, and then finds no connection to use again."""
    context = ssl.create_default_context(cafile=authorities)
    session = ClientSession(connector=TCPConnector(ssl=context), auto_decompress=False, cookie_jar=DummyCookieJar())
    return AioHttpTransport(session=session)


class Client:
    """Makes senders, receivers and the administration client of one namespace."""

    def __init__(self, options: AzureServiceBusBroker, stack: AsyncExitStack) -> None:
        self._options, self._stack = options, stack
        self._credential: AsyncTokenCredential | None = None
        self._admin: ServiceBusAdministrationClient | None = None
        # Retries are the core's business.
        self._kwargs: dict[str, Any] = {**options.client_options, "retry_total": 0}
        if options.ssl_ca_certs is not None:
            self._kwargs["connection_verify"] = options.ssl_ca_certs
        self._client = self._made()

    def _made(self) -> ServiceBusClient:
        options = self._options
        if options.connection_string is not None:
            return ServiceBusClient.from_connection_string(options.connection_string, **self._kwargs)
        if options.namespace is None:
            raise ConfigurationError(
                "AzureServiceBusBroker: give connection_string (AMB_AZURE_CONNECTION_STRING), or namespace to sign in "
                "with Azure AD"
            )
        self._credential = cast("AsyncTokenCredential", options.credential or self._default_credential())
        return ServiceBusClient(options.namespace, self._credential, **self._kwargs)

    def _default_credential(self) -> object:
        try:
            from azure.identity.aio import DefaultAzureCredential
        except ImportError as error:
            raise ConfigurationError(
                "AzureServiceBusBroker: signing in with Azure AD needs azure-identity: "
                "pip install 'amb-azure[identity]', or give a credential"
            ) from error
        credential = DefaultAzureCredential()
        self._stack.push_async_callback(credential.close)
        return credential

    def sender(self) -> ServiceBusSender:
        """A new sender, not opened yet."""
        return self._client.get_topic_sender(self._options.topic_name)

    def receiver(self, subscription: str, *, keep: bool = True, **kwargs: Any) -> ServiceBusReceiver:
        """A new receiver, not opened yet. `keep`: until it is settled; else a message is gone once it is sent."""
        mode = ServiceBusReceiveMode.PEEK_LOCK if keep else ServiceBusReceiveMode.RECEIVE_AND_DELETE
        return self._client.get_subscription_receiver(
            self._options.topic_name, subscription, receive_mode=mode, **kwargs
        )

    def session(self, queue: str, session: str) -> ServiceBusReceiver:
        """A receiver of one session of a queue, not opened yet."""
        return self._client.get_queue_receiver(queue, session_id=session)

    @property
    def admin(self) -> ServiceBusAdministrationClient:
        """The administration client, made when it is first needed."""
        if self._admin is None:
            self._admin = self._made_admin()
            self._stack.push_async_callback(self._admin.close)
        return self._admin

    def _made_admin(self) -> ServiceBusAdministrationClient:
        options, endpoint = self._options, self._options.management_endpoint
        kwargs: dict[str, Any] = {"retry_total": 0}
        if options.ssl_ca_certs is not None:
            kwargs["transport"] = _trusting(options.ssl_ca_certs)
        if options.connection_string is None:
            assert self._credential is not None and options.namespace is not None
            return ServiceBusAdministrationClient(endpoint or options.namespace, self._credential, **kwargs)
        string = options.connection_string
        if options.ssl_ca_certs is None and re.search(r"UseDevelopmentEmulator=true", string, re.IGNORECASE):
            kwargs["transport"] = _WithoutTls()
        if endpoint is not None:
            parts = (part for part in string.split(";") if not part.strip().lower().startswith("endpoint="))
            string = ";".join((f"Endpoint=sb://{endpoint}", *parts))
        return ServiceBusAdministrationClient.from_connection_string(string, **kwargs)
