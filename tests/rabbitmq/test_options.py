"""Every option of the broker does what it says."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable

import msgspec
import pytest
from aio_pika.abc import AbstractChannel
from amb_core import MessageBus, UnsupportedError
from amb_core.errors import ConfigurationError, NotFound, Unavailable
from amb_rabbitmq import RabbitMQBroker

from tests.core._help import Collector
from tests.servers.process import free_ports
from tests.servers.rabbitmq import RabbitServer

pytestmark = pytest.mark.anyio
Make = Callable[..., RabbitMQBroker]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"url": "http://localhost"}, "url must look like amqp://"),
        ({"url": "amqp://"}, "url must look like"),
        ({"url": "amqp://localhost:port"}, "no valid port"),
        ({"url": "amqp://localhost/?heartbeat=1"}, "fields of their own"),
        ({"exchange": ""}, "exchange"),
        ({"exchange": "a b"}, "exchange"),
        ({"exchange": "amq.topic"}, "exchange"),
        ({"replicas": -1}, "replicas"),
        ({"heartbeat": 4000}, "heartbeat"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"response_timeout": 0}, "response_timeout"),
        ({"auto_create": "no"}, "auto_create"),
        ({"url": "amqps://h", "ssl_keyfile": "k.pem"}, "ssl_certfile"),
        ({"ssl_ca_certs": "ca.pem"}, "amqps"),
        ({"ssl_check_hostname": False}, "amqps"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options: dict[str, object], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        RabbitMQBroker(**options)  # type: ignore[arg-type]


def test_no_secret_in_the_repr() -> None:
    shown = repr(RabbitMQBroker("amqp://me:hidden@h/", password="hidden"))
    assert "hidden" not in shown and "me" in shown


@pytest.mark.parametrize("documented", ["amqp://guest:guest@localhost/", "amqp://guest:guest@localhost:5672/"])
def test_the_documented_programs_build(documented: str) -> None:
    from amb_core.adapters.rabbitmq_broker import RabbitMQBroker as Documented

    assert MessageBus(adapter=Documented(documented)).broker == RabbitMQBroker(documented)
    assert MessageBus(documented).broker == RabbitMQBroker(documented)


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMB_BROKER", "rabbitmq")
    monkeypatch.setenv("AMB_RABBITMQ_URL", "amqp://h/v")
    monkeypatch.setenv("AMB_RABBITMQ_EXCHANGE", "mine")
    monkeypatch.setenv("AMB_RABBITMQ_AUTO_CREATE", "false")
    assert MessageBus().broker == RabbitMQBroker("amqp://h/v", exchange="mine", auto_create=False)


async def test_what_the_broker_cannot_do_is_refused_before_any_network() -> None:
    bus = MessageBus(RabbitMQBroker("amqp://nowhere.invalid/"))
    with pytest.raises(UnsupportedError, match="replay"):
        async for _ in bus.replay("t.x"):
            pass
    with pytest.raises(UnsupportedError):
        await bus.subscribe("t.x", print, group="g", start="earliest")
    with pytest.raises(ValueError, match="delays at most"):
        await bus.publish("t.x", 1, delay=1e9)


async def test_a_virtual_host_keeps_systems_apart(rabbitmq_server: RabbitServer) -> None:
    name = f"v/{secrets.token_hex(4)}"
    rabbitmq_server.process.ctl("add_vhost", name)
    rabbitmq_server.process.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    quoted = rabbitmq_server.url + name.replace("/", "%2F")
    here, there = RabbitMQBroker(rabbitmq_server.url, vhost=name), RabbitMQBroker(rabbitmq_server.url)
    seen, others = Collector(), Collector()
    async with MessageBus(here) as bus, MessageBus(there) as other, MessageBus(RabbitMQBroker(quoted)) as same:
        await bus.subscribe("vhost.x", seen)
        await other.subscribe("vhost.x", others)
        await same.publish("vhost.x", 1)
        await seen.wait()
        await other.publish("vhost.x", 2)
        await others.wait()
    assert (seen.data, others.data) == ([1], [2])


async def test_two_exchanges_are_two_systems(make: Make) -> None:
    seen, others = Collector(), Collector()
    async with MessageBus(make()) as bus, MessageBus(make(exchange=f"t{secrets.token_hex(4)}")) as other:
        await bus.subscribe("x.#", seen, group="g")
        await other.subscribe("x.#", others, group="g")
        await bus.publish("x.y", 1)
        await other.publish("x.y", 2)
        await seen.wait()
        await others.wait()
    assert (seen.data, others.data) == ([1], [2])


async def test_without_auto_create_what_is_missing_is_not_found(make: Make, native: AbstractChannel) -> None:
    strict = make(auto_create=False)
    with pytest.raises(NotFound, match=rf"{strict.exchange}.*auto_create"):
        await MessageBus(strict).connect()
    seen = Collector()
    async with MessageBus(make()) as maker:
        await maker.subscribe("jobs.x", seen, group="known")
    async with MessageBus(strict) as bus:
        with pytest.raises(NotFound, match=r"subscribe to 'jobs\.x'.*group/unknown/jobs\.x"):
            await bus.subscribe("jobs.x", seen, group="unknown")
        with pytest.raises(NotFound, match="delay"):
            await bus.publish("jobs.x", 0, delay=0.1)
        await bus.subscribe("jobs.x", seen, group="known")
        await bus.subscribe("jobs.#", seen)
        await bus.publish("jobs.x", 1)
        await seen.wait(2)
    assert seen.data == [1, 1]


async def test_a_queue_made_with_other_settings_is_said_by_name(make: Make, native: AbstractChannel) -> None:
    broker, seen = make(), Collector()
    await native.declare_queue(f"{broker.exchange}.group/g/jobs.x", durable=True)
    async with MessageBus(broker) as bus:
        with pytest.raises(ConfigurationError, match=r"group/g/jobs\.x.*delete it") as caught:
            await bus.subscribe("jobs.x", seen, group="g")
        assert "\n" not in str(caught.value)
        await bus.subscribe("jobs.x", seen, group="other")
        await bus.publish("jobs.x", 1)
        await seen.wait()


async def test_an_exchange_of_another_kind_is_said_by_name(make: Make, native: AbstractChannel) -> None:
    broker = make()
    await native.declare_exchange(broker.exchange, "fanout", durable=True)
    with pytest.raises(ConfigurationError, match=rf"{broker.exchange}.*choose another exchange"):
        await MessageBus(broker).connect()


async def test_a_server_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    [port] = free_ports(1)
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}") as caught:
        await MessageBus(RabbitMQBroker(f"amqp://me:hidden@127.0.0.1:{port}/"), connect_timeout=0.3).connect()
    assert "\n" not in str(caught.value)
    assert "hidden" not in f"{caught.value} {caught.value.__cause__} {caplog.text}"


async def test_a_host_that_has_no_address() -> None:
    with pytest.raises(Unavailable, match=r"nowhere\.invalid"):
        await MessageBus(RabbitMQBroker("amqp://nowhere.invalid/"), connect_timeout=0.3).connect()


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["nothing", "something else"])
async def test_something_that_does_not_speak_amqp(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def serve() -> None:
            held.append(listener.accept()[0])
            held[0].sendall(says)

        threading.Thread(target=serve, daemon=True).start()
        broker = RabbitMQBroker(f"amqp://127.0.0.1:{listener.getsockname()[1]}/", connect_timeout=0.5)
        began = time.monotonic()
        with pytest.raises((Unavailable, ConfigurationError), match=r"127\.0\.0\.1"):
            async with broker.connect():
                pass
        assert time.monotonic() - began < 3
        for sock in held:
            sock.close()


async def test_replicas_are_asked_for(make: Make, rabbitmq_server: RabbitServer) -> None:
    broker = make(replicas=1)
    async with MessageBus(broker) as bus:
        await bus.subscribe("jobs.x", print, group="g")
    listed = rabbitmq_server.process.ctl("list_queues", "name", "arguments")
    [line] = [line for line in listed.splitlines() if line.startswith(f"{broker.exchange}.group/g/jobs.x\t")]
    assert '"x-quorum-initial-group-size",1' in line


def test_options_are_compared_by_value() -> None:
    assert msgspec.structs.replace(RabbitMQBroker(), exchange="a") == RabbitMQBroker(exchange="a")
