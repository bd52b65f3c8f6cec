"""Each broker with a server, with names of its own on it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from amb_azure import AzureServiceBusBroker
from amb_core.broker import Broker
from amb_kafka import KafkaBroker
from amb_nats import NatsBroker
from amb_rabbitmq import RabbitMQBroker
from amb_redis import RedisBroker

from tests.conformance.rig_sqs import broker_for


def _sqs(server: Any, word: str) -> Broker:
    return msgspec.structs.replace(
        broker_for(server.url), queue_prefix=f"{word}-", sns_topic_prefix=f"{word}-", visibility_timeout=30
    )


#: The fixture of the server, and the broker on it whose names contain a word.
SERVERS: dict[str, tuple[str, Callable[[Any, str], Broker]]] = {
    "redis": ("redis_server", lambda server, word: RedisBroker(server.url, prefix=word)),
    "nats": (
        "nats_server",
        lambda server, word: NatsBroker(server.url, jetstream=True, stream_name=word, subject_prefix=word),
    ),
    "kafka": (
        "kafka_server",
        lambda server, _: KafkaBroker(server.address, partitions=1, discovery_interval=0.2, heartbeat_interval_ms=200),
    ),
    "rabbitmq": ("rabbitmq_server", lambda server, word: RabbitMQBroker(server.url, exchange=word)),
    "sqs": ("sqs_server", _sqs),
    "azure": (
        "servicebus",
        lambda server, _: AzureServiceBusBroker(server.connection_string, lock_duration=30.0, response_timeout=4.0),
    ),
}


def new_word() -> str:
    """A name that nobody else uses."""
    return f"t{secrets.token_hex(4)}"


def broker(name: str, request: pytest.FixtureRequest, word: str | None = None) -> Any:
    """The broker of that name; its server is started if it is not yet there."""
    fixture, make = SERVERS[name]
    return make(request.getfixturevalue(fixture), word or new_word())
