"""Native errors in AMB's words: two tables, by what the server says and by type."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

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
from nats import errors as native

__all__ = ["NATIVE", "api_error", "translate"]

#: What the client library raises when it talks to a server.
NATIVE = (native.Error, OSError, TimeoutError)

_REACH = "is the server up and reachable?"
_FULL = "the stream is full: let consumers catch up, or raise its limits"

_BY_TEXT: tuple[tuple[str, type[AmbError], str], ...] = (
    ("authorization violation", AuthenticationError, "check user, password, token or NKey"),
    ("authentication", AuthenticationError, "check user, password, token or NKey"),
    ("permissions violation", AccessDenied, "extend the user's permissions on the server"),
    ("maximum payload", MessageTooLarge, "raise the server's max_payload or send less"),
    ("maximum connections", Unavailable, "raise the server's max_connections"),
)

_BY_TYPE: tuple[tuple[type[BaseException], type[AmbError], str], ...] = (
    (native.AuthorizationError, AuthenticationError, "check user, password, token or NKey"),
    (native.MaxPayloadError, MessageTooLarge, "raise the server's max_payload or send less"),
    (native.SecureConnWantedError, ConfigurationError, "the server offers no TLS: write nats://, or turn TLS on there"),
    (native.ConnectionClosedError, ConnectionLost, _REACH),
    (native.StaleConnectionError, ConnectionLost, _REACH),
    (native.ConnectionDrainingError, ConnectionLost, _REACH),
    (ssl.SSLCertVerificationError, ConfigurationError, "check tls_ca and the server's certificate"),
    (ssl.SSLError, Unavailable, "check the certificates"),
    (TimeoutError, Unavailable, _REACH),
    (OSError, Unavailable, _REACH),
)

#: Codes of the JetStream API, as in the server's ``errors.json``.
_BY_CODE: dict[int, tuple[type[AmbError], str]] = {
    10005: (Unavailable, "fewer servers are up than stream_replicas asks for"),
    10014: (NotFound, "the consumer does not exist"),
    10023: (BackpressureError, "the server is out of resources for JetStream"),
    10026: (BackpressureError, "the server has as many consumers as it allows"),
    10028: (BackpressureError, "the account's storage for JetStream is used up"),
    10035: (ConfigurationError, "the account has no JetStream"),
    10037: (NotFound, "the message does not exist"),
    10039: (ConfigurationError, "turn JetStream on for the account, or leave jetstream out"),
    10047: (BackpressureError, "the account's storage for JetStream is used up"),
    10054: (MessageTooLarge, "raise the stream's max_msg_size or send less"),
    10059: (NotFound, "the stream does not exist"),
    10065: (ConfigurationError, "another stream keeps these subjects: name it in stream_name, or set stream_subjects"),
    10074: (ConfigurationError, "stream_replicas needs a cluster of that many servers"),
    10076: (ConfigurationError, "start the server with JetStream (-js), or leave jetstream out"),
    10077: (BackpressureError, _FULL),
    10099: (ConfigurationError, "a work queue takes one consumer per subject: use groups, one for each topic"),
    10100: (ConfigurationError, "a work queue takes one consumer per subject: use groups, one for each topic"),
    10110: (BackpressureError, _FULL),
}


def translate(error: BaseException, doing: str, *, unknown: bool = False) -> AmbError:
    """The AMB error for a native one. `doing` says what was tried, and where.

    `unknown`: the message had been written, so a broken or silent link leaves the outcome open."""
    if isinstance(error, AmbError):
        return error
    silent = isinstance(error, TimeoutError) and not str(error)
    text = "no answer in time" if silent else (str(error) or type(error).__name__).removeprefix("nats: ").rstrip(".")
    kind, advice = _kind(error, text)
    if unknown and issubclass(kind, Unavailable | ConnectionLost):
        return _chain(PublishUnknown(f"{doing}: whether it was accepted is unknown: {text}"), error)
    return _chain(kind(f"{doing}: {text}; {advice}"), error)


def _kind(error: BaseException, text: str) -> tuple[type[AmbError], str]:
    low = text.lower()
    for words, kind, advice in _BY_TEXT:
        if words in low:
            return kind, advice
    for matched, kind, advice in _BY_TYPE:
        if isinstance(error, matched):
            return kind, advice
    return Unavailable, "it is tried again"


def _chain(error: AmbError, cause: BaseException) -> AmbError:
    error.__cause__ = cause
    return error


def api_error(error: Mapping[str, object], doing: str) -> AmbError:
    """The AMB error for what the JetStream API answers."""
    code, text = error.get("err_code"), str(error.get("description", "no reason given"))
    if isinstance(code, int) and code in _BY_CODE:
        kind, advice = _BY_CODE[code]
        return kind(f"{doing}: {text} ({code}); {advice}")
    if error.get("code") == 400:
        return ConfigurationError(f"{doing}: {text} ({code})")
    return Unavailable(f"{doing}: {text} ({code})")
