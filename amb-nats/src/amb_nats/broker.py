"""The options of the NATS broker, and what it can do with them."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from amb_core.broker import Capabilities, Connection
from amb_core.config import Secret, masked_repr, validate
from amb_core.errors import ConfigurationError

__all__ = ["MAX_BODY", "NATSBroker", "NatsBroker"]

#: A server takes 1 MiB unless told otherwise, headers included; these get the difference.
MAX_BODY = 1024 * 1024 - 64 * 1024

#: What AMB sets for nats-py, because its own reconnecting depends on it.
_OURS = {
    "allow_reconnect", "closed_cb", "connect_timeout", "disconnected_cb", "error_cb", "inbox_prefix",
    "max_reconnect_attempts", "no_echo", "reconnected_cb", "servers", "skip_subject_validation", "verbose",
}  # fmt: skip
_SUBJECT = re.compile(r"[^\s.*>$][^\s.*>]*(?:\.[^\s.*>]+)*")
_STREAM_NAME = re.compile(r"[^\s.*>/\\]{1,255}")

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Limit = Annotated[int, msgspec.Meta(ge=1)]


class NatsBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A NATS server or cluster (2.10 or newer for JetStream).

    ``NatsBroker("nats://localhost:4222")``; ``tls://`` insists on TLS. Core NATS by default: live, unstored, at most
    once. ``jetstream=True``: stored, with durable groups, redelivery, delays and replay.
    """

    #: Where a server is, or several with commas between. User and password, or a token, may be part of it.
    url: str = "nats://localhost:4222"
    #: URLs of servers; replaces `url`. They are tried in random order.
    servers: list[str] = []
    #: What the server's monitoring calls this client.
    name: str | None = None
    #: User name; wins over the one in the URL.
    user: str | None = None
    #: Password; wins over the one in the URL.
    password: Secret | None = None
    #: Token, where the server asks for one instead of a user.
    token: Secret | None = None
    #: NKey seed (``SU…``), or the file that holds it.
    nkeys_seed: Secret | None = None
    #: File with a user's JWT and seed (``.creds``).
    credentials: str | None = None
    #: File with the certificates of the authorities that are trusted; default: the system's.
    tls_ca: str | None = None
    #: File with the client's certificate, if the server wants one.
    tls_cert: str | None = None
    #: File with the client's private key.
    tls_key: str | None = None
    #: The name that the server's certificate must be for; default: the host in the URL.
    tls_hostname: str | None = None
    #: Keep messages in a JetStream stream.
    jetstream: bool = False
    #: The same, by its other documented name.
    use_jetstream: bool = False
    #: The stream that keeps the messages; it is made if it is not there.
    stream_name: str = "AMB"
    #: NATS subjects that the stream keeps (``agents.>``). Default: all topics, below `subject_prefix`.
    stream_subjects: list[str] = []
    #: What the subjects of topics begin with. Default: nothing, so that the subject is the topic; with JetStream and
    #: no `stream_subjects`, ``amb``, since a stream cannot keep every subject there is.
    subject_prefix: str | None = None
    #: ``limits``: messages stay until a limit is reached. ``interest``: until every group has settled them.
    #: ``workqueue``: until they are settled; one group a topic.
    stream_retention: Literal["limits", "interest", "workqueue"] = "limits"
    #: What gives way at a limit: the oldest message, or the publisher. Default: ``old`` for ``limits``, else ``new``.
    stream_discard: Literal["old", "new"] | None = None
    #: Messages kept in all; None: no limit.
    stream_max_msgs: _Limit | None = None
    #: Bytes kept in all; None: no limit.
    stream_max_bytes: _Limit | None = None
    #: Seconds that messages are kept; None: no limit.
    stream_max_age: Annotated[float, msgspec.Meta(ge=1)] | None = None
    #: Copies in a cluster.
    stream_replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    #: Where messages are kept.
    stream_storage: Literal["file", "memory"] = "file"
    #: Seconds in which a second publish of one message is dropped.
    duplicate_window: Annotated[float, msgspec.Meta(ge=0.1)] = 120.0
    #: The JetStream domain, where a leaf node is to use another one than its own.
    domain: str | None = None
    #: Seconds after which a delivery that is neither settled nor extended goes to another member (``ack_wait``).
    lease: Annotated[float, msgspec.Meta(ge=0.1)] = 30.0
    #: What the subjects of private replies begin with.
    inbox_prefix: str = "_INBOX"
    #: Bytes of memory that a subscription without JetStream fills with what waits for its handlers. What comes beyond
    #: that is dropped, with a warning: core NATS has no way to slow a publisher.
    buffer_size: _Limit = 64 * 1024 * 1024
    #: Seconds to connect and authenticate, per server.
    connect_timeout: _Positive = 5.0
    #: Seconds without an answer after which a link counts as dead.
    response_timeout: _Positive = 5.0
    #: Further keyword arguments for nats-py's ``Client.connect``.
    client_options: dict[str, object] = {}

    def __post_init__(self) -> None:
        validate(self)
        for url in self.addresses:
            _check_url("servers" if self.servers else "url", url)
        if taken := _OURS & self.client_options.keys():
            _refuse(f"client_options must not hold {', '.join(sorted(taken))}: AMB depends on its own value")
        if not _STREAM_NAME.fullmatch(self.stream_name):
            _refuse("stream_name must not be empty or hold dots, wildcards, slashes or spaces")
        if bad := [one for one in self.stream_subjects if not one or any(c.isspace() for c in one) or one == ">"]:
            _refuse(f"stream_subjects must be NATS subjects such as 'agents.>', not {bad[0]!r}")
        if not _SUBJECT.fullmatch(self.prefix or "amb"):
            _refuse("subject_prefix must be words with dots between, without wildcards or spaces")
        if self.stores and not self.stream_subjects and not self.prefix:
            _refuse("without subject_prefix, stream_subjects must say what the stream keeps, such as ['agents.>']")
        if (self.tls_key is None) != (self.tls_cert is None):
            _refuse("tls_cert and tls_key belong together")
        if not self.inbox_prefix or any(c.isspace() or c in "*>" for c in self.inbox_prefix):
            _refuse("inbox_prefix must not be empty or hold wildcards or spaces")

    def __repr__(self) -> str:
        return masked_repr(self)

    @property
    def addresses(self) -> list[str]:
        """The URLs of the servers."""
        return self.servers or [url.strip() for url in self.url.split(",")]

    @property
    def stores(self) -> bool:
        """Whether messages are kept, by JetStream."""
        return self.jetstream or self.use_jetstream

    @property
    def prefix(self) -> str:
        """What the subjects of topics begin with."""
        if self.subject_prefix is not None:
            return self.subject_prefix
        return "amb" if self.stores and not self.stream_subjects else ""

    @property
    def capabilities(self) -> Capabilities:
        """Core NATS and JetStream differ in nearly everything."""
        if not self.stores:
            return Capabilities(
                confirm="accepted",
                groups=True,
                wildcards="native",
                priority="lanes",
                no_responders=True,
                max_message=MAX_BODY,
            )
        return Capabilities(
            durable=self.stream_storage == "file",
            confirm="replicated" if self.stream_replicas > 1 else "accepted",
            groups=True,
            durable_groups=True,
            redelivery="broker",
            lease=self.lease,
            extend_lease=True,
            delivery_count="native",
            delay="emulated",
            order="key",
            return_unstarted=True,
            replay="none" if self.stream_retention == "workqueue" else "time",
            wildcards="native",
            dedup=self.duplicate_window,
            max_message=MAX_BODY,
            elections=True,
        )

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Connect to a server; see `amb_core.broker.Broker.connect`."""
        from ._connection import connect

        return connect(self)


NATSBroker = NatsBroker


def _check_url(option: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("nats", "tls") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        _refuse(f"{option} must look like nats://host:4222 or tls://host:4222")


def _refuse(text: str) -> None:
    raise ConfigurationError(f"NatsBroker: {text}")
