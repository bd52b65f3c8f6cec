"""The options of the Azure Service Bus broker, and what it can do with them."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from typing import Annotated, ClassVar

import msgspec
from amb_core.broker import Capabilities, Connection
from amb_core.config import Secret, masked_repr, validate
from amb_core.errors import ConfigurationError

__all__ = ["AzureServiceBusBroker"]

#: What the headers of a message may take; the service's own limit for properties.
_HEADER_ROOM = 64 * 1024
#: The service's limit for scheduling is far away; so is this one.
_MAX_DELAY = 365 * 86400.0
_TOPIC = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,258}[A-Za-z0-9])?")
_OURS = {"conn_str", "fully_qualified_namespace", "credential", "connection_verify", "entity_name", "uamqp_transport"}
_OURS |= {"retry_total", "prefetch_count", "socket_timeout"}
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class AzureServiceBusBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Service Bus namespace (Standard or Premium tier), or its emulator.

    ``AzureServiceBusBroker("Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…")``, or with Azure AD
    ``AzureServiceBusBroker(namespace="mine.servicebus.windows.net")``.
    """

    messaging_system: ClassVar[str] = "servicebus"
    #: Endpoint and key, as the portal shows them.
    connection_string: Secret | None = None
    #: The Service Bus topic that carries all AMB topics; several buses are kept apart by several of them.
    topic_name: str = "amb"
    #: The host name of the namespace, to sign in with Azure AD instead of a connection string.
    namespace: str | None = None
    #: What signs in with Azure AD: anything from ``azure.identity.aio``. None: its ``DefaultAzureCredential``, which
    #: needs the extra ``identity``.
    credential: object | None = None
    #: Make the topic, subscriptions and rules that are missing, which needs the right to manage. False: somebody
    #: else has made them, and one that is missing is `NotFound`, with what to make.
    auto_create: bool = True
    #: The topic for dead letters of buses that name none.
    dead_letter_queue: str | None = None
    #: Seconds after which a delivery that is neither settled nor extended is delivered again. The service takes 5 to
    #: 300.
    lock_duration: Annotated[float, msgspec.Meta(ge=1, le=300)] = 60.0
    #: Deliveries after which the service moves a message to the subscription's own dead-letter queue, whatever AMB's
    #: retry policy says. A net below AMB's dead letters: nobody should ever find anything there.
    max_delivery_count: Annotated[int, msgspec.Meta(ge=1)] = 1000
    #: How many sessions the keys of messages are spread over, and so how many members can share an ordered
    #: subscription. The same for every bus on a topic.
    sessions: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8
    #: Seconds in which the service drops a second message with the same id (20 s to 7 days); 0: never. Takes effect
    #: when the topic is made.
    duplicate_detection: Annotated[float, msgspec.Meta(ge=0, le=7 * 86400)] = 0.0
    #: Bytes of a message, headers included: 262144 on the Standard tier, up to 100 MB on Premium.
    max_message_size: Annotated[int, msgspec.Meta(ge=2 * _HEADER_ROOM)] = 256 * 1024
    #: File with the certificates of the authorities that are trusted; default: those of ``certifi``.
    ssl_ca_certs: str | None = None
    #: Host and port of the administration if they are not the namespace's own, as with an emulator.
    management_endpoint: str | None = None
    #: Seconds to connect and authenticate.
    connect_timeout: _Positive = 10.0
    #: Seconds without an answer after which a link counts as dead.
    response_timeout: _Positive = 10.0
    #: Further keyword arguments for azure-servicebus' ``ServiceBusClient``.
    client_options: dict[str, object] = {}

    def __post_init__(self) -> None:
        validate(self)
        if self.connection_string is not None and self.namespace is not None:
            raise ConfigurationError(
                "AzureServiceBusBroker: give connection_string, or namespace to sign in with Azure AD, and not both"
            )
        if self.connection_string is not None:
            _check_connection_string(self.connection_string)
        if self.credential is not None and self.namespace is None:
            raise ConfigurationError(
                "AzureServiceBusBroker: credential goes with namespace, not with a connection string"
            )
        if self.namespace is not None and not re.fullmatch(r"[A-Za-z0-9.-]+", self.namespace):
            raise ConfigurationError(
                "AzureServiceBusBroker: namespace is a host name, like mine.servicebus.windows.net"
            )
        if not _TOPIC.fullmatch(self.topic_name):
            raise ConfigurationError(
                "AzureServiceBusBroker: topic_name is 1 to 260 letters, digits, dots, dashes, underscores and slashes"
            )
        if 0 < self.duplicate_detection < 20:
            raise ConfigurationError("AzureServiceBusBroker: duplicate_detection is 0, or 20 seconds and more")
        if taken := _OURS & self.client_options.keys():
            raise ConfigurationError(
                f"AzureServiceBusBroker: client_options must not hold {', '.join(sorted(taken))}: AMB depends on its "
                "own value"
            )

    def __repr__(self) -> str:
        return masked_repr(self)

    @property
    def capabilities(self) -> Capabilities:
        """What Service Bus can do; some figures come from the options."""
        return Capabilities(
            durable=True,
            confirm="replicated",
            groups=True,
            durable_groups=True,
            redelivery="broker",
            lease=self.lock_duration,
            extend_lease=True,
            delivery_count="native",
            delay="native",
            max_delay=_MAX_DELAY,
            order="key",
            wildcards="native",
            ttl="native",
            dedup=self.duplicate_detection,
            max_message=self.max_message_size - _HEADER_ROOM,
            cloudevents="cloudEvents:",
            elections=True,
        )

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Connect to the namespace; see `amb_core.broker.Broker.connect`."""
        from ._connection import connect

        return connect(self)


def _check_connection_string(text: str) -> None:
    fields = {name.strip().lower(): value for name, _, value in (part.partition("=") for part in text.split(";"))}
    endpoint = fields.get("endpoint", "")
    keyed = fields.get("sharedaccesskeyname") and fields.get("sharedaccesskey")
    if not endpoint.startswith("sb://") or not (keyed or fields.get("sharedaccesssignature")):
        raise ConfigurationError(
            "AzureServiceBusBroker: connection_string must look like "
            "Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…"
        )
    if fields.get("entitypath"):
        raise ConfigurationError(
            "AzureServiceBusBroker: leave EntityPath out of connection_string: topic_name says which topic"
        )
