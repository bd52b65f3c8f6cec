"""The options: what is accepted, what is refused, and what it does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from amb_core import MessageBus
from amb_core.errors import ConfigurationError
from amb_kafka import KafkaBroker
from amb_kafka._clients import Clients
from amb_kafka._wire import group_of

SASL = {"security_protocol": "SASL_SSL", "sasl_username": "user", "sasl_password": "hidden-word"}


def test_the_documented_form_is_accepted_as_it_stands() -> None:
    broker = KafkaBroker(
        bootstrap_servers=["kafka1:9092", "kafka2:9092", "kafka3:9092"],
        client_id="agent-os-producer",
        group_id="agent-os-consumers",
        auto_offset_reset="earliest",
        enable_auto_commit=True,
        max_poll_records=500,
        session_timeout_ms=30000,
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="user",
        sasl_password="password",
    )
    assert broker.addresses == ["kafka1:9092", "kafka2:9092", "kafka3:9092"]
    assert broker.consumer_group == "agent-os-consumers"


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ("localhost:9092", ["localhost:9092"]),
        ("a:1, b:2", ["a:1", "b:2"]),
        ("kafka://a:1,b:2/", ["a:1", "b:2"]),
        (["kafka://a:1", "[::1]:2"], ["a:1", "[::1]:2"]),
    ],
)
def test_servers_are_one_several_or_a_url(given: Any, addresses: list[str]) -> None:
    assert KafkaBroker(given).addresses == addresses


def test_the_environment_names_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMB_KAFKA_BROKERS", "a:1,b:2")
    monkeypatch.setenv("AMB_KAFKA_PARTITIONS", "9")
    broker = MessageBus("kafka").broker
    assert isinstance(broker, KafkaBroker)
    assert (broker.addresses, broker.partitions) == (["a:1", "b:2"], 9)


def test_a_url_has_options() -> None:
    broker = MessageBus("kafka://a:1,b:2?client_id=shop&create_topics=false").broker
    assert isinstance(broker, KafkaBroker)
    assert (broker.addresses, broker.client_id, broker.create_topics) == (["a:1", "b:2"], "shop", False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bootstrap_servers": "localhost"}, "host:port"),
        ({"bootstrap_servers": "user:hidden-word@host:x"}, "host:port"),
        ({"enable_auto_commit": False}, "ack_mode='manual'"),
        ({"client_options": {"acks": 0}}, "acks"),
        ({"client_options": {"partition_assignment_strategy": ()}}, "partition_assignment_strategy"),
        ({"sasl_username": "user", "sasl_password": "hidden-word"}, "security_protocol"),
        ({"security_protocol": "SASL_SSL"}, "sasl_username"),
        ({**SASL, "sasl_password": None}, "sasl_password"),
        ({"ssl_cafile": "ca.pem"}, "security_protocol"),
        ({"security_protocol": "SSL", "ssl_certfile": "a.pem"}, "ssl_keyfile"),
        ({"session_timeout_ms": 1000, "heartbeat_interval_ms": 600}, "heartbeat_interval_ms"),
        ({"topics": {"a..b": "x"}}, "topics"),
        ({"topics": {"a.b": "no spaces"}}, "no spaces"),
        ({"topics": {"a.b": "_amb.inbox"}}, "_amb.inbox"),
        ({"auto_offset_reset": "none"}, "auto_offset_reset"),
        ({"partitions": 0}, "partitions"),
        ({"sasl_mechanism": "GSSAPI"}, "sasl_mechanism"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        KafkaBroker(**options)
    assert "hidden-word" not in str(caught.value)


def test_the_password_is_in_no_repr() -> None:
    broker = KafkaBroker("a:1", **SASL)  # type: ignore[arg-type]
    assert "hidden-word" not in repr(broker)


@pytest.mark.anyio
async def test_a_certificate_that_cannot_be_read_is_said_by_name() -> None:
    with pytest.raises(ConfigurationError, match="ssl_cafile"):
        async with KafkaBroker("a:1", security_protocol="SSL", ssl_cafile="/nowhere/ca.pem").connect():
            pass


@pytest.mark.anyio
async def test_the_producer_is_idempotent_and_waits_for_all_replicas() -> None:
    producer = Clients(KafkaBroker("a:1")).producer()
    producer._closed = True  # it is never started
    assert producer._sender._acks == -1
    assert producer._txn_manager is not None


@pytest.mark.anyio
async def test_client_options_reach_those_they_are_for() -> None:
    clients = Clients(
        KafkaBroker("a:1", client_options={"max_batch_size": 777, "fetch_min_bytes": 9, "retry_backoff_ms": 55})
    )
    producer, consumer = clients.producer(), clients.consumer()
    producer._closed = consumer._closed = True  # they are never started
    assert (producer._message_accumulator._batch_size, consumer._fetch_min_bytes) == (777, 9)
    assert consumer._client._retry_backoff == 0.055


def test_replicas_make_a_confirmation_stronger() -> None:
    assert KafkaBroker("a:1").capabilities.confirm == "accepted"
    assert KafkaBroker("a:1", replication_factor=3).capabilities.confirm == "replicated"
    larger = msgspec.structs.replace(KafkaBroker("a:1"), max_request_size=4 << 20).capabilities.max_message
    assert larger is not None
    assert larger > 3 << 20


def test_building_a_bus_on_it_touches_no_network() -> None:
    bus = MessageBus(KafkaBroker("nowhere.invalid:1"))
    assert bus.capabilities.groups


@pytest.mark.anyio
async def test_a_longer_delay_than_it_can_keep_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="delays at most"):
        await MessageBus(KafkaBroker("nowhere.invalid:1")).publish("a.b", 1, delay=8 * 86400)


def test_groups_of_one_name_on_different_patterns_are_different() -> None:
    from amb_core.broker import Source

    one, two = (group_of(Source(id="x", pattern=pattern, group="workers")) for pattern in ("a.b", "a.*"))
    assert one[0] == "workers@a.b"
    assert set(one).isdisjoint(two)
