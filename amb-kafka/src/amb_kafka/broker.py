"""The options of the Kafka broker, and what it can do with them."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from amb_core.broker import Capabilities, Connection
from amb_core.config import Secret, mask_url, masked_repr, validate
from amb_core.errors import ConfigurationError
from amb_core.topics import validate_pattern

__all__ = ["KafkaBroker"]

#: What is left for headers, key and Kafka's own framing below `max_request_size`.
_OVERHEAD = 64 * 1024
_SCHEME = "kafka://"
_ADDRESS = re.compile(r"([^\s/@:\[\]]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")

#: What AMB sets for aiokafka, because its own bookkeeping depends on it.
_OURS = {
    "acks", "auto_commit_interval_ms", "consumer_timeout_ms", "enable_idempotence", "exclude_internal_topics",
    "key_deserializer", "key_serializer", "loop", "max_poll_interval_ms", "metadata_max_age_ms",
    "partition_assignment_strategy", "partitioner", "request_timeout_ms", "rebalance_timeout_ms", "ssl_context",
    "transactional_id", "value_deserializer",
    "value_serializer",
}  # fmt: skip

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class KafkaBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Kafka cluster (3.0 or newer).

    ``KafkaBroker("localhost:9092")``, or several addresses with commas between, or a list of them.
    """

    #: Where some of the servers are; the others are discovered.
    bootstrap_servers: str | list[str] = "localhost:9092"
    #: What the servers' logs and quotas call this client.
    client_id: str = "amb"
    #: The group of subscriptions that name none.
    group_id: str | None = None
    #: The topic for dead letters of buses that name none.
    dead_letter_queue: str | None = None
    #: Where a group begins that does not exist yet and whose subscription does not say.
    auto_offset_reset: Literal["latest", "earliest"] = "latest"
    #: AMB commits what handlers have settled, by itself. False is refused: whoever wants to decide when a message is
    #: done settles it by hand (``ack_mode="manual"``).
    enable_auto_commit: bool = True
    #: The most messages handed over at once.
    max_poll_records: _Count = 500
    #: Milliseconds of silence after which the cluster takes a group's member for dead.
    session_timeout_ms: Annotated[int, msgspec.Meta(ge=1000)] = 10_000
    #: Milliseconds between signs of life, and so until a member notices that another came or left.
    heartbeat_interval_ms: Annotated[int, msgspec.Meta(ge=50)] = 1000
    #: Seconds that a group's member may finish what its handlers have begun before its partitions go to another.
    rebalance_timeout: _Positive = 60.0
    #: AMB patterns, and the Kafka topic that carries all topics that match: ``{"agents.#": "agents"}``.
    topics: dict[str, str] = {}
    #: Make topics that are not there.
    create_topics: bool = True
    #: Partitions of topics that AMB makes. Members of a group beyond that number idle.
    partitions: _Count = 4
    #: Copies of topics that AMB makes.
    replication_factor: _Count = 1
    #: Seconds until a subscription with wildcards looks again for new topics.
    discovery_interval: Annotated[float, msgspec.Meta(ge=0.1)] = 1.0
    #: How batches are compressed. Other than gzip: needs ``aiokafka[all]``.
    compression_type: Literal["gzip", "snappy", "lz4", "zstd"] | None = None
    #: The largest request in bytes; the servers' ``message.max.bytes`` must allow it.
    max_request_size: Annotated[int, msgspec.Meta(ge=2 * _OVERHEAD)] = 1_048_576
    #: Whether links are encrypted, and whether a user name is given.
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    #: How the user name and password are shown to the server.
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    #: User name.
    sasl_username: str | None = None
    #: Password.
    sasl_password: Secret | None = None
    #: File with the certificates of the authorities that are trusted; default: the system's.
    ssl_cafile: str | None = None
    #: File with the client's certificate, if the server wants one.
    ssl_certfile: str | None = None
    #: File with the client's private key.
    ssl_keyfile: str | None = None
    #: Whether the certificate must be for the host that is connected to.
    ssl_check_hostname: bool = True
    #: Where the schema registry is that keeps the schemas of ``serializer="avro"`` and ``"protobuf"``; an address of
    #: the Confluent API, such as ``http://localhost:8081``. Needs ``amb-kafka[schema-registry]``.
    schema_registry_url: str | None = None
    #: User name for the registry; may also be in its URL.
    schema_registry_username: str | None = None
    #: Password for the registry; may also be in its URL.
    schema_registry_password: Secret | None = None
    #: Token for a registry that wants one instead.
    schema_registry_token: Secret | None = None
    #: File with the certificates of the authorities that are trusted to sign the registry's; default: the system's.
    schema_registry_cafile: str | None = None
    #: File with the client's certificate, if the registry wants one.
    schema_registry_certfile: str | None = None
    #: File with the client's private key for the registry.
    schema_registry_keyfile: str | None = None
    #: What becomes of the schema of something published: it is registered, it must be registered, or the subject's
    #: latest is used instead.
    schema_registry_mode: Literal["register", "lookup", "latest"] = "register"
    #: How subjects are called: ``<topic>-value``, the record, or ``<topic>-<record>``.
    schema_registry_subjects: Literal["topic", "record", "topic-record"] = "topic"
    #: Seconds to connect and authenticate.
    connect_timeout: _Positive = 10.0
    #: Seconds without an answer after which a request has failed.
    response_timeout: _Positive = 10.0
    #: Further keyword arguments for aiokafka's producer, consumer and admin client.
    client_options: dict[str, object] = {}

    def __post_init__(self) -> None:
        validate(self)
        if bad := [one for one in self.addresses if not _ADDRESS.fullmatch(one)]:
            _refuse(f"bootstrap_servers are host:port, such as 'localhost:9092', not {bad[0].rpartition('@')[2]!r}")
        if not self.enable_auto_commit:
            _refuse(
                "enable_auto_commit=False would forget what handlers have done; to decide yourself when a message is "
                "done, subscribe with ack_mode='manual'"
            )
        if taken := _OURS & self.client_options.keys():
            _refuse(f"client_options must not hold {', '.join(sorted(taken))}: AMB depends on its own value")
        if self.security_protocol.startswith("SASL") != (self.sasl_username is not None):
            _refuse("sasl_username and security_protocol='SASL_SSL' (or 'SASL_PLAINTEXT') belong together")
        if (self.sasl_username is None) != (self.sasl_password is None):
            _refuse("sasl_username and sasl_password belong together")
        if (self.ssl_cafile or self.ssl_certfile) and not self.security_protocol.endswith("SSL"):
            _refuse("ssl_cafile and ssl_certfile need security_protocol='SSL' or 'SASL_SSL'")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            _refuse("ssl_certfile and ssl_keyfile belong together")
        if self.heartbeat_interval_ms * 2 > self.session_timeout_ms:
            _refuse("heartbeat_interval_ms must be at most half of session_timeout_ms")
        self._check_topics()
        self._check_registry()

    def _check_registry(self) -> None:
        url = self.schema_registry_url
        given = [name for name in self.__struct_fields__ if name.startswith("schema_registry_") and
                 name not in ("schema_registry_url", "schema_registry_mode", "schema_registry_subjects")
                 and getattr(self, name) is not None]  # fmt: skip
        if url is None:
            if given:
                _refuse(f"{given[0]} needs schema_registry_url")
            return
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            _refuse(f"schema_registry_url is a URL such as 'http://localhost:8081', not {mask_url(url)!r}")
        if (self.schema_registry_username is None) != (self.schema_registry_password is None):
            _refuse("schema_registry_username and schema_registry_password belong together")
        if self.schema_registry_token is not None and (self.schema_registry_username or parts.username):
            _refuse("schema_registry_token and schema_registry_username are two ways to say who asks: give one")
        if (self.schema_registry_certfile is None) != (self.schema_registry_keyfile is None):
            _refuse("schema_registry_certfile and schema_registry_keyfile belong together")
        if parts.scheme == "http" and (self.schema_registry_cafile or self.schema_registry_certfile):
            _refuse("schema_registry_cafile and schema_registry_certfile need a schema_registry_url with https://")

    def _check_topics(self) -> None:
        from ._wire import is_name

        for pattern, name in self.topics.items():
            try:
                validate_pattern(pattern)
            except ValueError as error:
                raise ConfigurationError(f"KafkaBroker: topics: {error}") from error
            if not is_name(name):
                _refuse(
                    f"topics: {name!r} is no name for a Kafka topic: letters, digits, '.', '_' and '-', at most 249"
                )

    def __repr__(self) -> str:
        return masked_repr(self)

    @property
    def addresses(self) -> list[str]:
        """The servers, as ``host:port``."""
        if isinstance(self.bootstrap_servers, str):
            text = self.bootstrap_servers.removeprefix(_SCHEME).rstrip("/")
            return [one.strip() for one in text.split(",")]
        return [one.removeprefix(_SCHEME).rstrip("/") for one in self.bootstrap_servers]

    @property
    def consumer_group(self) -> str | None:
        """`group_id`, by the name that all brokers have."""
        return self.group_id

    @property
    def capabilities(self) -> Capabilities:
        """See `amb_core.broker.Capabilities`."""
        return Capabilities(
            durable=True,
            confirm="replicated" if self.replication_factor > 1 else "accepted",
            groups=True,
            durable_groups=True,
            redelivery="broker",
            delivery_count="envelope",
            delay="emulated",
            max_delay=7 * 86400.0,
            order="key",
            replay="time",
            wildcards="client",
            new_topic_lag=self.discovery_interval + 2.0,
            return_unstarted=True,
            max_message=self.max_request_size - _OVERHEAD,
            cloudevents="ce_",
            elections=True,
        )

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Connect to the cluster; see `amb_core.broker.Broker.connect`."""
        from ._connection import connect

        return connect(self)


def _refuse(what: str) -> None:
    raise ConfigurationError(f"KafkaBroker: {what}")
