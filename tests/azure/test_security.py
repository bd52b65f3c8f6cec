"""TLS, keys and rights: each fault is one typed error in one line, without a secret, and the rest goes on."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.streams.tls
import msgspec
import pytest
import trustme
from amb_azure import AzureServiceBusBroker
from amb_core import MessageBus
from amb_core.errors import AccessDenied, AmbError, AuthenticationError, NotFound, Unavailable
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from tests.core._help import Collector
from tests.servers.azure import SecureServiceBus, ServiceBus

pytestmark = pytest.mark.anyio
KEY = "a-shared-access-key"


@pytest.fixture
def secured(secure_servicebus: SecureServiceBus) -> AzureServiceBusBroker:
    return AzureServiceBusBroker(
        secure_servicebus.connection_string, ssl_ca_certs=secure_servicebus.ca, connect_timeout=5.0,
        management_endpoint=f"{secure_servicebus.host}:{secure_servicebus.admin_port}",
    )  # fmt: skip


def _with(broker: AzureServiceBusBroker, string: str) -> AzureServiceBusBroker:
    return msgspec.structs.replace(broker, connection_string=string)


async def _refused(broker: AzureServiceBusBroker, kind: type[AmbError]) -> str:
    with pytest.raises(kind) as caught:
        async with broker.connect():
            pass
    return _one_line(caught.value)


def _one_line(error: BaseException) -> str:
    text, seen = str(error), error
    assert "\n" not in text and KEY not in text
    while seen.__cause__ is not None or seen.__context__ is not None:
        seen = seen.__cause__ or seen.__context__  # type: ignore[assignment]
        assert KEY not in f"{seen} {seen!r}"
    return text


async def test_tls_and_a_key(secured: AzureServiceBusBroker, topic: str) -> None:
    seen = Collector()
    async with MessageBus(secured) as bus:
        await bus.subscribe(topic, seen, group="g")
        await bus.publish(topic, 1)
        await seen.wait()


async def test_a_wrong_key(secured: AzureServiceBusBroker, secure_servicebus: SecureServiceBus) -> None:
    text = await _refused(_with(secured, secure_servicebus.wrong_connection_string), AuthenticationError)
    assert "check the connection string" in text


async def test_a_wrong_host() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host, port = sock.getsockname()
        string = f"Endpoint=sb://{host}:{port};SharedAccessKeyName=root;SharedAccessKey={KEY}"
        broker = AzureServiceBusBroker(f"{string};UseDevelopmentEmulator=true", connect_timeout=3.0)
        text = await _refused(broker, Unavailable)
    assert "is the namespace up and reachable?" in text


async def test_a_certificate_that_nobody_vouches_for(secured: AzureServiceBusBroker) -> None:
    text = await _refused(msgspec.structs.replace(secured, ssl_ca_certs=None), Unavailable)
    assert "ssl_ca_certs" in text and "certificate" in text.lower()


async def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with _expired(authority) as host:
        string = f"Endpoint=sb://{host};SharedAccessKeyName=root;SharedAccessKey={KEY}"
        broker = AzureServiceBusBroker(string, ssl_ca_certs=str(tmp_path / "ca.pem"), connect_timeout=3.0)
        text = await _refused(broker, Unavailable)
    assert "expired" in text and "valid for the host" in text


@asynccontextmanager
async def _expired(authority: trustme.CA) -> AsyncIterator[str]:
    """The address of a TLS server on the cloud's port whose certificate is of last century."""
    host = f"127.{random.randint(16, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    then = datetime(1999, 1, 1, tzinfo=UTC)
    authority.issue_cert(host, not_before=datetime(1998, 1, 1, tzinfo=UTC), not_after=then).configure_cert(context)

    async def serve(stream: anyio.abc.SocketStream) -> None:
        try:
            await anyio.streams.tls.TLSStream.wrap(stream, server_side=True, ssl_context=context)
        except (ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError):
            await stream.aclose()

    listener = await anyio.create_tcp_listener(local_host=host, local_port=5671)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield host
        group.cancel_scope.cancel()


async def test_who_may_only_listen_listens_and_is_told_when_publishing(
    secured: AzureServiceBusBroker, secure_servicebus: SecureServiceBus, topic: str
) -> None:
    seen = Collector()
    async with MessageBus(secured) as owner:
        await owner.subscribe(topic, Collector(), group="g")
    listening = _with(secured, secure_servicebus.listen_connection_string)
    async with (
        MessageBus(secured) as owner,
        MessageBus(msgspec.structs.replace(listening, auto_create=False)) as listener,
    ):
        await listener.subscribe(topic, seen, group="g")
        with pytest.raises(AccessDenied) as caught:
            await listener.publish(topic, 0)
        assert "claim" in _one_line(caught.value)
        await owner.publish(topic, 1)
        await seen.wait()
        assert seen.data == [1]


async def test_who_may_only_send_sends_and_is_told_when_subscribing(
    secured: AzureServiceBusBroker, secure_servicebus: SecureServiceBus, topic: str
) -> None:
    seen = Collector()
    sending = _with(secured, secure_servicebus.send_connection_string)
    async with MessageBus(secured) as owner, MessageBus(sending) as sender:
        await owner.subscribe(topic, seen, group="g")
        for broker in (sending, msgspec.structs.replace(sending, auto_create=False)):
            async with MessageBus(broker) as bus:
                with pytest.raises(AccessDenied) as caught:
                    await bus.subscribe(topic, Collector(), group="g")
                assert topic in _one_line(caught.value)
        await sender.publish(topic, 1)
        await seen.wait()


async def test_a_missing_topic_of_service_bus_without_auto_create(servicebus: ServiceBus, topic: str) -> None:
    broker = AzureServiceBusBroker(servicebus.connection_string, topic_name=topic, auto_create=False)
    text = await _refused(broker, NotFound)
    assert topic in text and "auto_create" in text


async def test_a_missing_subscription_without_auto_create_says_what_to_make(
    servicebus: ServiceBus, admin: ServiceBusAdministrationClient, topic: str
) -> None:
    """Made as the error says, it works."""
    from azure.servicebus.management import SqlRuleFilter

    await admin.create_topic(topic)
    broker = AzureServiceBusBroker(servicebus.connection_string, topic_name=topic, auto_create=False)
    seen = Collector()
    async with MessageBus(broker) as bus:
        with pytest.raises(NotFound) as caught:
            await bus.subscribe("orders.*", seen, group="shop")
        text = _one_line(caught.value)
        name, first, second = text.split("no subscription '")[1].split("'")[0], *_filters(text)
        await admin.create_subscription(topic, name)
        await admin.create_rule(topic, name, "one", filter=SqlRuleFilter(first))
        await admin.create_rule(topic, name, "two", filter=SqlRuleFilter(second))
        await admin.delete_rule(topic, name, "$Default")
        await bus.subscribe("orders.*", seen, group="shop", retries=1, retry_delay=0.1)
        await bus.publish("orders.new", 1)
        await seen.wait()


def _filters(text: str) -> tuple[str, str]:
    """The two filters in double quotes."""
    parts = text.split('"')
    return parts[1], parts[3]
