"""The options of the RabbitMQ broker, and what it can do with them."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from amb_core.broker import Capabilities, Connection
from amb_core.config import Secret, masked_repr, validate
from amb_core.errors import ConfigurationError

__all__ = ["LEVELS", "MAX_BODY", "UNIT", "RabbitMQBroker"]

#: What RabbitMQ 4 takes unless it is told otherwise.
MAX_BODY = 16 * 1024 * 1024
#: A delay is a sum of levels: level n lasts ``UNIT * 2**n`` seconds.
UNIT = 0.05
LEVELS = 28

_EXCHANGE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class RabbitMQBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A RabbitMQ server (3.10 or newer) or cluster.

    ``RabbitMQBroker("amqp://guest:guest@localhost:5672/")``; ``amqps://`` means TLS, the path is the virtual host.
    """

    #: Where the server is. User, password and virtual host may be part of it.
    url: str = "amqp://guest:guest@localhost:5672/"
    #: User; wins over the one in the URL.
    username: str | None = None
    #: Password; wins over the one in the URL.
    password: Secret | None = None
    #: Virtual host; wins over the one in the URL.
    vhost: str | None = None
    #: The topic exchange, and what the names of all queues and further exchanges begin with.
    exchange: str = "amb"
    #: The topic for dead letters of buses that name none.
    dead_letter_queue: str | None = None
    #: Whether exchanges and groups' queues may be made. Queues of subscribers without a group always are.
    auto_create: bool = True
    #: Members that keep a copy of each group's queue, in a cluster; 0: as many as the server thinks right.
    replicas: Annotated[int, msgspec.Meta(ge=0)] = 0
    #: File with the certificates of the authorities that are trusted; default: the system's.
    ssl_ca_certs: str | None = None
    #: File with the client's certificate, if the server wants one.
    ssl_certfile: str | None = None
    #: File with the client's private key.
    ssl_keyfile: str | None = None
    #: Whether the certificate must be for the host in the URL.
    ssl_check_hostname: bool = True
    #: Seconds between signs of life; 0: none.
    heartbeat: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 30
    #: Seconds to connect and authenticate.
    connect_timeout: _Positive = 5.0
    #: Seconds without an answer after which a link counts as dead. While the server blocks publishers
    #: (`connection.blocked`), publishing waits longer: as long as the caller does.
    response_timeout: _Positive = 10.0

    def __post_init__(self) -> None:
        validate(self)
        parts = urlsplit(self.url)
        if parts.scheme not in ("amqp", "amqps") or not parts.netloc:
            raise ConfigurationError(
                "RabbitMQBroker: url must look like amqp://user:password@host:5672/vhost or amqps://…"
            )
        try:
            _ = parts.port
        except ValueError as error:
            raise ConfigurationError("RabbitMQBroker: url has no valid port") from error
        if parts.query:
            raise ConfigurationError("RabbitMQBroker: options are fields of their own, not part of url's query")
        if not _EXCHANGE.fullmatch(self.exchange) or self.exchange.startswith("amq."):
            raise ConfigurationError(
                "RabbitMQBroker: exchange is 1 to 64 letters, digits, dots, dashes and underscores, and not 'amq.…'"
            )
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ConfigurationError("RabbitMQBroker: ssl_keyfile needs ssl_certfile")
        if parts.scheme == "amqp" and (self.ssl_ca_certs or self.ssl_certfile or not self.ssl_check_hostname):
            raise ConfigurationError("RabbitMQBroker: the ssl options need an amqps:// URL")

    def __repr__(self) -> str:
        return masked_repr(self)

    @property
    def capabilities(self) -> Capabilities:
        """What RabbitMQ 3.10 can do; the options change nothing."""
        return Capabilities(
            durable=True,
            confirm="fsynced",
            groups=True,
            durable_groups=True,
            redelivery="broker",
            delivery_count="envelope",
            delay="emulated",
            max_delay=UNIT * (2**LEVELS - 1),
            order="key",
            wildcards="native",
            priority="lanes",
            return_unstarted=True,
            max_message=MAX_BODY,
            cloudevents="ce-",
            elections=True,
        )

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Connect to the server; see `amb_core.broker.Broker.connect`."""
        from ._connection import connect

        return connect(self)
