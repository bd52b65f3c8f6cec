"""What is set up wrongly is said in one line, with a type and without a secret; the rest of the bus goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from amb_core import MessageBus
from amb_core.errors import (
    AccessDenied,
    AmbError,
    AuthenticationError,
    BrokerUnavailable,
    ConfigurationError,
    NotFound,
)
from amb_nats import NatsBroker

from tests.core._help import Collector
from tests.servers import nats as servers
from tests.servers.nats import SecureNats
from tests.servers.process import free_ports

pytestmark = pytest.mark.anyio
SECRET = "hidden-horse"


@pytest.fixture(scope="module")
def expired() -> Iterator[SecureNats]:
    with servers.secure(expired=True) as server:
        yield server


def _one_line(error: AmbError, *words: str) -> None:
    text = str(error)
    assert "\n" not in text and SECRET not in text
    assert SECRET not in repr(error.__cause__)
    for word in words:
        assert word in text


async def _refused(broker: NatsBroker, kind: type[AmbError], *words: str) -> None:
    bus = MessageBus(broker, connect_timeout=1 if kind is BrokerUnavailable else 15)
    for act in (bus.connect, lambda: bus.publish("jobs", 1)):
        with pytest.raises(kind) as caught:
            await act()
        assert type(caught.value).__module__ == "amb_core.errors"
        _one_line(caught.value, *words)
    await bus.disconnect()


async def test_a_host_that_does_not_exist() -> None:
    url = f"nats://me:{SECRET}@nowhere.invalid:4222"
    await _refused(NatsBroker(url), BrokerUnavailable, "nowhere.invalid:4222")


async def test_a_port_where_nobody_listens() -> None:
    (port,) = free_ports(1)
    await _refused(NatsBroker(f"nats://me:{SECRET}@127.0.0.1:{port}"), BrokerUnavailable, f"127.0.0.1:{port}")


async def test_a_wrong_password(secure_nats: SecureNats) -> None:
    broker = NatsBroker(
        secure_nats.url, user=secure_nats.user, password=SECRET,
        tls_ca=secure_nats.ca, tls_cert=secure_nats.certificate, tls_key=secure_nats.key,
    )  # fmt: skip
    await _refused(broker, AuthenticationError, "check user, password")


async def test_a_certificate_that_has_expired(expired: SecureNats) -> None:
    broker = NatsBroker(expired.url, user=expired.user, password=expired.password, tls_ca=expired.ca)
    await _refused(broker, ConfigurationError, "expired", f"{expired.host}:{expired.port}")


async def test_a_topic_that_the_stream_does_not_keep(make: Callable[..., NatsBroker], word: str) -> None:
    """With `stream_subjects` nothing else is made."""
    async with MessageBus(make(stream_subjects=[f"{word}.kept.>"])) as bus:
        seen = Collector()
        await bus.subscribe("kept.x", seen, group="g")
        with pytest.raises(NotFound) as published:
            await bus.publish("lost.x", 1)
        with pytest.raises(NotFound) as subscribed:
            await bus.subscribe("lost.x", seen)
        for caught in (published, subscribed):
            _one_line(caught.value, "lost.x", "stream_subjects")
        await bus.publish("kept.x", 2)
        await seen.wait()
        assert (await bus.health()).status == "healthy"


async def test_a_user_who_may_not_make_the_stream(secure_nats: SecureNats) -> None:
    broker = NatsBroker(
        secure_nats.url, user=secure_nats.limited_user, password=secure_nats.limited_password, jetstream=True,
        stream_name="FORBIDDEN", subject_prefix="forbidden",
        tls_ca=secure_nats.ca, tls_cert=secure_nats.certificate, tls_key=secure_nats.key,
    )  # fmt: skip
    await _refused(broker, AccessDenied, "FORBIDDEN", "permissions")


async def test_one_forbidden_topic_leaves_the_others_alone(secure_nats: SecureNats) -> None:
    broker = NatsBroker(
        secure_nats.url, user=secure_nats.limited_user, password=secure_nats.limited_password,
        tls_ca=secure_nats.ca, tls_cert=secure_nats.certificate, tls_key=secure_nats.key,
    )  # fmt: skip
    async with MessageBus(broker) as bus:
        seen = Collector()
        await bus.subscribe("mine.open", seen)
        with pytest.raises(AccessDenied) as caught:
            await bus.publish("mine.closed", 1)
        _one_line(caught.value, "mine.closed", "permissions")
        await bus.publish("mine.open", 2)
        await seen.wait()


async def test_a_server_that_comes_later_is_found() -> None:
    """A bus that could not connect is not spoilt by that."""
    (port,) = free_ports(1)
    bus = MessageBus(NatsBroker(f"nats://127.0.0.1:{port}"), connect_timeout=3)
    with pytest.raises(BrokerUnavailable):
        await bus.connect()
    with servers.alone(port):
        await bus.publish("jobs", 1)
        await bus.disconnect()
