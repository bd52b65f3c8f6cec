"""TLS, passwords and permissions; what is refused is one typed error in one line."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import trustme
from amb_core import MessageBus
from amb_core.errors import AccessDenied, AmbError, AuthenticationError, ConfigurationError, Unavailable
from amb_rabbitmq import RabbitMQBroker

from tests.core._help import Collector
from tests.servers.process import free_ports
from tests.servers.rabbitmq import RabbitServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def secured(rabbitmq_server: RabbitServer) -> RabbitMQBroker:
    return RabbitMQBroker(rabbitmq_server.tls_url, ssl_ca_certs=rabbitmq_server.ca)


async def _works(broker: RabbitMQBroker) -> None:
    async with MessageBus(broker) as bus:
        seen = Collector()
        await bus.subscribe("secure.x", seen)
        await bus.publish("secure.x", 1)
        await seen.wait()


async def _refused(broker: RabbitMQBroker, kind: type[AmbError]) -> str:
    with pytest.raises(kind) as caught:
        async with broker.connect():
            pass
    assert "\n" not in str(caught.value)
    assert "hidden" not in "".join(str(error) for error in (caught.value, caught.value.__cause__))
    return str(caught.value)


async def test_tls(secured: RabbitMQBroker) -> None:
    await _works(secured)


async def test_an_authority_that_is_not_trusted(secured: RabbitMQBroker) -> None:
    text = await _refused(msgspec.structs.replace(secured, ssl_ca_certs=None), ConfigurationError)
    assert "certificate" in text and "ssl_ca_certs" in text


async def test_the_certificate_must_be_for_the_host(secured: RabbitMQBroker) -> None:
    elsewhere = msgspec.structs.replace(secured, url=secured.url.replace("127.0.0.1", "127.0.0.2"))
    with pytest.raises((ConfigurationError, Unavailable)):
        async with elsewhere.connect():
            pass


async def test_an_expired_certificate(node: RabbitServer) -> None:
    broker = RabbitMQBroker(node.tls_url.replace("guest:guest", "guest:hidden"), ssl_ca_certs=node.ca)
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="expired") as caught:
        await MessageBus(broker).connect()
    assert time.monotonic() - began < 8, "it was tried again before the error"
    assert "\n" not in str(caught.value) and "hidden" not in f"{caught.value} {caught.value.__cause__}"


async def test_a_client_certificate(rabbitmq_server: RabbitServer, secured: RabbitMQBroker, tmp_path: Path) -> None:
    """It is sent; whether it is wanted is the server's affair."""
    pair = trustme.CA().issue_cert("client")
    pair.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    pair.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    own = msgspec.structs.replace(
        secured, ssl_certfile=str(tmp_path / "client.pem"), ssl_keyfile=str(tmp_path / "client.key")
    )
    await _works(own)
    broken = msgspec.structs.replace(own, ssl_keyfile=secured.ssl_ca_certs)
    assert "ssl_keyfile cannot be read" in await _refused(broken, ConfigurationError)


async def test_files_that_are_not_there(secured: RabbitMQBroker) -> None:
    text = await _refused(msgspec.structs.replace(secured, ssl_ca_certs="/nowhere.pem"), ConfigurationError)
    assert "ssl_ca_certs" in text


async def test_tls_where_none_is_spoken(rabbitmq_server: RabbitServer) -> None:
    url = rabbitmq_server.url.replace("amqp://", "amqps://")
    assert "TLS" in await _refused(RabbitMQBroker(url, ssl_ca_certs=rabbitmq_server.ca), AmbError)


async def test_a_wrong_password(rabbitmq_server: RabbitServer, caplog: pytest.LogCaptureFixture) -> None:
    broker = RabbitMQBroker(rabbitmq_server.url, password="hidden")
    assert "password" in await _refused(broker, AuthenticationError)
    began = time.monotonic()
    with pytest.raises(AuthenticationError):
        await MessageBus(broker).connect()
    assert time.monotonic() - began < 8, "it was tried again before the error"
    assert "hidden" not in caplog.text


async def test_a_virtual_host_that_is_not_there_or_not_open(rabbitmq_server: RabbitServer) -> None:
    text = await _refused(RabbitMQBroker(rabbitmq_server.url, vhost="nowhere"), AccessDenied)
    assert "nowhere" in text and "add_vhost" in text
    name = f"u{secrets.token_hex(4)}"
    rabbitmq_server.process.ctl("add_user", name, "hidden")
    text = await _refused(RabbitMQBroker(rabbitmq_server.url, username=name, password="hidden"), AccessDenied)
    assert name in text and "set_permissions" in text


async def test_permissions_as_documented(rabbitmq_server: RabbitServer) -> None:
    name, ctl = f"u{secrets.token_hex(4)}", rabbitmq_server.process.ctl
    broker = RabbitMQBroker(rabbitmq_server.url, exchange=name)
    async with MessageBus(broker) as admin:  # makes the exchanges, and the levels for short delays
        await admin.publish("orders.first", 1, delay=0.2)
    ctl("add_user", name, "hidden")
    ctl("set_permissions", name, *[rf"^({name}([./].*)?|amq\.default|amq\.gen.*|_amb\.inbox\..*)$"] * 3)
    for exchange in (name, f"{name}.express"):
        ctl("set_topic_permissions", name, exchange, *[r"^orders\..*"] * 2)
    limited = msgspec.structs.replace(broker, username=name, password="hidden")
    async with MessageBus(limited) as bus:
        seen, shared = Collector(), Collector(ValueError("once"), 1)
        await bus.subscribe("orders.x", seen)
        await bus.subscribe("orders.#", shared, group="g", retries=1, retry_delay=0.05)
        for priority in ("normal", "high"):
            with pytest.raises(AccessDenied, match=r"secrets\.x"):
                await bus.publish("secrets.x", 1, priority=priority)
        with pytest.raises(AccessDenied, match=r"secrets\.x"):
            await bus.subscribe("secrets.x", seen)
        await bus.publish("orders.x", 1, delay=0.1)
        await seen.wait()
        await shared.wait(2)
        assert (await bus.health()).status == "healthy"


async def test_of_a_batch_only_what_is_refused_fails(rabbitmq_server: RabbitServer) -> None:
    """The server closes the channel over it: what came before may have been accepted, what came after is sent again."""
    from amb_core import Message
    from amb_core.errors import PartialFailure, PublishUnknown

    name, ctl = f"u{secrets.token_hex(4)}", rabbitmq_server.process.ctl
    ctl("add_user", name, "hidden")
    ctl("set_permissions", name, ".*", ".*", ".*")
    ctl("set_topic_permissions", name, name, r"^orders\..*", ".*")
    async with MessageBus(RabbitMQBroker(rabbitmq_server.url, username=name, password="hidden", exchange=name)) as bus:
        seen = Collector()
        await bus.subscribe("orders.#", seen)
        topics = ["orders.a", "orders.b", "secrets.x", "orders.c", "orders.d"]
        with pytest.raises(PartialFailure) as caught:
            await bus.publish_batch([Message(topic, topic) for topic in topics])
        errors = {index: type(error) for index, error in caught.value.errors.items()}
        assert errors.pop(2) is AccessDenied
        assert set(errors) <= {0, 1} and set(errors.values()) <= {PublishUnknown}
        await seen.wait(4)
    assert sorted(seen.data) == ["orders.a", "orders.b", "orders.c", "orders.d"]


@pytest.mark.parametrize("wrong", ["host", "password", "permission", "exchange", "certificate"])
def test_the_command_says_it_in_one_line(wrong: str, rabbitmq_server: RabbitServer, node: RabbitServer) -> None:
    server = rabbitmq_server.url.replace("guest:guest", "guest:hidden") if wrong == "password" else rabbitmq_server.url
    settings = {"AMB_BROKER": "rabbitmq", "AMB_RABBITMQ_URL": server}
    if wrong == "host":
        settings["AMB_RABBITMQ_URL"] = f"amqp://guest:hidden@127.0.0.1:{free_ports(1)[0]}/"
    elif wrong == "permission":
        name = f"u{secrets.token_hex(4)}"
        rabbitmq_server.process.ctl("add_user", name, "hidden")
        rabbitmq_server.process.ctl("set_permissions", name, "^$", "^$", "^$")
        settings |= {"AMB_RABBITMQ_USERNAME": name, "AMB_RABBITMQ_PASSWORD": "hidden"}
    elif wrong == "exchange":
        settings |= {"AMB_RABBITMQ_AUTO_CREATE": "false", "AMB_RABBITMQ_EXCHANGE": "nobody-made-this"}
    elif wrong == "certificate":
        settings |= {"AMB_RABBITMQ_URL": node.tls_url, "AMB_RABBITMQ_SSL_CA_CERTS": node.ca}
    # It says what the last attempt met: the first, which imports the client, must have come to an end.
    patience = "5" if wrong == "host" else "15"
    command = [sys.executable, "-m", "amb_core.cli", "publish", "a.b", "1", "--connect-timeout", patience]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0 and done.stdout == ""
    [line] = done.stderr.splitlines()
    expected = {"host": "Connect call failed", "password": "password", "permission": "permissions",
                "exchange": "nobody-made-this", "certificate": "expired"}  # fmt: skip
    assert expected[wrong] in line and "hidden" not in line
