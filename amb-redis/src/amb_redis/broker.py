"""The options of the Redis broker, and what it can do with them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from amb_core.broker import Capabilities, Connection
from amb_core.config import Secret, masked_repr, validate
from amb_core.errors import ConfigurationError

__all__ = ["MAX_BODY", "RedisBroker"]

#: Redis takes 512 MB; a body is copied several times on its way, so this is the sensible end.
MAX_BODY = 16 * 1024 * 1024

#: What AMB sets for redis-py, because its reading depends on it.
_OURS = {"decode_responses", "encoding", "parser_class", "protocol", "retry", "socket_timeout"}

_Positive = Annotated[float, msgspec.Meta(gt=0)]


class RedisBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Redis server (7.0 or newer), a Sentinel-guarded pair, or a Cluster.

    ``RedisBroker("redis://localhost:6379/0")``; ``rediss://`` means TLS, ``unix:///path`` a socket.
    """

    #: Where the server is. User, password and database may be part of it.
    url: str = "redis://localhost:6379/0"
    #: The database number; wins over the one in the URL. A Cluster has only 0.
    db: int | None = None
    #: ACL user; wins over the one in the URL.
    username: str | None = None
    #: Password; wins over the one in the URL.
    password: Secret | None = None
    #: True: Redis Streams, stored, with groups and redelivery. False: plain pub/sub, at most once.
    use_streams: bool = True
    #: Messages kept per topic and priority lane. What a group has not read or not settled is kept
    #: beyond that, with one warning per topic.
    stream_max_len: Annotated[int, msgspec.Meta(ge=1)] = 10000
    #: The group of subscriptions that name none.
    consumer_group: str | None = None
    #: The topic for dead letters of buses that name none.
    dead_letter_queue: str | None = None
    #: The most connections for publishing and settling. Each subscription has one of its own besides.
    pool_size: Annotated[int, msgspec.Meta(ge=1)] = 10
    #: TLS also where the URL says ``redis://``.
    ssl: bool = False
    #: File with the certificates of the authorities that are trusted; default: the system's.
    ssl_ca_certs: str | None = None
    #: File with the client's certificate, if the server wants one.
    ssl_certfile: str | None = None
    #: File with the client's private key.
    ssl_keyfile: str | None = None
    #: Whether the certificate must be for the host in the URL.
    ssl_check_hostname: bool = True
    #: URLs of some nodes of a Cluster; the others are discovered. Replaces `url`.
    cluster_nodes: list[str] = []
    #: URLs of Sentinels, with their own user and password if they have one. Replaces the host in `url`.
    sentinel_nodes: list[str] = []
    #: The name of the master that the Sentinels watch.
    sentinel_service: str = "mymaster"
    #: What every key and channel begins with. Databases do not separate channels; prefixes do.
    prefix: str = "amb"
    #: Seconds after which a delivery that is neither settled nor extended goes to another member.
    lease: Annotated[float, msgspec.Meta(ge=0.1)] = 30.0
    #: Confirmed publishing waits until this many replicas have the message.
    wait_replicas: Annotated[int, msgspec.Meta(ge=0)] = 0
    #: Seconds to connect and authenticate.
    connect_timeout: _Positive = 5.0
    #: Seconds without an answer after which a link counts as dead.
    response_timeout: _Positive = 10.0
    #: Further keyword arguments for redis-py's ``Connection``.
    client_options: dict[str, object] = {}

    def __post_init__(self) -> None:
        validate(self)
        for option, urls in (
            ("url", [self.url]),
            ("cluster_nodes", self.cluster_nodes),
            ("sentinel_nodes", self.sentinel_nodes),
        ):
            for url in urls:
                _check_url(option, url)
        if self.cluster_nodes and self.sentinel_nodes:
            raise ConfigurationError("RedisBroker: give cluster_nodes or sentinel_nodes, not both")
        if self.cluster_nodes and self.db:
            raise ConfigurationError("RedisBroker: a Cluster has only database 0: leave db out")
        if self.consumer_group and not self.use_streams:
            raise ConfigurationError(
                "RedisBroker: plain pub/sub has no groups: leave consumer_group out, or use streams"
            )
        if taken := _OURS & self.client_options.keys():
            raise ConfigurationError(
                f"RedisBroker: client_options must not hold {', '.join(sorted(taken))}: AMB depends on its own value"
            )
        if not self.prefix or any(c in "{}*?[]\\^ \t\r\n" for c in self.prefix):
            raise ConfigurationError("RedisBroker: prefix must not be empty or hold braces, glob characters or spaces")

    def __repr__(self) -> str:
        return masked_repr(self)

    @property
    def capabilities(self) -> Capabilities:
        """Streams and pub/sub differ in nearly everything."""
        if not self.use_streams:
            return Capabilities(
                confirm="accepted",
                wildcards="native",
                order="topic",
                no_responders=not self.cluster_nodes,
                max_message=MAX_BODY,
                elections=True,
            )
        return Capabilities(
            durable=True,
            confirm="replicated" if self.wait_replicas else "accepted",
            groups=True,
            durable_groups=True,
            redelivery="broker",
            lease=self.lease,
            extend_lease=True,
            delivery_count="native",
            delay="emulated",
            order="key",
            replay="time",
            wildcards="client",
            new_topic_lag=0.5,
            priority="lanes",
            return_unstarted=True,
            max_message=MAX_BODY,
            elections=True,
        )

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Connect to the server; see `amb_core.broker.Broker.connect`."""
        from ._connection import connect

        return connect(self)


def _check_url(option: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix") or not (parts.netloc or parts.path):
        raise ConfigurationError(
            f"RedisBroker: {option} must look like redis://host:6379/0, rediss://… or unix:///path"
        )
    try:
        _ = parts.port
    except ValueError as error:
        raise ConfigurationError(f"RedisBroker: {option} has no valid port") from error
