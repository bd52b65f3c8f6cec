"""TLS, passwords and access control."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import redis
from amb_core import MessageBus
from amb_core.errors import AccessDenied, AuthenticationError, BrokerUnavailable, Unavailable
from amb_core.testing import FaultProxy
from amb_redis import RedisBroker

from tests.core._help import Collector
from tests.servers.redis import SecureRedis

pytestmark = pytest.mark.anyio


@pytest.fixture
def secured(secure_redis: SecureRedis) -> RedisBroker:
    return RedisBroker(
        f"rediss://{secure_redis.host}:{secure_redis.port}",
        username=secure_redis.username, password=secure_redis.password, ssl_ca_certs=secure_redis.ca,
    )  # fmt: skip


@pytest.fixture
def admin(secure_redis: SecureRedis) -> Iterator[redis.Redis]:
    with redis.Redis(
        host=secure_redis.host, port=secure_redis.port, ssl=True, ssl_ca_certs=secure_redis.ca,
        username=secure_redis.username, password=secure_redis.password,
    ) as client:  # fmt: skip
        yield client


async def _works(broker: RedisBroker) -> None:
    async with MessageBus(broker) as bus:
        seen = Collector()
        await bus.subscribe("secure.x", seen)
        await bus.publish("secure.x", 1)
        await seen.wait()


async def _refused(broker: RedisBroker) -> str:
    with pytest.raises(Unavailable) as caught:
        async with broker.connect():
            pass
    return str(caught.value)


async def test_rediss_means_tls(secured: RedisBroker) -> None:
    await _works(secured)


async def test_ssl_means_tls_where_the_url_does_not_say_so(secure_redis: SecureRedis, secured: RedisBroker) -> None:
    await _works(msgspec.structs.replace(secured, url=f"redis://{secure_redis.host}:{secure_redis.port}", ssl=True))


async def test_credentials_in_the_url(secure_redis: SecureRedis, secured: RedisBroker) -> None:
    address = f"{secure_redis.username}:{secure_redis.password}@{secure_redis.host}:{secure_redis.port}"
    await _works(msgspec.structs.replace(secured, url=f"rediss://{address}", username=None, password=None))
    strangers = f"rediss://someone:else@{secure_redis.host}:{secure_redis.port}"
    await _works(msgspec.structs.replace(secured, url=strangers))


async def test_an_authority_that_is_not_trusted(secured: RedisBroker) -> None:
    assert "certificate" in (await _refused(msgspec.structs.replace(secured, ssl_ca_certs=None))).lower()


async def test_the_certificate_must_be_for_the_host(secure_redis: SecureRedis, secured: RedisBroker) -> None:
    alias = msgspec.structs.replace(secured, url=f"rediss://127.1:{secure_redis.port}")
    assert "certificate" in (await _refused(alias)).lower()
    await _works(msgspec.structs.replace(alias, ssl_check_hostname=False))


async def test_a_client_certificate_where_the_server_wants_one(
    secure_redis: SecureRedis, secured: RedisBroker, admin: redis.Redis
) -> None:
    admin.config_set("tls-auth-clients", "yes")
    try:
        await _refused(secured)
        certified = msgspec.structs.replace(
            secured, ssl_certfile=secure_redis.certificate, ssl_keyfile=secure_redis.key
        )
        await _works(certified)
    finally:
        admin.config_set("tls-auth-clients", "optional")


@pytest.mark.parametrize("username", ["amb", "nobody", None])
async def test_a_wrong_password_is_told_at_once_and_never_shown(secured: RedisBroker, username: str | None) -> None:
    broker, began = msgspec.structs.replace(secured, username=username, password="not-the-one"), time.monotonic()
    with pytest.raises(AuthenticationError) as caught:
        await MessageBus(broker, connect_timeout=10).connect()
    assert time.monotonic() - began < 8, "it was tried again"
    shown, error = repr(broker), caught.value
    while error is not None:
        shown, error = f"{shown} {error} {error!r}", error.__cause__  # type: ignore[assignment]
    assert "not-the-one" not in shown


async def test_no_password_where_one_is_needed(secured: RedisBroker) -> None:
    with pytest.raises(AuthenticationError):
        await MessageBus(msgspec.structs.replace(secured, username=None, password=None)).connect()


@pytest.mark.parametrize("password", ["correct-horse", "not-the-one"])
async def test_hanging_up_does_not_wait_for_the_servers_goodbye(
    secure_redis: SecureRedis, secured: RedisBroker, password: str
) -> None:
    """No socket is left behind, neither by a bus that worked nor by one whose greeting was refused."""
    async with FaultProxy.to(secure_redis.host, secure_redis.port) as proxy:
        url = f"rediss://{proxy.host}:{proxy.port}"
        bus = MessageBus(msgspec.structs.replace(secured, url=url, password=password))
        try:
            await bus.connect()
            proxy.black_hole("up", "down")
        except AuthenticationError:
            pass
        await bus.disconnect()
        await anyio.wait_all_tasks_blocked()
        assert not _established(proxy.port)


def _established(port: int) -> list[str]:
    """The kernel's lines about connections to that port that nobody has closed."""
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return [" ".join(line) for line in lines if line[2].endswith(f":{port:04X}") and line[3] == "01"]


async def test_a_password_that_changes_under_a_live_bus_is_told(secured: RedisBroker, admin: redis.Redis) -> None:
    admin.acl_setuser("passing", enabled=True, passwords=["+old"], keys=["*"], channels=["*"], commands=["+@all"])
    async with MessageBus(msgspec.structs.replace(secured, username="passing", password="old")) as bus:
        await bus.publish("x", 1)
        admin.acl_deluser("passing")  # ends its connections too
        with pytest.raises((AuthenticationError, BrokerUnavailable)):
            await bus.publish("x", 1)


async def test_a_denied_prefix_is_a_permission_error(secure_redis: SecureRedis, secured: RedisBroker) -> None:
    limited = msgspec.structs.replace(
        secured, username=secure_redis.limited_username, password=secure_redis.limited_password
    )
    await _works(msgspec.structs.replace(limited, prefix="public"))
    async with MessageBus(limited) as bus:
        for call in (bus.publish("secret.x", 1), bus.subscribe("secret.x", Collector()), bus.request("secret.x", 1)):
            with pytest.raises(AccessDenied, match=r"secret\.x|inbox") as caught:
                await call
            assert isinstance(caught.value, PermissionError)


async def test_others_go_on_beside_a_denied_topic(secured: RedisBroker, admin: redis.Redis) -> None:
    admin.acl_setuser(
        "half", enabled=True, passwords=["+half"], keys=["amb:{topics}*", "amb:{open.*"], channels=["*"],
        commands=["+@all", "-@dangerous"],
    )  # fmt: skip
    async with MessageBus(msgspec.structs.replace(secured, username="half", password="half")) as bus:
        seen = Collector()
        await bus.subscribe("open.x", seen)
        with pytest.raises(AccessDenied, match="closed"):
            await bus.subscribe("closed.x", seen)
        with pytest.raises(AccessDenied, match="closed"):
            await bus.publish("closed.x", 1)
        await bus.publish("open.x", 1)
        await seen.wait()
        assert (await bus.health()).status == "healthy"


async def test_a_right_that_is_withdrawn_shows_in_health(secured: RedisBroker, admin: redis.Redis) -> None:
    rights: dict[str, Any] = {"enabled": True, "passwords": ["+a"], "channels": ["*"], "commands": ["+@all"]}
    admin.acl_setuser("once", keys=["*"], **rights)
    async with MessageBus(msgspec.structs.replace(secured, username="once", password="a")) as bus:
        subscription, seen = await bus.subscribe("open.y", Collector()), Collector()
        await bus.subscribe("right.x", seen)
        admin.acl_setuser("once", reset=True, keys=["amb:{topics}*", "amb:{right.*"], **rights)
        with anyio.fail_after(15):
            while True:
                states = {each.id: each for each in (await bus.health()).subscriptions}
                if states[subscription].error:
                    break
                await anyio.sleep(0.05)
        assert not states[subscription].consuming
        await bus.publish("right.x", 1)
        await seen.wait()
