"""TLS, passwords, tokens, NKeys and permissions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from amb_core import MessageBus
from amb_core.errors import AccessDenied, AmbError, AuthenticationError, BrokerUnavailable, ConfigurationError
from amb_nats import NatsBroker

from tests.core._help import Collector
from tests.servers import nats as servers
from tests.servers.nats import NatsServer, SecureNats

pytestmark = pytest.mark.anyio


@pytest.fixture
def secured(secure_nats: SecureNats) -> NatsBroker:
    return NatsBroker(
        secure_nats.url, user=secure_nats.user, password=secure_nats.password,
        tls_ca=secure_nats.ca, tls_cert=secure_nats.certificate, tls_key=secure_nats.key,
    )  # fmt: skip


async def _works(broker: NatsBroker) -> None:
    async with MessageBus(broker) as bus:
        seen = Collector()
        await bus.subscribe("secure.open.x", seen)
        await bus.publish("secure.open.x", 1)
        await seen.wait()


async def _refused(broker: NatsBroker, kind: type[AmbError]) -> str:
    with pytest.raises(kind) as caught:
        async with broker.connect():
            pass
    assert "hidden" not in "".join(str(error) for error in (caught.value, caught.value.__cause__))
    return str(caught.value)


async def test_tls_with_certificates_on_both_sides(secured: NatsBroker) -> None:
    await _works(secured)
    await _works(msgspec.structs.replace(secured, url=secured.url.replace("tls://", "nats://")))


async def test_credentials_in_the_url(secure_nats: SecureNats, secured: NatsBroker) -> None:
    address = f"tls://{secure_nats.user}:{secure_nats.password}@{secure_nats.host}:{secure_nats.port}"
    await _works(msgspec.structs.replace(secured, url=address, user=None, password=None))


async def test_an_authority_that_is_not_trusted(secured: NatsBroker, tmp_path: Path) -> None:
    text = await _refused(msgspec.structs.replace(secured, tls_ca=None), ConfigurationError)
    assert "certificate" in text.lower() and "tls_ca" in text


async def test_the_certificate_must_be_for_the_host(secured: NatsBroker) -> None:
    text = await _refused(msgspec.structs.replace(secured, tls_hostname="elsewhere.example"), ConfigurationError)
    assert "elsewhere.example" in text


async def test_a_client_certificate_where_the_server_wants_one(secured: NatsBroker) -> None:
    await _refused(msgspec.structs.replace(secured, tls_cert=None, tls_key=None), BrokerUnavailable)


async def test_a_file_that_is_not_there(secured: NatsBroker) -> None:
    assert "tls_ca" in await _refused(msgspec.structs.replace(secured, tls_ca="/nowhere.pem"), ConfigurationError)


async def test_tls_is_not_talked_out_of(nats_server: NatsServer) -> None:
    """A server without TLS gets no password when TLS was asked for."""
    broker = NatsBroker(nats_server.url.replace("nats://", "tls://"), user="me", password="hidden")
    assert "TLS" in await _refused(broker, ConfigurationError)


async def test_a_wrong_password_is_said_at_once(secured: NatsBroker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    began = time.monotonic()
    bus = MessageBus(msgspec.structs.replace(secured, password="hidden"))
    with pytest.raises(AuthenticationError, match="password"):
        await bus.connect()
    assert time.monotonic() - began < 3
    assert "hidden" not in caplog.text


@pytest.mark.parametrize("stores", [False, True], ids=["core", "jetstream"])
async def test_permissions(secure_nats: SecureNats, secured: NatsBroker, stores: bool) -> None:
    secured = msgspec.structs.replace(secured, jetstream=stores)
    if stores:
        async with MessageBus(secured) as admin:
            await admin.publish("secure.open.first", 1)
    limited = msgspec.structs.replace(
        secured, user=secure_nats.limited_user, password=secure_nats.limited_password, response_timeout=10.0
    )
    async with MessageBus(limited) as bus:
        seen = Collector()
        await bus.subscribe("secure.open.x", seen)
        began = time.monotonic()
        for confirm in (False, True):
            with pytest.raises(AccessDenied, match=r"secure\.closed"):
                await bus.publish("secure.closed", 1, wait_for_confirmation=confirm)
        with pytest.raises(AccessDenied, match=r"secure\.closed"):
            await bus.subscribe("secure.closed", seen)
        assert time.monotonic() - began < 8, "a refusal was waited for"
        await bus.publish("secure.open.x", 1)
        await seen.wait()
        assert (await bus.health()).status == "healthy"


@pytest.fixture
def serve() -> Iterator[Callable[..., NatsServer]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **config: stack.enter_context(servers.alone(**config))


async def test_a_token(serve: Callable[..., NatsServer]) -> None:
    server = serve(authorization={"token": "hidden-token"})
    await _works(NatsBroker(server.url, token="hidden-token"))
    await _works(NatsBroker(server.url.replace("://", "://hidden-token@")))
    await _refused(NatsBroker(server.url, token="hidden"), AuthenticationError)
    await _refused(NatsBroker(server.url), AuthenticationError)


async def test_an_nkey(serve: Callable[..., NatsServer], tmp_path: Path) -> None:
    server = serve(authorization={"users": [{"nkey": servers.PUBLIC}]})
    await _works(NatsBroker(server.url, nkeys_seed=servers.SEED))
    (tmp_path / "seed").write_text(servers.SEED + "\n")
    await _works(NatsBroker(server.url, nkeys_seed=str(tmp_path / "seed")))
    await _refused(NatsBroker(server.url), AuthenticationError)
    for broken in ("SUAA", "SU" + "A" * 30, "SA" + servers.SEED[2:-4]):
        text = await _refused(NatsBroker(server.url, nkeys_seed=broken), ConfigurationError)
        assert "seed" in text and broken not in text


async def test_a_server_without_jetstream(serve: Callable[..., NatsServer]) -> None:
    server = serve(jetstream=False)
    await _works(NatsBroker(server.url))
    text = await _refused(NatsBroker(server.url, jetstream=True), AmbError)
    assert "-js" in text


async def test_a_server_that_takes_little(serve: Callable[..., NatsServer]) -> None:
    from amb_core.errors import MessageTooLarge

    server = serve(max_payload=1000)
    for stores in (False, True):
        async with MessageBus(NatsBroker(server.url, jetstream=stores)) as bus:
            with pytest.raises(MessageTooLarge, match="1000"):
                await bus.publish("x", "y" * 1000)
            await bus.publish("x", "y")
