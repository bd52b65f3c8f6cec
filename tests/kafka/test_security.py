"""SASL, TLS, access control, and what goes wrong with them: one typed error in one line, without a secret."""

from __future__ import annotations

import datetime
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
import trustme
from amb_core import MessageBus
from amb_core.errors import AccessDenied, AmbError, AuthenticationError, ConfigurationError, NotFound, Unavailable
from amb_kafka import KafkaBroker

from tests.core._help import Collector
from tests.servers import kafka as servers
from tests.servers.kafka import KafkaServer
from tests.servers.process import free_ports

pytestmark = pytest.mark.anyio
Make = Callable[..., KafkaBroker]
#: No test's password may be in an error.
SECRET = "hidden-word"


@pytest.fixture
def secured(kafka_server: KafkaServer) -> KafkaServer:
    """A server with users and TLS: an imitation has neither."""
    kafka_server.need_security()
    return kafka_server


def sasl(server: KafkaServer, **more: Any) -> dict[str, Any]:
    return {
        "bootstrap_servers": f"127.0.0.1:{server.sasl_port}", "security_protocol": "SASL_PLAINTEXT",
        "sasl_username": server.user, "sasl_password": server.password, **more,
    }  # fmt: skip


async def works(broker: KafkaBroker, name: str) -> None:
    seen, shared = Collector(), Collector()
    async with MessageBus(broker) as bus:
        await bus.subscribe(f"{name}.secure", seen)
        await bus.subscribe(f"{name}.secure", shared, group="workers")
        await bus.publish(f"{name}.secure", 1)
        await seen.wait()
        await shared.wait()


async def refused(broker: KafkaBroker, kind: type[AmbError]) -> str:
    with pytest.raises(kind) as caught:
        async with broker.connect():
            pass
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
async def test_a_user_name_and_password(secured: KafkaServer, make: Make, name: str, mechanism: str) -> None:
    await works(make(**sasl(secured, sasl_mechanism=mechanism)), name)


async def test_tls(secured: KafkaServer, make: Make, name: str) -> None:
    address = f"localhost:{secured.tls_port}"
    await works(make(bootstrap_servers=address, security_protocol="SSL", ssl_cafile=secured.ca), name)


async def test_tls_with_a_user(secured: KafkaServer, make: Make, name: str) -> None:
    options = sasl(
        secured, bootstrap_servers=f"localhost:{secured.sasl_tls_port}", security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-256", ssl_cafile=secured.ca,
    )  # fmt: skip
    await works(make(**options), name)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
async def test_a_wrong_password(secured: KafkaServer, make: Make, mechanism: str) -> None:
    broker = make(**sasl(secured, sasl_mechanism=mechanism, sasl_password=SECRET))
    began = time.monotonic()
    assert "sasl_password" in await refused(broker, AuthenticationError)
    assert time.monotonic() - began < 5


async def test_a_mechanism_that_the_server_does_not_have(secured: KafkaServer, make: Make) -> None:
    broker = make(**sasl(secured, sasl_mechanism="SCRAM-SHA-512"))
    assert "sasl_mechanism" in await refused(broker, AuthenticationError)


async def test_a_wrong_password_is_said_by_the_bus_at_once(secured: KafkaServer, make: Make) -> None:
    with pytest.raises(AuthenticationError) as caught:
        await MessageBus(make(**sasl(secured, sasl_password=SECRET))).connect()
    assert SECRET not in str(caught.value)


async def test_a_server_that_is_not_there(make: Make) -> None:
    text = await refused(make(bootstrap_servers=f"127.0.0.1:{free_ports(1)[0]}"), Unavailable)
    assert "127.0.0.1" in text and "reachable" in text


async def test_a_host_that_does_not_exist(make: Make) -> None:
    assert "nowhere.invalid" in await refused(make(bootstrap_servers="nowhere.invalid:9092"), Unavailable)


async def test_a_server_that_never_answers(make: Make) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as silent:
        port = silent.extra(anyio.abc.SocketAttribute.local_port)
        began = time.monotonic()
        await refused(make(bootstrap_servers=f"127.0.0.1:{port}", connect_timeout=1.0), Unavailable)
        assert time.monotonic() - began < 8


async def test_a_certificate_that_nobody_vouches_for(secured: KafkaServer, make: Make) -> None:
    broker = make(bootstrap_servers=f"localhost:{secured.tls_port}", security_protocol="SSL")
    assert "certificate" in await refused(broker, Unavailable)


async def test_a_certificate_for_another_host(secured: KafkaServer, make: Make, name: str) -> None:
    address = f"localhost.localdomain:{secured.tls_port}"
    try:
        await anyio.getaddrinfo("localhost.localdomain", secured.tls_port)
    except OSError:
        address = f"127.0.0.2:{secured.tls_port}"
    broker = make(bootstrap_servers=address, security_protocol="SSL", ssl_cafile=secured.ca)
    await refused(broker, Unavailable)


@pytest.fixture
async def expired(tmp_path: Path) -> AsyncIterator[KafkaBroker]:
    """A listener whose certificate was good until yesterday, and a broker that trusts who signed it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", not_after=yesterday).configure_cert(context)

    async def shake_hands(stream: anyio.abc.SocketStream) -> None:
        from anyio.streams.tls import TLSStream

        try:
            await TLSStream.wrap(stream, server_side=True, ssl_context=context)
        except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream):
            await stream.aclose()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, shake_hands)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield KafkaBroker(f"localhost:{port}", security_protocol="SSL", ssl_cafile=str(tmp_path / "ca.pem"))
        group.cancel_scope.cancel()


async def test_a_certificate_that_has_expired(expired: KafkaBroker) -> None:
    assert "expired" in await refused(expired, Unavailable)


async def test_a_user_without_rights_is_told_so_and_the_rest_goes_on(
    secured: KafkaServer, make: Make, name: str
) -> None:
    await servers.allow(secured, f"{name}.open")
    own = make(**sasl(
        secured, sasl_username=secured.limited_user, sasl_password=secured.limited_password
    ))  # fmt: skip
    async with MessageBus(make()) as anybody:
        await anybody.publish(f"{name}.closed", 1)  # so that it is there
    seen, shared = Collector(), Collector()
    async with MessageBus(own) as bus:
        await bus.subscribe(f"{name}.open.a", seen)
        await bus.subscribe(f"{name}.open.a", shared, group="workers")
        for denied in (
            bus.publish(f"{name}.closed", 1),
            bus.publish(f"{name}.closed.new", 1),
            bus.subscribe(f"{name}.closed", seen),
            bus.subscribe(f"{name}.closed", seen, group="workers"),
        ):
            with pytest.raises(AccessDenied, match=f"{name}.closed") as caught:
                await denied
            assert "\n" not in str(caught.value)
            assert isinstance(caught.value, PermissionError)
        await bus.publish(f"{name}.open.a", "still here")
        await seen.wait()
        await shared.wait()


async def test_a_missing_topic_that_may_not_be_made(make: Make, name: str) -> None:
    async with MessageBus(make()) as maker:
        await maker.publish(f"{name}.there", 0)
    seen = Collector()
    async with MessageBus(make(create_topics=False)) as bus:
        await bus.subscribe(f"{name}.there", seen)
        for missing in (bus.publish(f"{name}.missing", 1), bus.subscribe(f"{name}.missing", seen)):
            with pytest.raises(NotFound, match=rf"{name}\.missing.*create_topics") as caught:
                await missing
            assert "\n" not in str(caught.value)
        await bus.publish(f"{name}.there", "still here")
        await seen.wait()


async def test_one_topic_that_cannot_be_made_fails_its_own_messages_only(make: Make, name: str) -> None:
    from amb_core.broker import Outgoing
    from amb_core.errors import PartialFailure

    async with MessageBus(make()) as maker:
        await maker.publish(f"{name}.there", 0)
    async with msgspec.structs.replace(make(), create_topics=False).connect() as connection:
        with pytest.raises(PartialFailure) as caught:
            await connection.send([Outgoing(f"{name}.{word}", b"", {}) for word in ("there", "missing", "there")])
    assert {index: type(error) for index, error in caught.value.errors.items()} == {1: NotFound}


async def test_a_session_that_the_server_does_not_allow(make: Make, name: str) -> None:
    async with MessageBus(make(session_timeout_ms=3_600_000)) as bus:
        with pytest.raises(ConfigurationError, match="session_timeout_ms"):
            await bus.subscribe(f"{name}.jobs", Collector(), group="workers")
