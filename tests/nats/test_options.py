"""Every option of the broker does what it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest
from amb_core import MessageBus, UnsupportedError
from amb_core.cli._backends import Backend, _markdown
from amb_core.errors import BackpressureError, ConfigurationError, NotFound, Unavailable
from amb_nats import NATSBroker, NatsBroker
from nats.aio.client import Client

from tests.core._help import Collector, eventually
from tests.servers.nats import NatsServer
from tests.servers.process import free_ports

pytestmark = pytest.mark.anyio
Make = Callable[..., NatsBroker]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"url": "http://localhost"}, "url must look like nats://host:4222"),
        ({"url": "nats://localhost:port"}, "url must look like"),
        ({"servers": ["localhost:4222"]}, "servers must look like"),
        ({"stream_name": "a.b"}, "stream_name"),
        ({"stream_subjects": [">"]}, "stream_subjects"),
        ({"stream_subjects": ["a b"]}, "stream_subjects"),
        ({"stream_retention": "forever"}, "stream_retention"),
        ({"stream_max_msgs": 0}, "stream_max_msgs"),
        ({"stream_replicas": 6}, "stream_replicas"),
        ({"subject_prefix": "a.*"}, "subject_prefix"),
        ({"jetstream": True, "subject_prefix": ""}, "stream_subjects"),
        ({"lease": 0}, "lease"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"tls_cert": "x.pem"}, "tls_key"),
        ({"inbox_prefix": "a.>"}, "inbox_prefix"),
        ({"client_options": {"allow_reconnect": True}}, "allow_reconnect"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options: dict[str, object], advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        NatsBroker(**options)  # type: ignore[arg-type]


def test_no_secret_in_the_repr() -> None:
    shown = repr(NatsBroker("nats://me:hidden@h", password="hidden", token="hidden", nkeys_seed="hidden"))
    assert "hidden" not in shown and "me" in shown


def test_the_documented_programs_build() -> None:
    """As in the requirement texts: every kind of credentials at once, and both names for JetStream."""
    broker = NatsBroker(
        servers=["nats://nats1:4222", "nats://nats2:4222"],
        name="agent-os-client",
        jetstream=True,
        stream_name="AGENTS",
        stream_subjects=["agents.>"],
        stream_retention="limits",
        stream_max_msgs=1000000,
        user="user",
        password="password",
        token="secret-token",
        nkeys_seed="SUACSSL3...",
    )
    assert MessageBus(broker=broker).broker is broker and broker.prefix == ""
    NatsBroker(servers=["tls://nats:4222"], tls_cert="/cert.pem", tls_key="/key.pem", tls_ca="/ca.pem")
    assert NATSBroker is NatsBroker
    assert NATSBroker(servers=["nats://localhost:4222"], use_jetstream=True).capabilities.durable
    assert MessageBus(broker="nats", broker_url="nats://localhost:4222").broker == NatsBroker()


def test_options_from_url_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMB_NATS_SERVERS", "nats://a:1,nats://b:2")
    monkeypatch.setenv("AMB_NATS_JETSTREAM", "true")
    assert MessageBus("nats").broker == NatsBroker(servers=["nats://a:1", "nats://b:2"], jetstream=True)
    monkeypatch.delenv("AMB_NATS_SERVERS")
    monkeypatch.setenv("NATS_URL", "nats://c:3")
    assert MessageBus("nats").broker == NatsBroker("nats://c:3", jetstream=True)
    monkeypatch.setenv("AMB_NATS_URL", "nats://d:4")
    assert MessageBus("nats://e:5?lease=7").broker == NatsBroker("nats://e:5", jetstream=True, lease=7.0)
    assert MessageBus("tls://e:5").broker == NatsBroker("tls://e:5", jetstream=True)


def test_building_a_bus_loads_no_client() -> None:
    program = "import sys; from amb_core import MessageBus; MessageBus('nats'); print('nats.aio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"


def test_what_core_nats_cannot_is_refused_before_any_connection() -> None:
    capabilities = NatsBroker().capabilities
    assert not capabilities.durable and capabilities.redelivery == "process" and capabilities.no_responders


def test_the_page_has_the_capabilities_that_are_declared() -> None:
    both = [Backend("core NATS", None, NatsBroker().capabilities),
            Backend("JetStream", None, NatsBroker(jetstream=True).capabilities)]  # fmt: skip
    page = Path(__file__).parents[2] / "docs" / "brokers" / "nats.md"
    assert _markdown(both) in page.read_text(), f"put this into {page.name}:\n{_markdown(both)}"


async def test_delays_and_replay_need_jetstream(core: NatsBroker) -> None:
    bus = MessageBus(core)
    with pytest.raises(UnsupportedError, match="NatsBroker"):
        await bus.publish("x", 1, delay=5)
    assert not bus.connected


async def test_the_first_server_that_answers_is_taken(nats_server: NatsServer) -> None:
    (nobody,) = free_ports(1)
    for _ in range(4):
        async with MessageBus(NatsBroker(servers=[f"nats://127.0.0.1:{nobody}", nats_server.url])) as bus:
            await bus.publish("x", 1)


async def test_nobody_there(word: str) -> None:
    (nobody,) = free_ports(1)
    with pytest.raises(Unavailable, match=f"127.0.0.1:{nobody}"):
        async with NatsBroker(f"nats://user:hidden@127.0.0.1:{nobody}").connect():
            pass


async def test_the_name_is_what_the_server_sees(core: NatsBroker) -> None:
    async with msgspec.structs.replace(core, name="shop", client_options={"pending_size": 1000}).connect() as link:
        options = link._link.client.options  # type: ignore[attr-defined]
        assert options["name"] == "shop"


async def test_the_stream_is_as_asked(make: Make, native: Client, word: str) -> None:
    options = {"stream_max_msgs": 1234, "stream_max_bytes": 10**6, "stream_max_age": 60.0, "duplicate_window": 30.0}
    async with MessageBus(make(**options, stream_discard="new", stream_storage="memory")) as bus:
        await bus.publish("x", 1)
    config = (await native.jetstream().stream_info(word)).config
    assert (config.max_msgs, config.max_bytes, config.max_age, config.duplicate_window) == (1234, 10**6, 60.0, 30.0)
    assert (config.discard, config.storage, config.retention) == ("new", "memory", "limits")
    assert config.subjects == [f"{word}.>"] and config.allow_msg_ttl


async def test_limits_of_a_stream_that_exists_are_changed(make: Make, native: Client, word: str) -> None:
    for limit in (1000, 500):
        async with MessageBus(make(stream_max_msgs=limit)) as bus:
            await bus.publish("x", 1)
        assert (await native.jetstream().stream_info(word)).config.max_msgs == limit
    async with MessageBus(make()) as bus:
        await bus.publish("x", 1)
    assert (await native.jetstream().stream_info(word)).config.max_msgs == 500


async def test_a_stream_of_another_kind_is_refused(make: Make) -> None:
    async with MessageBus(make()) as bus:
        await bus.publish("x", 1)
    with pytest.raises(ConfigurationError, match="stream_retention"):
        await MessageBus(make(stream_retention="interest")).connect()


async def test_a_stream_of_other_subjects_keeps_bare_topics(make: Make, word: str) -> None:
    broker = make(subject_prefix=None, stream_subjects=[f"{word}.agents.>"])
    async with MessageBus(broker) as bus:
        seen = Collector()
        await bus.subscribe(f"{word}.#", seen, group="g")
        await bus.publish(f"{word}.agents.one", 1)
        await seen.wait()
        with pytest.raises(NotFound, match="stream_subjects"):
            await bus.publish(f"{word}.others.one", 1)
        with pytest.raises(NotFound, match="stream_subjects"):
            await bus.subscribe("elsewhere.*", seen)


async def test_subjects_of_another_stream_are_refused(make: Make, word: str) -> None:
    async with MessageBus(make()) as bus:
        await bus.publish("x", 1)
    with pytest.raises(ConfigurationError, match="stream_name"):
        await MessageBus(make(stream_name=f"{word}2")).connect()


async def test_interest_keeps_until_every_group_is_done(make: Make, native: Client, word: str) -> None:
    async with MessageBus(make(stream_retention="interest")) as bus:
        one, two = Collector(), Collector()
        await bus.subscribe("jobs", one, group="one")
        waiting = await bus.subscribe("jobs", two, group="two")
        waiting.pause()
        await bus.publish("jobs", 1)
        await one.wait()
        assert (await native.jetstream().stream_info(word)).state.messages == 1
        waiting.resume()
        await two.wait()
        await _until_empty(native, word)


async def test_a_work_queue_is_empty_when_all_is_done(make: Make, native: Client, word: str) -> None:
    broker = make(stream_retention="workqueue")
    async with MessageBus(broker) as bus:
        await bus.publish("jobs", 1)
        seen, listener = Collector(), Collector()
        await bus.subscribe("jobs", listener)
        await bus.subscribe("jobs", seen, group="g")
        await bus.publish("jobs", 2)
        await seen.wait(2)
        await listener.wait(1)
        assert seen.data == [1, 2] and listener.data == [2]
        await _until_empty(native, word)
        with pytest.raises(ConfigurationError, match="work queue"):
            await bus.subscribe("jobs", seen, group="another")


async def _until_empty(native: Client, stream: str) -> None:
    with anyio.fail_after(5):
        while (await native.jetstream().stream_info(stream)).state.messages:
            await anyio.sleep(0.02)


async def test_a_full_stream_pushes_back(make: Make) -> None:
    async with MessageBus(make(stream_max_msgs=3, stream_discard="new")) as bus:
        for number in range(3):
            await bus.publish("x", number)
        with pytest.raises(BackpressureError, match="full"):
            await bus.publish("x", 3)


async def test_the_lease_is_the_ack_wait_and_can_be_changed(make: Make, native: Client, word: str) -> None:
    for lease in (2.0, 3.0):
        async with MessageBus(make(lease=lease)) as bus:
            await bus.subscribe("x", Collector(), group="g")
        (consumer,) = await native.jetstream().consumers_info(word)
        assert consumer.config.ack_wait == lease


async def test_replies_have_the_inbox_prefix(core: NatsBroker, native: Client, word: str) -> None:
    spied: list[str] = []

    async def spy(message: object) -> None:
        spied.append(message.reply)  # type: ignore[attr-defined]

    await native.subscribe(word, cb=spy)
    await native.flush()
    async with MessageBus(msgspec.structs.replace(core, inbox_prefix="_MINE")) as bus:
        bus.responder(word)(lambda message: 1)
        await bus.connect()
        await bus.request(word, 1, timeout=5)
    await eventually(lambda: bool(spied), "nothing came", 5)
    assert spied[0].startswith("_MINE.")
