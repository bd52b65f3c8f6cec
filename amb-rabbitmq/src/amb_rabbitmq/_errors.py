"""Native errors in AMB's words: one table."""

from __future__ import annotations

import asyncio
import ssl

from aiormq import exceptions as native
from amb_core.errors import (
    AccessDenied,
    AmbError,
    AuthenticationError,
    BackpressureError,
    ConfigurationError,
    ConnectionLost,
    MessageTooLarge,
    NotFound,
    PublishUnknown,
    Unavailable,
)

__all__ = ["NATIVE", "translate"]

#: What the client library raises when it talks to a server.
NATIVE = (native.AMQPError, native.ChannelInvalidStateError, OSError, TimeoutError, RuntimeError)

_DENIED = "extend the user's permissions (rabbitmqctl set_permissions, set_topic_permissions)"
_DOWN = "is the server up and reachable?"
_OTHER = "something of that name was made with other settings: delete it, or choose another exchange"

#: What the server says wins over how the client library calls it.
_BY_TEXT: tuple[tuple[str, type[AmbError], str], ...] = (
    ("login was refused", AuthenticationError, "check the user name and password"),
    ("inequivalent arg", ConfigurationError, _OTHER),
    ("larger than configured max size", MessageTooLarge, "raise the server's max_message_size or send less"),
    ("larger than max size", MessageTooLarge, "raise the server's max_message_size or send less"),
)  # fmt: skip

_BY_TYPE: tuple[tuple[type[BaseException], type[AmbError], str], ...] = (
    (native.ProbableAuthenticationError, AuthenticationError, "check the user name and password"),
    (native.AuthenticationError, AuthenticationError, "the server offers no password login (PLAIN)"),
    (native.ChannelAccessRefused, AccessDenied, _DENIED),
    (native.ChannelNotFoundEntity, NotFound, "make it, or let AMB make it (auto_create)"),
    (native.ChannelPreconditionFailed, Unavailable, "the server closed the channel; a new one is opened"),
    (native.ChannelLockedResource, Unavailable, "another connection holds it"),
    (native.DeliveryError, BackpressureError, "the server refused it: a queue is full, or has no leader just now"),
    (native.ConnectionNotAllowed, AccessDenied, _DENIED),
    (native.IncompatibleProtocolError, ConfigurationError, "does the URL name a port that speaks AMQP 0-9-1?"),
    (native.AMQPConnectionError, ConnectionLost, _DOWN),
    (native.AMQPChannelError, Unavailable, "the server closed the channel; a new one is opened"),
    (native.ChannelInvalidStateError, ConnectionLost, _DOWN),
    (ssl.SSLCertVerificationError, ConfigurationError, "check ssl_ca_certs, and the server's certificate"),
    (ssl.SSLError, Unavailable, "does the URL name a port that speaks TLS?"),
    (TimeoutError, ConnectionLost, "the server did not answer in time"),
    (OSError, Unavailable, _DOWN),
    (asyncio.CancelledError, ConnectionLost, _DOWN),
    (RuntimeError, ConnectionLost, _DOWN),
)


def translate(error: BaseException, doing: str, *, unknown: bool = False) -> AmbError:
    """The AMB error for a native one. `doing` says what was tried, and where.

    `unknown`: the message had been written, so a broken link leaves the outcome open."""
    if isinstance(error, AmbError):
        return error
    text = (str(error) or type(error).__name__).rstrip(".")
    kind, advice = _kind(error, text)
    if unknown and issubclass(kind, Unavailable | ConnectionLost):
        made: AmbError = PublishUnknown(f"{doing}: the link broke before the answer came: {text}")
    else:
        made = kind(f"{doing}: {text}; {advice}")
    made.__cause__ = error
    return made


def _kind(error: BaseException, text: str) -> tuple[type[AmbError], str]:
    for words, kind, advice in _BY_TEXT:
        if words in text:
            return kind, advice
    for matched, kind, advice in _BY_TYPE:
        if isinstance(error, matched):
            return kind, advice
    return Unavailable, "it is tried again"
